"""Ligands and receptors between niches as dots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from stage_sc._checks import check_bool, check_positive, read_names
from stage_sc._input import read_tables
from stage_sc.analysis import read_stored
from stage_sc.pl._figure import LONGEST, read_output
from stage_sc.pl._label_palette import label_palette
from stage_sc.pl._matrix import GAP, STRIP, Matrix, draw_matrix, draw_strip, frame_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data

MOST = 4.0  # end of the colours, -log10 of a rank
SPECIFIC = 0.1  # rank that a pair has somewhere to be drawn, if any has it


def interactions(
    data: Data,
    *,
    n_pairs: int = 25,
    n_columns: int = 40,
    groups: str | Sequence[str] | None = None,
    between: bool = True,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "interactions",
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the most specific ligand-receptor pairs of niches that touch, or of the cell types of niches.

    Rows are pairs, columns senders and receivers ("sender → receiver", or the niche alone within it), by receiver. The
    strips above have the colours of the sender (upper) and of the receiver (lower).

    Parameters
    ----------
    data
        Object or objects with the result of ``st.tl.interactions``.
    n_pairs
        Largest number of pairs to draw: those that rank first in a column, then those that rank second, and so on, with
        a ``specificity_rank`` of 0.1 or less in a column (unless there is none).
    n_columns
        Largest number of senders and receivers to draw, those with the best rank.
    groups
        Niches to draw as sender or receiver. Default: all.
    between
        Draw niches that touch too. False: only pairs within niches. Without effect for cell types, which are of one
        niche.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    figsize
        Width and height in inches. Default: by the numbers of rows and columns.
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
        If `n_pairs` or `n_columns` is not above 0, or a group of `groups` has no interaction.

    Notes
    -----
    Colours are -log10 of ``specificity_rank``, up to 4. The area of a dot is the fraction of the cells that express the
    ligand in the sender or the receptor in the receiver, whichever is lower. Without a dot, a pair is not expressed.
    The table has the form of liana's, and ``liana.pl.dotplot(liana_res=table, ...)`` draws it too.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(600)
    >>> st.pp.build_graph(adata)
    >>> st.tl.interactions(adata, groupby="domain")
    >>> ax = st.pl.interactions(adata, show=False)
    >>> len(ax.get_yticklabels()) <= 25
    True
    """
    output = read_output("interactions", figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    check_positive(n_pairs, "n_pairs", integer=True)
    check_positive(n_columns, "n_columns", integer=True)
    check_bool(between, "between")
    tables = read_tables(data, table_key=table_key)
    stored = read_stored(tables, key_added, "interactions")
    table = _label(stored["table"])
    names = _niches(stored["table"])
    table = _choose_groups(table, groups, between, names)
    table, pairs = _choose_pairs(table, int(n_pairs), int(n_columns))
    columns = table.drop_duplicates("column").sort_values(["niche_to", "to", "niche_from", "from"], kind="stable")
    values, fractions = (
        table.pivot(index="pair", columns="column", values=value).reindex(index=pairs, columns=columns["column"])
        for value in ("color", "fraction")
    )
    values.columns = fractions.columns = [_short(name) for name in values.columns]
    values.index = fractions.index = [_short(name) for name in values.index]
    limit = float(np.clip(np.nanmax(values.to_numpy(float)), 1.0, MOST))
    colors = label_palette(tables, str(stored["params"]["groupby"]), names)
    matrix = Matrix(
        values.fillna(0.0),
        "specificity\n(-log10 rank)",
        "Reds",
        Normalize(0, limit),
        fractions=fractions.fillna(0.0),
        column_colors=[colors[name] for name in columns["niche_to"].astype(str)],
        linkage=_cluster(values.fillna(0.0).to_numpy()),
    ).in_order()
    frame = frame_of(matrix)
    more = STRIP + GAP if "group" not in stored["table"] else 0.0
    frame = frame._replace(height=frame.height + more)
    with output.figure((frame.width, frame.height)) as fig:
        axes = draw_matrix(fig, frame, matrix)
        if more:
            strip = frame.inside(fig, 0, frame.rows + GAP + more, frame.columns, STRIP)
            draw_strip(strip, [colors[name] for name in columns["niche_from"].astype(str)], upright=False)
            for text, height in (("sender", GAP + more), ("receiver", GAP)):
                place = (-0.05 / frame.columns, (frame.rows + height + STRIP / 2) / frame.rows)
                axes.text(*place, text, transform=axes.transAxes, ha="right", va="center", fontsize=6)
        return output.finish(fig, axes)


def _niches(table: pd.DataFrame) -> list[str]:
    """Niches of a table, in their order."""
    ends = [table[key] for key in (["group"] if "group" in table else ["source", "target"])]
    return [name for name in ends[0].cat.categories if any((end == name).any() for end in ends)]


def _label(table: pd.DataFrame) -> pd.DataFrame:
    """Names of rows and columns, and values to draw."""
    source, target = table["source"].astype(str), table["target"].astype(str)
    own = "group" in table
    arrow = (source + " → " + target).where((source != target) | own, source)
    return pd.DataFrame(
        {
            "pair": table["ligand_complex"].astype(str) + " – " + table["receptor_complex"].astype(str),
            "column": table["group"].astype(str) + ": " + arrow if own else arrow,
            "niche_from": table["group"] if own else table["source"],
            "niche_to": table["group"] if own else table["target"],
            "from": table["source"],
            "to": table["target"],
            "rank": table["specificity_rank"],
            "magnitude": table["magnitude_rank"],
            "color": np.clip(-np.log10(np.maximum(table["specificity_rank"], 10**-MOST)), 0, MOST),
            "fraction": np.minimum(table["ligand_props"], table["receptor_props"]),
        }
    )


def _short(name: str) -> str:
    """Cut the parts of a name rather than its end, so that sender and receiver can both be read."""
    parts = re.split("( → | – |: )", name)
    names = parts[::2]
    most = max((LONGEST - len("".join(parts[1::2]))) // len(names), 2)
    spare = sum(max(most - len(one), 0) for one in names) // max(sum(len(one) > most for one in names), 1)
    parts[::2] = [one if len(one) <= most + spare else one[: most + spare - 1] + "…" for one in names]
    return "".join(parts)


def _choose_groups(
    table: pd.DataFrame, groups: str | Sequence[str] | None, between: bool, names: Sequence[str]
) -> pd.DataFrame:
    """Rows of niches that are to be drawn."""
    if groups is not None:
        chosen = read_names(groups, "groups")
        if missing := [name for name in chosen if name not in names]:
            raise ValueError(f"`groups`: {missing} have no interaction; there are {list(names)}.")
        table = table[table["niche_from"].isin(chosen) | table["niche_to"].isin(chosen)]
    if not between:
        table = table[table["niche_from"].astype(str) == table["niche_to"].astype(str)]
    if not len(table):
        raise ValueError("`groups`: no pair is left to draw within the niches; pass other ones, or between=True.")
    return table


def _choose_pairs(table: pd.DataFrame, n_pairs: int, n_columns: int) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the columns with the best rank, and of the pairs that rank first in these."""
    order = ["rank", "magnitude", "pair", "column"]
    ranked = table.sort_values(order, kind="stable")
    table = table[table["column"].isin(ranked["column"].drop_duplicates().head(n_columns))]
    ranked = ranked[ranked["column"].isin(table["column"])]
    ranked = ranked[ranked["rank"] <= max(SPECIFIC, ranked["rank"].min())]
    place = ranked.groupby("column").cumcount()
    best = ranked.assign(place=place).sort_values(["place", *order], kind="stable")
    pairs = best["pair"].drop_duplicates().head(n_pairs).tolist()
    table = table[table["pair"].isin(pairs)]
    return table, pairs


def _cluster(values: np.ndarray) -> np.ndarray | None:
    from scipy.cluster.hierarchy import linkage

    return np.asarray(linkage(values, "average", optimal_ordering=True)) if len(values) > 1 else None
