"""Regions of cells: a Voronoi diagram that ends at half the spacing outside the tissue."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Delaunay, QhullError, cKDTree

# Borders shorter than this fraction of the spacing are corners: four cells of a grid meet in one.
CORNER = 0.01
DIRECTIONS = 8


class Mesh(NamedTuple):
    """Delaunay triangles of places, some of which are outside the tissue; their circumcentres are corners of regions.

    Edges are numbered ``3 * triangle + i``: from vertex i to vertex i + 1, counterclockwise.
    """

    triangles: np.ndarray
    """``(m, 3)`` places, counterclockwise."""
    centres: np.ndarray
    """``(m, 2)`` circumcentres; one point where a border between regions is a corner."""
    twins: np.ndarray
    """``(3 m,)`` number of the same edge in the next triangle, -1 at the end."""
    corner: np.ndarray
    """``(3 m,)`` bool, edges whose border is a corner: their cells do not touch."""
    n_cells: int
    """Places of cells; further ones are outside the tissue."""


def triangulate(xy: np.ndarray) -> Delaunay | None:
    """Delaunay triangles of places; none for fewer than three and for those on one line."""
    try:
        return Delaunay(xy) if len(xy) > 2 else None
    except QhullError:
        return None


def typical_spacing(xy: np.ndarray, found: Delaunay | None) -> float:
    """Median length of the Delaunay edges of places, else of the nearest neighbours; 1 for a single place."""
    if found is not None:
        corners = xy[found.simplices]
        return float(np.median(np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=-1)))
    return float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1])) if len(xy) > 1 else 1.0


def build_mesh(xy: np.ndarray, found: Delaunay | None, spacing: float, max_gap: float) -> Mesh:
    """Divide the tissue among distinct places ``(n, 2)``, centred at zero, with the triangles `found`.

    The tissue is the alpha shape of the places, without empty circles wider than `max_gap`, and a margin of half the
    `spacing`. It is bounded by further places: mirror images of the cells at its rim, at a distance of `spacing`.
    """
    outside = _outer_places(xy, found, spacing, max_gap)
    reach = np.abs(xy).max() + 10 * spacing
    frame = reach * np.array([[-1.0, -1.1], [1.1, -1.0], [1.0, 1.1], [-1.1, 1.0]])
    points = np.concatenate([xy, outside, frame])
    found = Delaunay(points)
    triangles, neighbors = found.simplices, found.neighbors
    ends = np.stack([triangles, np.roll(triangles, -1, axis=1)], axis=-1)  # (m, 3, 2)
    across = np.roll(neighbors, -2, axis=1)  # Qhull numbers neighbours by the vertex opposite
    twins = np.full(across.shape, -1)
    inside = across >= 0
    position = (triangles[across[inside]] == ends[..., 1][inside][:, None]).argmax(axis=1)
    twins[inside] = 3 * across[inside].astype(np.int64) + position
    centres = _circumcentres(points, triangles)
    border = np.linalg.norm(centres[:, None] - centres[across], axis=-1)
    corner = inside & (border < CORNER * spacing) & (ends < len(xy)).any(axis=-1)
    return Mesh(triangles, _merge(centres, across, corner), twins.ravel(), corner.ravel(), len(xy))


def _outer_places(xy: np.ndarray, found: Delaunay | None, spacing: float, max_gap: float) -> np.ndarray:
    """Places around the tissue and in its gaps, `spacing` away from the cells at its rim and no nearer to others."""
    bare, mirrored, kept = np.ones(len(xy), dtype=bool), np.empty((0, 2)), np.zeros(0, dtype=bool)
    if found is not None:
        triangles = found.simplices
        radius = np.linalg.norm(_circumcentres(xy, triangles) - xy[triangles[:, 0]], axis=1)
        kept = radius <= max_gap / 2
        bare[triangles[kept]] = False
        across = np.roll(found.neighbors, -2, axis=1)
        rim = kept[:, None] & ((across < 0) | ~kept[across])
        start, stop = triangles[rim], np.roll(triangles, -1, axis=1)[rim]
        step = xy[stop] - xy[start]
        normal = spacing * np.c_[step[:, 1], -step[:, 0]] / np.linalg.norm(step, axis=1, keepdims=True)
        mirrored = np.concatenate([xy[start] + normal, xy[stop] + normal])
        bare[start] = True
    # All around single cells; at corners of the tissue, where mirror images are far apart.
    angle = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    around = (xy[bare][:, None] + spacing * np.c_[np.cos(angle), np.sin(angle)]).reshape(-1, 2)
    if len(mirrored):
        around = around[cKDTree(mirrored).query(around, workers=-1)[0] > 0.8 * spacing]
    places = np.concatenate([mirrored, around])
    # Of those nearly at one place, one.
    _, first = np.unique(np.round(places * (50 / spacing)), axis=0, return_index=True)
    places = places[first]
    places = places[cKDTree(xy).query(places, workers=-1)[0] >= (1 - 1e-6) * spacing]
    if found is None:
        return places
    triangle = found.find_simplex(places)
    return places[(triangle < 0) | ~kept[triangle]]


def _circumcentres(xy: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """``(m, 2)`` centres of the circles through the vertices; far away for vertices on a line."""
    origin = xy[triangles[:, 0]]
    b, c = xy[triangles[:, 1]] - origin, xy[triangles[:, 2]] - origin
    twice = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    bb, cc = (b**2).sum(axis=1), (c**2).sum(axis=1)
    flat = np.abs(twice) <= 1e-12 * (bb + cc)  # a circle of endless radius
    twice = np.where(flat, 1e-12 * (bb + cc) + 1e-300, twice)
    centre = np.c_[c[:, 1] * bb - b[:, 1] * cc, b[:, 0] * cc - c[:, 0] * bb] / twice[:, None]
    return origin + centre


def _merge(centres: np.ndarray, across: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Give triangles whose common border is a corner one centre: that of the first."""
    m = len(centres)
    triangle = np.nonzero(corner)[0]
    links = sp.csr_matrix((np.ones(len(triangle), np.int8), (triangle, across[corner])), shape=(m, m))
    _, group = connected_components(links, directed=False)
    _, first = np.unique(group, return_index=True)
    return centres[first[group]]
