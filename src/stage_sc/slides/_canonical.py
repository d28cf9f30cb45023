"""An order of the cells that depends on what they are, not on how they came."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import reverse_cuthill_mckee

from stage_sc.graph import permute

ROUNDS = 3


def canonical_order(identity: np.ndarray, weights: sp.csr_matrix) -> np.ndarray:
    """Order cells by their expression and that of their neighbours, and then so that neighbours are near each other.

    Sums over cells in another order differ in their last bits, and chance is drawn by position. Computing in this order
    makes results the same, to the bit, for any order of cells and genes and for any rotation or shift of the
    coordinates.

    Parameters
    ----------
    identity
        ``(n,)`` uint64, the same for cells with the same counts.
    weights
        ``(n, n)`` float32, symmetric weights of the graph.

    Returns
    -------
    ``(n,)`` permutation. Among cells that cannot be told apart by their own expression and that within three hops of
    the graph, which comes first depends on the order they came in.

    Notes
    -----
    Weisfeiler–Lehman hashing with sums modulo 2⁶⁴, which do not depend on the order of their terms; from the order of
    the hashes the reverse Cuthill–McKee order, in which what a block of cells needs is found close together in memory.
    O(nnz).
    """
    state = mix(identity)
    edge = mix(weights.data.astype(np.float32).view(np.uint32).astype(np.uint64))
    for _ in range(ROUNDS):
        state = mix(state + np.uint64(1)) + row_sums(mix(state[weights.indices] ^ edge), weights.indptr)
    order = np.argsort(state, kind="stable")
    return order[reverse_cuthill_mckee(permute(weights, order), symmetric_mode=True)]


def mix(x: np.ndarray) -> np.ndarray:
    """Scatter the bits of unsigned integers (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_sums(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Sum the values of every row of a csr matrix, modulo 2⁶⁴."""
    total = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=total[1:])
    return np.diff(total[indptr])
