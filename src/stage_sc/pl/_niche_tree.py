"""Tree of niches, with the number of cells of each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from stage_sc._palette import children_of, tree_colors
from stage_sc._result import require_result
from stage_sc.pl._cells import read_cells
from stage_sc.pl._figure import check_palette, read_output, shown, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data

logger = logging.getLogger("stage_sc.pl")

# One unit of the y axis is an inch at the default size.
LEVEL, STRIP, ROW = 1.0, 0.32, 0.17


def niche_tree(
    data: Data,
    *,
    key_added: str = "stage",
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    max_level: int | None = None,
    min_cells: int = 1,
    palette: Mapping[str, str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the tree of niches: areas are numbers of cells, colours those of ``st.pl.spatial_domains``.

    Level 1 is on top, siblings lie side by side. Niches without cells are left out; the text on the left has the number
    of niches in use on each level. With several slides, a strip below shows the percentage of each slide's cells in
    each niche. Names are written where they fit, the largest niches first. Renamed niches keep their place; where it
    is not certain, the niches and numbers of cells are those of the tree as written by ``st.tl.stage_niches``.

    Parameters
    ----------
    data
        Cells with niches from ``st.tl.stage_niches``; or a list or a dictionary of such objects, each of which is a
        slide or more.
    key_added
        Name under which the niches were written.
    library_key
        Column of ``obs`` that names the slide of each cell. Default: the one of the niches.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    max_level
        Deepest level to draw. Default: all.
    min_cells
        Smallest number of cells of a niche to draw, at least 1.
    palette
        Colours by name of niche; the others keep theirs.
    figsize
        Width and height in inches. Default: by the number of niches and slides.
    ax
        Axes to draw on.
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
    The axes if not shown or if `ax` is given, the figure with `return_fig`, else None. Sets in each object that is not
    a view:

    `adata.uns[f"{key}_colors"]` : :class:`list`
        Colour of each category of each level drawn, in their order; see ``st.pl.spatial_domains``.

    Raises
    ------
    KeyError
        If the niches or the column of slides are missing.
    TypeError
        If an argument is of another type.
    ValueError
        If `max_level` is not a level of the tree, no niche has `min_cells` cells, cells have no slide, or objects were
        labelled by different models.

    Notes
    -----
    Cells are counted in ``obs``, so that a subset shows its own use. Nodes are at least two points wide.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, stage_sc as st
    >>> adata = ad.AnnData(np.ones((4, 1)))
    >>> adata.obs["stage_l1"] = pd.Categorical(["N0", "N0", "N0", "N1"])
    >>> adata.obs["stage_l2"] = pd.Categorical(["N2", "N2", "N3", "N4"])
    >>> tree = pd.DataFrame({"level": [1, 1, 2, 2, 2], "parent": ["", "", "N0", "N0", "N1"]})
    >>> tree.index = ["N0", "N1", "N2", "N3", "N4"]
    >>> adata.uns["stage"] = {"levels": ["stage_l1", "stage_l2"], "tree": tree, "params": {}, "model": {}}
    >>> ax = st.pl.niche_tree(adata, show=False)
    >>> ax.texts[-1].get_text().splitlines()
    ['level 2', '3 of 3']
    """
    output = read_output("niche_tree", ax=ax, figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    palette = check_palette(palette)
    for value, name in ((1 if max_level is None else max_level, "max_level"), (min_cells, "min_cells")):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"`{name}` must be an integer, got {value!r} ({type(value).__name__})")
    cells = read_cells(data, key_added, library_key, table_key=table_key)
    models = {require_result(part, key_added).get("model", {}).get("digest") for part in cells.parts}
    if len(models) > 1:
        raise ValueError(f"niches of {len(models)} models cannot share a tree, see `uns[{key_added!r}]['model']`")
    tree = cells.result["tree"]
    levels = list(cells.result["levels"])
    if max_level is not None and not 1 <= max_level <= len(levels):
        raise ValueError(f"`max_level` must be a level of the tree, 1 to {len(levels)}, not {max_level}")
    if min_cells < 1:
        raise ValueError(f"`min_cells` must be at least 1, not {min_cells}: niches without cells are not drawn")
    levels = levels[:max_level]
    written: dict[str, dict[object, str]] = {}
    colors, names, values = tree_colors(tree), {str(name): str(name) for name in tree.index}, []
    for key in levels:
        labels = cells.labels(key)
        written[key] = cells.colors(key, list(labels.categories), palette)
        for category, node in cells.nodes(key, labels).items():
            colors[node], names[node] = written[key][category], str(category)
        if (nodes_of_cells := cells.node_labels(key)) is not None:
            values.append(nodes_of_cells)
    slides = cells.slides if len(cells.slides) > 1 else {}
    if len(values) == len(levels):
        counts = pd.concat([codes.value_counts() for codes in values])
    else:
        logger.warning(
            "Niches in adata.obs%s were renamed or joined, and their cells are no longer certain: the numbers of cells "
            "are those in adata.uns[%r]['tree'], and percentages of slides are left out.",
            *(levels, key_added),
        )
        slides = {}
        counts = sum(part.uns[key_added]["tree"].get("n_cells", pd.Series(0, tree.index)) for part in cells.parts)
        counts = (counts if counts.any() else counts + 1)[tree["level"] <= len(levels)]
    n_cells = {str(node): n for node, n in counts.items() if n >= min_cells}
    if not n_cells:
        raise ValueError(f"no niche has {min_cells} cells or more: lower `min_cells`")

    nodes = _layout(children_of(tree), n_cells)
    nodes["color"], nodes["name"] = nodes.index.map(colors), nodes.index.map(names).map(shown)
    ends = nodes[nodes["end"]]
    top = -LEVEL * (len(levels) - 1)  # of the deepest level
    row = min(ROW, 30 / max(len(slides), 1))
    strip = STRIP + row * len(slides) if slides else 0
    names_inches = 1.3 * sum(_name_width(name, 1) for name in nodes.loc[nodes["level"] == 1, "name"])
    width = float(np.clip(max(0.16 * len(ends), names_inches) + 2, 5, 13))
    with output.figure((width, 1 + strip - top)) as fig:
        axes = fig.add_subplot() if ax is None else ax
        axes.set(xlim=(-0.7, len(ends) - 0.3), ylim=(top - strip - 0.15, 0.4))
        axes.set_axis_off()
        _draw_links(axes, nodes)
        step = axes.get_position().width * fig.get_figwidth() / (len(ends) + 0.4)  # inches from leaf to leaf
        fraction = nodes["n_cells"] / nodes["n_cells"].max()
        # As large as fits: neighbours may overlap a little, but the largest stays between 22 and 36 points.
        largest = float(np.clip(((1.5 * 72 * step * nodes["width"]) ** 2 / fraction).min(), 500, 1300))
        area = (largest * fraction).clip(lower=4)
        axes.scatter("x", "y", area, "color", data=nodes, edgecolors="white", linewidths=0.6, zorder=3, clip_on=False)
        if slides:
            _draw_strip(axes, ends, values, slides, top - STRIP, row)
        _write_names(axes, nodes, np.sqrt(area) / 2, step, below=top - strip if slides else None)
        for level in range(1, len(levels) + 1):
            n_used, n_all = (nodes["level"] == level).sum(), (tree["level"] == level).sum()
            _write_left(axes, f"level {level}\n{n_used} of {n_all}", -LEVEL * (level - 1))
        _size_legend(axes, int(nodes["n_cells"].max()), largest)
        result = output.finish(fig, axes)
    cells.write_colors(written)
    return result


def _layout(children: Mapping[str, list[str]], n_cells: Mapping[str, int]) -> pd.DataFrame:
    """Table of the niches in use, with x and y; `width` is the number of branch ends below a node."""
    rows: dict[str, tuple[int, str, float, int, bool]] = {}
    width = 0

    def place(node: str, parent: str, level: int) -> float:
        nonlocal width
        start = width
        xs = [place(child, node, level + 1) for child in children.get(node, []) if child in n_cells]
        x = (xs[0] + xs[-1]) / 2 if xs else float(width)
        width += not xs
        rows[node] = level, parent, x, width - start, not xs
        return x

    for root in children[""]:
        if root in n_cells:
            place(root, "", 1)
    nodes = pd.DataFrame.from_dict(rows, orient="index", columns=["level", "parent", "x", "width", "end"])
    nodes["y"] = -LEVEL * (nodes["level"] - 1.0)
    nodes["n_cells"] = [n_cells[node] for node in nodes.index]
    return nodes.sort_values(["level", "x"])


def _draw_links(ax: Axes, nodes: pd.DataFrame) -> None:
    """Smooth lines from parent to child in the child's colour, wider for more cells."""
    child = nodes[nodes["level"] > 1]
    if child.empty:
        return
    t = np.linspace(0, 1, 25)
    start, end = nodes.loc[child["parent"], ["x", "y"]].to_numpy()[:, None], child[["x", "y"]].to_numpy()[:, None]
    lines = start + (end - start) * np.stack([t**2 * (3 - 2 * t), t], axis=-1)  # (links, 25, 2)
    width = 0.6 + 5 * np.sqrt(child["n_cells"] / nodes["n_cells"].max())
    links = LineCollection(list(lines), colors=child["color"], linewidths=width, alpha=0.55, capstyle="round", zorder=1)
    links.set_clip_on(False)
    ax.add_collection(links, autolim=False)


def _draw_strip(
    ax: Axes, ends: pd.DataFrame, values: list[pd.Categorical], slides: Mapping[str, np.ndarray], top: float, row: float
) -> None:
    """Percentage of each slide's cells in each branch end as a grey field, one row of `row` inches for each slide."""
    ends = ends.sort_values("x")
    percent = np.zeros((len(slides), len(ends)))
    for i, (slide, rows) in enumerate(slides.items()):
        counts = pd.concat([codes[rows].value_counts() for codes in values])
        percent[i] = 100 * counts.reindex(ends.index, fill_value=0) / len(rows)
        if row > 0.05:
            _write_left(ax, shown(slide), top - row * (i + 0.5), min(8, 50 * row))
    x, y = np.arange(len(ends) + 1) - 0.5, top - row * np.arange(len(slides) + 1)
    mesh = ax.pcolormesh(x, y, percent, cmap="Greys", norm=PowerNorm(0.5, 0, percent.max()), rasterized=True)
    mesh.set(edgecolor="white", linewidth=0.4 if len(ends) < 120 else 0.0)
    low, high = ax.get_ylim()
    height = min(row * max(len(slides), 4), 3.0)
    bar = ax.inset_axes((1.01, (top - height - low) / (high - low), 0.012, height / (high - low)))
    colorbar = ax.figure.colorbar(mesh, cax=bar)
    ticks = percent.max() * np.array([0, 0.25, 1])
    colorbar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    colorbar.ax.tick_params(labelsize=7, length=2)
    colorbar.set_label("% of slide", fontsize=7)
    colorbar.outline.set_visible(False)


def _write_left(ax: Axes, text: str, y: float, size: float = 8) -> None:
    """Small text left of the axes at height `y`."""
    ax.annotate(
        text, (0, y), (-8, 0), ax.get_yaxis_transform(), "offset points", ha="right", va="center", size=size, color=".3"
    )


def _write_names(ax: Axes, nodes: pd.DataFrame, radius: pd.Series, step: float, below: float | None) -> None:
    """Names where they fit, largest niches first; above nodes, on the deepest level below.

    `radius` is in points, `step` the inches from leaf to leaf, `below` the y under the strip if there is one.
    """
    deepest = nodes["level"].max()
    for level, group in nodes.sort_values("n_cells", ascending=False, kind="stable").groupby("level"):
        size = 8 if level == 1 else 7
        widths = [_name_width(name, level) for name in group["name"]]
        under = level == deepest and level > 1
        turned = under and max(widths) > step
        taken: list[tuple[float, float]] = []
        for (name, node), across in zip(group.iterrows(), widths, strict=True):
            width = size / 72 if turned else across
            middle = node["x"] * step  # of level 1, moved where the name would lie on the legend
            if level == 1:
                middle = max(min(middle, (nodes["end"].sum() - 0.3) * step - width / 2), width / 2 - 0.7 * step)
            left = middle - width / 2
            if any(left < end and start < left + width for start, end in taken):
                continue
            taken.append((left, left + width))
            # Under the leaves, all names start at the same height.
            gap = 3 if below is not None else 2 + radius[group.index].max()
            ax.annotate(
                node["name"],
                (middle / step, below if under and below is not None else node["y"]),
                xytext=(0, -gap if under else radius[name] + 1),
                textcoords="offset points",
                ha="center",
                va="top" if under else "bottom",
                rotation=90 if turned else 0,
                fontsize=size,
                fontweight="bold" if level == 1 else "normal",
                path_effects=[withStroke(linewidth=2, foreground="white")],
                zorder=4,
            )


def _name_width(name: str, level: int) -> float:
    """Width of a name in inches, with a gap; names of level 1 are bold."""
    return (1.12 * text_width(name, 8) if level == 1 else text_width(name, 7)) + 0.05


def _size_legend(ax: Axes, most: int, largest: float) -> None:
    """Legend of three circles with their numbers of cells."""
    numbers = sorted({max(1, int(float(f"{most / part:.0e}"))) for part in (4, 20, 100)}, reverse=True)
    sizes = [max(2, np.sqrt(largest * n / most)) for n in numbers]
    ax.legend(
        [Line2D([], [], linestyle="", marker="o", markersize=size, color="0.75") for size in sizes],
        [f"{n:,}" for n in numbers],
        title="cells",
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        fontsize=8,
        title_fontsize=8,
        frameon=False,
        labelspacing=0.8,
        borderaxespad=0,
    )
