"""Weighted Ward linkage: hierarchies of points that each stand for many cells, and groups cut from them."""

from __future__ import annotations

import numpy as np


def weighted_ward(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""Ward's hierarchy of points that each stand for many cells.

    Joining clusters A and B costs :math:`\frac{w_A w_B}{w_A + w_B} \lVert \mu_A - \mu_B \rVert^2`, the growth of the
    sum of squares over all cells.

    Parameters
    ----------
    points
        ``(K, d)`` means.
    weights
        ``(K,)`` number of cells behind each, above 0.

    Returns
    -------
    ``(K - 1, 2)`` int64: the clusters joined in each step, numbered as scipy does (K + i is the result of step i).

    Notes
    -----
    O(K² d) time and O(K²) memory; ties go to the first pair. scipy's linkage takes no weights.
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
    _, first, codes = np.unique(root, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[codes]


def group_with_siblings(points: np.ndarray, weights: np.ndarray, n_groups: int) -> np.ndarray:
    """Group points by weighted Ward linkage so that every group has at least two.

    A cut may leave points alone; each of them joins the group that it costs least to join, and the first cut is taken
    that leaves `n_groups` groups. Where there is none, the points are split evenly in the order of the hierarchy.

    Parameters
    ----------
    points, weights
        See `weighted_ward`.
    n_groups
        Wanted, at most half the number of points.

    Returns
    -------
    ``(K,)`` int64 group of every point.
    """
    merges = weighted_ward(points, weights)
    for n_clusters in range(n_groups, len(points)):
        groups = _join_singletons(points, weights, cut(merges, n_clusters))
        if groups.max() + 1 == n_groups:
            return groups
    rank = np.empty(len(points), dtype=np.int64)
    rank[leaf_order(merges)] = np.arange(len(points))
    return rank * n_groups // len(points)


def leaf_order(merges: np.ndarray) -> np.ndarray:
    """Points in the order of the hierarchy: what is joined early stands side by side."""
    n = len(merges) + 1
    members = {point: [point] for point in range(n)}
    for step, (left, right) in enumerate(merges.tolist()):
        members[n + step] = members.pop(left) + members.pop(right)
    return np.array(members[2 * n - 2])


def _join_singletons(points: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Let every group of one point join its cheapest neighbour, smallest first, until there is none."""
    groups = groups.copy()
    while True:
        _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
        alone = np.flatnonzero(counts[codes] == 1)
        if not len(alone) or len(counts) == 1:
            _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
            return np.argsort(np.argsort(first))[codes]
        groups = codes
        total = np.bincount(codes, weights=weights)
        summed = np.stack([np.bincount(codes, weights=weights * column) for column in points.T.astype(float)], axis=1)
        mean = summed / total[:, None]
        lonely = alone[np.argmin(weights[alone])]
        cost = total * weights[lonely] / (total + weights[lonely]) * np.square(mean - points[lonely]).sum(axis=1)
        cost[codes[lonely]] = np.inf
        groups[lonely] = np.argmin(cost)
