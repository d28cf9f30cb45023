"""Arguments that all plots share, checked first; then: open a figure, save, show, return."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.colors import is_color_like
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from stage_sc._checks import check_bool, check_positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")  # axes or a list of them
logger = logging.getLogger("stage_sc.pl")

# Text of vector files stays text, which other programs can edit.
TEXT_AS_TEXT: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}
MOST_PIXELS = 500_000_000  # of a figure: 2 GB while it is drawn
CATEGORY = str | Integral | np.bool_
LONGEST = 30  # characters of a name in a figure


class Output(NamedTuple):
    """Where a figure goes: arguments that all plots share."""

    ax: Axes | None
    figsize: tuple[float, float] | None
    show: bool | None
    path: Path | None
    dpi: float
    return_fig: bool

    @contextmanager
    def figure(self, size: Iterable[float]) -> Iterator[Figure]:
        """Figure of the axes given, or a new one of `size` inches unless `figsize` is given; closed after an error."""
        if self.ax is not None:
            yield root_figure(self.ax)
            return
        width, height = self.figsize or size
        pixels = np.array([width, height]) * max(self.dpi, float(mpl.rcParams["figure.dpi"]))
        if pixels.max() >= 2**16 or pixels.prod() > MOST_PIXELS:
            raise ValueError(
                f"`figsize` and `dpi`: {width:,.0f} x {height:,.0f} inches are {pixels[0]:,.0f} x {pixels[1]:,.0f} "
                f"pixels, more than 65,535 on a side or {MOST_PIXELS:,} in all. Lower one of them."
            )
        fig = plt.figure(figsize=(width, height))
        try:
            yield fig
        except BaseException:
            plt.close(fig)
            raise

    def finish(self, fig: Figure, axes: T) -> T | Figure | None:
        """Save, show as scanpy does, and return axes, figure or None.

        A figure of axes that were given is shown only if asked to, and never closed.
        """
        own = self.ax is None
        if self.path is not None:
            image = io.BytesIO()  # a file that exists is replaced only after drawing has succeeded
            kind = self.path.suffix[1:].lower()
            with mpl.rc_context(TEXT_AS_TEXT):
                fig.savefig(image, dpi=self.dpi, bbox_inches="tight", format=kind)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(image.getvalue())
            logger.info("Figure saved to %s.", self.path)
        if self.return_fig:
            if own:  # a notebook would draw it twice
                plt.close(fig)
            return fig
        if sc.settings.autoshow and own if self.show is None else self.show:
            plt.show()
            if own:
                if mpl.get_backend().lower() in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE):
                    plt.close(fig)
                return None
        return axes


def read_output(plot: str, *, figsize: Any, show: Any, save: Any, dpi: Any, return_fig: Any, ax: Any = None) -> Output:
    """Check the arguments that all plots share; `plot` names the file of ``save=True``."""
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"`ax` must be axes of matplotlib, got {type(ax).__name__}")
    if ax is not None:
        root_figure(ax)
    if figsize is not None:
        if isinstance(figsize, str) or np.shape(figsize) != (2,):
            raise TypeError(f"`figsize` must be two numbers, width and height in inches, got {figsize!r}")
        for inches in figsize:
            check_positive(inches, "figsize")
    if show is not None:
        check_bool(show, "show")
    check_bool(return_fig, "return_fig")
    if dpi is not None:
        check_positive(dpi, "dpi")
    return Output(ax, figsize, show, _read_path(save, plot), 200 if dpi is None else float(dpi), return_fig)


def _read_path(save: Any, plot: str) -> Path | None:
    """Path of the file to write, if any, with a suffix that matplotlib can write."""
    save = sc.settings.autosave if save is None else save
    if isinstance(save, bool | np.bool_):
        name = f"{plot}{sc.settings.plot_suffix}.{sc.settings.file_format_figs}"
        return Path(sc.settings.figdir) / name if save else None
    if not isinstance(save, str | Path) or not str(save).strip():
        raise TypeError(f'`save` must be a path such as "tissue.png", or True for scanpy\'s folder, got {save!r}')
    path = Path(save).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"`save`: {str(path)!r} is a folder. Add the name of a file.")
    if not path.suffix:
        path = path.with_name(f"{path.name}.{mpl.rcParams['savefig.format']}") if path.name else path
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(f"`save`: {str(save)!r} has no suffix of a picture. Use one of {', '.join(kinds)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`save`: the folder {str(path.parent)!r} does not exist. Make it first.")
    return path


def check_palette(palette: Any) -> Mapping[Any, str]:
    """Return `palette`, or an empty one for None; refuse all but colours by name."""
    if palette is None:
        return {}
    if not isinstance(palette, Mapping):
        raise TypeError(f"`palette` must map names to colours, e.g. {{'N3': 'gold'}}, not {type(palette).__name__}")
    wrong = {name: color for name, color in palette.items() if not is_color_like(color)}
    if wrong:
        raise ValueError(f"`palette` has colours that matplotlib does not know: {wrong}")
    return palette


def root_figure(ax: Axes) -> Figure:
    """Figure that the axes are part of; of a subfigure, the whole figure."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("`ax` has been removed from its figure: pass axes that are still part of one")
    return figure


def shown(name: object) -> str:
    """Text of a name in a figure: cut if very long, on one line, and no formula."""
    text = " ".join(str(name).split())
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return text.replace("$", r"\$")


@lru_cache(4096)
def text_width(text: str, size: float) -> float:
    """Width of a text of `size` points, in inches."""
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]) / 72


def fitting_size(text: str, inches: float, size: float) -> float:
    """Size in points with which a text is at most `inches` wide; at most `size`, at least 3."""
    return float(np.clip(size * inches / max(text_width(text, size), 1e-9), 3, size))
