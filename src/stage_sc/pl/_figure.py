"""The end of each plot function: save, show, return."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import scanpy as sc
from matplotlib.backends import BackendFilter, backend_registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def root_figure(ax: Axes) -> Figure:
    """Return the whole figure that the axes are part of."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("`ax` has been removed from its figure: pass axes that are still part of one")
    return figure


def finish(
    fig: Figure, axes: list[Axes], *, own: bool, show: bool | None, save: str | Path | None, return_fig: bool
) -> Axes | list[Axes] | Figure | None:
    """Save where asked, show as scanpy does, return axes, figure or nothing.

    `own` says that the figure was made here; a caller's figure is neither shown without being asked nor closed.
    """
    if save is not None:
        fig.savefig(Path(save), dpi=200, bbox_inches="tight")
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
    return axes[0] if len(axes) == 1 else axes
