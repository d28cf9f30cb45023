"""Weighted Ward linkage: hierarchies of means that stand for many cells each, and groups cut from them."""

from __future__ import annotations

import numpy as np
import pandas as pd


def weighted_ward(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""Ward's hierarchy of ``(K, d)`` points with positive weights, such as means of clusters and numbers of cells.

    Joining clusters A and B costs :math:`\frac{w_A w_B}{w_A + w_B} \lVert \mu_A - \mu_B \rVert^2`, the growth of the
    sum of squares over all cells. scipy's linkage takes no weights.

    Returns
    -------
    ``(K - 1, 2)`` int64: the clusters joined in each step, numbered as in scipy (K + i is the result of step i). Ties
    go to the first pair. O(K² d) time and O(K²) memory.
    """
    n = len(points)
    mean, weight = points.astype(np.float64).copy(), weights.astype(np.float64).copy()
    name = np.arange(n)
    square = np.square(mean).sum(axis=1)
    distance = square[:, None] + square[None] - 2 * mean @ mean.T
    cost = np.maximum(distance, 0) * (weight[:, None] * weight[None]) / (weight[:, None] + weight[None])
    np.fill_diagonal(cost, np.inf)
    merges = np.empty((n - 1, 2), dtype=np.int64)
    for step in range(n - 1):
        i, j = sorted(divmod(int(np.argmin(cost)), n))
        merges[step] = name[i], name[j]
        total = weight[i] + weight[j]
        mean[i] = (weight[i] * mean[i] + weight[j] * mean[j]) / total
        weight[i], name[i] = total, n + step
        cost[j, :] = cost[:, j] = np.inf
        open_ = np.isfinite(cost[i])
        row = weight[i] * weight / (weight[i] + weight) * np.square(mean - mean[i]).sum(axis=1)
        cost[i, open_] = cost[open_, i] = row[open_]
    return merges


def cut(merges: np.ndarray, n_clusters: int) -> np.ndarray:
    """Cluster of every point when the hierarchy is cut into `n_clusters`, numbered by the first point in each."""
    n = len(merges) + 1
    parent = np.arange(2 * n - 1)
    for step, (left, right) in enumerate(merges[: n - n_clusters]):
        parent[left] = parent[right] = n + step
    root = np.arange(n)
    while (parent[root] != root).any():
        root = parent[root]
    return pd.factorize(root)[0]


def leaf_order(merges: np.ndarray) -> np.ndarray:
    """Points in the order of the hierarchy, in which clusters are contiguous."""
    n = len(merges) + 1
    members = {point: [point] for point in range(n)}
    for step, (left, right) in enumerate(merges.tolist()):
        members[n + step] = members.pop(left) + members.pop(right)
    return np.array(members[2 * n - 2])


def group_with_siblings(points: np.ndarray, weights: np.ndarray, n_groups: int) -> np.ndarray:
    """Group points by weighted Ward linkage into `n_groups` groups of two points or more, ``(K,)`` int64.

    A cut may leave single points; each joins the group at the lowest cost. The first cut that then leaves `n_groups`
    groups is taken. If there is none, the points are split evenly in the order of the hierarchy.
    """
    merges = weighted_ward(points, weights)
    for n_clusters in range(n_groups, len(points)):
        groups = _join_singletons(points, weights, cut(merges, n_clusters))
        if groups.max() + 1 == n_groups:
            return groups
    rank = np.empty(len(points), dtype=np.int64)
    rank[leaf_order(merges)] = np.arange(len(points))
    return rank * n_groups // len(points)


def _join_singletons(points: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Join every group of one point to the group of lowest cost, the point with the lowest weight first."""
    groups = groups.copy()
    while True:
        _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
        single = np.flatnonzero(counts[codes] == 1)
        if not len(single) or len(counts) == 1:
            return pd.factorize(groups)[0]
        groups = codes
        total = np.bincount(codes, weights=weights)
        summed = np.stack([np.bincount(codes, weights=weights * column) for column in points.T.astype(float)], axis=1)
        mean = summed / total[:, None]
        point = single[np.argmin(weights[single])]
        cost = total * weights[point] / (total + weights[point]) * np.square(mean - points[point]).sum(axis=1)
        cost[codes[point]] = np.inf
        groups[point] = np.argmin(cost)
