"""Tissue coloured by niche, domain or other labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stage_sc._checks import check_choice, check_positive
from stage_sc._result import Columns, label_keys
from stage_sc.pl._cells import Cells, read_cells
from stage_sc.pl._figure import finish, root_figure
from stage_sc.pl._palette import MISSING_COLOR
from stage_sc.pl._points import add_scale_bar, cell_spacing, draw_cells, frame_tissue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data

MOST_ENTRIES = 40  # of a legend; more can be neither read nor matched with colours


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
    """Draw cells at their coordinates, coloured by niche, domain or other labels: a panel for each column and slide.

    With several slides and several columns, rows of panels are slides. A niche has the same colour on all slides that
    a model has labelled; related niches share a hue, siblings differ in lightness. y points down, as in images and in
    squidpy. A bar shows the scale of each slide with a graph of these coordinates (``st.pp.build_graph``).

    Parameters
    ----------
    data
        Cells with coordinates and labels; or a list or a dictionary of such objects, each of which is a slide or more.
    keys
        Columns of ``obs`` with categories, strings or bools, e.g. ``["domain", "stage_l1"]``. Cells of objects without
        the column are drawn as missing. Default: all levels of ``st.tl.stage_niches``, and the domains if any.
    key_added
        Name under which the niches were written.
    spatial_key
        Key of ``obsm`` with the coordinates, x and y first. Default: the one of the niches, or "spatial".
    library_key
        Column of ``obs`` that names the slide of each cell. Default: the one of the niches.
    libraries
        Slides to draw, in this order. Default: all.
    palette
        Colours by name of category; the others keep theirs.
    size
        Diameter of circles relative to the default, with which they touch on a hexagonal grid (1.07 times the root of
        the area per cell).
    ncols
        Panels in a row, unless both columns and slides vary. Default: up to 4.
    figsize
        Width and height of the figure in inches. Default: by the shape of the tissue and the number of panels.
    legend_loc
        ``"right margin"``: legend beside the panel, up to 40 categories. None: no legend.
    title
        Title of each key. Default: the level and its number of niches, or the key.
    frameon
        Frame around each panel.
    ax
        Axes for a single panel.
    show
        Show the figure and return None. Default: scanpy's ``settings.autoshow``, unless `ax` is given.
    save
        Path of a file to write, at 200 dots per inch; the suffix sets the format.
    return_fig
        Return the figure, detached from pyplot, instead of showing it.

    Returns
    -------
    The axes (a list, row by row, if there are several panels) if not shown or if `ax` is given, the figure with
    `return_fig`, else None. Sets in each object that is not a view:

    `adata.uns[f"{key}_colors"]` : :class:`list`
        Colour of each category, in their order.

    Raises
    ------
    KeyError
        If niches, a column, coordinates or a slide are missing.
    TypeError
        If a column holds numbers, or `palette` is not a mapping.
    ValueError
        If coordinates are not finite, cells have no slide, `ax` is given for several panels, or an argument is out of
        range.

    Notes
    -----
    Colours are those of `palette`, then those in ``uns`` (of the first object that has as many as categories), then a
    function of the tree (niches) or as far apart as possible (other labels). Delete ``uns[f"{key}_colors"]`` for new
    ones. The picture does not depend on the order of cells. Panels of more than 50,000 cells show the nearest cell in
    each pixel instead of circles; a million cells take about 2 s on two cores.

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
    cells = read_cells(data, key_added, library_key, spatial_key)
    if keys is None:
        keys = list(dict.fromkeys(key for part in cells.parts for key in label_keys(part, key_added)))
    keys = [keys] if isinstance(keys, str) else list(keys)
    if not keys:
        raise ValueError("`keys` is empty: name columns of adata.obs, or leave it out for all levels")
    xy, slides = cells.coordinates(), cells.choose(libraries)
    values = {key: cells.labels(key) for key in keys}
    rows = np.concatenate(list(slides.values()))
    drawn = {key: values[key][rows].remove_unused_categories() for key in keys}
    titles = _titles(title, drawn, cells)
    panels = [(slide, key) for slide in slides for key in keys]
    if ax is not None and len(panels) > 1:
        raise ValueError(
            f"`ax` holds one panel, but {len(panels)} were asked for ({len(keys)} keys x {len(slides)} slides): "
            "name one key, and one slide in `libraries`, or leave out `ax`"
        )
    if legend_loc is not None:
        check_choice(legend_loc, "legend_loc", ["right margin"])
    check_positive(size, "size")
    if ncols is not None:
        check_positive(ncols, "ncols", integer=True)

    colors = {key: cells.colors(key, list(values[key].categories), palette) for key in keys}
    entries = {key: _entries(drawn[key], colors[key]) if legend_loc else [] for key in keys}
    by_slide = len(slides) > 1
    grid = by_slide and len(keys) > 1
    columns = len(keys) if grid else min(ncols or 4, len(panels))
    if ax is None:  # a unit of one slide can be longer than that of another
        extents = [np.ptp(xy[rows], axis=0) * (cells.scales[slide] or 1) for slide, rows in slides.items()]
        fig, axes = _figure(len(panels), columns, np.median(extents, axis=0), list(entries.values()), figsize)
    else:
        fig, axes = root_figure(ax), [ax]
    # One legend for each key: beside its first panel, or after the first row if all panels show the same key.
    with_legend = range(columns) if grid else [columns - 1] if by_slide else range(len(panels))
    for i, (panel, (slide, key)) in enumerate(zip(axes, panels, strict=True)):
        rows = slides[slide]
        spacing = cell_spacing(xy[rows])
        frame_tissue(panel, xy[rows], spacing)
        draw_cells(panel, xy[rows], values[key][rows], colors[key], size=size, spacing=spacing)
        panel.spines[:].set_visible(frameon)
        if i < columns or not grid:
            panel.set_title(slide if by_slide and not grid else titles[key], fontsize=10)
        if grid and i % columns == 0:
            panel.set_ylabel(slide, fontsize=10)
        scale = cells.scales[slide]
        if scale and (i % columns == 0 or not grid):
            add_scale_bar(panel, scale)
        if i in with_legend and entries[key]:
            _legend(panel, entries[key])
    if by_slide and not grid and ax is None:
        fig.suptitle(titles[keys[0]], fontsize=11)
    result = axes[0] if len(axes) == 1 else axes
    return finish(fig, result, own=ax is None, show=show, save=save, return_fig=return_fig)


def _titles(title: str | Sequence[str] | None, drawn: Mapping[str, pd.Categorical], cells: Cells) -> dict[str, str]:
    """Title of each key, by default with its number of categories in use."""
    if title is not None:
        given = [title] if isinstance(title, str) else list(title)
        if len(given) != len(drawn):
            raise ValueError(f"`title` needs one text for each of the {len(drawn)} keys {[*drawn]}, not {len(given)}")
        return dict(zip(drawn, given, strict=True))
    levels = list(cells.result.get("levels", []))
    titles = {}
    for key, values in drawn.items():
        n = len(values.categories)
        if key in levels:
            titles[key] = f"level {levels.index(key) + 1} · {n} niche{'s' * (n != 1)}"
        elif key == Columns(cells.key_added).domain:
            titles[key] = f"{n} domain{'s' * (n != 1)}"
        else:
            titles[key] = key if n <= MOST_ENTRIES else f"{key} · {n} categories"
    return titles


def _entries(drawn: pd.Categorical, colors: Mapping[object, str]) -> list[tuple[str, str]]:
    """Name and colour of each category in use; none where there are too many for a legend."""
    if len(drawn.categories) > MOST_ENTRIES:
        return []
    missing = [("missing", MISSING_COLOR)] if (drawn.codes < 0).any() else []
    return [(str(name), colors[name]) for name in drawn.categories] + missing


def _legend_columns(n: int, height: float) -> int:
    """Columns of a legend with `n` entries beside a panel of `height` inches, at 12 points a line."""
    return -(-n // max(4, int(height * 6)))


def _figure(
    n: int, columns: int, shape: np.ndarray, entries: list[list[tuple[str, str]]], figsize: tuple[float, float] | None
) -> tuple[Figure, list[Axes]]:
    """Figure of `n` panels with the aspect of `shape` (width, height), with room for the legends."""
    rows = -(-n // columns)
    aspect = np.clip(shape[0] / shape[1] if shape.min() > 0 else 1.0, 0.25, 4)
    width, height = np.sqrt((16 if n == 1 else 9) * np.array([aspect, 1 / aspect]))
    if figsize is None:
        widths = [
            _legend_columns(len(names), height) * (0.3 + 0.07 * max((len(name) for name, _ in names), default=0))
            for names in entries
        ]
        # All columns are equally wide, and so is the room for legends unless all panels share one.
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
