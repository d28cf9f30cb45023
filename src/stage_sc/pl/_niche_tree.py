"""The tree of niches, sized and coloured by use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

from stage_sc._input import read_labels
from stage_sc._result import children_of, require_result
from stage_sc.pl._cells import read_cells
from stage_sc.pl._figure import finish, root_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data

# One unit of the y axis is an inch at the default size.
LEVEL, STRIP, ROW = 1.0, 0.32, 0.17


def niche_tree(
    data: Data,
    *,
    key_added: str = "stage",
    library_key: str | None = None,
    max_level: int | None = None,
    min_cells: int = 1,
    palette: Mapping[str, str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the tree of niches: the area of a node is its number of cells, its colour the one on the tissue.

    Level 1 is on top, and niches with a common parent lie next to each other. Niches without cells are left out; the
    text on the left says how many of a level are in use. With several slides, the strip below shows which share of each
    slide's cells a niche holds: dark columns are niches that slides have in common, and a single dark field belongs to
    one slide. Names are written where they fit, those of the largest niches first.

    Parameters
    ----------
    data
        Cells with niches from ``st.tl.stage_niches``; or a list or a dictionary of such objects, which are slides of
        their own.
    key_added
        Under which name the niches were written.
    library_key
        Column of `obs` that names the slide of each cell. Default: the one with which the niches were computed.
    max_level
        Deepest level to draw. Default: all; 2 gives an overview of a tree with hundreds of leaves.
    min_cells
        Leave out niches with fewer cells, at least 1.
    palette
        Colours of some or all niches by name; the others keep theirs. Remembered like all colours.
    figsize
        Width and height in inches. Default: after the number of niches and slides.
    ax
        Axes to draw on.
    show
        Show the figure and return None. Default: scanpy's ``settings.autoshow``, unless `ax` is given.
    save
        Full path of a file to write (200 dots per inch, cropped to what is drawn); the suffix sets the format.
    return_fig
        Return the figure, detached from pyplot, instead of showing it.

    Returns
    -------
    The axes if not shown or if `ax` is given, the figure with `return_fig`, else None. Sets the following field:

    `adata.uns[f"{key}_colors"]` : :class:`list`
        For the column `key` of each level drawn: a colour for each category, in their order, unless a list of the right
        length was there already. Views are not written to.

    Raises
    ------
    KeyError
        If the niches or the column of slides are missing, or niches have been renamed.
    TypeError
        If `palette` is not a mapping.
    ValueError
        If `max_level` is not a level of the tree, no niche has `min_cells` cells, or cells have no slide.

    See Also
    --------
    stage_sc.pl.spatial_domains : the same niches in the same colours on the tissue.

    Notes
    -----
    Cells are counted in `obs`, so that a subset of the cells shows its own use. Nodes below two points of diameter are
    drawn at two points.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, stage_sc as st
    >>> adata = ad.AnnData(np.ones((4, 1)))
    >>> adata.obs["stage_l1"] = pd.Categorical(["N0", "N0", "N0", "N1"])
    >>> adata.obs["stage_l2"] = pd.Categorical(["N2", "N2", "N3", "N4"])
    >>> tree = pd.DataFrame({"level": [1, 1, 2, 2, 2], "parent": ["", "", "N0", "N0", "N1"]})
    >>> tree.index = ["N0", "N1", "N2", "N3", "N4"]
    >>> adata.uns["stage"] = {"levels": ["stage_l1", "stage_l2"], "tree": tree, "params": {}}
    >>> ax = st.pl.niche_tree(adata, show=False)
    >>> ax.texts[-1].get_text().splitlines()
    ['level 2', '3 of 3']
    """
    cells = read_cells(data, key_added, library_key)
    for part in cells.tables.by_name.values():
        result = require_result(part, key_added)
    levels, tree = list(result["levels"]), result["tree"]
    if max_level is not None and not 1 <= max_level <= len(levels):
        raise ValueError(f"`max_level` must be a level of the tree, 1 to {len(levels)}, not {max_level}")
    if min_cells < 1:
        raise ValueError(f"`min_cells` must be at least 1, not {min_cells}: niches without cells are not drawn")
    levels = levels[:max_level]
    values = [read_labels(cells.adata, key, integers=False) for key in levels]
    cells_of = cells.rows()
    n_cells = {str(name): n for codes in values for name, n in codes.value_counts().items() if n >= min_cells}
    if not n_cells:
        raise ValueError(f"no niche has {min_cells} cells or more: lower `min_cells`")
    unknown = sorted(set(n_cells) - set(tree.index.astype(str)))
    if unknown:
        raise KeyError(
            f"niches {unknown[:5]} of adata.obs[{levels}] are not in the tree of adata.uns[{key_added!r}]: "
            "undo the renaming, or run st.tl.stage_niches again"
        )
    colors: dict[str, str] = {}
    for key in levels:
        of_key = cells.colors(key, palette)
        colors |= {str(name): color for name, color in of_key.items()}

    nodes = _layout(children_of(tree), n_cells)
    ends = nodes[nodes["end"]]
    rows = len(cells_of) if len(cells_of) > 1 else 0
    if ax is None:
        bottom = 0.5 + (STRIP + rows * ROW if rows else 0)
        size = figsize or (float(np.clip(0.16 * len(ends) + 2, 5, 13)), LEVEL * (len(levels) - 1) + 0.5 + bottom)
        fig, axes = plt.subplots(figsize=size)
        own = True
    else:
        fig, axes, own = root_figure(ax), ax, False
    floor = -LEVEL * (len(levels) - 1) - (STRIP + rows * ROW if rows else 0)
    axes.set(xlim=(-0.7, len(ends) - 0.3), ylim=(floor - 0.15, 0.4))
    axes.set_axis_off()

    _draw_links(axes, nodes, colors)
    step = axes.get_position().width * fig.get_figwidth() / (len(ends) + 0.4)  # inches from leaf to leaf
    share = nodes["n_cells"] / nodes["n_cells"].max()
    # As large as fits: neighbours may overlap a little, but the largest stays between 22 and 36 points.
    largest = float(np.clip(((1.5 * 72 * step * nodes["width"]) ** 2 / share).min(), 500, 1300))
    area = (largest * share).clip(lower=4)
    axes.scatter(
        nodes["x"],
        nodes["y"],
        s=area,
        c=[colors[node] for node in nodes.index],
        edgecolors="white",
        linewidths=0.6,
        zorder=3,
        clip_on=False,
    )
    if rows:
        _draw_strip(axes, ends, values, cells_of, top=-LEVEL * (len(levels) - 1) - STRIP)
    _write_names(axes, nodes, np.sqrt(area) / 2, step, below=floor if rows else None)
    for level in range(1, len(levels) + 1):
        used, there = int((nodes["level"] == level).sum()), int((tree["level"] == level).sum())
        axes.annotate(
            f"level {level}\n{used} of {there}",
            (0, -LEVEL * (level - 1)),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-8, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color="0.3",
        )
    _size_legend(axes, int(nodes["n_cells"].max()), largest)
    done = finish(fig, [axes], own=own, show=show, save=save, return_fig=return_fig)
    return done[0] if isinstance(done, list) else done


def _layout(children: Mapping[str, list[str]], n_cells: Mapping[str, int]) -> pd.DataFrame:
    """Places of the niches in use: ends of branches side by side in the tree's order, parents above their middle."""
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


def _draw_links(ax: Axes, nodes: pd.DataFrame, colors: Mapping[str, str]) -> None:
    """Smooth lines from parent to child in the child's colour, wider for more cells."""
    child = nodes[nodes["level"] > 1]
    if child.empty:
        return
    parent = nodes.loc[child["parent"]]
    t = np.linspace(0, 1, 25)
    ease = t**2 * (3 - 2 * t)
    x = parent["x"].to_numpy()[:, None] + (child["x"].to_numpy() - parent["x"].to_numpy())[:, None] * ease
    y = parent["y"].to_numpy()[:, None] + (child["y"].to_numpy() - parent["y"].to_numpy())[:, None] * t
    width = 0.6 + 5 * np.sqrt(child["n_cells"] / nodes["n_cells"].max())
    ax.add_collection(
        LineCollection(
            list(np.stack([x, y], axis=-1)),
            colors=[colors[node] for node in child.index],
            linewidths=width,
            alpha=0.55,
            capstyle="round",
            zorder=1,
            clip_on=False,
        ),
        autolim=False,
    )


def _draw_strip(
    ax: Axes, ends: pd.DataFrame, values: list[pd.Categorical], cells_of: Mapping[str, np.ndarray], top: float
) -> None:
    """For each slide a row: the percentage of its cells in each niche at the end of a branch."""
    ends = ends.sort_values("x")
    share = np.zeros((len(cells_of), len(ends)))
    for row, here in enumerate(cells_of.values()):
        counts = pd.concat([codes[here].value_counts() for codes in values])
        counts.index = counts.index.astype(str)
        share[row] = 100 * counts.reindex(ends.index, fill_value=0) / here.sum()
    edges = np.arange(len(ends) + 1) - 0.5
    mesh = ax.pcolormesh(
        edges,
        top - ROW * np.arange(len(cells_of) + 1),
        share,
        cmap="Greys",
        norm=PowerNorm(0.5, 0, share.max()),
        edgecolors="white",
        linewidth=0.4 if len(ends) < 120 else 0.0,
        rasterized=True,
    )
    for row, name in enumerate(cells_of):
        ax.annotate(
            name,
            (0, top - ROW * (row + 0.5)),
            xycoords=ax.get_yaxis_transform(),
            xytext=(-8, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color="0.3",
        )
    low, high = ax.get_ylim()
    height = ROW * max(len(cells_of), 4)
    bar = ax.inset_axes((1.01, (top - height - low) / (high - low), 0.012, height / (high - low)))
    colorbar = ax.figure.colorbar(mesh, cax=bar)
    ticks = share.max() * np.array([0, 0.25, 1])
    colorbar.set_ticks(ticks, labels=[f"{percent:.2g}" for percent in ticks])
    colorbar.ax.tick_params(labelsize=7, length=2)
    colorbar.set_label("% of slide", fontsize=7)
    colorbar.outline.set_visible(False)


def _write_names(ax: Axes, nodes: pd.DataFrame, radius: pd.Series, step: float, below: float | None) -> None:
    """Names above the nodes, and those of the deepest level below: the largest first, as long as they fit.

    `radius` is in points, `step` the inches from leaf to leaf, `below` the y under the strip if there is one.
    """
    deepest = nodes["level"].max()
    for level, group in nodes.sort_values("n_cells", ascending=False, kind="stable").groupby("level"):
        size = 8 if level == 1 else 7
        widths = [TextPath((0, 0), str(name), size=size).get_extents().width / 72 + 0.05 for name in group.index]
        under = level == deepest and level > 1
        turned = under and max(widths) > step
        taken: list[tuple[float, float]] = []
        for (name, node), across in zip(group.iterrows(), widths, strict=True):
            width = size / 72 if turned else across
            left = node["x"] * step - width / 2
            if any(left < end and start < left + width for start, end in taken):
                continue
            taken.append((left, left + width))
            # Under the leaves, all names start at the same height.
            gap = 3 if below is not None else 2 + radius[group.index].max()
            ax.annotate(
                str(name),
                (node["x"], below if under and below is not None else node["y"]),
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


def _size_legend(ax: Axes, most: int, largest: float) -> None:
    """Three circles and the numbers of cells that they stand for."""
    numbers = sorted({max(1, int(float(f"{most / part:.0e}"))) for part in (4, 20, 100)}, reverse=True)
    ax.legend(
        [
            Line2D([], [], linestyle="", marker="o", color="0.75", markersize=max(2, np.sqrt(largest * n / most)))
            for n in numbers
        ],
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
