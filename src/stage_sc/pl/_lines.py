"""Outlines on a pair of axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from matplotlib.collections import LineCollection

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def read_lines(outlines: Any) -> dict[str, list[np.ndarray]]:
    """Read the closed lines of each slide, ``(n, 2)`` each; errors for other tables than outlines."""
    if outlines is None:
        return {}
    columns = list(getattr(outlines, "columns", ()))
    if "geometry" not in columns or not hasattr(outlines, "geometry"):
        raise TypeError(
            f"`outlines` must be the GeoDataFrame of `st.tl.outline_niches`, got {type(outlines).__name__}."
        )
    if "slide" not in columns:
        raise ValueError(
            f"`outlines` has no column 'slide' (columns: {columns}), as the elements of a SpatialData: name the slide, "
            '`outlines.assign(slide="name")`, or `slide=""` for a single one without a name.'
        )
    lines: dict[str, list[np.ndarray]] = {}
    for slide, part in outlines.groupby(outlines["slide"].astype(str), sort=False):
        rings = shapely.get_rings(shapely.get_parts(np.asarray(part.geometry)))
        points, ring = shapely.get_coordinates(rings, return_index=True)
        lines[str(slide)] = np.split(points, np.flatnonzero(np.diff(ring)) + 1)
    return lines


def draw_lines(ax: Axes, lines: list[np.ndarray] | None) -> None:
    """Draw closed lines, dark on a light edge, so that they show on any colour."""
    if lines:
        for width, color in ((1.8, "white"), (0.7, "0.1")):
            ax.add_collection(LineCollection(lines, colors=color, linewidths=width, zorder=3), autolim=False)
