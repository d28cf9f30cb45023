"""Cells on a pair of axes: circles as large as the cells lie apart, or a picture where there are very many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba_array
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy.spatial import cKDTree

from stage_sc.pl._palette import MISSING_COLOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Above this many cells, circles would be only a few pixels wide and mix their colours.
MOST_CIRCLES = 50_000
# Pixels along the longer side of a picture of cells: 5 inches at 200 dots per inch.
PIXELS = 1000


def cell_spacing(xy: np.ndarray) -> float:
    """Side of the square that a cell has to itself: the root of the tissue's area over the number of cells.

    The area is what the occupied squares of a grid cover, so holes and an irregular outline do not count.
    """
    width, height = np.ptp(xy, axis=0)
    if width == 0 or height == 0:
        return float(max(width, height) / max(len(xy) - 1, 1)) or 1.0
    spacing = np.sqrt(width * height / len(xy))
    for _ in range(3):  # finer, as the first grids find empty space between pieces of tissue
        side = 3 * spacing  # nine cells a square, on average
        column, row = np.floor((xy - xy.min(axis=0)) / side).astype(np.int64).T
        occupied = np.unique(column * (row.max() + 1) + row)
        spacing = side * np.sqrt(len(occupied) / len(xy))
    return float(spacing)


def frame_tissue(ax: Axes, xy: np.ndarray, spacing: float) -> None:
    """Limits around the cells, equal aspect, y downwards as in an image, no ticks."""
    (left, top), (right, bottom) = xy.min(axis=0) - spacing, xy.max(axis=0) + spacing
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])


def draw_cells(
    ax: Axes, xy: np.ndarray, labels: pd.Categorical, colors: Mapping[object, str], *, size: float, spacing: float
) -> None:
    """Draw cells in their category's colour, the same for any order of the cells; missing labels in grey, below.

    Circles are sized in the units of the coordinates: they keep their share of the tissue when the figure is resized.
    """
    palette = [colors[name] for name in labels.categories]
    if len(xy) > MOST_CIRCLES:
        _draw_nearest(ax, xy, labels.codes, palette, radius=0.8 * size * spacing)
        return
    # The same order for the same cells, as the blending of their edges depends on it.
    order = np.lexsort((xy[:, 1], xy[:, 0]))
    xy, labels = xy[order], labels[order]
    diameter = np.sqrt(2 / np.sqrt(3)) * size * spacing  # on a hexagonal grid, circles touch
    # One collection per category; rare categories come on top.
    counts = np.bincount(labels.codes + 1, minlength=len(palette) + 1)[1:]
    for code in [-1, *np.argsort(-counts, kind="stable")]:
        cells = labels.codes == code
        if cells.any():
            circles = EllipseCollection(
                [diameter],
                [diameter],
                [0],
                units="x",
                offsets=xy[cells],
                offset_transform=ax.transData,
                facecolors=MISSING_COLOR if code < 0 else palette[code],
                edgecolors="none",  # matplotlib would move circles with edges to whole pixels: white seams in grids
                linewidths=0,
                rasterized=True,
                label="missing" if code < 0 else str(labels.categories[code]),
            )
            ax.add_collection(circles, autolim=False)


def _draw_nearest(ax: Axes, xy: np.ndarray, codes: np.ndarray, palette: list[str], radius: float) -> None:
    """Draw a picture in which each pixel shows the cell next to its centre, if one lies within `radius`."""
    order = np.lexsort((codes, xy[:, 1], xy[:, 0]))  # for cells in the same place
    xy, codes = xy[order], codes[order]
    low, high = xy.min(axis=0) - radius, xy.max(axis=0) + radius
    pixel = (high - low).max() / PIXELS
    columns, rows = np.ceil((high - low) / pixel).astype(int)
    x, y = np.meshgrid(low[0] + pixel * (np.arange(columns) + 0.5), low[1] + pixel * (np.arange(rows) + 0.5))
    _, nearest = cKDTree(xy).query(np.c_[x.ravel(), y.ravel()], distance_upper_bound=max(radius, pixel), workers=-1)
    rgba = to_rgba_array([*palette, MISSING_COLOR, "#ffffff00"])
    shown = np.append(np.where(codes < 0, len(palette), codes), len(palette) + 1)[nearest]
    box = ax.axis()
    extent = (low[0], low[0] + columns * pixel, low[1] + rows * pixel, low[1])
    ax.imshow((255 * rgba[shown]).round().astype(np.uint8).reshape(rows, columns, 4), extent=extent)
    ax.axis(box)


def add_scale_bar(ax: Axes, micrometres: float) -> None:
    """Draw a bar of about a fifth of the panel's width below it, where a unit of the axes is `micrometres`."""
    longest = 0.25 * abs(np.diff(ax.get_xlim())[0]) * micrometres
    power = 10.0 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    bar = AnchoredSizeBar(
        ax.transData,
        length / micrometres,
        f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm",
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=ax.transAxes,
        pad=0.2,
        borderpad=0,
        sep=2,
        frameon=False,
        size_vertical=0,
        label_top=False,
        fontproperties={"size": 8},
    )
    bar.size_bar.get_children()[0].set(linewidth=2, color="0.15")
    ax.add_artist(bar)
