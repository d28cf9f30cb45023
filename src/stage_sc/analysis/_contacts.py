"""Contacts between labels on a graph: found, and expected for shuffled labels or for shuffled patches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components


class Edges(NamedTuple):
    """Pairs of neighbouring cells with labels, each once, on one slide."""

    one: np.ndarray
    """``(n_edges,)`` intp cell."""
    other: np.ndarray
    codes: np.ndarray
    """``(n_cells,)`` intp label of every cell; all are counted."""

    def count_pairs(self, n: int) -> np.ndarray:
        """Pairs of each two labels, ``(n, n)`` float64, symmetric; on the diagonal the pairs inside a label."""
        found = _count(self.codes[self.one], self.codes[self.other], n)
        return found + found.T - np.diag(np.diag(found))


def _count(one: np.ndarray, other: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(one * n + other, minlength=n * n).reshape(n, n).astype(np.float64)


def shuffled_moments(edges: Edges, n: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Mean and variance of the number of pairs over all permutations of the labels, ``(n, n)`` each.

    Join counts without replacement (Cliff and Ord, 1981): with E edges, :math:`T = \sum_i d_i(d_i-1)` of the degrees,
    :math:`n_a` of N cells and falling factorials :math:`N^{(k)}`, the mean is :math:`E\,2n_an_b/N^{(2)}`, and the mean
    square is :math:`E P_2 + T P_3 + (E(E-1)-T) P_4`, where :math:`P_2, P_3, P_4` are the probabilities that an edge,
    two edges at one cell, and two edges apart all join a and b.
    """
    size = np.bincount(edges.codes, minlength=n).astype(np.float64)
    total, number = len(edges.codes), float(len(edges.one))
    degree = np.bincount(np.r_[edges.one, edges.other], minlength=total).astype(np.float64)
    joined = float(np.sum(degree * (degree - 1)))
    apart = number * (number - 1) - joined
    falling = np.maximum(np.cumprod(total - np.arange(4.0)), 1.0)  # N, N(N-1), ...
    a, b = size[:, None], size[None, :]
    p2 = 2 * a * b / falling[1]
    p3 = a * b * (a + b - 2) / falling[2]
    p4 = 4 * a * (a - 1) * b * (b - 1) / falling[3]
    own = np.cumprod(size[:, None] - np.arange(4.0), axis=1)
    for matrix, k in ((p2, 1), (p3, 2), (p4, 3)):
        np.fill_diagonal(matrix, own[:, k] / falling[k])
    mean = number * p2
    return mean, np.maximum(number * p2 + joined * p3 + apart * p4 - mean**2, 0)


def patch_contacts(edges: Edges, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of touching patches of each two labels, found and expected, ``(n, n)`` symmetric with 0 on the diagonal.

    A patch is a connected piece of cells of one label; two that touch count once, however long their border.
    """
    codes_one, codes_other = edges.codes[edges.one], edges.codes[edges.other]
    inside = codes_one == codes_other
    total = len(edges.codes)
    same = sp.coo_matrix((np.ones(inside.sum()), (edges.one[inside], edges.other[inside])), shape=(total, total))
    n_patches, patch = connected_components(same, directed=False)
    pairs = np.sort(np.stack([patch[edges.one[~inside]], patch[edges.other[~inside]]], axis=1), axis=1)
    pairs = np.unique(pairs[:, 0] * np.int64(n_patches) + pairs[:, 1])
    label = np.zeros(n_patches, dtype=np.intp)
    label[patch] = edges.codes
    found = _count(label[pairs // n_patches], label[pairs % n_patches], n)
    found += found.T
    return found, independent_pairs(found.sum(axis=1))


def independent_pairs(totals: np.ndarray) -> np.ndarray:
    r"""Symmetric matrix :math:`m_{ab} = \alpha_a \alpha_b` off the diagonal with these row sums, ``(n, n)``.

    Quasi-independence (Goodman, 1968): labels touch in proportion to the contacts that each has in all, but never
    themselves. Solved by damped scaling; a label with more contacts than all others together gets all of theirs.
    """
    factor = np.sqrt(totals.astype(np.float64))
    factor = factor / max(np.sqrt(factor.sum()), 1e-300)
    for _ in range(500):
        rest = factor.sum() - factor
        new = np.sqrt(factor * np.divide(totals, rest, out=np.zeros_like(factor), where=rest > 0))
        done = np.allclose(new, factor, rtol=1e-9, atol=0)
        factor = new
        if done:
            break
    expected = np.outer(factor, factor)
    np.fill_diagonal(expected, 0)
    return expected


def residual_variance(expected: np.ndarray) -> np.ndarray:
    r"""Variance of counts about `independent_pairs`, ``(n, n)`` with 0 where nothing is left to vary.

    Of Poisson counts given the row sums: :math:`m_{ab}(1 - m_{ab}\, x^\top I^{-1} x)`, with x the row of a and b in the
    design and I the information about the factors (Haberman, 1973).
    """
    information = expected + np.diag(expected.sum(axis=1))
    inverse = np.linalg.pinv(information, hermitian=True)
    own = np.diag(inverse)
    leverage = expected * (own[:, None] + own[None, :] + 2 * inverse)
    variance = expected * (1 - leverage)
    return np.where(variance > 1e-6 * expected, variance, 0.0)
