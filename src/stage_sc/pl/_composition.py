"""Composition of slides, conditions or niches as bars or as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Patch

from stage_sc._checks import check_bool, check_choice
from stage_sc._input import read_tables
from stage_sc.analysis import read_stored
from stage_sc.pl._figure import read_output, shown, text_width
from stage_sc.pl._label_palette import label_palette
from stage_sc.pl._matrix import TREE, Frame, Matrix, draw_matrix, draw_tree, field_side, frame_of, text_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data

WIDTH, IN_COLUMN = 3.2, 30  # inches of bars; names in a column of the legend


def composition(
    data: Data,
    *,
    kind: Literal["bars", "heatmap"] = "bars",
    cluster: bool = True,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "composition",
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the composition of slides, conditions or niches, rows that are alike side by side.

    Parameters
    ----------
    data
        Object or objects with the result of ``st.tl.composition``.
    kind
        ``"bars"``: a bar for each row, divided into groups. ``"heatmap"``: a field for each row and group, better for
        more than 15 groups and for rare ones.
    cluster
        Order rows by their tree, drawn on the right. False: the order of the categories.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    figsize
        Width and height in inches. Default: by the numbers of rows and groups.
    show
        Show the figure and return None. Default: scanpy's ``settings.autoshow``.
    save
        Path of a file to write; the suffix sets the format. True: a file in ``sc.settings.figdir``, as in scanpy.
    dpi
        Dots per inch of the file. Default: 200.
    return_fig
        Return the figure, detached from pyplot, instead of showing it.

    Returns
    -------
    The axes if not shown, the figure with `return_fig`, else None.

    Raises
    ------
    KeyError
        If there is no result.
    TypeError
        If an argument is of another type.
    ValueError
        If `kind` is none of these.

    Notes
    -----
    Fractions are those of the pooled cells of a row. Colours of the heat map grow with the square root of the fraction,
    so that rare groups are seen.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500, n_slides=3)
    >>> st.tl.composition(adata, groupby="domain", library_key="slide")
    >>> ax = st.pl.composition(adata, show=False)
    >>> len(ax.get_yticklabels())
    3
    """
    output = read_output("composition", figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    check_choice(kind, "kind", ("bars", "heatmap"))
    check_bool(cluster, "cluster")
    tables = read_tables(data, table_key=table_key)
    stored = read_stored(tables, key_added, "composition")
    table, params = stored["table"], stored["params"]
    rows, groups = (list(table[name].cat.categories) for name in ("by", "group"))
    fractions = pd.DataFrame(table["fraction"].to_numpy().reshape(len(rows), len(groups)), rows, groups)
    colors = label_palette(tables, str(params["groupby"]), groups)
    linkage = np.asarray(stored["linkage"]) if cluster and "linkage" in stored else None
    row_colors = label_palette(tables, str(params["by"]), rows) if params["by"] else None
    matrix = Matrix(
        100 * fractions,
        "% of cells",
        "viridis",
        PowerNorm(0.5, 0, max(100 * float(fractions.to_numpy().max()), 1e-9)),
        row_colors=row_colors,
        column_colors=[colors[name] for name in groups],
        linkage=linkage,
    ).in_order()
    frame = frame_of(matrix) if kind == "heatmap" else _frame_of_bars(matrix)
    with output.figure((frame.width, frame.height)) as fig:
        axes = draw_matrix(fig, frame, matrix) if kind == "heatmap" else _draw_bars(fig, frame, matrix, colors)
        return output.finish(fig, axes)


def _frame_of_bars(matrix: Matrix) -> Frame:
    values = matrix.values
    side = field_side(len(values))
    left = max(text_width(shown(name), text_size(side)) for name in values.index) + 0.15
    names = max(text_width(shown(name), 7) for name in values.columns) + 0.35
    n_columns = -(-values.shape[1] // IN_COLUMN)
    legend = min(values.shape[1], IN_COLUMN) * 0.15 + 0.1
    rows = side * 1.3 * len(values)
    right = 0.2 + TREE * (matrix.linkage is not None) + n_columns * names
    height = max(rows, legend)
    return Frame(left + WIDTH + right, height + 0.55, left, 0.4 + height - rows, WIDTH, rows)


def _draw_bars(fig: Figure, frame: Frame, matrix: Matrix, colors: Mapping[str, str]) -> Axes:
    values = matrix.values
    ax = frame.inside(fig, 0, 0, frame.columns, frame.rows)
    places, left = np.arange(len(values)), np.zeros(len(values))
    for name in values.columns:
        width = values[name].to_numpy()
        ax.barh(places, width, 0.85, left, color=colors[name], edgecolor="white", linewidth=0.2)
        left += width
    ax.set(xlim=(0, 100), ylim=(len(values) - 0.5, -0.5))
    ax.set_yticks(places, [shown(name) for name in values.index], fontsize=text_size(frame.rows / len(values) / 1.3))
    ax.tick_params(axis="y", length=0, pad=2)
    ax.tick_params(axis="x", labelsize=6, width=0.5, length=2)
    ax.set_xlabel("% of cells", fontsize=7)
    ax.spines[["top", "right", "left"]].set_visible(False)
    right = frame.columns + 0.05
    if matrix.linkage is not None:
        draw_tree(frame.inside(fig, right, 0, TREE, frame.rows), matrix.linkage)
        right += TREE
    legend = frame.inside(fig, right + 0.1, frame.rows - 0.1, 0.1, 0.1)
    legend.set_axis_off()
    legend.legend(
        [Patch(color=colors[name]) for name in values.columns],
        [shown(name) for name in values.columns],
        ncols=-(-values.shape[1] // IN_COLUMN),
        loc="upper left",
        bbox_to_anchor=(0, 1),
        fontsize=7,
        frameon=False,
        handlelength=0.8,
        handleheight=0.8,
        labelspacing=0.25,
        columnspacing=0.8,
        borderaxespad=0,
        borderpad=0,
    )
    return ax
