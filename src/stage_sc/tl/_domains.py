"""Exactly as many domains as asked for, from what surrounds the cells and from the leaves that they are in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from stage_sc.data._canonical import mix
from stage_sc.model._linkage import cut, leaf_order, weighted_ward

logger = logging.getLogger("stage_sc.tl")

# Cells that are compared with all leaves at a time.
BLOCK = 8192
# K-means looks at a sample of so many cells, and begins so many times besides the beginning from the leaves.
SAMPLE = 10_000
STARTS = 99
# Solutions whose sums of squares differ by less than this share are equally good for K-means.
TIED = 0.01


class Sums(NamedTuple):
    """What joining leaves needs to know of the cells: sums, which add up over slides."""

    n_cells: Tensor
    """``(K,)`` float64, cells in each leaf."""
    total: Tensor
    """``(K, d)`` float64, sum of their content."""


class Tally(NamedTuple):
    """What is known of domains once every cell is with its nearest centre: sums, which add up over slides."""

    cells: Tensor
    """``(K, m)`` float64, cells of each leaf in each domain."""
    scatter: Tensor
    """``(d, d)`` float64, products of the differences between cells and the centres of their domains."""


def cut_domains(h: Tensor, leaves: Tensor, content: Tensor, n_domains: int, temperature: float = 0.1) -> np.ndarray:
    r"""Cluster what surrounds the cells, starting from the leaves, and let content and leaves decide for every cell.

    Leaves are joined by Ward linkage of the mean content of their cells. K-means of the contents of single cells begins
    there, and 99 times elsewhere. Of the solutions whose sum of squares is within 1 % of the lowest, that with the
    least determinant of the covariance within domains is taken (Friedman and Rubin, 1967). With the shares
    :math:`q_{km}` of the domains m in the cells of leaf k, a cell with content x and embedding h is in the domain that
    is greatest in

    .. math:: \log \sum_k \mathrm{softmax}_k(h^\top c_k / \tau) \, q_{km} - \frac{\lVert x - \mu_m \rVert^2}{2 s^2}

    Parameters
    ----------
    h
        ``(n, dim)`` embeddings of length 1.
    leaves
        ``(K, dim)`` leaf prototypes of length 1. Those that are nearest to no cell are left out.
    content
        ``(n, d)`` mean embedded expression around every cell.
    n_domains
        Domains wanted.
    temperature
        τ.

    Returns
    -------
    ``(n,)`` int64 domain of every cell, in the order of a hierarchy: domains that are alike have near numbers. There
    are fewer than `n_domains` only where fewer cells differ.

    Notes
    -----
    :math:`s^2` is the variance of content around the centres along one of its effective directions, whose number is
    :math:`(\sum \lambda)^2 / \sum \lambda^2` with the eigenvalues of that covariance.
    """
    used, leaf = nearest_leaf(h, leaves).unique(return_inverse=True)
    leaves = leaves[used]
    centres = find_centres(draw(content, len(content)), leaf_sums(leaf, content, len(used)), n_domains)
    found = tally(leaf, content, centres, len(used))
    domain = decide(h, leaves, content, centres, found, temperature)
    if len(np.unique(domain)) < len(centres):  # a domain whose cells all have the leaves of others
        domain = nearest(content, centres).numpy()
    return domain


def nearest_leaf(h: Tensor, leaves: Tensor) -> Tensor:
    """``(n,)`` int64 leaf that every cell is nearest to."""
    return torch.cat([(block @ leaves.T).argmax(dim=1) for block in h.split(BLOCK)])


def leaf_sums(leaf: Tensor, content: Tensor, n_leaves: int) -> Sums:
    """Add up over cells what is known of every leaf."""
    total = torch.zeros(n_leaves, content.shape[1], dtype=torch.float64)
    return Sums(torch.bincount(leaf, minlength=n_leaves).double(), total.index_add_(0, leaf, content.double()))


def draw(content: Tensor, n_cells: int, size: int = SAMPLE) -> Tensor:
    """Contents of about `size` of `n_cells` cells; those of a part, if `content` is a part of them.

    Whether a cell is drawn depends on its content alone: parts give the cells that the whole gives, in any order. Of
    every part one cell is drawn at least.
    """
    if n_cells > size:
        first = np.round(content[:, :2].numpy().astype(np.float64) * 1024).astype(np.int64).view(np.uint64)
        number = mix(first[:, 0] + mix(first[:, -1]))
        content = content[torch.from_numpy(number <= max(int(size / n_cells * 2**64), int(number.min())))]
    return in_order(content)


def in_order(content: Tensor) -> Tensor:
    """Sort cells by their content."""
    return content[torch.from_numpy(np.lexsort(content.numpy()[:, :2].T))]


def find_centres(sample: Tensor, sums: Sums, n_domains: int) -> Tensor:
    """``(m, d)`` mean content of every domain, those that are alike side by side."""
    cells = sample.numpy()
    distinct = len(np.unique(cells, axis=0))
    if distinct < n_domains:
        logger.warning("%d domains were asked for, but only %d cells differ.", n_domains, distinct)
        n_domains = distinct
    starts: list[np.ndarray | None] = [None]
    if 1 < n_domains <= len(sums.n_cells):
        starts.append(_start(sums, n_domains))
    with threadpool_limits(1):  # sums in one order, whatever the machine
        fits = [fit for start in starts for fit in _kmeans(cells, n_domains, start)]
        lowest = min(fit.inertia_ for fit in fits)
        tied = [fit for fit in fits if fit.inertia_ <= (1 + TIED) * lowest]
        best = min(tied, key=lambda fit: _log_determinant(cells, fit))
    centres = best.cluster_centers_
    if n_domains > 2:
        centres = centres[leaf_order(weighted_ward(centres, np.bincount(best.labels_, minlength=n_domains)))]
    return torch.from_numpy(centres)


def tally(leaf: Tensor, content: Tensor, centres: Tensor, n_leaves: int) -> Tally:
    """Put every cell into the domain with the nearest centre, and add up what is known of domains."""
    domain = nearest(content, centres)
    cells = torch.bincount(leaf * len(centres) + domain, minlength=n_leaves * len(centres))
    apart = (content - centres[domain]).double()
    return Tally(cells.view(n_leaves, -1).double(), apart.T @ apart)


def decide(h: Tensor, leaves: Tensor, content: Tensor, centres: Tensor, found: Tally, temperature: float) -> np.ndarray:
    """``(n,)`` int64 domain of every cell, from its leaves and its content."""
    shares = (found.cells / found.cells.sum(dim=1, keepdim=True)).float()
    # s^2 is trace / (n * effective directions), and those are trace^2 / sum of squares
    variance = float(found.scatter.square().sum() / found.scatter.trace().clamp(min=1e-12) / found.cells.sum())
    domain = []
    for block, near in zip(h.split(BLOCK), _distances(content, centres), strict=True):
        share = torch.softmax(block @ leaves.T / temperature, dim=1) @ shares
        domain.append((torch.log(share.clamp(min=1e-12)) - near / (2 * max(variance, 1e-12))).argmax(dim=1))
    return torch.cat(domain).numpy()


def nearest(content: Tensor, centres: Tensor) -> Tensor:
    """``(n,)`` int64 domain whose centre is nearest, for every cell."""
    return torch.cat([near.argmin(dim=1) for near in _distances(content, centres)])


def _distances(content: Tensor, centres: Tensor) -> Iterator[Tensor]:
    """Square distances of blocks of cells from the centres."""
    for block in content.split(BLOCK):
        yield torch.cdist(block, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def _kmeans(cells: np.ndarray, n_domains: int, start: np.ndarray | None) -> list[KMeans]:
    if start is None:
        return [KMeans(n_domains, n_init=1, random_state=seed).fit(cells) for seed in range(STARTS)]
    return [KMeans(n_domains, init=start.astype(cells.dtype), n_init=1).fit(cells)]


def _log_determinant(cells: np.ndarray, fit: KMeans) -> float:
    """Of the covariance within domains, with a little of the whole variance in every direction."""
    apart = (cells - fit.cluster_centers_[fit.labels_]).astype(np.float64)
    ridge = max(1e-6 * cells.var(axis=0).mean(), 1e-12)
    return float(np.linalg.slogdet(apart.T @ apart / len(cells) + ridge * np.eye(cells.shape[1]))[1])


def _start(sums: Sums, n_domains: int) -> np.ndarray:
    """Mean content of every group of leaves, joined by Ward linkage."""
    weight = sums.n_cells.numpy()
    mean = sums.total.numpy() / weight[:, None]
    member = np.eye(n_domains)[cut(weighted_ward(mean, weight), n_domains)].T * weight
    return member @ mean / member.sum(axis=1, keepdims=True)
