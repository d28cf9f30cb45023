"""Training curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from stage_sc.pl._figure import read_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stage_sc.model import Stage

TITLES = {
    "loss": "losses",
    "entropy": "evenness of leaf use",
    "used": "leaves in use",
    "cosine": "mean cosine of two cells",
}


def training_curves(
    history: Stage | pd.DataFrame,
    *,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw losses and health metrics of a training by epoch.

    Losses should fall; evenness and the number of leaves in use should stay high. Training has collapsed if the mean
    cosine of two cells comes close to 1 or few leaves are in use. A dashed line marks the start of joint training, with
    a new tree.

    Parameters
    ----------
    history
        Model from ``st.tl.fit``, or a table like its ``history``, e.g. ``pd.read_csv("history.csv")``; see there for
        the columns.
    figsize
        Width and height of the figure in inches. Default: 8 by 5.
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
    The list of four axes if not shown, the figure with `return_fig`, else None.

    Raises
    ------
    KeyError
        If the table lacks a column.
    TypeError
        If `history` is neither a model nor a table, or a column holds no numbers.
    ValueError
        If there is no epoch, or the model has no history, which is not stored with it.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> model = st.tl.fit(adata, epochs=2, progress=False)
    >>> st.pl.training_curves(model, save="curves.png", return_fig=True).get_axes()[2].get_title()
    'leaves in use'
    """
    output = read_output("training_curves", figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    table = history if isinstance(history, pd.DataFrame) else getattr(history, "history", history)
    if table is not None and not isinstance(table, pd.DataFrame) or history is None:
        raise TypeError(f"`history` must be a model from `st.tl.fit` or a data frame, got {type(history).__name__}.")
    if table is None:
        raise ValueError("The model has no history, as it was read from a file: pass that of `st.tl.fit`, or a table.")
    table = table.set_index("epoch") if "epoch" in table else table  # as read from a file
    if not len(table):
        raise ValueError("`history` has no epoch: there is nothing to draw.")
    if missing := [name for name in ("stage", *TITLES) if name not in table]:
        raise KeyError(f"`history` lacks the columns {missing}; it has {list(table)}.")
    if repeated := list(table.columns[table.columns.duplicated()]):
        raise ValueError(f"`history` has the columns {repeated} more than once.")
    losses = [name for name in table if name not in {"stage", *TITLES} - {"loss"}]
    for name, values in {"epoch": table.index, **{name: table[name] for name in {*TITLES, *losses}}}.items():
        if not pd.api.types.is_numeric_dtype(values):
            raise TypeError(f"The column {name!r} of `history` must hold numbers, but holds {values.dtype}.")
    joint = table.index[table["stage"] == "joint"]
    highest = table[["used", "cosine"]].replace([np.inf, -np.inf], np.nan)
    with output.figure((8, 5)) as fig:
        fig.set_layout_engine("constrained")
        axes = fig.subplots(2, 2, sharex=True)
        for ax, (name, title) in zip(axes.flat, TITLES.items(), strict=True):
            for column in losses if name == "loss" else [name]:
                ax.plot(table.index, table[column], marker=".", label=column)
            if 0 < len(joint) < len(table):
                ax.axvline(joint[0] - 0.5, color="0.5", linestyle="--", linewidth=1, label="joint training")
            ax.set_title(title, fontsize=10)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        losses_ax, entropy, used, cosine = axes.flat
        handles, labels = losses_ax.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8, frameon=False)
        entropy.set_ylim(0, 1.05)
        used.set_ylim(0, 1.05 * max(1, highest["used"].max()))
        cosine.set_ylim(min(0, highest["cosine"].min()), 1.05)
        for ax in (used, cosine):
            ax.set_xlabel("epoch")
        return output.finish(fig, list(axes.flat))
