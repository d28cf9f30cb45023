"""Outlines of niches as polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import shapely

from stage_sc._checks import check_bool, check_name, check_positive
from stage_sc._input import Data, read_tables
from stage_sc._result import default_column
from stage_sc.graph import graph_scale
from stage_sc.outlines import (
    LabelledSlide,
    check_element,
    outline_slide,
    read_slides,
    write_shapes,
)

if TYPE_CHECKING:
    from geopandas import GeoDataFrame


def outline_niches(
    data: Data,
    *,
    groupby: str | None = None,
    key_added: str = "stage",
    max_gap: float | None = None,
    min_cells: int = 10,
    simplify: float = 0.0,
    micrometres: bool = False,
    spatial_key: str | None = None,
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    shapes_key: str | None = None,
) -> GeoDataFrame:
    r"""Outline niches, domains or other labels on each slide, and measure their shapes.

    Every cell owns the part of the tissue that is nearest to it; the parts of neighbouring cells with one label are
    joined. Outlines of one slide thus fill the tissue without overlap, and every cell (of a piece that is kept) lies in
    the outline of its label.

    Parameters
    ----------
    data
        Cells with coordinates and labels: an AnnData, SpatialData or MuData, the path of one, or a list or a dictionary
        of these.
    groupby
        Column of ``obs`` with labels; cells without one are outside of all outlines. ``None``: the domains of
        `stage_sc.tl.stage_niches`, else its niches of level 2.
    key_added
        Name under which the niches were written.
    max_gap
        Diameter of the widest empty circle inside the tissue; wider ones, such as vessels and glands, are left out.
        In the unit of the result. ``None``: six times the typical distance of neighbours (the median length of the
        Delaunay edges of the slide). Smaller values show more holes; larger ones bridge sparse tissue.
    min_cells
        Pieces of fewer cells are left out. 1 keeps all.
    simplify
        Tolerance of simpler lines, in the unit of the result: the root of the area of the corners that are cut off.
        Half the distance of neighbours smooths the zigzag between cells. Borders of neighbouring niches stay common;
        cells close to a border may come to lie on its other side. 0: lines as they are.
    micrometres
        Outlines in µm, by the scales of `stage_sc.pp.build_graph`. By default they are in the unit of the coordinates,
        which images and other elements share.
    spatial_key
        Entry of ``obsm`` with the coordinates. ``None``: the one of the niches, or "spatial".
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one of the niches or of the graph.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    shapes_key
        For a SpatialData: name of the element with the outlines, added to ``sdata.shapes``; with several slides
        ``"{shapes_key}_{slide}"``. The element has the transformations of the region that the table annotates. An
        element of this function is replaced, another is not. It is saved by ``sdata.write_element(name)``.

    Returns
    -------
    GeoDataFrame with a row for each label on each slide, in the order of the categories, and the columns

    ``slide``, ``label``, ``color``
        Names, and the colour of the label as in `stage_sc.pl.spatial_domains`.
    ``geometry``
        MultiPolygon: a polygon, with holes, for each piece.
    ``area``, ``perimeter``
        Of all pieces; the perimeter includes the borders of holes.
    ``n_cells``, ``n_components``
        Number of cells in the outline, and of pieces. Pieces that meet in a point only are two.
    ``elongation``
        1 - width / length of the smallest rectangle around a piece, mean over the pieces weighted by area: 0 for a
        square or a circle, towards 1 for a layer.
    ``depth``
        Radius of the largest circle inside, within 0.1 of the distance of neighbours: how far from the border its
        innermost point is.

    Raises
    ------
    KeyError
        If there are no niches and no `groupby`, or a column or coordinates are missing, or `micrometres` is asked for
        without a graph.
    TypeError
        If a column holds no labels, or an argument is of another type.
    ValueError
        If a slide cannot be triangulated (fewer than 4 cells, all on a line), no cell has a label, a number is out of
        range, or `shapes_key` is the name of another element.

    See Also
    --------
    write_outlines : Files for QuPath and Xenium Explorer.
    label_regions : The way back, from polygons to labels.
    stage_sc.pl.spatial_domains : Draws outlines over cells.

    Notes
    -----
    The tissue is the alpha shape of the cells (Edelsbrunner, Kirkpatrick and Seidel 1983) with
    :math:`\alpha` = `max_gap` / 2, and a margin of half the distance of neighbours. The regions of cells are those of
    the Voronoi diagram of the cells and of their mirror images at the rim. The borders between labels are traced along
    the diagram as a whole, so that nothing is intersected or joined numerically. Of several cells at one place the
    first label in order counts.

    Time and memory are near linear in the cells: about a minute and 2 GB for a million on one core, nearly all for two
    Delaunay triangulations. The order of the cells does not matter.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> outlines = st.tl.outline_niches(adata, groupby="domain")
    >>> outlines.columns.tolist()[:4]
    ['slide', 'label', 'geometry', 'area']
    >>> int(outlines["n_cells"].sum()) <= 500
    True
    """
    import geopandas as gpd

    check_name(key_added, "key_added")
    for value, name in ((groupby, "groupby"), (spatial_key, "spatial_key"), (shapes_key, "shapes_key")):
        if value is not None:
            check_name(value, name)
    if max_gap is not None:
        check_positive(max_gap, "max_gap")
    check_positive(min_cells, "min_cells", integer=True)
    check_positive(simplify, "simplify", zero=True)
    check_bool(micrometres, "micrometres")
    tables = read_tables(data, table_key=table_key)
    if shapes_key is not None and not hasattr(data, "shapes"):
        raise TypeError(f"`shapes_key` names an element of a SpatialData, but `data` is a {type(data).__name__}.")
    if shapes_key is not None and micrometres:
        raise ValueError("`shapes_key`: elements are in the unit of the coordinates. Leave out `micrometres`.")
    if simplify and not hasattr(shapely, "coverage_simplify"):
        raise ImportError("`simplify` needs shapely 2.1 or later: `pip install -U shapely`.")
    column = default_column(tables.by_name, key_added) if groupby is None else groupby
    colors, found = read_slides(tables, column, key_added, spatial_key, library_key)
    slides = list(found)
    scales = [_micrometres(slide, key_added, spatial_key) if micrometres else 1.0 for slide in slides]
    elements = _element_names(slides, shapes_key)
    for name in elements:
        check_element(data, name)
    names, parts = list(colors), []
    for slide, scale in zip(slides, scales, strict=True):
        columns = outline_slide(
            slide.xy * scale, slide.codes, max_gap=max_gap, min_cells=int(min_cells), simplify=float(simplify)
        )
        labels = pd.Categorical.from_codes(columns.pop("code"), categories=names)
        shades = [colors[name] for name in labels]
        parts.append(gpd.GeoDataFrame({"slide": slide.name, "label": labels, **columns, "color": shades}))
    outlines = gpd.GeoDataFrame(pd.concat(parts, ignore_index=True), geometry="geometry")
    for name, slide, part in zip(elements, slides, parts, strict=False):
        if len(part):
            write_shapes(data, part, name, slide)
    return outlines


def _micrometres(slide: LabelledSlide, key_added: str, spatial_key: str | None) -> float:
    """Scale of a slide; a KeyError without a graph of these coordinates."""
    params = slide.part.uns.get(key_added, {}).get("params", {})
    where = spatial_key or str(params.get("spatial_key", "spatial"))
    scales = graph_scale(slide.part, where)
    if slide.own_name not in scales:
        raise KeyError(
            f"`micrometres`: the scale of slide {slide.name!r} is not known. Run `st.pp.build_graph(adata)` first, "
            "or leave out `micrometres` for the unit of the coordinates."
        )
    return scales[slide.own_name]


def _element_names(slides: list[LabelledSlide], shapes_key: str | None) -> list[str]:
    if shapes_key is None:
        return []
    return [shapes_key] if len(slides) == 1 else [f"{shapes_key}_{slide.name.replace('/', '_')}" for slide in slides]
