"""Pieces of tissue with one label, as polygons: their borders are traced along the edges of a mesh."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import shapely
from scipy.sparse.csgraph import breadth_first_order, connected_components

from stage_sc.outlines._mesh import Mesh


class Pieces(NamedTuple):
    """Connected pieces of the tissue, sorted by label."""

    polygons: np.ndarray
    """Polygons with holes; in rare cases a MultiPolygon, whose parts touch in a point."""
    codes: np.ndarray
    """Label of each."""
    n_cells: np.ndarray
    """Number of places of each."""


def trace_pieces(mesh: Mesh, codes: np.ndarray, weights: np.ndarray, min_cells: int) -> Pieces:
    """Join the regions of neighbouring places with one label; pieces with a weight below `min_cells` are left out.

    `codes` is the label of each place, -1 for those without; `weights` its number of cells.
    """
    outer = mesh.triangles.max() + 1 - mesh.n_cells
    codes = np.concatenate([codes, np.full(outer, -1)])
    start, stop = mesh.triangles.ravel(), np.roll(mesh.triangles, -1, axis=1).ravel()
    border = (codes[start] != codes[stop]) | (mesh.corner & (codes[start] >= 0))
    piece = _connect(start[~border], stop[~border], len(codes))
    n_cells = np.bincount(piece[: mesh.n_cells], weights=weights, minlength=piece.max() + 1).astype(np.int64)
    # The region of the end of an edge is on the left of its border, walked from this triangle to the next.
    own = piece[stop]
    walked = np.flatnonzero(border & (codes[stop] >= 0) & (n_cells[own] >= min_cells))
    rings, coordinates = _order_rings(_next_borders(mesh, border, walked), mesh.centres[walked // 3])
    if not len(rings):
        return Pieces(np.empty(0, dtype=object), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    area = _signed_areas(rings.lengths, coordinates)
    of_ring = own[walked[rings.first]]
    spacing_squared = np.abs(area).max()
    real = np.abs(area) > 1e-12 * spacing_squared
    # The outer ring of each piece first, then its holes.
    order = np.lexsort((area < 0, of_ring))
    order = order[real[order]]
    lines = _linear_rings(rings.lengths, coordinates, order)
    owner, index = np.unique(of_ring[order], return_inverse=True)
    polygons = shapely.polygons(lines, indices=index)
    invalid = ~shapely.is_valid(polygons)
    polygons[invalid] = _areas_only(shapely.make_valid(polygons[invalid]))
    code_of = np.zeros(piece.max() + 1, dtype=np.int64)
    code_of[piece] = codes
    by_label = np.argsort(code_of[owner], kind="stable")
    owner = owner[by_label]
    return Pieces(polygons[by_label], code_of[owner], n_cells[owner])


class _Rings(NamedTuple):
    """Closed walks, one after the other."""

    lengths: np.ndarray
    first: np.ndarray
    """Position of one border of each in the list of borders."""

    def __len__(self) -> int:
        return len(self.lengths)


def _connect(one: np.ndarray, other: np.ndarray, n: int) -> np.ndarray:
    links = sp.csr_matrix((np.ones(len(one), np.int8), (one, other)), shape=(n, n))
    return connected_components(links, directed=False)[1].astype(np.int64)


def _next_borders(mesh: Mesh, border: np.ndarray, walked: np.ndarray) -> np.ndarray:
    """Position in `walked` of the border that follows each: the first on the left in the next triangle."""
    base, turn = np.divmod(mesh.twins[walked], 3)
    following = np.full(len(walked), -1)
    for step in (2, 1, 0):
        edge = 3 * base + (turn + step) % 3
        following = np.where((following < 0) & border[edge], edge, following)
    position = np.full(len(border), -1)
    position[walked] = np.arange(len(walked))
    return position[following]


def _order_rings(following: np.ndarray, points: np.ndarray) -> tuple[_Rings, np.ndarray]:
    """Sort borders into closed walks, and return these with the coordinates of their corners."""
    n = len(following)
    if not n:
        return _Rings(np.empty(0, np.int64), np.empty(0, np.int64)), points
    ring = _connect(np.arange(n), following, n)
    _, first = np.unique(ring, return_index=True)
    # One walk through all rings: the last border of each leads to the first of the next ring.
    last = np.empty(n, dtype=np.int64)
    last[following] = np.arange(n)
    chain = following.copy()
    chain[last[first]] = np.roll(first, -1)
    links = sp.csr_matrix((np.ones(n, np.int8), chain, np.arange(n + 1)), shape=(n, n))
    order = breadth_first_order(links, first[0], return_predecessors=False)
    lengths = np.bincount(ring)[ring[first]]
    return _Rings(lengths, first), points[order]


def _signed_areas(lengths: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Areas inside closed walks, negative for those that turn right."""
    ends = np.cumsum(lengths)
    after = np.arange(1, len(points) + 1)
    after[ends - 1] = ends - lengths
    x, y = points.T
    return 0.5 * np.add.reduceat(x * y[after] - x[after] * y, ends - lengths)


def _linear_rings(lengths: np.ndarray, points: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Make closed lines of the walks `order`."""
    starts = np.cumsum(lengths) - lengths
    chosen = lengths[order]
    offset = np.cumsum(chosen) - chosen
    rows = np.repeat(starts[order] - offset, chosen) + np.arange(chosen.sum())
    return shapely.linearrings(points[rows], indices=np.repeat(np.arange(len(order)), chosen))


def _areas_only(geometries: np.ndarray) -> np.ndarray:
    """Polygons and MultiPolygons without lines and points."""
    parts, index = shapely.get_parts(geometries, return_index=True)
    parts, deeper = shapely.get_parts(parts, return_index=True)
    index = index[deeper]
    areas = shapely.get_type_id(parts) == 3
    return shapely.multipolygons(parts[areas], indices=index[areas])
