"""Exactly as many domains as asked for, from what surrounds the cells."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin_min
from threadpoolctl import threadpool_limits
from torch import Tensor

from stage_sc.data._draw import draw
from stage_sc.model._linkage import leaf_order, weighted_ward

logger = logging.getLogger("stage_sc.tl")

# Cells that are compared with all centres at a time.
BLOCK = 8192
# Domains are found on a sample of so many cells, and K-means begins so many times.
SAMPLE = 10_000
STARTS = 99
# Components that vary by less than this share of what the one that varies most does are empty.
EMPTY = 1e-6
# Weight of the sphere in the covariance within domains: 1 is K-means, 0 a covariance that is free.
SPHERE = 0.25
# So many of the best go on in the metric of the criterion, so many rounds at most.
FINALISTS = 5
# Solutions whose criterion differs by less are the same.
SAME = 1e-4
MAX_ROUNDS = 200


class Domains(NamedTuple):
    """Where the domains are among the contents of cells."""

    metric: Tensor
    """``(d, r)`` float32: after it, a cell is in the domain whose centre is nearest. r components of contents vary."""
    centres: Tensor
    """``(m, r)`` float32, mean content of every domain after the metric; those that are alike are side by side."""

    def nearest(self, content: Tensor) -> Tensor:
        """``(n,)`` int64 domain whose centre is nearest, for every cell."""
        exact = partial(torch.cdist, x2=self.centres, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.cat([exact(block @ self.metric).argmin(dim=1) for block in content.split(BLOCK)])


def cut_domains(content: Tensor, n_domains: int) -> np.ndarray:
    r"""Cluster what surrounds the cells.

    The domains are between those of K-means and of a mixture of Gaussians with a common covariance, and are fitted to a
    sample of 10,000 cells (see `find_domains`).

    Parameters
    ----------
    content
        ``(n, d)`` mean embedded expression around every cell.
    n_domains
        Domains wanted.

    Returns
    -------
    ``(n,)`` int64 domain of every cell, in the order of a hierarchy: domains that are alike have near numbers. There
    are fewer than `n_domains` only where fewer cells differ.
    """
    return find_domains(draw(content, len(content), SAMPLE), n_domains).nearest(content).numpy()


def find_domains(sample: Tensor, n_domains: int) -> Domains:
    r"""Cluster the contents of cells so that the determinant of their covariance within domains is least.

    With W the covariance within domains of the r components that vary at all, what is made least is

    .. math:: \log\det W_\rho, \quad W_\rho = (1 - \rho) W + \rho\, \tfrac{\mathrm{tr}\, W}{r} I, \quad \rho = 0.25

    (criterion of Friedman and Rubin, 1967, for :math:`\rho = 0`, the mixture model "EEE" with hard assignments; K-means
    for :math:`\rho = 1`). K-means starts 99 times, and the five best of its solutions that differ go on: every cell
    goes to the centre that is nearest in the metric of the criterion's gradient,

    .. math:: A = (1 - \rho) W_\rho^{-1} + \rho\, \tfrac{\mathrm{tr}\, W_\rho^{-1}}{r} I,

    centres and covariance follow, until no cell moves. The criterion is concave in W, so no step makes it greater. The
    best in the end is taken.
    """
    spread = sample.double().var(dim=0, correction=0)
    varies = spread >= EMPTY * spread.max()
    part = sample[:, varies].numpy()
    cells = part.astype(np.float64)
    distinct = len(np.unique(part, axis=0))
    if distinct < n_domains:
        logger.warning("%d domains were asked for, but only %d cells differ.", n_domains, distinct)
        n_domains = distinct
    with threadpool_limits(1):  # sums in one order, whatever the machine
        groups = [np.unique(fit.labels_, return_inverse=True)[1] for fit in _kmeans(part, n_domains)]
        most = max(int(group.max()) + 1 for group in groups)  # fewer where cells differ by rounding alone
        if most < n_domains:
            logger.warning("%d domains were asked for, but cells differ enough for %d only.", n_domains, most)
        whole = [group for group in groups if group.max() + 1 == most]
        solutions = sorted((_Solution.of(cells, group) for group in whole), key=_Solution.criterion)
        best = min((_descend(cells, start) for start in _different(solutions)), key=_Solution.criterion)
    metric = best.metric()
    centres = best.centres @ metric
    if most > 2:
        centres = centres[leaf_order(weighted_ward(centres, np.bincount(best.domain)))]
    padded = torch.zeros(len(varies), metric.shape[1])
    padded[varies] = torch.from_numpy(metric).float()
    return Domains(padded, torch.from_numpy(centres).float())


def _kmeans(cells: np.ndarray, n_domains: int) -> list[KMeans]:
    starts = STARTS if n_domains > 1 else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer clusters: `find_domains` says so, once
        return [KMeans(n_domains, n_init=1, random_state=seed).fit(cells) for seed in range(starts)]


class _Solution(NamedTuple):
    """Domain of every cell of a sample, and what follows from it."""

    domain: np.ndarray
    centres: np.ndarray
    within: np.ndarray
    """``(d, d)`` covariance around the centres, with a little of the whole variance in every direction."""

    @classmethod
    def of(cls, cells: np.ndarray, domain: np.ndarray) -> _Solution:
        """Centres and covariance of domains that all have cells."""
        total = np.stack([np.bincount(domain, column) for column in cells.T], axis=1)
        centres = total / np.bincount(domain)[:, None]
        apart = cells - centres[domain]
        ridge = max(1e-6 * cells.var(axis=0).mean(), 1e-12)
        return cls(domain, centres, apart.T @ apart / len(cells) + ridge * np.eye(cells.shape[1]))

    def pulled(self) -> np.ndarray:
        """Covariance, drawn to a sphere."""
        return _to_sphere(self.within)

    def criterion(self) -> float:
        """Logarithm of the determinant of this covariance."""
        return float(np.linalg.slogdet(self.pulled())[1])

    def metric(self) -> np.ndarray:
        """Map after which distances are those of the gradient of the criterion."""
        found: np.ndarray = np.linalg.cholesky(_to_sphere(np.linalg.inv(self.pulled())))
        return found


def _to_sphere(matrix: np.ndarray) -> np.ndarray:
    """Mean of a matrix and of the sphere of the same trace."""
    mixed: np.ndarray = (1 - SPHERE) * matrix + SPHERE * matrix.trace() / len(matrix) * np.eye(len(matrix))
    return mixed


def _different(solutions: list[_Solution]) -> list[_Solution]:
    """Return the first of a sorted list that differ in the criterion."""
    kept = solutions[:1]
    for solution in solutions:
        if solution.criterion() > kept[-1].criterion() + SAME:
            kept.append(solution)
    return kept[:FINALISTS]


def _descend(cells: np.ndarray, solution: _Solution) -> _Solution:
    """Move cells to the nearest centre in the metric of the criterion until none moves.

    A domain that would lose its last cell gets the cell that is farthest from its centre.
    """
    for _ in range(MAX_ROUNDS):
        metric = solution.metric()
        domain, distance = pairwise_distances_argmin_min(cells @ metric, solution.centres @ metric)
        for lost in np.setdiff1d(solution.domain, domain):
            others = np.bincount(domain)[domain] > 1  # cells that are not the last of theirs
            domain[np.argmax(np.where(others, distance, -1))] = lost
        if (domain == solution.domain).all():
            break
        solution = _Solution.of(cells, domain)
    return solution
