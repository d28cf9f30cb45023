"""Pictures of the tissue, coloured by niche."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stage_sc._input import read_labels
from stage_sc._result import Columns, label_keys
from stage_sc.pl._cells import Cells, read_cells
from stage_sc.pl._figure import finish, root_figure
from stage_sc.pl._palette import MISSING_COLOR
from stage_sc.pl._points import add_scale_bar, cell_spacing, draw_cells, frame_tissue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data

# A legend with more entries can be neither read nor matched with colours.
MOST_ENTRIES = 40


def spatial_domains(
    data: Data,
    *,
    keys: str | Sequence[str] | None = None,
    key_added: str = "stage",
    spatial_key: str | None = None,
    library_key: str | None = None,
    libraries: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
    size: float = 1.0,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
    legend_loc: Literal["right margin"] | None = "right margin",
    title: str | Sequence[str] | None = None,
    frameon: bool = False,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the tissue: one panel for each level of the niche tree, or for any other labels of the cells.

    With several slides and several keys, rows are slides and columns are keys; otherwise the panels flow in rows. A
    niche has the same colour on every slide that the same checkpoint has labelled: related niches share a hue, and
    siblings differ in lightness. y points down, as in images and in squidpy. A bar shows the scale where
    `uns["stage_graph"]["slides"]` has the µm of one unit of the coordinates.

    Parameters
    ----------
    data
        Cells with coordinates, and with niches from ``st.tl.stage_niches`` unless `keys` names other labels only; or a
        list or a dictionary of such objects, which are slides of their own.
    keys
        Columns of `obs` to draw, with categories, strings or bools. Default: all levels, and the domains if there are
        any. Put an expert's labels next to the niches with ``keys=["domain", "stage_l1"]``.
    key_added
        Under which name the niches were written.
    spatial_key
        `obsm` key of the coordinates, shape (n_obs, >= 2); the first two columns are x and y. Default: the one with
        which the niches were computed, or "spatial".
    library_key
        Column of `obs` that names the slide of each cell. Default: the one with which the niches were computed.
    libraries
        Slides to draw, in this order. Default: all.
    palette
        Colours of some or all categories by name; the others keep theirs. Remembered like all colours, see Notes.
    size
        Diameter of a circle relative to the default, which fills the tissue: circles that touch on a hexagonal
        grid, in general 1.07 times the root of the area per cell.
        Smaller values show single cells apart.
    ncols
        Panels in a row, where only keys or only slides vary. Default: up to 4.
    figsize
        Width and height of the figure in inches. Default: after the shape of the tissue and the number of panels.
    legend_loc
        ``"right margin"`` for a legend beside the panel, None for no legend. Keys with more than 40 categories in use
        get no legend; their number is in the title.
    title
        A title for each key. Default: the level and its number of niches, or the key.
    frameon
        Draw a frame around each panel.
    ax
        Axes to draw on, for a single panel.
    show
        Show the figure and return None. Default: scanpy's ``settings.autoshow``, unless `ax` is given.
    save
        Full path of a file to write (200 dots per inch, cropped to what is drawn); the suffix sets the format.
    return_fig
        Return the figure, detached from pyplot, instead of showing it.

    Returns
    -------
    The axes (a list of them, row by row, if there are several panels) if not shown or if `ax` is given, the figure with
    `return_fig`, else None. Sets the following field:

    `adata.uns[f"{key}_colors"]` : :class:`list`
        A colour for each category, in their order, unless a list of the right length was there already.

    Raises
    ------
    KeyError
        If the niches, a column, the coordinates or a slide are missing.
    TypeError
        If a column holds numbers, or `palette` is not a mapping.
    ValueError
        If coordinates are not finite, cells have no slide, `ax` is given for several panels, or an argument is out of
        range.

    Notes
    -----
    A key is drawn with `palette`, else with the colours in `uns`, else with colours made from the tree (niches) or as
    far apart as possible (all others). To change your mind, delete `adata.uns[f"{key}_colors"]`. Views are not
    written to.

    The picture does not depend on the order of the cells. Up to 50,000 cells in a panel are circles; above, each
    pixel shows the cell next to it, about 2 s for a panel of a million cells on two cores.

    Examples
    --------
    >>> import anndata as ad, numpy as np, stage_sc as st
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(np.ones((500, 1)), obsm={"spatial": rng.uniform(0, 400, (500, 2))})
    >>> adata.obs["layer"] = np.where(adata.obsm["spatial"][:, 1] < 200, "upper", "lower")
    >>> ax = st.pl.spatial_domains(adata, keys="layer", show=False)
    >>> ax.get_title()
    'layer'
    """
    cells = read_cells(data, key_added, library_key)
    keys = _keys(cells, keys)
    xy = cells.coordinates(spatial_key)
    cells_of = cells.rows(libraries)
    values = {key: read_labels(cells.adata, key, integers=False) for key in keys}
    shown = np.any(list(cells_of.values()), axis=0)
    titles = _titles(title, keys, {key: values[key][shown] for key in keys}, cells)
    panels = [(slide, key) for slide in cells_of for key in keys]
    if ax is not None and len(panels) > 1:
        raise ValueError(
            f"`ax` holds one panel, but {len(panels)} were asked for ({len(keys)} keys x {len(cells_of)} slides): "
            "name one key, and one slide in `libraries`, or leave out `ax`"
        )
    if legend_loc not in ("right margin", None):
        raise ValueError(f"`legend_loc` must be 'right margin' or None, not {legend_loc!r}")
    if not size > 0:
        raise ValueError(f"`size` must be positive, not {size}")
    if ncols is not None and ncols < 1:
        raise ValueError(f"`ncols` must be at least 1, not {ncols}")

    colors = {key: cells.colors(key, palette) for key in keys}
    entries = {key: _entries(values[key][shown], colors[key]) if legend_loc else [] for key in keys}
    by_slide, grid = len(cells_of) > 1, len(cells_of) > 1 and len(keys) > 1
    columns = len(keys) if grid else min(ncols or 4, len(panels))
    if ax is None:
        shape = np.median([np.ptp(xy[here], axis=0) for here in cells_of.values()], axis=0)
        fig, axes = _figure(len(panels), columns, shape, list(entries.values()), figsize)
    else:
        fig, axes = root_figure(ax), [ax]
    # One legend a key: beside its first panel, or after the first row where all panels show one key.
    with_legend = range(columns) if grid else [columns - 1] if by_slide else range(len(panels))
    scales = cells.scales(spatial_key)
    same = len(set(scales.values())) == 1
    for i, (panel, (slide, key)) in enumerate(zip(axes, panels, strict=True)):
        here = cells_of[slide]
        spacing = cell_spacing(xy[here])
        frame_tissue(panel, xy[here], spacing)
        draw_cells(panel, xy[here], values[key][here], colors[key], size=size, spacing=spacing)
        panel.spines[:].set_visible(frameon)
        if i < columns or not grid:
            panel.set_title(slide if by_slide and not grid else titles[key], fontsize=10)
        if grid and i % columns == 0:
            panel.set_ylabel(slide, fontsize=10)
        scale = next(iter(scales.values())) if same else scales.get(slide)
        if scale and (i % columns == 0 or not grid):
            add_scale_bar(panel, scale)
        if i in with_legend and entries[key]:
            _legend(panel, entries[key])
    if by_slide and not grid and ax is None:
        fig.suptitle(titles[keys[0]], fontsize=11)
    return finish(fig, axes, own=ax is None, show=show, save=save, return_fig=return_fig)


def _keys(cells: Cells, keys: str | Sequence[str] | None) -> list[str]:
    if keys is None:
        return label_keys(next(iter(cells.tables.by_name.values())), cells.key_added)
    keys = [keys] if isinstance(keys, str) else list(keys)
    if not keys:
        raise ValueError("`keys` is empty: name columns of adata.obs, or leave it out for all levels")
    return keys


def _titles(
    title: str | Sequence[str] | None,
    keys: list[str],
    shown: Mapping[str, pd.Categorical],
    cells: Cells,
) -> dict[str, str]:
    if title is not None:
        given = [title] if isinstance(title, str) else list(title)
        if len(given) != len(keys):
            raise ValueError(f"`title` needs one text for each of the {len(keys)} keys {keys}, not {len(given)}")
        return dict(zip(keys, given, strict=True))
    levels = list(cells.result.get("levels", []))
    result = {}
    for key in keys:
        n = len(shown[key].remove_unused_categories().categories)
        if key in levels:
            result[key] = f"level {levels.index(key) + 1} · {n} niche{'s' * (n != 1)}"
        elif key == Columns(cells.key_added).domain:
            result[key] = f"{n} domain{'s' * (n != 1)}"
        else:
            result[key] = key if n <= MOST_ENTRIES else f"{key} · {n} categories"
    return result


def _entries(shown: pd.Categorical, colors: Mapping[object, str]) -> list[tuple[str, str]]:
    """Name and colour of each category in use; none where there are too many."""
    used = shown.remove_unused_categories().categories
    if len(used) > MOST_ENTRIES:
        return []
    return [(str(name), colors[name]) for name in used] + [("missing", MISSING_COLOR)] * bool((shown.codes < 0).any())


def _legend_columns(n: int, height: float) -> int:
    """Columns of a legend with `n` entries beside a panel of `height` inches, at 12 points a line."""
    return -(-n // max(4, int(height * 6)))


def _figure(
    n: int,
    columns: int,
    shape: np.ndarray,
    entries: list[list[tuple[str, str]]],
    figsize: tuple[float, float] | None,
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `n` panels that have the shape of the tissue, with room for the legends."""
    rows = -(-n // columns)
    aspect = np.clip(shape[0] / shape[1] if shape.min() > 0 else 1.0, 0.25, 4)
    width, height = np.sqrt((16 if n == 1 else 9) * np.array([aspect, 1 / aspect]))
    if figsize is None:
        widths = [
            _legend_columns(len(names), height) * (0.3 + 0.07 * max((len(name) for name, _ in names), default=0))
            for names in entries
        ]
        # Panels are as wide in each column, and so is the room for legends unless all share one.
        legends = widths[0] if len(widths) == 1 else sum(sorted(widths)[-columns:])
        figsize = (columns * (width + 0.15) + legends, rows * (height + 0.45) + 0.2)
    fig, grid = plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="compressed")
    for unused in grid.ravel()[n:]:
        unused.remove()
    return fig, list(grid.ravel()[:n])


def _legend(ax: Axes, entries: list[tuple[str, str]]) -> None:
    height = ax.get_position().height * root_figure(ax).get_figheight()
    ax.legend(
        [Line2D([], [], linestyle="", marker="o", markersize=6, color=color) for _, color in entries],
        [name for name, _ in entries],
        loc="upper left",
        bbox_to_anchor=(1, 1),
        ncols=_legend_columns(len(entries), height),
        fontsize=8,
        frameon=False,
        borderaxespad=0.3,
        handletextpad=0.1,
        labelspacing=0.25,
        columnspacing=0.8,
    )
