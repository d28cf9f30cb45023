"""Changes of niches between conditions, with intervals and the shares of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from stage_sc._checks import check_choice, check_positive
from stage_sc._input import read_tables
from stage_sc.analysis import read_stored
from stage_sc.pl._figure import read_output, shown, text_width
from stage_sc.pl._label_palette import label_palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stage_sc._input import Data, Tables

# Inches.
ROW, PANEL, INDENT, TEXT = 0.15, 2.1, 0.12, 7.0
COLORS = "#8c8c8c", "#e08214"  # of reference and condition
FARTHEST = 8.0  # log2 folds; more are drawn at the edge


def differential_abundance(
    data: Data,
    *,
    condition: str | None = None,
    fdr: float = 0.1,
    max_rows: int = 60,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "differential_abundance",
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Draw the change of every niche with its interval, and the share of each sample.

    Rows are in the order of the tree, names are indented by level. The change is that of the share within the parent;
    filled points have a false discovery rate below `fdr`, lines are 95 % intervals, with an arrow where they go on. On
    the right the share of all cells of each sample, samples without the niche on the left edge. Without replicates, the
    title says that nothing was tested.

    Parameters
    ----------
    data
        Object or objects with the result of ``st.tl.differential_abundance``.
    condition
        Condition that is compared with the reference. Default: the first one.
    fdr
        False discovery rate of filled points, above 0.
    max_rows
        Largest number of niches. Of more, those with the smallest p-values are drawn, and the niches above them.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    figsize
        Width and height in inches. Default: by the number of niches.
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
    Axes of changes and of shares if not shown, the figure with `return_fig`, else None.

    Raises
    ------
    KeyError
        If there is no result.
    TypeError
        If an argument is of another type.
    ValueError
        If `condition` was not compared.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(300, n_slides=6)
    >>> adata.obs["condition"] = adata.obs["slide"].isin(["slide4", "slide5", "slide6"]).map({True: "b", False: "a"})
    >>> st.tl.differential_abundance(adata, condition_key="condition", groupby="domain", library_key="slide")
    >>> changes, shares = st.pl.differential_abundance(adata, show=False)
    >>> changes.get_xlabel().splitlines()[0]
    'log2 fold, b over a'
    """
    output = read_output(
        "differential_abundance", figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig
    )
    check_positive(fdr, "fdr")
    check_positive(max_rows, "max_rows", integer=True)
    tables = read_tables(data, table_key=table_key)
    stored = read_stored(tables, key_added, "differential_abundance")
    table = stored["table"]
    names = [name for name in table["condition"].cat.categories if (table["condition"] == name).any()]
    if condition is not None:
        check_choice(condition, "condition", names)
    else:
        condition = names[0]
    table = table[table["condition"] == condition].reset_index(drop=True)
    table, position = _in_tree_order(table)
    kept = _most_different(table, int(max_rows))
    table, fractions = table.iloc[kept].reset_index(drop=True), np.asarray(stored["fractions"])[:, position[kept]]
    names_left = [shown(name) for name in table["group"]]
    indents = INDENT * (table["level"].to_numpy() - table["level"].min())
    left = max(text_width(name, TEXT) + indent for name, indent in zip(names_left, indents, strict=True)) + 0.35
    rows = ROW * max(len(table), 4)
    width, height = left + 2 * PANEL + 1.3, rows + 0.75
    with output.figure((width, height)) as fig:
        axes = [
            fig.add_axes(((left + start) / width, 0.5 / height, PANEL / width, rows / height))
            for start in (0, PANEL + 0.2)
        ]
        _write_names(axes[0], tables, table, names_left, left - 0.15 - indents)
        _draw_changes(axes[0], table, condition, float(fdr))
        _draw_shares(axes[1], fractions, stored["samples"], condition, str(table["reference"][0]))
        for ax in axes:
            ax.set_ylim(len(table) - 0.5, -0.5)
            ax.spines[["top", "right", "left"]].set_visible(False)
            ax.tick_params(axis="y", length=0, labelleft=False)
            ax.tick_params(axis="x", labelsize=6, width=0.5, length=2)
            ax.hlines(np.arange(len(table)), 0, 1, ".93", linewidth=0.5, zorder=0, transform=ax.get_yaxis_transform())
        return output.finish(fig, axes)


def _in_tree_order(table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Sort rows depth first; also the row of each before."""
    rows: dict[tuple[int, str], list[int]] = {}
    for row, (level, parent) in enumerate(zip(table["level"], table["parent"].astype(str), strict=True)):
        rows.setdefault((int(level), parent if level > 1 else ""), []).append(row)
    order: list[int] = []

    def place(level: int, parent: str) -> None:
        for row in rows.get((level, parent), []):
            order.append(row)
            place(level + 1, str(table["group"][row]))

    place(1, "")
    return table.iloc[order].reset_index(drop=True), np.array(order)


def _most_different(table: pd.DataFrame, most: int) -> np.ndarray:
    """Rows with the smallest p-values and those above them, at most `most`, in order."""
    level = table["level"].to_numpy()
    chosen: set[int] = set()
    for row in table["p_value"].fillna(2.0).argsort(kind="stable"):
        above, place = [int(row)], int(row)
        while level[place] > 1:
            place = next(other for other in range(place, -1, -1) if level[other] < level[place])
            above.append(place)
        if len(chosen | set(above)) > most:
            break
        chosen |= set(above)
    return np.array(sorted(chosen or set(range(min(most, len(table))))))


def _write_names(ax: Axes, tables: Tables, table: pd.DataFrame, names: list[str], places: np.ndarray) -> None:
    """Names on the left of the axes, `places` inches from them, behind a square of the colour."""
    colors: dict[str, dict[str, str]] = {}
    for column, rows in table.groupby("groupby", observed=True):
        colors[str(column)] = label_palette(tables, str(column), [str(name) for name in rows["group"]])
    for row, (name, place) in enumerate(zip(names, places, strict=True)):
        color = colors[str(table["groupby"][row])][str(table["group"][row])]
        at: dict[str, Any] = {
            "xycoords": ax.get_yaxis_transform(),
            "textcoords": "offset points",
            "va": "center",
            "fontsize": TEXT,
        }
        ax.annotate("■", (0, row), (-72 * place, 0), color=color, **at)
        ax.annotate(name, (0, row), (-72 * place + 9, 0), **at)


def _draw_changes(ax: Axes, table: pd.DataFrame, condition: str, fdr: float) -> None:
    change = table["log2_fold_within"].to_numpy(float)
    lower, upper = table["lower_within"].to_numpy(float), table["upper_within"].to_numpy(float)
    ends = np.abs(np.r_[change, lower, upper])
    ends = ends[np.isfinite(ends)]
    limit = float(np.clip(1.1 * ends.max(initial=1), 1, FARTHEST))
    rows = np.arange(len(table))
    known = ~np.isnan(lower)
    ax.hlines(rows[known], lower[known].clip(-limit, limit), upper[known].clip(-limit, limit), ".3", linewidth=0.8)
    for end, side, marker in ((lower, -1, "<"), (upper, 1, ">")):
        beyond = known & (side * end > limit)
        ax.scatter(
            np.full(beyond.sum(), side * limit), rows[beyond], 12, ".3", marker=marker, linewidths=0, clip_on=False
        )
    found = (table["fdr"] <= fdr).to_numpy()
    drawn = np.isfinite(change)
    color = np.where(change > 0, "#b2182b", "#2166ac")
    face = np.where(found, color, "white")
    ax.scatter(
        change[drawn].clip(-limit, limit),
        rows[drawn],
        16,
        face[drawn],
        edgecolors=color[drawn],
        linewidths=0.8,
        zorder=3,
    )
    ax.axvline(0, color=".5", linewidth=0.5)
    ax.set(xlim=(-limit * 1.05, limit * 1.05))
    ax.set_xlabel(
        f"log2 fold, {shown(condition)} over {shown(table['reference'][0])}\n(within the parent)", fontsize=TEXT
    )
    tested = table["fdr"].notna().any()
    title = f"filled: FDR ≤ {fdr:g}" if tested else "not tested: too few samples or cells"
    ax.set_title(title, fontsize=6, loc="left", pad=2)


def _draw_shares(ax: Axes, fractions: np.ndarray, samples: pd.DataFrame, condition: str, reference: str) -> None:
    percent = 100 * fractions
    least = percent[percent > 0].min(initial=1.0)
    for number, name in enumerate((reference, condition)):
        own = (samples["condition"] == name).to_numpy()
        sample, row = np.nonzero(np.ones_like(percent[own]))
        values = np.maximum(percent[own][sample, row], least / 2)
        ax.scatter(values, row + (number - 0.5) * 0.3, 8, COLORS[number], linewidths=0, alpha=0.8, label=shown(name))
    ax.set_xscale("log")
    ax.set_xlabel("% of cells of a sample", fontsize=TEXT)
    handles = [Line2D([], [], linestyle="", marker="o", markersize=3, color=color) for color in COLORS]
    ax.legend(
        *(handles, [shown(reference), shown(condition)]),
        loc="upper left",
        bbox_to_anchor=(1, 1),
        fontsize=6,
        frameon=False,
        handletextpad=0.1,
    )
