"""Distinct places of cells: their spacing, and the layouts of grids and arrays."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from stage_sc.graph._platforms import Layout

# Number of places below which no grid is recognised.
MIN_GRID_PLACES = 16


def measure_spacing(places: np.ndarray) -> tuple[float, Layout]:
    """Median distance to the nearest place and layout of ``(n_places, 2)`` distinct places.

    On a grid the distance to the nearest place is constant (80 % within 5 % of the median; cells vary by 30 %), with or
    without holes. The next distance is 1.73 times as long on a hexagonal grid and 1.41 times on a square one. On arrays
    of printed spots at least 98 % of these distances are within 15 % of the median, on sections of cells at most 61 %.
    """
    tree = cKDTree(places)
    nearest = tree.query(places, 2)[0][:, 1]  # column 0 is the place itself
    spacing = float(np.median(nearest))
    deviation = np.abs(nearest - spacing)
    if len(places) < MIN_GRID_PLACES:
        return spacing, "cells"
    irregular: Layout = "spots" if np.mean(deviation <= 0.15 * spacing) >= 0.9 else "cells"
    if np.mean(deviation <= 0.05 * spacing) < 0.8:
        return spacing, irregular
    distance = tree.query(places, 7)[0][:, 1:]
    steps = distance[distance < 1.6 * spacing] / spacing
    direct, diagonal = (np.mean(np.abs(steps - length) <= 0.05 * length) for length in (1, np.sqrt(2)))
    if direct > 0.95:
        return spacing, "hexagonal"
    return spacing, "square" if direct + diagonal > 0.95 else irregular


def sorted_places(xy: np.ndarray) -> np.ndarray:
    """``np.unique(xy, axis=0)``, ten times as fast."""
    return np.unique(as_complex(xy)).view(np.float64).reshape(-1, 2)


def distinct_places(xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``np.unique(xy, axis=0, return_inverse=True)``, five times as fast."""
    places, place = np.unique(as_complex(xy), return_inverse=True)
    return places.view(np.float64).reshape(-1, 2), place


def as_complex(xy: np.ndarray) -> np.ndarray:
    """Places as complex numbers, which numpy sorts by real, then imaginary part; -0.0 becomes 0.0."""
    return np.ascontiguousarray(xy + 0.0).view(np.complex128).ravel()
