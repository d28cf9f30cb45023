"""Activity of sets of genes in niches as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from stage_sc._checks import check_positive
from stage_sc._input import read_tables
from stage_sc.analysis import read_stored
from stage_sc.pl._figure import read_output
from stage_sc.pl._label_palette import label_palette
from stage_sc.pl._matrix import Matrix, draw_matrix, frame_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data


def pathways(
    data: Data,
    *,
    n_sets: int = 30,
    alpha: float = 0.05,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "pathways",
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the scores of sets of genes in niches: sets clustered, niches in the order of the tree.

    Parameters
    ----------
    data
        Object or objects with the result of ``st.tl.pathways``.
    n_sets
        Number of sets to draw, those with the largest range of scores over the niches.
    alpha
        A point marks scores with a smaller adjusted p-value.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    figsize
        Width and height in inches. Default: by the numbers of niches and sets.
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
        If `n_sets` or `alpha` is not above 0.

    Notes
    -----
    Rows are clustered by average linkage of Euclidean distances of scores. Colours are symmetric around 0, up to the
    largest absolute score. A word with which all names begin, as HALLMARK of ``HALLMARK_HYPOXIA``, is left out.

    Examples
    --------
    >>> import pandas as pd, stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> net = pd.DataFrame({"source": "first ten", "target": adata.var_names[:10]})
    >>> st.tl.pathways(adata, net, groupby="domain")
    >>> ax = st.pl.pathways(adata, show=False)
    >>> ax.get_yticklabels()[0].get_text()
    'first ten'
    """
    output = read_output("pathways", figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    check_positive(n_sets, "n_sets", integer=True)
    check_positive(alpha, "alpha")
    tables = read_tables(data, table_key=table_key)
    stored = read_stored(tables, key_added, "pathways")
    table = stored["table"]
    niches = [name for name in table["group"].cat.categories if (table["group"] == name).any()]
    scores, pvals = (
        table.astype({"group": str, "source": str}).pivot(index="source", columns="group", values=value)[niches]
        for value in ("score", "pvals_adj")
    )
    spread = (scores.max(axis=1) - scores.min(axis=1)).sort_values(ascending=False, kind="stable")
    chosen = spread.index[:n_sets]
    scores, pvals = scores.loc[chosen], pvals.loc[chosen]
    scores.index = pvals.index = _short([*map(str, chosen)])
    limit = float(np.nanmax(np.abs(scores.to_numpy()), initial=1e-9))
    colors = label_palette(tables, str(stored["params"]["groupby"]), niches)
    matrix = Matrix(
        scores,
        "score (t)",
        "RdBu_r",
        Normalize(-limit, limit),
        marks=pvals < alpha,
        column_colors=[colors[name] for name in niches],
        linkage=_cluster(scores.to_numpy()),
    ).in_order()
    frame = frame_of(matrix)
    with output.figure((frame.width, frame.height)) as fig:
        axes = draw_matrix(fig, frame, matrix)
        return output.finish(fig, axes)


def _short(names: list[str]) -> list[str]:
    """Names without the first word, up to ``_``, if all have the same."""
    words = {name.partition("_")[0] for name in names}
    rest = [name.partition("_")[2] for name in names]
    return rest if len(names) > 1 and len(words) == 1 and all(rest) else names


def _cluster(scores: np.ndarray) -> np.ndarray | None:
    from scipy.cluster.hierarchy import linkage

    return np.asarray(linkage(np.nan_to_num(scores), "average", optimal_ordering=True)) if len(scores) > 1 else None
