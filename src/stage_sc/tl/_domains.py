"""Exactly as many domains as asked for, from the leaves that the cells are in."""

from __future__ import annotations

import logging

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from stage_sc.model._grow import cut, leaf_order, weighted_ward

logger = logging.getLogger("stage_sc.tl")


def cut_domains(leaf: np.ndarray, content: np.ndarray, n_domains: int) -> np.ndarray:
    """Group the used leaves by what surrounds their cells, and give every cell the group of its leaf.

    The leaves' mean contents, weighted with their number of cells, are joined by Ward linkage and cut; K-means from
    there lets single leaves change sides, which lowers the sum of squares that both minimise. A domain is thus a union
    of leaves, and may cut across the upper levels of the tree.

    Parameters
    ----------
    leaf
        ``(n,)`` leaf of every cell.
    content
        ``(n, d)`` mean embedded expression around every cell.
    n_domains
        Domains wanted.

    Returns
    -------
    ``(n,)`` int64 domain of every cell, in the order of the hierarchy: domains that are alike have near numbers. There
    are fewer than `n_domains` where fewer leaves are in use, and the log says so.
    """
    used, index, count = np.unique(leaf, return_inverse=True, return_counts=True)
    if len(used) < n_domains:
        logger.warning(
            "%d domains were asked for, but the cells are in %d leaves of the tree only: `n_domains` is %d here. A "
            "model that was trained on this data (`st.tl.fit`) has finer niches.",
            *(n_domains, len(used), len(used)),
        )
        n_domains = len(used)
    total = np.stack([np.bincount(index, weights=column) for column in content.T.astype(np.float64)], axis=1)
    mean = total / count[:, None]
    merges = weighted_ward(mean, count)
    groups = cut(merges, n_domains)
    if 1 < n_domains < len(used):
        weights = np.eye(n_domains)[groups].T * count
        start = weights @ mean / weights.sum(axis=1, keepdims=True)
        with threadpool_limits(1):  # sums in one order, whatever the machine
            refined = KMeans(n_domains, init=start, n_init=1).fit(mean, sample_weight=count).labels_
        if len(np.unique(refined)) == n_domains:
            groups = refined
    rank = np.empty(len(used))
    rank[leaf_order(merges)] = np.arange(len(used))
    middle = np.bincount(groups, weights=rank * count) / np.bincount(groups, weights=count)
    return np.argsort(np.argsort(middle))[groups][index]
