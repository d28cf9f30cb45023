"""Contacts of niches as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.colors import Normalize

from stage_sc._checks import check_choice, check_positive
from stage_sc._input import read_tables
from stage_sc.analysis import read_stored
from stage_sc.pl._figure import read_output
from stage_sc.pl._label_palette import label_palette
from stage_sc.pl._matrix import Matrix, draw_matrix, frame_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stage_sc._input import Data

LABELS = {
    "contacts": "log2 contacts\nover expected",
    "cells": "z-score\n(shuffled cells)",
    "differences": "log2 fold of\nshare of neighbours",
}
MOST = {"contacts": 3.0, "differences": 4.0, "cells": 50.0}  # ends of the colours


def niche_neighbors(
    data: Data,
    *,
    kind: Literal["contacts", "cells", "differences"] = "contacts",
    condition: str | None = None,
    fdr: float = 0.1,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "niche_neighbors",
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw niches that touch more (red) or less (blue) than expected, or otherwise in a condition.

    Parameters
    ----------
    data
        Object or objects with the result of ``st.tl.niche_neighbors``.
    kind
        ``"contacts"``: touching patches over those expected, the way to see which niches are neighbours. ``"cells"``:
        z-scores of pairs of cells. ``"differences"``: neighbours (columns) of a niche (row) in a condition over the
        reference.
    condition
        Condition of differences. Default: the first one that was compared.
    fdr
        Fields with a point have a false discovery rate of at most this, above 0; not for ``"cells"``.
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
    The axes if not shown, the figure with `return_fig`, else None.

    Raises
    ------
    KeyError
        If there is no result.
    TypeError
        If an argument is of another type.
    ValueError
        If `kind` is none of these, or conditions or `condition` were not compared.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(600)
    >>> st.pp.build_graph(adata)
    >>> st.tl.niche_neighbors(adata, groupby="domain")
    >>> ax = st.pl.niche_neighbors(adata, show=False)
    >>> ax.get_ylabel()
    'niche'
    """
    output = read_output("niche_neighbors", figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    check_choice(kind, "kind", LABELS)
    check_positive(fdr, "fdr")
    tables = read_tables(data, table_key=table_key)
    stored = read_stored(tables, key_added, "niche_neighbors")
    table, column = stored["table"], {"contacts": "log2_ratio", "cells": "z_score", "differences": "log2_fold"}[kind]
    if kind == "differences" and "differences" not in stored:
        raise ValueError("`kind`: no conditions were compared: run `st.tl.niche_neighbors` with `condition_key`.")
    if kind == "differences":
        table = stored["differences"]
        compared = [name for name in table["condition"].cat.categories if (table["condition"] == name).any()]
        check_choice(condition if condition is not None else compared[0], "condition", compared)
        table = table[table["condition"] == (condition if condition is not None else compared[0])]
    elif condition is not None:
        raise ValueError(f'`condition` is for `kind="differences"`, got {condition!r} with kind={kind!r}.')
    names = list(table["group"].cat.categories)
    values = table.pivot(index="group", columns="neighbor", values=column).reindex(index=names, columns=names)
    marks = None
    if kind != "cells":
        marks = table.pivot(index="group", columns="neighbor", values="fdr").reindex(index=names, columns=names) <= fdr
    finite = np.abs(values.to_numpy(float))
    limit = float(np.clip(finite[np.isfinite(finite)].max(initial=1.0), 1.0, MOST[kind]))
    colors = label_palette(tables, str(stored["params"]["groupby"]), names)
    matrix = Matrix(
        values.clip(-limit, limit),
        LABELS[kind],
        "RdBu_r",
        Normalize(-limit, limit),
        marks=marks,
        row_colors=colors,
        column_colors=[colors[name] for name in names],
    )
    frame = frame_of(matrix)
    with output.figure((frame.width + 0.2, frame.height + 0.2)) as fig:
        frame = frame._replace(
            width=frame.width + 0.2, height=frame.height + 0.2, left=frame.left + 0.2, bottom=frame.bottom + 0.2
        )
        axes = draw_matrix(fig, frame, matrix)
        axes.set_ylabel("niche", fontsize=7)
        axes.set_xlabel("neighbour", fontsize=7)
        return output.finish(fig, axes)
