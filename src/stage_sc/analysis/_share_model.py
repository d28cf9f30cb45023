"""Shares of cells by sample: a weighted logistic model of many niches at once, without any test."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, xlogy

FARTHEST = 25.0  # log odds of a share of 1e-11
LONGEST_STEP = 3.0
ROUNDS = 40


class Shares(NamedTuple):
    """Counts of several niches, all in the same samples."""

    cells: np.ndarray
    """``(n_niches, n_samples)`` float64 cells of each niche."""
    totals: np.ndarray
    """``(n_niches, n_samples)`` float64 cells that could be of the niche: those of its parent."""
    offset: np.ndarray
    """``(n_niches, n_samples)`` float64 log odds that are expected already; 0 where nothing is."""

    def rows(self, which: np.ndarray) -> Shares:
        """Select niches."""
        return Shares(self.cells[which], self.totals[which], self.offset[which])


class Fit(NamedTuple):
    """Maximum of the weighted likelihood."""

    coefficients: np.ndarray
    """``(n_niches, n_columns)`` float64 of the design."""
    fitted: np.ndarray
    """``(n_niches, n_samples)`` float64 shares."""


def fit_shares(shares: Shares, weights: np.ndarray, design: np.ndarray, start: np.ndarray | None = None) -> Fit:
    """Fit a logistic regression of every niche by iteratively reweighted least squares.

    `weights` is ``(n_niches, n_samples)``, `design` ``(n_samples, n_columns)``, `start` coefficients to begin at. A
    niche that is absent from a condition gets a large finite coefficient.
    """
    cells, totals, offset = shares
    pooled = (cells.sum(axis=1, keepdims=True) + 0.5) / (totals.sum(axis=1, keepdims=True) + 1)
    observed = np.log((cells + pooled) / (totals - cells + 1 - pooled))
    coefficients, ridge = (observed - offset) @ np.linalg.pinv(design).T, np.eye(design.shape[1])
    if start is not None:  # unless it is where nothing moves
        steady = np.abs(start @ design.T + offset).max(axis=1, keepdims=True) < FARTHEST / 2
        coefficients = np.where(steady, start, coefficients)
    predictor = coefficients @ design.T + offset
    for _ in range(ROUNDS):
        share = expit(predictor)
        information = np.maximum(weights * totals * share * (1 - share), 1e-10 * (totals > 0))
        square = np.einsum("ks,sa,sb->kab", information, design, design)
        scale = np.trace(square, axis1=1, axis2=2)[:, None, None]
        score = (weights * (cells - totals * share)) @ design
        step = np.linalg.solve(square + 1e-9 * scale * ridge, score[..., None])[..., 0]
        largest = np.abs(step @ design.T).max(axis=1, keepdims=True)
        step *= np.minimum(1, LONGEST_STEP / np.maximum(largest, 1e-300))
        inside = np.abs(coefficients @ design.T + offset).max(axis=1, keepdims=True) < FARTHEST
        coefficients += step * inside
        predictor = coefficients @ design.T + offset
        if np.abs(step * inside).max(initial=0) < 1e-6:
            break
    return Fit(coefficients, expit(predictor))


def deviance(shares: Shares, weights: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Weighted binomial deviance of every niche, ``(n_niches,)``."""
    cells, totals = shares.cells, shares.totals
    others, tiny = totals - cells, 1e-300
    present = xlogy(cells, cells / np.maximum(totals * fitted, tiny) + (cells == 0))
    absent = xlogy(others, others / np.maximum(totals * (1 - fitted), tiny) + (others == 0))
    return 2 * np.sum(weights * (present + absent), axis=1)


def dispersion(shares: Shares, weights: np.ndarray, fitted: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Pearson's statistic over its degrees of freedom, ``(n_niches,)``."""
    variance = np.maximum(shares.totals * fitted * (1 - fitted), 1e-10)
    residual = weights * (shares.cells - shares.totals * fitted) ** 2 / variance
    return residual.sum(axis=1) / freedom


def correlation_of_cells(shares: Shares, design: np.ndarray, freedom: np.ndarray) -> float:
    """Median over niches of the correlation of the cells of a sample.

    For each niche, that with which Pearson's statistic of the beta-binomial variance is its degrees of freedom.
    """
    correlation = np.full(len(shares.cells), 0.02)
    for _ in range(12):
        weights = sample_weights(shares.totals, correlation[:, None])
        ratio = dispersion(shares, weights, fit_shares(shares, weights, design).fitted, freedom)
        correlation = np.clip(correlation * np.clip(ratio, 0.2, 5) ** 0.8, 1e-6, 0.5)
    return float(np.exp(np.median(np.log(correlation))))


def sample_weights(totals: np.ndarray, correlation: np.ndarray | float) -> np.ndarray:
    """Inverse of the variance of a beta-binomial count over that of a binomial one; 0 for samples without cells."""
    return (totals > 0) / (1 + np.maximum(totals - 1, 0) * correlation)
