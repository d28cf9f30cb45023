"""Tissue coloured by niche, domain or other labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stage_sc._checks import check_bool, check_choice, check_positive, read_names
from stage_sc._palette import MISSING_COLOR
from stage_sc._result import Columns, label_keys
from stage_sc.pl._cells import Cells, read_cells
from stage_sc.pl._figure import CATEGORY, check_palette, fitting_size, read_output, shown, text_width
from stage_sc.pl._grid import HIGHEST, best_columns, panel_size, place_panels
from stage_sc.pl._lines import draw_lines, read_lines
from stage_sc.pl._points import add_scale_bar, cell_spacing, draw_cells, frame_tissue, write_names

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from matplotlib.figure import Figure

    from stage_sc._input import Data

logger = logging.getLogger("stage_sc.pl")

MOST_ENTRIES = 40  # of a legend; more can be neither read nor matched with colours
MANY_SLIDES, MOST_PANELS = 12, 400  # by default, more slides are drawn with one key, and further panels left out


def spatial_domains(
    data: Data,
    *,
    keys: str | Sequence[str] | None = None,
    key_added: str = "stage",
    spatial_key: str | None = None,
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    libraries: str | Sequence[str] | None = None,
    groups: str | Sequence[str] | None = None,
    outlines: GeoDataFrame | None = None,
    palette: Mapping[str, str] | None = None,
    size: float = 1.0,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
    legend_loc: Literal["right margin", "on data"] | None = "right margin",
    title: str | Sequence[str] | None = None,
    frameon: bool = False,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw cells at their coordinates, coloured by niche, domain or other labels: a panel for each column and slide.

    With several slides and several columns, the panels of a slide lie side by side. A niche has the same colour on all
    slides that a model has labelled; related niches share a hue, siblings differ in lightness. y points down, as in
    images and in squidpy. A bar shows the scale of each slide with a graph of these coordinates
    (``st.pp.build_graph``), with "≈" if the scale was guessed.

    Parameters
    ----------
    data
        Cells with coordinates and labels; or a list or a dictionary of such objects, each of which is a slide or more.
    keys
        Columns of ``obs`` with categories, strings or bools, e.g. ``["domain", "stage_l1"]``. Cells of objects without
        the column are drawn as missing. Default: all levels of ``st.tl.stage_niches``, and the domains if any; with
        more than 12 slides, the domains or else level 1.
    key_added
        Name under which the niches were written.
    spatial_key
        Key of ``obsm`` with the coordinates, x and y first. Default: the one of the niches, or "spatial".
    library_key
        Column of ``obs`` that names the slide of each cell. Default: the one of the niches.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    libraries
        Slides to draw, in this order. Default: all, up to 400 panels.
    groups
        Categories to draw in colour; all other cells are grey, below. Keys without any of them are left out unless
        `keys` is given.
    outlines
        Result of ``st.tl.outline_niches`` for these coordinates, drawn over the cells of each slide as thin lines.
    palette
        Colours by name of category; the others keep theirs.
    size
        Diameter of circles relative to the default, with which they touch on a hexagonal grid (1.07 times the root of
        the area per cell).
    ncols
        Panels in a row; with several columns and slides, rounded to whole slides. Default: up to 4 for few panels.
    figsize
        Width and height of the figure in inches. Default: by the shape of the tissue and the number of panels, up to
        30 x 40.
    legend_loc
        ``"right margin"``: legend beside the panel for up to 40 categories, names on the data for more, since neither a
        longer legend nor its colours can be told apart. ``"on data"``: name of each category at its cell nearest to
        the median of its coordinates, the largest first; names that would overlap are left out (draw larger, fewer
        `groups` or a subset to see them). None: neither.
    title
        Title of each key. Default: the level and its number of niches, or the key.
    frameon
        Frame around each panel.
    ax
        Axes for a single panel.
    show
        Show the figure and return None. Default: scanpy's ``settings.autoshow``, unless `ax` is given.
    save
        Path of a file to write; the suffix sets the format. True: a file in ``sc.settings.figdir``, as in scanpy.
    dpi
        Dots per inch of the file. Default: 200.
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
        If niches, a column, coordinates, a slide or a group are missing.
    TypeError
        If a column holds numbers, or an argument is of another type.
    ValueError
        If coordinates are not finite, cells have no slide, `ax` is given for several panels, or an argument is out of
        range. After an error, the objects are as before and no figure is left.

    Notes
    -----
    Colours are those of `palette`, then those in ``uns`` (of the first object that has as many as categories), then a
    function of the tree (niches, also renamed) or as far apart as possible (other labels). Delete
    ``uns[f"{key}_colors"]`` for new ones. The picture does not depend on the order of cells. Panels of more than 50,000
    cells show the nearest cell in each pixel instead of circles; a million cells take about 2 s on two cores.

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
    output = read_output(
        "spatial_domains", ax=ax, figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig
    )
    palette, lines = check_palette(palette), read_lines(outlines)
    check_positive(size, "size")
    check_bool(frameon, "frameon")
    if ncols is not None:
        check_positive(ncols, "ncols", integer=True)
    if legend_loc is not None:
        check_choice(legend_loc, "legend_loc", ["right margin", "on data"])
    cells = read_cells(data, key_added, library_key, spatial_key, table_key)
    xy, slides = cells.coordinates(), cells.choose(libraries)
    chosen = _choose_keys(cells, keys, groups, n_slides=len(slides))
    if libraries is None and len(slides) * len(chosen) > MOST_PANELS:
        most = max(1, MOST_PANELS // len(chosen))
        logger.warning("The first %d of %d slides are drawn: name others in `libraries`.", most, len(slides))
        slides = dict(list(slides.items())[:most])
    values = {key: cells.labels(key) for key in chosen}
    rows = np.concatenate(list(slides.values()))
    titles = _titles(title, {key: values[key][rows].remove_unused_categories() for key in chosen}, cells)
    colors = {key: cells.colors(key, list(values[key].categories), palette) for key in chosen}
    if groups is not None:
        colored = read_names(groups, "groups", CATEGORY)
        for key, labels in values.items():
            values[key] = labels.remove_categories([name for name in labels.categories if str(name) not in colored])
    drawn = {key: values[key][rows].remove_unused_categories() for key in chosen}
    named = chosen if legend_loc else []
    on_data = {key for key in named if legend_loc == "on data" or len(drawn[key].categories) > MOST_ENTRIES}
    rest = "missing" if groups is None else "other"
    listed = set(named) - on_data
    entries = {key: _entries(drawn[key], colors[key], rest) if key in listed else [] for key in chosen}
    panels = [(slide, key) for slide in slides for key in chosen]
    if ax is not None and len(panels) > 1:
        raise ValueError(
            f"`ax` holds one panel, but {len(panels)} were asked for ({len(chosen)} keys x {len(slides)} slides): "
            "name one key, and one slide in `libraries`, or leave out `ax`"
        )

    scales, spacings = cells.scales(xy), {slide: cell_spacing(xy[rows]) for slide, rows in slides.items()}
    by_slide = len(slides) > 1
    block = len(chosen) if by_slide else 1  # panels that stay side by side
    grid = block > 1
    extents = np.array([np.ptp(xy[rows], axis=0) + 2 * spacings[slide] for slide, rows in slides.items()])
    panel = panel_size(extents, len(panels))
    n_blocks = len(panels) // block
    if ncols is None:
        # One legend for each key: beside its first panel, or after the first row if all panels show the same key.
        room = 0 if by_slide else np.mean([_legend_width(names, panel[1]) for names in entries.values()])
        few = grid and n_blocks <= 6
        columns = block * (1 if few else best_columns(n_blocks, block * panel[0] + room, panel[1]))
    else:
        columns = block * max(1, min(ncols, len(panels)) // block)
    with_legend = range(columns - block, columns) if by_slide else range(len(panels))
    tall = min(HIGHEST, -(-len(panels) // columns) * panel[1]) if by_slide else panel[1]
    legends = [0.0] * columns
    for i in with_legend:
        legends[i % columns] = max(legends[i % columns], _legend_width(entries[panels[i][1]], tall))
    labelled = block if grid else 0
    inches, boxes, panel, fontsize = place_panels(len(panels), columns, panel, legends, figsize, labelled)
    left_out = 0
    with output.figure(inches) as fig:
        axes = [ax] if ax is not None else [fig.add_axes(tuple(box)) for box in boxes]
        for i, (on, (slide, key)) in enumerate(zip(axes, panels, strict=True)):
            rows = slides[slide]
            frame_tissue(on, xy[rows], spacings[slide])
            draw_cells(on, xy[rows], values[key][rows], colors[key], size=size, spacing=spacings[slide])
            draw_lines(on, lines.get(slide))
            on.spines[:].set_visible(frameon)
            if i < columns or not grid:
                text = shown(slide) if by_slide and not grid else titles[key]
                on.set_title(text, fontsize=fitting_size(text, panel[0], fontsize), pad=3)
            if grid and i % block == 0:
                on.set_ylabel(shown(slide), fontsize=fitting_size(shown(slide), panel[1], fontsize), labelpad=2)
            if (scale := scales[slide]) and (i % block == 0 or not grid):
                add_scale_bar(on, scale.micrometres, guessed=scale.guessed, fontsize=min(8, fontsize))
            if i in with_legend and entries[key]:
                _legend(on, entries[key], tall)
            if key in on_data:
                left_out += write_names(on, xy[rows], values[key][rows], size=7 if len(panels) < 12 else 5)
        if left_out:
            logger.info("%d names would overlap others and are left out: set `figsize` or `groups`.", left_out)
        if by_slide and not grid and ax is None:
            fig.suptitle(titles[chosen[0]], fontsize=11, y=1 - 0.05 / inches[1])
        result = output.finish(fig, axes[0] if len(axes) == 1 else axes)
    cells.write_colors(colors)
    return result


def _choose_keys(
    cells: Cells, keys: str | Sequence[str] | None, groups: str | Sequence[str] | None, *, n_slides: int
) -> list[str]:
    """Keys to draw; with `groups`, a KeyError unless each of them is a category of a key."""
    if keys is not None:
        chosen = read_names(keys, "keys")
    else:
        chosen = list(dict.fromkeys(key for part in cells.parts for key in label_keys(part, cells.key_added)))
    if not chosen:
        raise ValueError("`keys` is empty: name columns of adata.obs, or leave it out for all levels")
    if groups is not None:
        named = read_names(groups, "groups", CATEGORY)
        names = {key: [str(name) for name in cells.labels(key).categories] for key in chosen}
        unknown = [name for name in named if not any(name in found for found in names.values())]
        if unknown or not named:
            there = {key: found[:10] for key, found in names.items()}
            raise KeyError(f"`groups`: {unknown or named} are no categories; the first ones are {there}")
        chosen = [key for key in chosen if keys is not None or set(named) & set(names[key])]
    if keys is None and len(chosen) > 1 and n_slides > MANY_SLIDES:
        domain = Columns(cells.key_added).domain
        first = domain if domain in chosen else chosen[0]
        rest = [key for key in chosen if key != first]
        logger.warning(
            "%d slides: %r is drawn, and %s are left out. Name them in `keys`, or fewer slides in `libraries`.",
            *(n_slides, first, rest),
        )
        chosen = [first]
    return chosen


def _titles(title: str | Sequence[str] | None, drawn: Mapping[str, pd.Categorical], cells: Cells) -> dict[str, str]:
    """Title of each key, by default with its number of categories in use."""
    if title is not None:
        given = [title] if isinstance(title, str) else title
        if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
            raise TypeError(f"`title` must be a text or a list of texts, got {title!r}")
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
            titles[key] = shown(key) if n <= MOST_ENTRIES else f"{shown(key)} · {n} categories"
    return titles


def _entries(drawn: pd.Categorical, colors: Mapping[object, str], rest: str) -> list[tuple[str, str]]:
    """Name and colour of each category in use, and of the cells without one, called `rest`."""
    grey = [(rest, MISSING_COLOR)] if (drawn.codes < 0).any() else []
    return [(shown(name), colors[name]) for name in drawn.categories] + grey


def _legend_columns(n: int, height: float) -> int:
    """Columns of a legend with `n` entries beside a panel of `height` inches, at 12 points a line."""
    return -(-n // max(4, int(height * 6)))


def _legend_width(entries: list[tuple[str, str]], height: float) -> float:
    """Inches beside a panel of `height` inches."""
    longest = max((text_width(name, 8) for name, _ in entries), default=0.0)
    return _legend_columns(len(entries), height) * (0.3 + longest)


def _legend(ax: Axes, entries: list[tuple[str, str]], height: float) -> None:
    ax.set_zorder(1)  # a long legend reaches beside the panels below, whose background would hide it
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
