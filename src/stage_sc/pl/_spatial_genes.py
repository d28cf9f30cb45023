"""Genes by their variation in space and between niches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stage_sc._checks import check_positive
from stage_sc._input import read_tables
from stage_sc.analysis import read_stored
from stage_sc.pl._figure import read_output, shown, text_width
from stage_sc.pl._label_palette import label_palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data

SIZE, NAME, IN_COLUMN = (4.6, 3.4), 7, 20  # inches, points of names, names in a column of the legend


def spatial_genes(
    data: Data,
    *,
    n_genes: int = 15,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "spatial_genes",
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw genes by their variation in space (Moran's I) and the part of it between niches (eta squared).

    On the upper right are genes of niches; on the upper left, genes with a pattern that niches miss.

    Parameters
    ----------
    data
        Object or objects with the result of ``st.tl.spatial_genes``.
    n_genes
        Number of genes to name, those with the largest Moran's I; names that would overlap are left out.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    figsize
        Width and height in inches. Default: 4.6 x 3.4.
    ax
        Axes to draw on.
    show
        Show the figure and return None. Default: scanpy's ``settings.autoshow``, unless `ax` is given.
    save
        Path of a file to write; the suffix sets the format. True: a file in ``sc.settings.figdir``, as in scanpy.
    dpi
        Dots per inch of the file. Default: 200.
    return_fig
        Return the figure, detached from pyplot, instead of showing it.

    Returns
    -------
    The axes if not shown or if `ax` is given, the figure with `return_fig`, else None.

    Raises
    ------
    KeyError
        If there is no result.
    TypeError
        If an argument is of another type.
    ValueError
        If `n_genes` is not above 0.

    Notes
    -----
    The colour of a gene is that of the niche in which its mean is highest. The legend has the niches of named genes.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> st.tl.spatial_genes(adata, groupby="domain")
    >>> ax = st.pl.spatial_genes(adata, show=False)
    >>> ax.get_ylabel()
    "Moran's I"
    """
    output = read_output("spatial_genes", ax=ax, figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    check_positive(n_genes, "n_genes", integer=True)
    tables = read_tables(data, table_key=table_key)
    stored = read_stored(tables, key_added, "spatial_genes")
    table = stored["table"].dropna(subset=["moran_i", "eta_squared"])
    niches = list(table["group"].cat.categories)
    colors = label_palette(tables, str(stored["params"]["groupby"]), niches)
    with output.figure(SIZE) as fig:
        axes = fig.add_subplot() if ax is None else ax
        named = table.head(n_genes)
        axes.scatter(
            *(table["eta_squared"], table["moran_i"]),
            s=14,
            c=[colors[name] for name in table["group"].astype(str)],
            edgecolors="white",
            linewidths=0.3,
            rasterized=len(table) > 5000,
        )
        axes.set_xlabel("eta squared between niches", fontsize=8)
        axes.set_ylabel("Moran's I", fontsize=8)
        axes.tick_params(labelsize=7, width=0.5)
        axes.margins(0.08)
        axes.autoscale_view()  # places of names are those in the final limits
        axes.spines[["top", "right"]].set_visible(False)
        _write_names(axes, named)
        used = [name for name in niches if (named["group"] == name).any()]
        axes.legend(
            [Line2D([], [], linestyle="", marker="o", markersize=4, color=colors[name]) for name in used],
            [shown(name) for name in used],
            title="highest in",
            ncols=-(-len(used) // IN_COLUMN),
            loc="upper left",
            bbox_to_anchor=(1.02, 1),
            fontsize=7,
            title_fontsize=7,
            frameon=False,
            borderaxespad=0,
        )
        return output.finish(fig, axes)


def _write_names(ax: Axes, named: pd.DataFrame) -> None:
    """Names beside points, the first ones first, on the side where they overlap no other."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    points = ax.transData.transform(named[["eta_squared", "moran_i"]].to_numpy(dtype=float)) / figure.dpi
    taken: list[tuple[float, float, float, float]] = []
    height = NAME / 72
    for gene, (x, y) in zip(named["names"].astype(str), points, strict=True):
        width = text_width(shown(gene), NAME) + 0.04
        for side in (1, -1):
            left = x + 0.05 if side > 0 else x - 0.05 - width
            box = (left, y - height / 2, left + width, y + height / 2)
            inside = np.logical_and.reduce(((points > box[:2]) & (points < box[2:])).T).any()
            beyond = side > 0 and box[2] > ax.bbox.x1 / figure.dpi  # where the legend is
            overlaps = any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
            if beyond or inside or overlaps:
                continue
            taken.append(box)
            offset = 72 * 0.05 * side
            place = named.loc[named["names"] == gene, ["eta_squared", "moran_i"]].to_numpy(dtype=float)[0]
            ax.annotate(
                shown(gene),
                tuple(place),
                xytext=(offset, 0),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=NAME,
            )
            break
