"""Groups of cells that touch, and products of two genes over pairs of neighbouring cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from stage_sc.analysis._expression import indicator
from stage_sc.analysis._ligand_receptor import Pairs, lowest

BLOCK = 16  # pairs of genes


class Neighbors(NamedTuple):
    """Cells with a group, and the graph of those on the same slide."""

    codes: np.ndarray
    """``(n_cells,)`` intp group."""
    slides: np.ndarray
    """``(n_cells,)`` intp slide."""
    edges: sp.csr_matrix

    def by_slide(self) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
        """Cells of each slide, and the edges between them."""
        for slide in np.unique(self.slides):
            cells = np.flatnonzero(self.slides == slide)
            yield cells, self.edges[cells][:, cells]


def count_touching(neighbors: Neighbors, n: int, min_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Find groups that touch, ``(n, n)`` bool, and the number of slides on which they do.

    Two groups touch where `min_cells` cells of either have a neighbour in the other.
    """
    total, n_slides = np.zeros((n, n)), np.zeros((n, n), np.int64)
    for cells, edges in neighbors.by_slide():
        found = _reach(edges, neighbors.codes[cells], n)
        total += found
        n_slides += (found >= min_cells) & (found.T >= min_cells)
    return (total >= min_cells) & (total.T >= min_cells), n_slides


def _reach(edges: sp.csr_matrix, codes: np.ndarray, n: int) -> np.ndarray:
    """Cells of each group (row) that have a neighbour in another (column), ``(n, n)``."""
    member = indicator(codes, n)
    near = (edges @ member).tocsr()
    near.data[:] = 1
    return (member.T @ near).toarray()


class Contacts(NamedTuple):
    """Sums over slides for each pair of touching groups, in the order of ``np.nonzero(touching)``."""

    n_edges: np.ndarray
    """``(n_touching,)`` pairs of neighbouring cells."""
    ratio: np.ndarray
    """``(n_touching, n_pairs)`` products of ligand and receptor over those expected; NaN where none is expected."""
    n_expressed: np.ndarray
    """``(n_touching, n_pairs)`` slides where they touch and both genes are expressed in both."""


def compare_contacts(
    neighbors: Neighbors, matrix: sp.csr_matrix, pairs: Pairs, touching: np.ndarray, min_cells: int, expr_prop: float
) -> Contacts:
    r"""Compare products over neighbours, :math:`\sum_{(i, j)} l_i r_j`, with those of cells placed anew in their group.

    On every slide the expected product of an edge is that of the means, and within a group that of two different cells.
    """
    source, target = np.nonzero(touching)
    number = np.full(touching.shape, -1, np.intp)
    number[source, target] = np.arange(len(source))
    shape = len(source), len(pairs.ligands)
    observed, expected = np.zeros(shape), np.zeros(shape)
    n_edges, n_expressed = np.zeros(len(source), np.int64), np.zeros(shape, np.int64)
    for cells, edges in neighbors.by_slide():
        codes, part, own = neighbors.codes[cells], edges.tocoo(), matrix[cells].tocsc()
        member = indicator(codes, len(touching)).T.tocsr()
        size = np.bincount(codes, minlength=len(touching)).astype(np.float64)
        place = number[codes[part.row], codes[part.col]]
        add = indicator(place, len(source)).T.tocsr()
        edge_count = np.bincount(place[place >= 0], minlength=len(source))
        found = _reach(edges, codes, len(touching))
        there = ((found >= min_cells) & (found.T >= min_cells))[source, target]
        n_edges += edge_count
        weight = _edge_weight(source, target, size, edge_count)
        for start in range(0, shape[1], BLOCK):
            block = slice(start, start + BLOCK)
            ligand, receptor = (_columns(own, side[block]) for side in (pairs.ligands, pairs.receptors))
            observed[:, block] += add @ (ligand[part.row] * receptor[part.col])
            sums, others = member @ ligand, member @ receptor
            product = sums[source] * others[target]
            product[source == target] -= (member @ (ligand * receptor))[source[source == target]]
            expected[:, block] += weight[:, None] * product
            with np.errstate(invalid="ignore", divide="ignore"):
                shares = [member @ (one > 0) / size[:, None] for one in (ligand, receptor)]
            both = (shares[0][source] >= expr_prop) & (shares[1][target] >= expr_prop)
            n_expressed[:, block] += both & there[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(expected > 0, observed / expected, np.nan)
    return Contacts(n_edges, ratio, n_expressed)


def _edge_weight(source: np.ndarray, target: np.ndarray, size: np.ndarray, n_edges: np.ndarray) -> np.ndarray:
    """Edges over the pairs of different cells of two groups, ``(n_touching,)``."""
    number = size[source] * (size[target] - (source == target))
    return np.divide(n_edges, number, out=np.zeros(len(source)), where=number > 0)


def _columns(matrix: sp.csc_matrix, subunits: list[tuple[int, ...]]) -> np.ndarray:
    """Expression of complexes in cells, ``(n_cells, n_complexes)`` float64: that of the lowest subunit."""
    used = sorted({gene for one in subunits for gene in one})
    place = {gene: position for position, gene in enumerate(used)}
    values = matrix[:, used].toarray().astype(np.float64)
    return lowest(values, [tuple(place[gene] for gene in one) for one in subunits])
