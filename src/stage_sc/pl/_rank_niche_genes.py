"""Markers of niches as dots or as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from stage_sc._checks import check_choice, check_positive
from stage_sc._input import read_tables
from stage_sc.analysis import read_stored
from stage_sc.pl._figure import read_output
from stage_sc.pl._label_palette import label_palette
from stage_sc.pl._matrix import Matrix, draw_matrix, frame_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data

# Number of genes of each niche, for up to so many niches.
GENES = {12: 5, 30: 3, 80: 2}


def rank_niche_genes(
    data: Data,
    *,
    kind: Literal["dotplot", "heatmap"] = "dotplot",
    n_genes: int | None = None,
    cell_type: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "rank_niche_genes",
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the markers of each niche, in the order of the tree.

    Rows are niches, columns their best genes; the colour above a gene is that of its niche. A gene that marks several
    niches is drawn once, in the niche where it ranks first.

    Parameters
    ----------
    data
        Object or objects with the result of ``st.tl.rank_niche_genes``.
    kind
        ``"dotplot"``: the area of a dot is the fraction of cells with the gene, its colour the mean expression.
        ``"heatmap"``: the mean only, for many niches.
    n_genes
        Number of genes of each niche. Default: 5 for up to 12 niches, 3 for up to 30, 2 for up to 80, else 1.
    cell_type
        Cell type to draw, if genes were ranked within cell types.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    figsize
        Width and height in inches. Default: by the numbers of niches and genes.
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
        If no gene is higher in its niche, or `cell_type` is none of the result.

    Notes
    -----
    Means of log-normalised expression are scaled for each gene, from 0 in the lowest niche to 1 in the highest.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.tl.rank_niche_genes(adata, groupby="domain")
    >>> ax = st.pl.rank_niche_genes(adata, show=False)
    >>> len(ax.get_yticklabels())
    6
    """
    output = read_output("rank_niche_genes", figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    check_choice(kind, "kind", ("dotplot", "heatmap"))
    if n_genes is not None:
        check_positive(n_genes, "n_genes", integer=True)
    tables = read_tables(data, table_key=table_key)
    stored = read_stored(tables, key_added, "rank_niche_genes")
    table, expression = (_of_type(stored[name], cell_type) for name in ("table", "expression"))
    markers = _choose_markers(table, n_genes)
    if not len(markers):
        raise ValueError(f"`key_added`: no gene in uns[{key_added!r}] is higher in its niche than elsewhere.")
    niches = [name for name in table["group"].cat.categories if (table["group"] == name).any()]
    chosen = expression[expression["names"].isin(markers.index)].astype({"group": str, "names": str})
    means, fractions = (
        chosen.pivot(index="group", columns="names", values=value).loc[niches, list(markers.index)]
        for value in ("mean", "fraction")
    )
    span = means.max() - means.min()
    colors = label_palette(tables, str(stored["params"]["groupby"]), niches)
    matrix = Matrix(
        ((means - means.min()) / span.where(span > 0, 1)).fillna(0.0),
        "mean, scaled by gene",
        "viridis" if kind == "heatmap" else "Reds",
        Normalize(0, 1),
        fractions=fractions if kind == "dotplot" else None,
        row_colors=colors,
        column_colors=[colors[name] for name in markers],
    )
    frame = frame_of(matrix)
    with output.figure((frame.width, frame.height)) as fig:
        axes = draw_matrix(fig, frame, matrix)
        return output.finish(fig, axes)


def _of_type(frame: pd.DataFrame, cell_type: str | None) -> pd.DataFrame:
    """Rows of one cell type."""
    types = list(frame["cell_type"].cat.categories) if "cell_type" in frame else []
    if cell_type is None and not types:
        return frame
    if cell_type not in types:
        raise ValueError(f"`cell_type` must be one of those that were ranked, {types}, got {cell_type!r}.")
    return frame[frame["cell_type"] == cell_type]


def _choose_markers(table: pd.DataFrame, n_genes: int | None) -> pd.Series:
    """Niche of each gene to draw, by the gene, in the order of niches and ranks."""
    ranked = table[(table["scores"] > 0) & (table["logfoldchanges"] > 0)]
    if n_genes is None:
        n_genes = next((number for most, number in GENES.items() if table["group"].nunique() <= most), 1)
    rank = ranked.groupby("group", observed=True).cumcount()
    best = ranked.assign(rank=rank).sort_values(["rank", "group"], kind="stable").drop_duplicates("names")
    best = best.sort_values(["group", "rank"], kind="stable").groupby("group", observed=True, sort=False).head(n_genes)
    return pd.Series(best["group"].astype(str).to_numpy(), best["names"].astype(str).to_numpy(), dtype=object)
