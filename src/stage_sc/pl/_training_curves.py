"""Training curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from stage_sc.pl._figure import finish

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
    save: str | Path | None = None,
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
        Path of a file to write, at 200 dots per inch; the suffix sets the format.
    return_fig
        Return the figure, detached from pyplot, instead of showing it.

    Returns
    -------
    The list of four axes if not shown, the figure with `return_fig`, else None.

    Raises
    ------
    KeyError
        If the table lacks a column.
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
    table = history if isinstance(history, pd.DataFrame) else history.history
    if table is None:
        raise ValueError("The model has no history, as it was read from a file: pass that of `st.tl.fit`, or a table.")
    table = table.set_index("epoch") if "epoch" in table else table  # as read from a file
    if not len(table):
        raise ValueError("`history` has no epoch: there is nothing to draw.")
    if missing := [name for name in ("stage", *TITLES) if name not in table]:
        raise KeyError(f"`history` lacks the columns {missing}; it has {list(table)}.")
    losses = [name for name in table if name not in {"stage", *TITLES} - {"loss"}]
    joint = table.index[table["stage"] == "joint"]
    fig, axes = plt.subplots(2, 2, figsize=figsize or (8, 5), sharex=True, layout="constrained")
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
    used.set_ylim(0, 1.05 * max(table["used"].max(), 1))
    cosine.set_ylim(min(0, table["cosine"].min()), 1.05)
    for ax in (used, cosine):
        ax.set_xlabel("epoch")
    return finish(fig, list(axes.flat), own=True, show=show, save=save, return_fig=return_fig)
