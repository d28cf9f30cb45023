"""Domains: a given number of clusters of the contexts of cells."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, pairwise_distances_argmin_min
from torch import Tensor

from stage_sc._compute import one_thread
from stage_sc.nn import StageConfig, covariance, leaf_order, orthonormal_basis, weighted_ward
from stage_sc.slides import mix

logger = logging.getLogger("stage_sc.tl")

# Number of cells compared with all centres at a time.
BLOCK = 8192
# Minimum variance of a component, as a fraction of the largest.
EMPTY = 1e-6
# Minimum difference of the criterion between two solutions.
SAME = 1e-4
# Maximum number of rounds of a refinement.
MAX_ROUNDS = 200
# Factors on the shrinkage ρ of the configuration.
SHRINKAGES = (0.4, 1.0, 2.0, 4.0)
# Number of different cells below which no part is drawn.
FEW = 50


class Domains(NamedTuple):
    """Centres of domains in a metric; a cell belongs to the nearest centre."""

    metric: Tensor
    """``(d, r)`` float32 linear map of contexts, of which r components vary."""
    centres: Tensor
    """``(m, r)`` float32 mapped mean context of every domain, in the order of a hierarchy (similar ones adjacent)."""

    def nearest(self, context: Tensor) -> Tensor:
        """``(n,)`` int64 domain of every cell, from its ``(n, d)`` context."""
        exact = partial(torch.cdist, x2=self.centres, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.cat([exact(block @ self.metric).argmin(dim=1) for block in context.split(BLOCK)])


def find_domains(sample: Tensor, n_domains: int, config: StageConfig) -> Domains:
    r"""Cluster contexts so that the determinant of their covariance within domains is minimal, by agreement.

    With W the covariance within domains of the r components that vary, the criterion is

    .. math:: \log\det W_\rho, \quad W_\rho = (1 - \rho) W + \rho\, \tfrac{\mathrm{tr}\, W}{r} I

    (Friedman and Rubin, 1967, for :math:`\rho = 0`, the mixture model "EEE" with hard assignments; K-means for
    :math:`\rho = 1`). Of the solutions of all K-means runs the best different ones are refined: every cell moves to
    the nearest centre in the metric of the criterion's gradient,

    .. math:: A = (1 - \rho) W_\rho^{-1} + \rho\, \tfrac{\mathrm{tr}\, W_\rho^{-1}}{r} I,

    centres and covariance follow, until no cell moves. The criterion is concave in W, so no step increases it.

    This is done for several ρ on several random parts of the sample. All cells are assigned by each solution, and the
    solution with the highest mean adjusted Rand index with the others is taken: many partitions fit alike, and the
    one in the middle depends least on ρ and on the cells drawn. It is refined on the whole sample.

    `sample` is ``(n, d)`` float32; where fewer than `n_domains` cells differ, as many domains are found, and a warning
    is logged.
    """
    axes = _axes_that_vary(sample)
    part = (sample.double() @ axes).float().numpy()
    distinct = len(np.unique(part, axis=0))
    if distinct < n_domains:
        logger.warning("%d domains were asked for, but only %d cells differ.", n_domains, distinct)
        n_domains = distinct
    with one_thread():  # sums in one order on every machine
        shrinkages = [min(factor * config.domain_shrinkage, 1.0) for factor in SHRINKAGES]
        solutions = [
            solution
            for cells in _parts(part, n_domains, config.domain_samples)
            for solution in _solutions(cells, n_domains, list(dict.fromkeys(shrinkages)), config)
        ]
        most = max(len(solution.centres) for solution in solutions)  # fewer where cells differ by rounding alone
        if most < n_domains:
            logger.warning("%d domains were asked for, but cells differ enough for %d only.", n_domains, most)
        solutions = [solution for solution in solutions if len(solution.centres) == most]
        partitions = [solution.assign(part) for solution in solutions]
        middle = _medoid(partitions)
        whole = Moments.of(part)
        start = Solution.of(whole, _without_gaps(partitions[middle]), solutions[middle].shrinkage)
        best = _refine(whole, start)
        most = len(best.centres)
    metric = best.metric()
    size = np.bincount(best.domain)
    # By the first component, which does not depend on the numbers of K-means.
    order = np.argsort((best.centres @ axes.numpy().T)[:, 0], kind="stable")
    centres, size = (best.centres @ metric)[order], size[order]
    if most > 2:
        centres = centres[leaf_order(weighted_ward(centres, size))]
    return Domains((axes @ torch.from_numpy(metric)).float(), torch.from_numpy(centres).float())


def _axes_that_vary(sample: Tensor) -> Tensor:
    """Orthonormal axes of the directions along which a sample differs, ``(d, r)`` float64.

    Contexts have fewer directions than components: the criterion counts the directions. Their variances may be equal,
    so the axes are those of the components (`orthonormal_basis`), not principal ones.
    """
    values, axes = torch.linalg.eigh(covariance(sample))
    axes = axes[:, values >= EMPTY * values[-1]]
    return orthonormal_basis(axes @ axes.T)


def _parts(cells: np.ndarray, n_domains: int, number: int) -> list[np.ndarray]:
    """Random parts of the cells, each of four fifths; all cells where these are few, or for one part."""
    if number == 1:
        return [cells]
    keys = _keys(cells)
    drawn = [cells[mix(keys + np.uint64(part)) >= np.uint64(2**64 // 5)] for part in range(number)]
    return [part if len(np.unique(part, axis=0)) >= max(n_domains, FEW) else cells for part in drawn]


def _solutions(part: np.ndarray, n_domains: int, shrinkages: list[float], config: StageConfig) -> list[Solution]:
    """Refined solution with the lowest criterion for every shrinkage."""
    moments = Moments.of(part)
    runs = _kmeans(part, n_domains, -(-config.domain_starts // config.domain_samples))
    most = max(int(domain.max()) + 1 for domain in runs)
    found = [Solution.of(moments, domain, 0.0) for domain in runs if domain.max() + 1 == most]
    best = []
    for shrinkage in shrinkages:
        starts = [solution._replace(shrinkage=shrinkage) for solution in found]
        starts = _different(sorted(starts, key=Solution.criterion))[: config.domain_refined]
        refined = [_refine(moments, start) for start in starts]
        lowest = min(solution.criterion() for solution in refined)
        best.append(next(solution for solution in refined if solution.criterion() <= lowest + SAME))
    return best


def _medoid(partitions: list[np.ndarray]) -> int:
    """Position of the partition that agrees best with all others."""
    agreement = np.eye(len(partitions))
    for one, other in combinations(range(len(partitions)), 2):
        agreement[one, other] = agreement[other, one] = adjusted_rand_score(partitions[one], partitions[other])
    mean = agreement.mean(axis=1)
    return int(np.argmax(mean >= mean.max() - SAME))


def _kmeans(cells: np.ndarray, n_domains: int, n_starts: int) -> list[np.ndarray]:
    """Labels of all runs, numbered without gaps."""
    keys = _keys(cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer clusters: `find_domains` warns once
        starts = [cells[_seeds(cells, keys, n_domains, run)] for run in range(n_starts if n_domains > 1 else 1)]
        runs = (KMeans(n_domains, init=start, n_init=1) for start in starts)
        return [_without_gaps(run.fit_predict(cells)) for run in runs]


def _without_gaps(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_inverse=True)[1]


def _keys(cells: np.ndarray) -> np.ndarray:
    """``(n,)`` uint64 hash of every cell's first components, rounded, so that the last bits do not matter."""
    leading = cells[:, :4] / max(float(cells.std()), 1e-12)
    rounded = np.round(leading.astype(np.float64) * 32).astype(np.int64).view(np.uint64)
    key = np.zeros(len(cells), np.uint64)
    for column in rounded.T:
        key = mix(key + column)
    return key


def _seeds(cells: np.ndarray, keys: np.ndarray, n_domains: int, run: int) -> list[int]:
    """Cells at which a run of K-means starts: K-means++ (Arthur and Vassilvitskii, 2007), by the Gumbel-max trick.

    The random number of a cell depends on its key and the run, not on its position or on sums over cells: rounding
    errors do not change the cells that are drawn.
    """
    seeds: list[int] = []
    weight = np.ones(len(cells))
    for step in range(n_domains):
        uniform = (mix(keys + np.uint64(1 + step + n_domains * run)) >> np.uint64(11)) * 2.0**-53
        with np.errstate(divide="ignore"):
            seeds.append(int(np.argmax(np.log(weight) - np.log(-np.log(uniform + 2.0**-54)))))
        distance = np.square(cells - cells[seeds[-1]]).sum(axis=1, dtype=np.float64)
        weight = distance if step == 0 else np.minimum(weight, distance)
    return seeds


class Moments(NamedTuple):
    """A sample of cells, and the moments that the covariances of its partitions have in common."""

    cells: np.ndarray
    """``(n, r)`` float64."""
    second: np.ndarray
    """``(r, r)`` mean product of two components."""
    ridge: float

    @classmethod
    def of(cls, sample: np.ndarray) -> Moments:
        cells = sample.astype(np.float64)
        return cls(cells, cells.T @ cells / len(cells), max(1e-6 * cells.var(axis=0).mean(), 1e-12))


class Solution(NamedTuple):
    """A partition of a sample of cells, with its centres and covariance."""

    domain: np.ndarray
    centres: np.ndarray
    within: np.ndarray
    """``(r, r)`` covariance around the centres, with a small ridge."""
    shrinkage: float

    @classmethod
    def of(cls, moments: Moments, domain: np.ndarray, shrinkage: float) -> Solution:
        """Compute centres and covariance of domains without gaps in their numbers."""
        cells = moments.cells
        members = csr_array((np.ones(len(cells)), domain, np.arange(len(cells) + 1)))
        size = np.bincount(domain)
        centres = (members.T @ cells) / size[:, None]
        between = (centres.T * size) @ centres / len(cells)
        return cls(domain, centres, moments.second - between + moments.ridge * np.eye(cells.shape[1]), shrinkage)

    def criterion(self) -> float:
        """Logarithm of the determinant of the shrunk covariance."""
        return float(np.linalg.slogdet(_shrink(self.within, self.shrinkage))[1])

    def assign(self, cells: np.ndarray) -> np.ndarray:
        """Nearest centre of every cell in the metric of the criterion's gradient."""
        metric = self.metric()
        return pairwise_distances_argmin_min(cells @ metric, self.centres @ metric)[0]

    def metric(self) -> np.ndarray:
        """Root of A: a linear map after which Euclidean distances are those of the criterion's gradient."""
        inverse = np.linalg.inv(_shrink(self.within, self.shrinkage))
        root: np.ndarray = np.linalg.cholesky(_shrink(inverse, self.shrinkage))
        return root


def _shrink(matrix: np.ndarray, shrinkage: float) -> np.ndarray:
    """Weighted mean of a matrix and of the sphere with the same trace."""
    mixed: np.ndarray = (1 - shrinkage) * matrix + shrinkage * matrix.trace() / len(matrix) * np.eye(len(matrix))
    return mixed


def _different(solutions: list[Solution]) -> list[Solution]:
    """Solutions of a sorted list that differ in the criterion, the first of each kind."""
    kept = solutions[:1]
    for solution in solutions:
        if solution.criterion() > kept[-1].criterion() + SAME:
            kept.append(solution)
    return kept


def _refine(moments: Moments, solution: Solution) -> Solution:
    """Move cells to the nearest centre in the metric of the criterion until none moves.

    A domain that would lose its last cell gets the cell that is farthest from its centre.
    """
    for _ in range(MAX_ROUNDS):
        metric = solution.metric()
        domain, distance = pairwise_distances_argmin_min(moments.cells @ metric, solution.centres @ metric)
        for lost in np.setdiff1d(solution.domain, domain):
            movable = np.bincount(domain)[domain] > 1  # not the last cell of its domain
            domain[np.argmax(np.where(movable, distance, -1))] = lost
        if (domain == solution.domain).all():
            break
        solution = Solution.of(moments, domain, solution.shrinkage)
    return solution
