"""Cell types of niches as a heat map of log odds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import Normalize

from stage_sc._checks import check_positive
from stage_sc._input import read_tables
from stage_sc.analysis import read_stored
from stage_sc.pl._figure import read_output
from stage_sc.pl._label_palette import label_palette
from stage_sc.pl._matrix import Matrix, draw_matrix, frame_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stage_sc._input import Data

MOST = 5.0  # log2 odds at the ends of the colours


def cell_type_enrichment(
    data: Data,
    *,
    fdr: float = 0.05,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "cell_type_enrichment",
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw cell types that are more (red) or less (blue) frequent in a niche than outside.

    Parameters
    ----------
    data
        Object or objects with the result of ``st.tl.cell_type_enrichment``.
    fdr
        Fields with a point have a false discovery rate of at most this, above 0.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    figsize
        Width and height in inches. Default: by the numbers of niches and cell types.
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
        If `fdr` is not above 0.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500, n_slides=3)
    >>> st.tl.cell_type_enrichment(adata, cell_type_key="cell_type", groupby="domain", library_key="slide")
    >>> ax = st.pl.cell_type_enrichment(adata, show=False)
    >>> len(ax.get_yticklabels()) == adata.obs["domain"].nunique()
    True
    """
    output = read_output("cell_type_enrichment", figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    check_positive(fdr, "fdr")
    tables = read_tables(data, table_key=table_key)
    stored = read_stored(tables, key_added, "cell_type_enrichment")
    table = stored["table"]
    rows, columns = (list(table[name].cat.categories) for name in ("group", "cell_type"))
    values = table.pivot(index="group", columns="cell_type", values="log2_odds").reindex(index=rows, columns=columns)
    marks = table.pivot(index="group", columns="cell_type", values="fdr").reindex(index=rows, columns=columns) <= fdr
    finite = np.abs(values.to_numpy(float))
    limit = float(np.clip(finite[np.isfinite(finite)].max(initial=1.0), 1.0, MOST))
    colors = label_palette(tables, str(stored["params"]["groupby"]), rows)
    matrix = Matrix(
        *(values.clip(-limit, limit), "log2 odds", "RdBu_r", Normalize(-limit, limit)), marks=marks, row_colors=colors
    )
    frame = frame_of(matrix)
    with output.figure((frame.width, frame.height)) as fig:
        return output.finish(fig, draw_matrix(fig, frame, matrix))
