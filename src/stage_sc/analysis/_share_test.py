"""Test of shares between conditions: over-dispersion of every niche, moderated over niches."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import digamma, expit, polygamma
from scipy.stats import f as f_distribution

from stage_sc.analysis._share_model import (
    Fit,
    Shares,
    correlation_of_cells,
    deviance,
    dispersion,
    fit_shares,
    sample_weights,
)

MOST_PRIOR = 4.0  # degrees of freedom that a niche borrows from the others
FARTHEST = 15.0  # log odds; bounds beyond are infinite


class ShareTest(NamedTuple):
    """Results of every niche, ``(n_niches,)`` float64, NaN where nothing could be estimated."""

    p_value: np.ndarray
    log2_fold: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def compare_shares(
    shares: Shares, design: np.ndarray, column: int, groups: np.ndarray, *, confidence: float = 0.95
) -> ShareTest:
    r"""Compare shares over samples along one column of a design.

    `groups` is ``(n_samples,)``: 1 for samples of the condition, 0 for those of the reference, -1 for others. Niches
    need two samples with cells of their parent in both, and a residual degree of freedom.

    Notes
    -----
    The cells :math:`y_{cs}` of niche c among the :math:`n_{cs}` of its parent in sample s have mean
    :math:`n_{cs}\pi_{cs}` and variance :math:`\phi_c n\pi(1-\pi)(1+(n-1)\rho)`, with one correlation
    :math:`\rho` of the cells of a sample, and a logistic model of :math:`\pi`. The dispersion :math:`\phi_c`, with d
    degrees of freedom, is moderated with :math:`d_0` more from all niches, :math:`\tilde\phi_c=(d_0 s_0^2 +
    d\phi_c)/(d_0+d)` (Smyth, 2004). The statistic is the difference of deviance over :math:`\tilde\phi_c`, an F with
    1 and :math:`d_0+d` degrees of freedom (Lund et al., 2012).
    """
    estimable, freedom = _estimable(shares.totals, design, groups)
    result = np.full((4, len(estimable)), np.nan)
    if not estimable.any():
        return ShareTest(*result)
    shares, freedom = shares.rows(estimable), freedom[estimable]
    correlation = correlation_of_cells(shares, design, freedom)
    weights = sample_weights(shares.totals, correlation)
    full = fit_shares(shares, weights, design)
    spread = dispersion(shares, weights, full.fitted, freedom)
    moderated, prior = moderate(spread, freedom)
    # No sample varies less than cells that are drawn one by one.
    size = shares.totals.sum(axis=1) / (shares.totals > 0).sum(axis=1)
    moderated = np.maximum(moderated, 1 / (1 + (size - 1) * correlation))
    least = deviance(shares, weights, full.fitted)
    null = fit_shares(shares, weights, np.delete(design, column, axis=1))
    rise = np.maximum(deviance(shares, weights, null.fitted) - least, 0)
    p_value = f_distribution.sf(rise / moderated, 1, freedom + prior)
    limit = moderated * f_distribution.ppf(confidence, 1, freedom + prior)
    fold = _Fold(shares, design, column, groups)
    bounds = [_bound(shares, weights, fold, full, least + limit, side) for side in (-1.0, 1.0)]
    result[:, estimable] = p_value, fold.estimate(full), *bounds
    return ShareTest(*result)


def moderate(spread: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, float]:
    """Moderate dispersions by those of all niches; also the degrees of freedom of the prior.

    The prior is the scaled inverse chi-squared distribution of Smyth (2004), by moments of the logarithm. Half of the
    estimated degrees of freedom are used, at most 4: siblings are not independent, and dispersions of rare niches vary
    less than chi-squared. Fewer than three niches are left as they are.
    """
    if len(spread) < 3:
        return spread, 0.0
    spread = np.maximum(spread, 1e-5 * np.median(spread) + 1e-300)
    log = np.log(spread) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = log.var(ddof=1) - polygamma(1, freedom / 2).mean()
    prior = min(_trigamma_inverse(max(excess, 1e-3)), MOST_PRIOR)  # half of 2 * inverse
    scale = np.exp(log.mean() + digamma(prior / 2) - np.log(prior / 2))
    return (prior * scale + freedom * spread) / (prior + freedom), prior


def _trigamma_inverse(value: float) -> float:
    """Solve trigamma(x) = value by Newton's method, monotone from below (Smyth, 2004)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = polygamma(1, x)
        step = float(trigamma * (1 - trigamma / value) / polygamma(2, x))
        x += step
        if -step < 1e-8 * x:
            break
    return x


def _estimable(totals: np.ndarray, design: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Niches that can be tested, and residual degrees of freedom of each."""
    present = totals > 0
    estimable = np.zeros(len(totals), dtype=bool)
    freedom = np.zeros(len(totals))
    for pattern in np.unique(present, axis=0):
        same = (present == pattern).all(axis=1)
        rank = np.linalg.matrix_rank(design[pattern]) if pattern.any() else 0
        enough = min((pattern & (groups == group)).sum() for group in (0, 1)) >= 2
        freedom[same] = pattern.sum() - rank
        estimable[same] = enough and rank == design.shape[1] and pattern.sum() > rank
    return estimable, freedom


class _Fold:
    """log2 folds of the shares of condition and reference, for the mean sample of both."""

    def __init__(self, shares: Shares, design: np.ndarray, column: int, groups: np.ndarray) -> None:
        self.rest, self.values = np.delete(design, column, axis=1), design[:, column]
        self.column, self.offset = column, shares.offset
        self.involved = (shares.totals > 0) & (groups >= 0)
        self.half_cell = [0.5 / np.maximum(shares.totals[:, groups == group].sum(axis=1), 1) for group in (0, 1)]

    def at(self, rest: np.ndarray, change: np.ndarray, least: tuple[Any, Any] = (0.0, 0.0)) -> np.ndarray:
        """log2 fold for coefficients of the other columns and a change of log odds; shares are at least `least`."""
        predictor = (rest @ self.rest.T + self.offset) * self.involved
        base = predictor.sum(axis=1) / self.involved.sum(axis=1)
        before, after = np.maximum(expit(base), least[0]), np.maximum(expit(base + change), least[1])
        return np.log2(np.maximum(after, 1e-12) / np.maximum(before, 1e-12))

    def estimate(self, full: Fit) -> np.ndarray:
        """log2 fold of a fit; without any cell in one of both, that of half a cell there."""
        rest = np.delete(full.coefficients, self.column, axis=1)
        return self.at(rest, full.coefficients[:, self.column], (self.half_cell[0], self.half_cell[1]))


def _bound(shares: Shares, weights: np.ndarray, fold: _Fold, full: Fit, limit: np.ndarray, side: float) -> np.ndarray:
    """log2 fold on one side of the estimate where the profile deviance is `limit`; infinite where it is nowhere.

    Bisection of all niches together.
    """

    def profile(change: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fixed = Shares(shares.cells, shares.totals, shares.offset + change[:, None] * fold.values)
        fit = fit_shares(fixed, weights, fold.rest, start)
        return deviance(shares, weights, fit.fitted) < limit, fit.coefficients

    near = np.clip(full.coefficients[:, fold.column], -FARTHEST, FARTHEST)
    far = near + side * FARTHEST
    rest = np.delete(full.coefficients, fold.column, axis=1)
    endless = profile(far, rest)[0]
    for _ in range(20):
        middle = (near + far) / 2
        within, rest = profile(middle, rest)
        near, far = np.where(within, middle, near), np.where(within, far, middle)
    _, rest = profile(far, rest)
    endless |= np.abs(far) > FARTHEST
    return np.where(endless, side * np.inf, fold.at(rest, far))
