"""Genes and neighbours that put cells into a niche rather than into another, as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from stage_sc._checks import check_positive
from stage_sc._input import read_tables
from stage_sc.analysis import read_stored
from stage_sc.pl._figure import read_output, shown, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data

# Colours of Okabe and Ito, for the cells themselves and for their neighbours.
COLORS = {"own": "#E69F00", "neighbors": "#0072B2"}
PARTS = {"own": "the cell itself", "neighbors": "its neighbours"}
FONT = 8  # points
BAR, WIDTH, GAP = 0.19, 2.1, 0.3  # inches


def explain_niche(
    data: Data,
    *,
    n_genes: int = 15,
    n_labels: int = 10,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "explain_niche",
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> list[Axes] | Figure | None:
    """Draw the genes (left) and the kinds of neighbours (right) that put cells into a niche rather than into another.

    Bars to the right speak for the niche, bars to the left for the reference. Each is stacked from the part of the
    cells themselves and the part of their neighbours. An arrow tells if a gene is higher (↑) or lower (↓) in the niche,
    and if cells of a label are more or fewer there.

    Parameters
    ----------
    data
        Object or objects with the result of ``st.tl.explain_niche``.
    n_genes, n_labels
        Largest number of genes and of labels to draw, those with the largest contributions; labels below 1 % of the
        largest are left out.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    figsize
        Width and height in inches. Default: by the numbers of genes and labels.
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
    Both axes if not shown, the figure with `return_fig`, else None.

    Raises
    ------
    KeyError
        If there is no result.
    TypeError
        If an argument is of another type.
    ValueError
        If `n_genes` or `n_labels` is not above 0.

    Notes
    -----
    The last line has the score difference and what it is the sum of: the genes that are drawn, all other genes, and the
    remainder (difference of the baselines, and error of the sum).

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> st.tl.stage_niches(adata, n_domains=4)
    >>> st.tl.explain_niche(adata, "D1", n_cells=50)
    >>> genes, neighbors = st.pl.explain_niche(adata, show=False)
    >>> len(genes.get_yticklabels())
    15
    """
    output = read_output("explain_niche", figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    check_positive(n_genes, "n_genes", integer=True)
    check_positive(n_labels, "n_labels", integer=True)
    stored = read_stored(read_tables(data, table_key=table_key), key_added, "explain_niche")
    params = stored["params"]
    genes, labels = stored["table"].head(n_genes), stored["neighbors"].head(n_labels)
    least = 0.01 * labels["contribution"].abs().max()
    labels = labels[labels["contribution"].abs() >= least]
    names_of = [
        _with_arrows(rows[key], rows[f"niche_{value}"] > rows[f"reference_{value}"])
        for rows, key, value in ((genes, "names", "mean"), (labels, "label", "share"))
    ]
    margins = [max(text_width(name, FONT) for name in names) + 0.25 for names in names_of]
    bars = max(len(genes), len(labels)) * BAR
    size = (sum(margins) + 2 * WIDTH + 2 * GAP, bars + 1.75)
    with output.figure(size) as fig:
        width, height = size
        axes, left = [], 0.0
        for margin, rows, one in zip(margins, (genes, labels), names_of, strict=True):
            tall = len(rows) * BAR
            place = ((left + margin) / width, (height - 0.75 - tall) / height, WIDTH / width, tall / height)
            axes.append(_draw_bars(fig.add_axes(place), rows, one))
            left += margin + WIDTH + GAP
        key = shown(params["cell_type_key"] or params["groupby"])
        niche, reference = shown(params["niche_name"]), shown(params["reference_name"])
        for ax, title in zip(axes, ("Genes", f"Cells, by {key}"), strict=True):
            ax.set_title(title, fontsize=FONT + 1, loc="left")
            ax.set_xlabel(f"← {reference}   contribution   {niche} →", fontsize=FONT)
        fig.text(0.02, 1 - 0.1 / height, f"Why {niche} rather than {reference}", fontsize=FONT + 3, va="top")
        fig.text(0.02, 0.1 / height, _sum_line(params, genes), fontsize=FONT, va="bottom", color="0.25")
        patches: list[Any] = [bars[0] for bars in axes[0].containers]
        legend: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.01, 0.27 / height), "ncols": 2}
        fig.legend(patches, list(PARTS.values()), fontsize=FONT, frameon=False, handlelength=1.0, **legend)
        return output.finish(fig, axes)


def _with_arrows(names: pd.Series, higher: pd.Series) -> list[str]:
    return [f"{shown(name)} {'↑' if more else '↓'}" for name, more in zip(names, higher, strict=True)]


def _draw_bars(ax: Axes, rows: pd.DataFrame, names: Sequence[str]) -> Axes:
    """Stacked bars of contributions, the first on top; parts of another sign are stacked to the other side."""
    place, end = np.arange(len(rows)), np.zeros((2, len(rows)))
    for part, color in COLORS.items():
        values = rows[part].to_numpy()
        side = (values < 0).astype(int)
        start = end[side, place]
        ax.barh(place, values, left=start, color=color, height=0.75, label=PARTS[part])
        end[side, place] += values
    ax.axvline(0, color="0.2", linewidth=0.8)
    ax.set_yticks(place, names, fontsize=FONT)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="x", labelsize=FONT - 1)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=4)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    return ax


def _sum_line(params: Mapping[str, Any], genes: pd.DataFrame) -> str:
    """Score difference and its parts."""
    difference, total = float(params["score_difference"]), float(params["sum_contributions"])
    drawn = float(genes["contribution"].sum())
    parts = f"{drawn:.3g} ({len(genes)} genes) + {total - drawn:.3g} (other genes)"
    return f"Score difference {difference:.3g} = {parts} + {difference - total:.1g} (remainder)"
