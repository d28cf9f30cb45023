"""Order and random samples of the cells that do not depend on their order in the data."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import DTypeLike
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from stage_sc.graph import permute

ROUNDS = 3


def canonical_order(identity: np.ndarray, weights: sp.csr_matrix) -> np.ndarray:
    """Permutation that sorts cells by their expression and that of their neighbours, with neighbours close together.

    Sums over cells in another order differ in their last bits, and random numbers are drawn by position. In this order
    results are bit-identical for any order of cells and genes and for any rotation or shift of the coordinates. Only
    cells with the same counts on all cells within three hops keep the order of the data.

    Parameters
    ----------
    identity
        ``(n,)`` uint64 hash of the counts of every cell.
    weights
        ``(n, n)`` float32, symmetric weights of the graph.

    Notes
    -----
    Weisfeiler–Lehman hashing with sums modulo 2⁶⁴, which do not depend on the order of their terms, then the reverse
    Cuthill–McKee order, which keeps the neighbours of a block of cells close in memory. O(nnz).
    """
    state = mix(identity)
    edge = mix(weights.data.astype(np.float32).view(np.uint32).astype(np.uint64))
    for _ in range(ROUNDS):
        state = mix(state + np.uint64(1)) + row_sums(mix(state[weights.indices] ^ edge), weights.indptr)
    order = np.argsort(state, kind="stable")
    return order[reverse_cuthill_mckee(permute(weights, order), symmetric_mode=True)]


def mix(x: np.ndarray) -> np.ndarray:
    """Scatter the bits of uint64 numbers (finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_sums(values: np.ndarray, indptr: np.ndarray, dtype: DTypeLike = np.uint64) -> np.ndarray:
    """Sum of the values of every row of a csr matrix; exact for integers (modulo 2⁶⁴) and for whole floats."""
    total = np.zeros(len(values) + 1, dtype)
    np.cumsum(values, dtype=dtype, out=total[1:])
    return np.diff(total[indptr])


def subsample(values: Tensor, n_cells: int, size: int) -> Tensor:
    """About `size` sorted rows of all `n_cells` cells, or the part of these that is in `values`.

    A cell is drawn by a hash of its own values (the first two components, rounded), so that parts give the same cells
    as the whole. At least one cell is drawn from the whole.
    """
    if n_cells > size:
        leading = np.round(values[:, :2].numpy().astype(np.float64) * 1024).astype(np.int64).view(np.uint64)
        number = mix(leading[:, 0] + mix(leading[:, -1]))
        least = int(number.min()) if len(values) == n_cells else 0
        values = values[torch.from_numpy(number <= max(int(size / n_cells * 2**64), least))]
    return sort_cells(values)


def sort_cells(values: Tensor) -> Tensor:
    """Sort cells by their first two components."""
    return values[torch.from_numpy(np.lexsort(values.numpy()[:, :2].T))]
