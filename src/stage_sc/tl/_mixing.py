"""Measures of an embedding of several slides: how well slides mix, and how well labels are kept apart."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

NEIGHBORS = 30
MOST_CELLS = 10_000


def sample_cells(x: np.ndarray) -> np.ndarray:
    """Positions of up to `MOST_CELLS` rows, the same ones for any order of the rows."""
    order = np.lexsort(x.T[2::-1])
    return order[:: -(-len(x) // MOST_CELLS)]


def neighbors(x: np.ndarray) -> np.ndarray:
    """``(n, k)`` nearest other rows of each row."""
    k = min(NEIGHBORS, len(x) - 1)
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x).kneighbors(return_distance=False)


def mixing(x: np.ndarray, slides: np.ndarray, labels: np.ndarray | None = None) -> float:
    """Mean entropy of the slides among neighbours over the entropy expected from their sizes, 0 to about 1.

    With `labels` among cells of one label, mean over all these cells; NaN if no label is on two slides.
    """
    groups = (
        [np.arange(len(x))] if labels is None else [np.flatnonzero(labels == k) for k in np.unique(labels[labels >= 0])]
    )
    total, n = 0.0, 0
    for rows in groups:
        expected = _entropy(np.bincount(slides[rows])[None])[0]
        if len(rows) < 3 or expected <= 0:
            continue
        near = slides[rows][neighbors(x[rows])]
        counts = (near[..., None] == np.unique(slides)).sum(axis=1)
        total += float(_entropy(counts).sum() / expected)
        n += len(rows)
    return total / n if n else float("nan")


def conservation(x: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Fraction of the neighbours with the label of the cell, and silhouette width; NaN for a single label."""
    rows = np.flatnonzero(labels >= 0)
    x, labels = x[rows], labels[rows]
    n_labels = len(np.unique(labels))
    if n_labels < 2 or n_labels >= len(labels):
        return float("nan"), float("nan")
    purity = (labels[neighbors(x)] == labels[:, None]).mean()
    return float(purity), float(silhouette_score(x, labels))


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy of each row of counts, in nats."""
    p = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
