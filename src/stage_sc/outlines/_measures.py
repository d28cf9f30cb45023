"""Outlines of one slide: pieces of one label joined and measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely

from stage_sc.outlines._mesh import build_mesh, triangulate, typical_spacing
from stage_sc.outlines._pieces import Pieces, trace_pieces

# Widest gap inside tissue by default, in spacings.
GAP = 6.0
# Error of the depth, in spacings.
DEPTH_ERROR = 0.1


def outline_slide(
    xy: np.ndarray, codes: np.ndarray, *, max_gap: float | None, min_cells: int, simplify: float
) -> dict[str, Any]:
    """Columns of the table of outlines, one row for each label in use; ``"code"`` is the label."""
    places, place, weights = _distinct_places(xy, codes)
    middle = places.mean(axis=0)
    found = triangulate(places - middle)
    spacing = typical_spacing(places - middle, found)
    mesh = build_mesh(places - middle, found, spacing, GAP * spacing if max_gap is None else max_gap)
    pieces = trace_pieces(mesh, place, weights, min_cells)
    polygons = pieces.polygons
    if simplify and len(polygons):
        polygons = shapely.coverage_simplify(polygons, simplify)
    polygons = shapely.transform(polygons, lambda points: points + middle)
    return measure(pieces._replace(polygons=polygons), DEPTH_ERROR * spacing)


def measure(pieces: Pieces, tolerance: float) -> dict[str, Any]:
    """Join the pieces of each label into a MultiPolygon, and measure it; lengths within `tolerance`."""
    codes, group = np.unique(pieces.codes, return_inverse=True)
    parts, piece = shapely.get_parts(pieces.polygons, return_index=True)
    geometry = shapely.multipolygons(parts, indices=group[piece]) if len(codes) else pieces.polygons
    area = shapely.area(parts)
    weighted = np.bincount(group[piece], weights=area * _elongation(parts), minlength=len(codes))
    return {
        "code": codes,
        "geometry": geometry,
        "area": shapely.area(geometry),
        "perimeter": shapely.length(geometry),
        "n_cells": np.bincount(group, weights=pieces.n_cells, minlength=len(codes)).astype(np.int64),
        "n_components": np.bincount(group, minlength=len(codes)),
        "elongation": weighted / np.bincount(group[piece], weights=area, minlength=len(codes)),
        "depth": shapely.length(shapely.maximum_inscribed_circle(geometry, tolerance)),
    }


def _distinct_places(xy: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places in order, the first label of the cells at each, and the number of cells with this label."""
    places, of_cell = np.unique(xy, axis=0, return_inverse=True)
    of_cell = of_cell.ravel()
    last = np.iinfo(np.int64).max
    first = np.full(len(places), last)
    np.minimum.at(first, of_cell, np.where(codes < 0, last, codes))
    weights = np.bincount(of_cell, weights=codes == first[of_cell], minlength=len(places))
    return places, np.where(first == last, -1, first), weights


def _elongation(polygons: np.ndarray) -> np.ndarray:
    """1 - width / length of the smallest rectangle around each polygon."""
    if not len(polygons):
        return np.empty(0)
    hulls = shapely.oriented_envelope(polygons)
    corners = shapely.get_coordinates(hulls).reshape(-1, 5, 2)
    sides = np.linalg.norm(np.diff(corners[:, :3], axis=1), axis=-1)
    return 1 - sides.min(axis=1) / sides.max(axis=1)
