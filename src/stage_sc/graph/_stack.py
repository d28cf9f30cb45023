"""Pairs of cells of adjacent sections of a stack."""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

logger = logging.getLogger("stage_sc.pp")

# Number of nearest cells in each adjacent section that a cell is joined with.
N_ACROSS = 3
# Largest number of further cells at the same distance as the last of these.
MAX_TIES = 6
# Fraction of the cells of the smaller of two sections that have a cell of the other within reach, below which they
# are reported.
MIN_OVERLAP = 0.2


def join_sections(xyz: np.ndarray, section: np.ndarray, reach: float, slack: float) -> sp.csr_matrix:
    """Boolean symmetric pairs of every cell with its nearest cells in the sections above and below.

    `xyz` is ``(n, 3)`` float64 in µm, `section` the number of the section of every cell, from the lowest; pairs are at
    most `reach` µm apart. Cells as far as the last of the nearest are joined too (up to the factor `slack`), so that
    the result does not depend on the order of the cells. O(n log n).
    """
    cells = [np.flatnonzero(section == number) for number in range(section.max() + 1)]
    trees = [cKDTree(xyz[rows]) for rows in cells]
    pairs, apart = [], []
    for below in range(len(cells) - 1):
        found = []
        for one, other in ((below, below + 1), (below + 1, below)):
            rows, cols = _nearest(xyz[cells[one]], trees[other], reach * slack, slack)
            pairs.append((cells[one][rows], cells[other][cols]))
            found.append(len(np.unique(rows)))
        smaller = min(len(cells[below]), len(cells[below + 1]))
        if max(found) < MIN_OVERLAP * smaller:
            apart.append((xyz[cells[below][0], 2], xyz[cells[below + 1][0], 2]))
    _warn_apart(apart, len(cells) - 1, reach)
    n = len(xyz)
    rows, cols = (np.concatenate(part) for part in zip(*pairs, strict=True)) if pairs else (np.empty(0, int),) * 2
    graph = sp.csr_matrix((np.ones(len(rows), bool), (rows, cols)), shape=(n, n))
    return (graph + graph.T).astype(bool)


def _nearest(xyz: np.ndarray, tree: cKDTree, reach: float, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions of cells and of their nearest cells in the tree of another section."""
    number = min(N_ACROSS, tree.n)
    distance, nearest = tree.query(xyz, k=range(1, min(N_ACROSS + MAX_TIES, tree.n) + 1))
    near = (distance <= distance[:, [number - 1]] * slack) & (distance <= reach)
    return np.nonzero(near)[0], nearest[near]


def _warn_apart(apart: list[tuple[float, float]], n_pairs: int, reach: float) -> None:
    """Warn of adjacent sections that are too far from each other, or that hardly lie above each other."""
    if not apart:
        return
    low, high = apart[0]
    if high - low > reach:
        logger.warning(
            "%d of %d pairs of adjacent sections, e.g. at z = %g and %g µm, are farther apart than radius=%g µm, and "
            "are not joined. Heights must be in µm; pass a larger `radius` if they are.",
            *(len(apart), n_pairs, low, high, reach),
        )
    else:
        logger.warning(
            "%d of %d pairs of adjacent sections, e.g. at z = %g and %g µm, hardly lie above each other: fewer than %d "
            "%% of the cells have a cell of the other section within radius=%g µm. Sections must be aligned first: "
            "x and y mean the same place in all of them.",
            *(len(apart), n_pairs, low, high, 100 * MIN_OVERLAP, reach),
        )
