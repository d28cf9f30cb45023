"""Last step of each plot function: save, show, return."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import scanpy as sc
from matplotlib.backends import BackendFilter, backend_registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")  # axes or a list of them


def root_figure(ax: Axes) -> Figure:
    """Figure that the axes are part of; of a subfigure, the whole figure."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("`ax` has been removed from its figure: pass axes that are still part of one")
    return figure


def finish(
    fig: Figure, axes: T, *, own: bool, show: bool | None, save: str | Path | None, return_fig: bool
) -> T | Figure | None:
    """Save, show as scanpy does, and return axes, figure or None.

    A figure that is not our `own` is shown only if asked to, and never closed.
    """
    if save is not None:
        fig.savefig(save, dpi=200, bbox_inches="tight")
    if return_fig:
        if own:  # a notebook would draw it twice
            plt.close(fig)
        return fig
    if sc.settings.autoshow and own if show is None else show:
        plt.show()
        if own:
            if mpl.get_backend().lower() in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE):
                plt.close(fig)
            return None
    return axes
