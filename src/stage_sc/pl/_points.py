"""Cells on a pair of axes: circles of the size of the cell spacing, or an image for very many cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba_array
from matplotlib.patheffects import withStroke
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy.spatial import cKDTree

from stage_sc._palette import MISSING_COLOR
from stage_sc.pl._figure import root_figure, shown, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CIRCLES = 50_000  # with more, circles are a few pixels wide and their colours mix
PIXELS = 1000  # of the longer side of an image of cells: 5 inches at 200 dots per inch


def cell_spacing(xy: np.ndarray) -> float:
    """Root of the area per cell, in units of the coordinates.

    The area is that of the occupied squares of a grid, so holes and an irregular outline do not count.
    """
    width, height = np.ptp(xy, axis=0)
    if width == 0 or height == 0:
        return float(max(width, height) / max(len(xy) - 1, 1)) or 1.0
    spacing = np.sqrt(width * height / len(xy))
    for _ in range(3):  # finer grids, without the empty space between pieces of tissue
        side = 3 * spacing  # nine cells a square, on average
        column, row = np.floor((xy - xy.min(axis=0)) / side).astype(np.int64).T
        occupied = np.unique(column * (row.max() + 1) + row)
        spacing = side * np.sqrt(len(occupied) / len(xy))
    return float(spacing)


def frame_tissue(ax: Axes, xy: np.ndarray, spacing: float) -> None:
    """Set limits around the cells, equal aspect, y downwards as in an image, no ticks."""
    (left, top), (right, bottom) = xy.min(axis=0) - spacing, xy.max(axis=0) + spacing
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])


def draw_cells(
    ax: Axes, xy: np.ndarray, labels: pd.Categorical, colors: Mapping[object, str], *, size: float, spacing: float
) -> None:
    """Draw cells in the colours of their categories; missing labels in grey, below. The order of cells does not matter.

    Circles are sized in units of the coordinates, so that they grow with the figure.
    """
    palette = [colors[name] for name in labels.categories]
    if len(xy) > MOST_CIRCLES:
        _draw_nearest(ax, xy, labels.codes, palette, radius=0.8 * size * spacing)
        return
    # The blending of edges depends on the order.
    order = np.lexsort((xy[:, 1], xy[:, 0]))
    xy, labels = xy[order], labels[order]
    diameter = np.sqrt(2 / np.sqrt(3)) * size * spacing  # on a hexagonal grid, circles touch
    # One collection for each category, rare ones on top.
    counts = np.bincount(labels.codes + 1, minlength=len(palette) + 1)[1:]
    for code in [-1, *np.argsort(-counts, kind="stable")]:
        cells = labels.codes == code
        if cells.any():
            color, name = (MISSING_COLOR, "missing") if code < 0 else (palette[code], str(labels.categories[code]))
            # Without edges, as matplotlib would move circles with edges to whole pixels: white seams in grids.
            style = {"facecolors": color, "edgecolors": "none", "linewidths": 0, "rasterized": True, "label": name}
            circles = EllipseCollection(
                [diameter], [diameter], [0], units="x", offsets=xy[cells], offset_transform=ax.transData, **style
            )
            ax.add_collection(circles, autolim=False)


def _draw_nearest(ax: Axes, xy: np.ndarray, codes: np.ndarray, palette: list[str], radius: float) -> None:
    """Draw an image with the nearest cell within `radius` of the centre of each pixel."""
    order = np.lexsort((codes, xy[:, 1], xy[:, 0]))  # codes, for cells at the same place
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


def write_names(ax: Axes, xy: np.ndarray, labels: pd.Categorical, size: float) -> int:
    """Write each category at its cell nearest to the median of all its cells, the largest categories first.

    Names that would overlap others are left out; returns their number. Axes must have their final place and limits.
    """
    ax.apply_aspect()
    points = 72 / root_figure(ax).dpi  # per pixel
    box = np.asarray(ax.bbox.extents) * points
    order = np.lexsort((xy[:, 1], xy[:, 0]))
    xy, codes = xy[order], labels.codes[order]
    counts = np.bincount(codes + 1, minlength=len(labels.categories) + 1)[1:]
    taken = np.empty((0, 4))
    left_out = 0
    for code in np.argsort(-counts, kind="stable")[: (counts > 0).sum()]:
        own = xy[codes == code]
        medoid = own[((own - np.median(own, axis=0)) ** 2).sum(axis=1).argmin()]
        text = shown(labels.categories[code])
        half = np.array([36 * text_width(text, size) + 1, 0.55 * size])
        low, high = box[:2] + half, box[2:] - half
        place = np.asarray(ax.transData.transform(medoid)) * points
        place = np.where(low < high, np.clip(place, low, high), place)  # inside the panel
        here = np.r_[place - half, place + half]
        if ((here[:2] < taken[:, 2:]) & (taken[:, :2] < here[2:])).all(axis=1).any():
            left_out += 1
            continue
        taken = np.vstack([taken, here])
        x, y = np.asarray(ax.transData.inverted().transform(place / points))
        stroke = [withStroke(linewidth=2, foreground="white")]
        ax.text(x, y, text, size=size, ha="center", va="center", color="0.1", path_effects=stroke, zorder=5)
    return left_out


def add_scale_bar(ax: Axes, micrometres: float, *, guessed: bool = False, fontsize: float = 8) -> None:
    """Draw a bar of 10 to 25 % of the panel's width below it, for axes with `micrometres` µm per unit.

    A `guessed` scale is marked by "≈".
    """
    longest = 0.25 * abs(np.diff(ax.get_xlim())[0]) * micrometres
    power = 10.0 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    bar = AnchoredSizeBar(
        ax.transData,
        length / micrometres,
        "≈ " * guessed + (f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"),
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=ax.transAxes,
        pad=0.2,
        borderpad=0,
        frameon=False,
        fontproperties={"size": fontsize},
    )
    bar.size_bar.get_children()[0].set(linewidth=2, color="0.15")
    ax.add_artist(bar)
