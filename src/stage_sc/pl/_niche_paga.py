"""Connectivity of niches: arcs in the order of the tree, or a graph on the tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke

from stage_sc._checks import check_choice, check_name, check_positive
from stage_sc._input import read_coordinates, read_tables
from stage_sc.analysis import read_groups, read_stored
from stage_sc.pl._figure import read_output, shown, text_width
from stage_sc.pl._label_palette import label_palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stage_sc._input import Data, Tables

# Inches between niches, of the highest arc, and of the tissue; line of the strongest connection in points.
STEP, LEAST_STEP, WIDEST, ARC, TISSUE, LINE = 0.42, 0.09, 13.0, 1.9, 5.0, 4.0
KINDS = ("embedding", "space")
MANY = 30  # niches
SMALLEST = 0.12  # diameter of a circle, in steps


def niche_paga(
    data: Data,
    *,
    layout: Literal["tree", "tissue"] = "tree",
    edges: Literal["space", "embedding"] = "space",
    min_connectivity: float = 0.05,
    n_edges: int | None = None,
    library: str | None = None,
    spatial_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "niche_paga",
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | Path | None = None,
    dpi: float | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw which niches are connected in the embedding and in space.

    Parameters
    ----------
    data
        Object or objects with the result of ``st.tl.niche_paga``.
    layout
        ``"tree"``: niches on a line in the order of the tree, arcs of the embedding above and those of space below.
        ``"tissue"``: niches on one slide, each at the cell that is nearest to its middle.
    edges
        Connections to draw on the tissue.
    min_connectivity
        Weaker connections are left out.
    n_edges
        Number of connections that are drawn of each niche, its strongest. Default: 2 of up to 30 niches, else 1.
        Text in the figure says how many there are.
    library
        Slide to draw on. Default: the one with most cells.
    spatial_key
        Key of ``obsm`` with the coordinates. Default: the one of the niches, or "spatial".
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    figsize
        Width and height in inches. Default: by the number of niches, or by the shape of the tissue.
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
    The axes if not shown or if `ax` is given, the figure with `return_fig`, else None.

    Raises
    ------
    KeyError
        If there is no result, no such slide, or no coordinates.
    TypeError
        If an argument is of another type.
    ValueError
        If a number is not above 0.

    Notes
    -----
    Lines are as wide as connections are strong, circles grow with the root of the number of cells.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> st.tl.stage_niches(adata, n_domains=4)
    >>> st.tl.niche_paga(adata)
    >>> ax = st.pl.niche_paga(adata, show=False)
    >>> [text.get_text() for text in ax.texts][:2]
    ['D1', 'D2']
    """
    output = read_output("niche_paga", ax=ax, figsize=figsize, show=show, save=save, dpi=dpi, return_fig=return_fig)
    check_choice(layout, "layout", ("tree", "tissue"))
    check_choice(edges, "edges", KINDS)
    check_positive(min_connectivity, "min_connectivity", zero=True)
    if n_edges is not None:
        check_positive(n_edges, "n_edges", integer=True)
    for value, name in ((library, "library"), (spatial_key, "spatial_key")):
        if value is not None:
            check_name(value, name)
    tables = read_tables(data, table_key=table_key)
    stored = read_stored(tables, key_added, "niche_paga")
    niches = stored["niches"]
    names = list(niches["group"].astype(str))
    colors = label_palette(tables, str(stored["params"]["groupby"]), names)
    n_edges = n_edges or (2 if len(names) <= MANY else 1)
    chosen = {kind: strongest(stored["table"], kind, min_connectivity, n_edges) for kind in KINDS}
    if layout == "tree":
        size = _size_of_line(names)
        with output.figure(size) as fig:
            axes = fig.add_axes((0, 0, 1, 1)) if ax is None else ax
            _draw_line(axes, niches, colors, chosen, size, stored["table"])
            return output.finish(fig, axes)
    xy, codes = _read_places(tables, str(stored["params"]["groupby"]), names, library, spatial_key)
    span = np.maximum(np.ptp(xy, axis=0), 1e-9)
    with output.figure(TISSUE * span / span.max()) as fig:
        axes = fig.add_axes((0, 0, 1, 1)) if ax is None else ax
        _draw_tissue(axes, xy, codes, niches, colors, chosen[edges], edges)
        return output.finish(fig, axes)


def strongest(table: pd.DataFrame, kind: str, least: float, number: int) -> pd.DataFrame:
    """Choose connections that are among the `number` strongest of either niche; the weakest come first."""
    found = table[(table[kind] >= least) & (table[kind] > 0)].astype({"group_a": str, "group_b": str})
    found = found.sort_values(kind, ascending=False, kind="stable", ignore_index=True)
    ends = pd.concat([found["group_a"], found["group_b"]]).sort_index(kind="stable")
    rank = ends.groupby(ends).cumcount()  # of a connection among those of one of its niches
    return found[(rank < number).groupby(level=0).any()].iloc[::-1]


def _step(number: int) -> float:
    return float(np.clip(WIDEST / max(number, 1), LEAST_STEP, STEP))


def _text_size(number: int) -> float:
    return float(np.clip(0.8 * 72 * _step(number), 4.5, 8))


def _band(names: Sequence[str]) -> float:
    """Height of the names between the arcs, in inches."""
    return max(text_width(shown(name), _text_size(len(names))) for name in names) + 0.2 + 0.8 * _step(len(names))


def _arc(width: float, widest: float) -> float:
    """Height of an arc, lower for narrow ones; `widest` is the distance of the first and the last niche."""
    return min(ARC * (width / widest) ** 0.7, 0.6 * width)


def _line_scale(number: int) -> float:
    """Width of a line of connectivity 1 in points, thinner among many niches."""
    return LINE * min(1.0, float(np.sqrt(10 / number)))


def _size_of_line(names: Sequence[str]) -> tuple[float, float]:
    step = _step(len(names))
    widest = max(step * (len(names) - 1), step)
    return max(1.1 + step * len(names), 2.0), 2 * max(_arc(widest, widest), 0.5) + _band(names) + 0.2


def _draw_line(
    ax: Axes,
    niches: pd.DataFrame,
    colors: Mapping[str, str],
    chosen: Mapping[str, pd.DataFrame],
    size: tuple[float, float],
    table: pd.DataFrame,
) -> None:
    """Niches side by side; data coordinates are inches."""
    names = list(niches["group"].astype(str))
    step, band = _step(len(names)), _band(names)
    x = {name: 1.0 + step * (place + 0.5) for place, name in enumerate(names)}
    ax.set(xlim=(0, size[0]), ylim=(-size[1] / 2, size[1] / 2), aspect="equal")
    ax.set_axis_off()
    angle = np.linspace(0, np.pi, 40)
    widest = max(step * (len(names) - 1), 1e-9)
    circle = np.maximum(np.sqrt(niches["n_cells"].to_numpy() / niches["n_cells"].max()) * 0.8, SMALLEST) * step
    area = np.maximum(72 * circle, 1.5) ** 2
    for sign, kind in ((1, "embedding"), (-1, "space")):
        found, level = chosen[kind], sign * band / 2
        lines = []
        for one, other in zip(found["group_a"], found["group_b"], strict=True):
            left, right = sorted((x[one], x[other]))
            height = _arc(right - left, widest)
            lines.append(
                np.c_[(left + right - (right - left) * np.cos(angle)) / 2, level + sign * height * np.sin(angle)]
            )
        strength = found[kind].to_numpy()
        shades = [(0.75 * (1 - 0.8 * value),) * 3 for value in strength]
        widths = np.maximum(_line_scale(len(names)) * strength, 0.25)
        ax.add_collection(LineCollection(lines, colors=shades, linewidths=widths, zorder=1), autolim=False)
        ax.scatter(
            list(x.values()),
            np.full(len(x), level),
            area,
            [colors[name] for name in names],
            zorder=2,
            edgecolors="white",
            linewidths=0.4,
        )
    for name in names:
        ax.text(x[name], 0, shown(name), rotation=90, ha="center", va="center", fontsize=_text_size(len(names)))
    for sign, kind in ((1, "embedding"), (-1, "space")):
        text = f"{kind}\n{len(chosen[kind])} of {int((table[kind] > 0).sum())}\npairs"
        ax.text(0.05, sign * band / 2, text, fontsize=7, color=".3", va="bottom" if sign > 0 else "top")


def _read_places(
    tables: Tables, groupby: str, names: Sequence[str], library: str | None, spatial_key: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates, ``(n, 2)``, and positions in `names` of the cells of one slide."""
    groups = read_groups(tables, groupby)
    slides = groups.slides
    if library is not None and library not in slides.names:
        raise KeyError(f"`library`: no slide {library!r}, there are {slides.names}.")
    slide = int(np.argmax(slides.counts())) if library is None else slides.names.index(library)
    where = spatial_key or str(groups.result.get("params", {}).get("spatial_key", "spatial"))
    xy = np.concatenate([read_coordinates(part, where)[:, :2] for part in tables.by_name.values()])
    position = np.array([*(names.index(name) if name in names else -1 for name in groups.labels.names), -1])
    cells = slides.codes == slide
    return xy[cells], position[groups.labels.codes[cells]]


def _draw_tissue(
    ax: Axes,
    xy: np.ndarray,
    codes: np.ndarray,
    niches: pd.DataFrame,
    colors: Mapping[str, str],
    found: pd.DataFrame,
    kind: str,
) -> None:
    names = list(niches["group"].astype(str))
    shades = np.array([*(colors[name] for name in names), "#dcdcdc"])[codes]
    ax.scatter(
        xy[:, 0],
        xy[:, 1],
        s=float(np.clip(20_000 / len(xy), 0.2, 12)),
        c=shades,
        alpha=0.35,
        linewidths=0,
        rasterized=True,
    )
    middle = {}
    for code, name in enumerate(names):
        own = xy[codes == code]
        if len(own):
            middle[name] = own[np.argmin(np.linalg.norm(own - np.median(own, axis=0), axis=1))]
    for one, other, strength in found[["group_a", "group_b", kind]].itertuples(index=False):
        if one in middle and other in middle:
            ax.plot(
                *np.stack([middle[one], middle[other]]).T,
                color=".15",
                linewidth=max(_line_scale(len(names)) * strength, 0.3),
                zorder=2,
                solid_capstyle="round",
            )
    number = niches.set_index(niches["group"].astype(str))["n_cells"]
    for name, place in middle.items():
        area = 30 + 220 * np.sqrt(number[name] / number.max())
        ax.scatter(place[0], place[1], s=area, color=colors[name], edgecolors="white", linewidths=0.8, zorder=3)
        ax.text(
            place[0],
            place[1],
            shown(name),
            fontsize=6,
            ha="center",
            va="center",
            zorder=4,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_axis_off()
