"""Exactly as many domains as asked for, from the leaves that the cells are in."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from stage_sc.model._linkage import cut, leaf_order, weighted_ward

logger = logging.getLogger("stage_sc.tl")

# Cells that are compared with all leaves at a time.
BLOCK = 8192


class Sums(NamedTuple):
    """What joining leaves needs to know of the cells: sums, which add up over slides."""

    mass: Tensor
    """``(K,)`` float64, sum of the probabilities of each leaf."""
    total: Tensor
    """``(K, d)`` float64, sum of content weighted with them."""


def cut_domains(h: Tensor, leaves: Tensor, content: Tensor, n_domains: int, temperature: float = 0.1) -> np.ndarray:
    r"""Join leaves into domains by what surrounds their cells, and let every cell choose among the domains.

    A cell is in leaf k with probability :math:`p_{ik} = \mathrm{softmax}_k(h_i^\top c_k / \tau)`. The content of a leaf
    is the mean over cells weighted with it. Leaves are joined by Ward linkage of their contents, weighted with
    :math:`\sum_i p_{ik}`, and cut; K-means from there lets single leaves change sides, which lowers the sum of squares
    that both minimise. A cell's domain is the one whose leaves have the greatest probability together.

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
    ``(n,)`` int64 domain of every cell, in the order of the hierarchy: domains that are alike have near numbers. There
    are fewer than `n_domains` where fewer leaves are in use, and the log says so.
    """
    leaves = leaves[nearest_leaf(h, leaves).unique()]
    group = join_leaves(leaf_sums(h, leaves, content, temperature), n_domains)
    domain = vote(h, leaves, group, temperature)
    if len(np.unique(domain)) < group.max() + 1:  # a domain of leaves that come second everywhere
        domain = group[nearest_leaf(h, leaves).numpy()]
    return domain


def nearest_leaf(h: Tensor, leaves: Tensor) -> Tensor:
    """``(n,)`` int64 leaf that every cell is nearest to."""
    return torch.cat([(block @ leaves.T).argmax(dim=1) for block in h.split(BLOCK)])


def leaf_sums(h: Tensor, leaves: Tensor, content: Tensor, temperature: float) -> Sums:
    """Add up over cells what is known of every leaf."""
    mass = torch.zeros(len(leaves), dtype=torch.float64)
    total = torch.zeros(len(leaves), content.shape[1], dtype=torch.float64)
    for block, around in zip(h.split(BLOCK), content.split(BLOCK), strict=True):
        p = torch.softmax(block @ leaves.T / temperature, dim=1)
        mass += p.sum(dim=0)
        total += p.T @ around
    return Sums(mass, total)


def join_leaves(sums: Sums, n_domains: int) -> np.ndarray:
    """``(K,)`` int64 domain of every leaf in use; as many as asked for, or as there are leaves."""
    n_leaves = len(sums.mass)
    if n_leaves < n_domains:
        logger.warning(
            "%d domains were asked for, but the cells are in %d leaves of the tree only: there are %d domains. A model "
            "that was trained on this data (`st.tl.fit`) has finer niches.",
            *(n_domains, n_leaves, n_leaves),
        )
    return _join((sums.total / sums.mass[:, None]).numpy(), sums.mass.numpy(), min(n_domains, n_leaves))


def vote(h: Tensor, leaves: Tensor, group: np.ndarray, temperature: float) -> np.ndarray:
    """``(n,)`` int64 domain whose leaves have the greatest probability together, for every cell."""
    member = torch.nn.functional.one_hot(torch.from_numpy(group)).float()
    shares = (torch.softmax(block @ leaves.T / temperature, dim=1) @ member for block in h.split(BLOCK))
    return torch.cat([share.argmax(dim=1) for share in shares]).numpy()


def _join(mean: np.ndarray, weight: np.ndarray, n_domains: int) -> np.ndarray:
    """Domain of every leaf, numbered along the hierarchy."""
    if len(mean) == 1:
        return np.zeros(1, dtype=np.int64)
    merges = weighted_ward(mean, weight)
    group = cut(merges, n_domains)
    if 1 < n_domains < len(mean):
        shares = np.eye(n_domains)[group].T * weight
        start = shares @ mean / shares.sum(axis=1, keepdims=True)
        with threadpool_limits(1):  # sums in one order, whatever the machine
            refined = KMeans(n_domains, init=start, n_init=1).fit(mean, sample_weight=weight).labels_
        if len(np.unique(refined)) == n_domains:
            group = refined
    rank = np.empty(len(mean))
    rank[leaf_order(merges)] = np.arange(len(mean))
    middle = np.bincount(group, weights=rank * weight) / np.bincount(group, weights=weight)
    return np.argsort(np.argsort(middle))[group]
