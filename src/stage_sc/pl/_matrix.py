"""Matrices as heat maps or dots, with names, strips of colours and a tree of rows; lengths are in inches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from stage_sc.pl._figure import shown, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

# Side of a field, of all fields in one direction, and of text.
FIELD, SMALLEST, LONGEST = 0.17, 0.06, 13.0
TEXT, LEAST_TEXT = 7.0, 4.0
STRIP, GAP, TREE, BAR, SIZES = 0.08, 0.04, 0.45, 1.25, 0.9
MOST_VECTORS = 40_000  # fields; more are drawn as pixels


class Matrix(NamedTuple):
    """Values to draw, with names of rows and columns."""

    values: pd.DataFrame
    label: str
    """Text of the colour bar."""
    cmap: str
    norm: Normalize
    fractions: pd.DataFrame | None = None
    """Areas of dots, 0 to 1; ``None``: fields."""
    marks: pd.DataFrame | None = None
    """True for fields with a point."""
    row_colors: Mapping[str, str] | None = None
    column_colors: Sequence[str] | None = None
    linkage: np.ndarray | None = None
    """Tree of the rows as given; these are then drawn in its order."""

    def in_order(self) -> Matrix:
        """Sort rows by the tree."""
        if self.linkage is None:
            return self
        from scipy.cluster.hierarchy import leaves_list

        rows = leaves_list(self.linkage)
        frames = {name: getattr(self, name) for name in ("values", "fractions", "marks")}
        return self._replace(**{name: frame.iloc[rows] for name, frame in frames.items() if frame is not None})


class Frame(NamedTuple):
    """Places in a figure."""

    width: float
    height: float
    left: float
    bottom: float
    columns: float
    """Width of all fields."""
    rows: float
    """Height of all fields."""

    def inside(self, fig: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
        """Axes at a place in inches from the lower left corner of the fields."""
        place = ((self.left + left) / self.width, (self.bottom + bottom) / self.height)
        return fig.add_axes((*place, width / self.width, height / self.height))


def field_side(number: int) -> float:
    """Side of a field with which `number` of them fit."""
    return float(np.clip(LONGEST / max(number, 1), SMALLEST, FIELD))


def text_size(side: float) -> float:
    """Size in points of a name beside a field."""
    return float(np.clip(0.85 * 72 * side, LEAST_TEXT, TEXT))


def frame_of(matrix: Matrix) -> Frame:
    """Size of the figure of a matrix, and places in it."""
    n_rows, n_columns = matrix.values.shape
    row, column = field_side(n_rows), field_side(n_columns)
    names = max(text_width(shown(name), text_size(row)) for name in matrix.values.index)
    below = max(text_width(shown(name), text_size(column)) for name in matrix.values.columns)
    left = names + 0.15 + (STRIP + GAP) * (matrix.row_colors is not None)
    bottom = below + 0.15
    right = 0.15 + TREE * (matrix.linkage is not None) + 1.2
    top = 0.15 + (STRIP + GAP) * (matrix.column_colors is not None)
    rows, columns = n_rows * row, n_columns * column
    legends = BAR + SIZES if matrix.fractions is not None else BAR
    height = max(rows, legends - below)  # legends may reach down beside the names
    return Frame(left + columns + right, bottom + height + top, left, bottom + height - rows, columns, rows)


def draw_matrix(fig: Figure, frame: Frame, matrix: Matrix) -> Axes:
    """Draw a matrix from `Matrix.in_order`, with its legends; the axes of the fields are returned."""
    values = matrix.values
    n_rows, n_columns = values.shape
    row, column = frame.rows / n_rows, frame.columns / n_columns
    ax = frame.inside(fig, 0, 0, frame.columns, frame.rows)
    ax.set(xlim=(-0.5, n_columns - 0.5), ylim=(n_rows - 0.5, -0.5))
    if matrix.fractions is None:
        _draw_fields(ax, matrix, min(row, column))
    else:
        _draw_dots(ax, matrix, min(row, column))
    ax.set_xticks(range(n_columns), [shown(name) for name in values.columns], rotation=90, fontsize=text_size(column))
    ax.set_yticks(range(n_rows), [shown(name) for name in values.index], fontsize=text_size(row))
    pad = 72 * (STRIP + GAP) if matrix.row_colors is not None else 2
    ax.tick_params(length=0, pad=2)
    ax.tick_params(axis="y", pad=pad + 1)
    ax.spines[:].set(linewidth=0.5, color=".5")
    if matrix.row_colors is not None:
        strip = frame.inside(fig, -STRIP - GAP, 0, STRIP, frame.rows)
        draw_strip(strip, [matrix.row_colors[str(name)] for name in values.index], upright=True)
    if matrix.column_colors is not None:
        draw_strip(frame.inside(fig, 0, frame.rows + GAP, frame.columns, STRIP), matrix.column_colors, upright=False)
    right = frame.columns + 0.05
    if matrix.linkage is not None:
        draw_tree(frame.inside(fig, right, 0, TREE, frame.rows), matrix.linkage)
        right += TREE
    top = frame.rows
    bar = frame.inside(fig, right + 0.15, top - BAR, 0.09, BAR - 0.05)
    colorbar = fig.colorbar(ScalarMappable(matrix.norm, matrix.cmap), cax=bar)
    colorbar.ax.tick_params(labelsize=6, length=2, width=0.5)
    colorbar.set_label(matrix.label, fontsize=7)
    colorbar.outline.set(linewidth=0.5)
    if matrix.fractions is not None:
        _size_legend(frame.inside(fig, right + 0.1, top - BAR - SIZES, 0.9, SIZES - 0.1), min(row, column))
    return ax


def _draw_fields(ax: Axes, matrix: Matrix, side: float) -> None:
    values = matrix.values.to_numpy(dtype=float)
    n_rows, n_columns = values.shape
    edges = np.arange(n_columns + 1) - 0.5, np.arange(n_rows + 1) - 0.5
    many = values.size > MOST_VECTORS
    mesh = ax.pcolormesh(*edges, values, cmap=matrix.cmap, norm=matrix.norm, rasterized=many)
    mesh.set(edgecolor="white" if side > 0.1 else "face", linewidth=0.3)
    if matrix.marks is not None:
        row, column = np.nonzero(matrix.marks.to_numpy())
        ax.scatter(column, row, s=(72 * side * 0.2) ** 2, color="black", linewidths=0)


def _draw_dots(ax: Axes, matrix: Matrix, side: float) -> None:
    values, fractions = matrix.values.to_numpy(dtype=float), matrix.fractions
    assert fractions is not None
    row, column = np.nonzero(fractions.to_numpy() > 0)
    area = _largest_area(side) * fractions.to_numpy(dtype=float)[row, column]
    ax.scatter(
        *(column, row, area, values[row, column]),
        cmap=matrix.cmap,
        norm=matrix.norm,
        edgecolors=".3",
        linewidths=0.2 if side > 0.1 else 0.1,
        rasterized=len(row) > MOST_VECTORS,
    )


def _largest_area(side: float) -> float:
    """Area of the largest dot, in square points."""
    return (0.92 * 72 * side) ** 2


def _size_legend(ax: Axes, side: float) -> None:
    ax.set_axis_off()
    fractions = (0.2, 0.6, 1.0)
    sizes = [np.sqrt(_largest_area(side) * fraction) for fraction in fractions]
    ax.legend(
        [Line2D([], [], linestyle="", marker="o", markersize=size, color=".6") for size in sizes],
        [f"{100 * fraction:.0f}" for fraction in fractions],
        title="% of cells",
        loc="upper left",
        fontsize=6,
        title_fontsize=7,
        frameon=False,
        borderaxespad=0,
    )


def draw_strip(ax: Axes, colors: Sequence[str], *, upright: bool) -> None:
    """Colours of rows, from the top, or of columns."""
    ax.set_axis_off()
    places = np.arange(len(colors))
    if upright:
        ax.barh(places, 1, 1, color=colors, linewidth=0)
        ax.set(xlim=(0, 1), ylim=(len(colors) - 0.5, -0.5))
    else:
        ax.bar(places, 1, 1, color=colors, linewidth=0)
        ax.set(ylim=(0, 1), xlim=(-0.5, len(colors) - 0.5))


def draw_tree(ax: Axes, linkage: np.ndarray) -> None:
    """Tree of the rows to their right."""
    from scipy.cluster.hierarchy import dendrogram

    tree: dict[str, Any] = dendrogram(linkage, no_plot=True)
    lines = [
        np.c_[height, (np.array(place) - 5) / 10] for place, height in zip(tree["icoord"], tree["dcoord"], strict=True)
    ]
    ax.add_collection(LineCollection(lines, colors=".3", linewidths=0.6))
    ax.set(xlim=(0, max(linkage[:, 2].max(), 1e-12) * 1.03), ylim=(len(linkage) + 0.5, -0.5))
    ax.set_axis_off()
