"""Labels of cells from regions that were drawn elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_name, check_scale
from stage_sc._input import Data, read_coordinates, read_slide_codes, read_tables, slide_name
from stage_sc._messages import element_name, naming
from stage_sc.outlines import Regions, find_regions, read_regions

logger = logging.getLogger("stage_sc.tl")


def label_regions(
    data: Data,
    regions: Any,
    *,
    key_added: str = "annotation",
    name_key: str | None = None,
    slide: str | None = None,
    scale: float = 1.0,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
) -> None:
    """Label the cells that lie in regions drawn elsewhere, e.g. a pathologist's annotations.

    Parameters
    ----------
    data
        Cells with coordinates: an AnnData, SpatialData or MuData, or a list or a dictionary of these.
    regions
        Polygons with names: a GeoDataFrame (also that of `outline_niches`), the path of a GeoJSON file (of QuPath or
        others) or its content as a dictionary, or the path of a CSV with selections of Xenium Explorer. Other shapes,
        such as points and lines, are left out.
    key_added
        Column of ``obs`` to write.
    name_key
        Column or property with the names of regions. ``None``: the first of "label", "classification" (the class in
        QuPath) and "name" that a region has, else ``"region 1"``, ``"region 2"`` … in their order. Regions of one name
        are one label.
    slide
        Slide on which the regions were drawn. ``None``: the only slide, or the column ``slide`` of a GeoDataFrame.
        Cells of other slides, and their labels from an earlier call, stay as they are.
    scale
        Factor of the coordinates of regions, which makes them those of the cells, e.g. µm per pixel for regions drawn
        on an image and cells in µm.
    spatial_key
        Entry of ``obsm`` with the coordinates of the cells.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one of the graph, or one slide.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.

    Returns
    -------
    ``None``. Written are, in every object:

    ``obs[key_added]``
        Categorical: name of the region around the cell, its border included; missing outside of all. Of several regions
        around a cell, the smallest counts.
    ``uns[f"{key_added}_colors"]``
        Colours of the regions, where all have one.
    ``uns[f"{key_added}_regions"]``
        Data frame with name, slide, area (in the unit of the cells) and number of cells of each region of this call.

    Raises
    ------
    KeyError
        If coordinates, a column, a slide or the name of a region are missing.
    TypeError
        If `regions` or an argument is of another type, or `data` has paths.
    ValueError
        If there are no polygons, a file has another format, there are several slides and nothing says on which one the
        regions lie, no cell lies in a region, or ``obs[key_added]`` exists and was not written by this function. `data`
        is then unchanged.
    FileNotFoundError
        If there is no such file.

    See Also
    --------
    outline_niches : The way from labels to polygons.
    stage_sc.metrics.ari : Agreement of niches with regions.

    Notes
    -----
    Every region is compared with the cells in its bounding box, found by a tree: about 15 s for a million cells.

    Examples
    --------
    >>> import stage_sc as st
    >>> from geopandas import GeoDataFrame
    >>> from shapely import box
    >>> adata = st.datasets.simulate_tissue(500)
    >>> drawn = GeoDataFrame({"label": ["corner"]}, geometry=[box(0, 0, 100, 100)])
    >>> st.tl.label_regions(adata, drawn)
    >>> adata.obs["annotation"].cat.categories.tolist()
    ['corner']
    """
    check_name(key_added, "key_added")
    if "/" in key_added:
        raise ValueError(f"`key_added` must not contain '/', which is a folder inside a file, got {key_added!r}.")
    check_name(spatial_key, "spatial_key")
    check_scale(scale)
    for value, name in ((name_key, "name_key"), (slide, "slide")):
        if value is not None:
            check_name(value, name)
    tables = read_tables(data, table_key=table_key)
    tables.check_in_memory()
    areas = read_regions(regions, name_key, float(scale))
    parts: dict[str, AnnData] = tables.by_name
    places: dict[str, tuple[int, np.ndarray]] = {}
    xy = []
    for number, (key, part) in enumerate(parts.items()):
        with naming(element_name("data", key), repr(key)):
            _check_free(part, key_added)
            xy.append(read_coordinates(part, spatial_key)[:, :2])
            for own, rows in read_slide_codes(part, library_key).rows().items():
                places[slide_name(key, own)] = number, rows
    if not places or not sum(part.n_obs for part in parts.values()):
        raise ValueError("`data` has no cells.")
    drawn = _slides_of(areas, list(places), slide)
    found = [np.full(part.n_obs, -1) for part in parts.values()]
    touched = [np.zeros(part.n_obs, dtype=bool) for part in parts.values()]
    for name in dict.fromkeys(drawn):
        number, rows = places[name]
        chosen = np.flatnonzero([one == name for one in drawn])
        inside = find_regions(xy[number][rows], areas.geometry[chosen])
        found[number][rows] = np.where(inside < 0, -1, chosen[inside])
        touched[number][rows] = True
    counts = np.bincount(np.concatenate(found) + 1, minlength=len(drawn) + 1)[1:]
    if not counts.any():
        raise ValueError(_nothing_found(areas, xy, places, drawn))
    table = pd.DataFrame({"name": areas.names, "slide": drawn, "area": areas.area, "n_cells": counts})
    for part, regions_of, here in zip(parts.values(), found, touched, strict=True):
        if here.any() or len(parts) == 1:
            _write(part, regions_of, here, key_added, areas, table)
    n_inside = sum(int((one >= 0).sum()) for one in found)
    logger.info("%d of %d cells lie in a region.", n_inside, sum(int(one.sum()) for one in touched))


def _check_free(part: AnnData, key_added: str) -> None:
    if key_added in part.obs and f"{key_added}_regions" not in part.uns:
        raise ValueError(
            f"`key_added`: obs[{key_added!r}] exists and was not written by `label_regions`: choose another name."
        )


def _slides_of(areas: Regions, slides: list[str], slide: str | None) -> list[str]:
    """Slide of each region."""
    if slide is not None:
        if slide not in slides:
            raise KeyError(f"`slide`: there is no slide {slide!r}, only {slides}.")
        own = areas.slides
        return [slide] * len(areas.names) if own is None or slide not in own else _only(areas, slide)
    if areas.slides is not None and set(areas.slides) & set(slides):
        if unknown := set(areas.slides) - set(slides):
            raise KeyError(f"`regions`: the column 'slide' names {sorted(unknown)}, but there are {slides}.")
        return areas.slides
    if len(slides) > 1:
        raise ValueError(f"`slide`: nothing says on which of the slides {slides} the regions lie. Name one.")
    return slides * len(areas.names)


def _only(areas: Regions, slide: str) -> list[str]:
    others = sorted(set(areas.slides or []) - {slide})
    if others:
        raise ValueError(f"`slide`: `regions` has regions of {others} too. Pass those of {slide!r} alone.")
    return [slide] * len(areas.names)


def _nothing_found(areas: Regions, xy: list[np.ndarray], places: Mapping[str, Any], drawn: list[str]) -> str:
    """Message with both extents, which shows a wrong unit."""
    number, rows = places[drawn[0]]
    low, high = xy[number][rows].min(axis=0), xy[number][rows].max(axis=0)
    box = areas.extent
    return (
        f"`regions`: no cell lies in a region. Cells are in x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}; "
        f"regions in x {box[0]:g} to {box[2]:g}, y {box[1]:g} to {box[3]:g}. Is it the same unit? Set `scale`."
    )


def _write(
    part: AnnData, found: np.ndarray, here: np.ndarray, key_added: str, areas: Regions, table: pd.DataFrame
) -> None:
    """Write the labels of the slides `here`; those of other slides stay."""
    old = part.obs[key_added].astype(object).to_numpy() if key_added in part.obs else np.full(part.n_obs, None)
    names = np.array([*areas.names, None], dtype=object)
    values = np.where(here, names[found], old)
    known = {str(name) for name in values if isinstance(name, str)}
    order = [name for name in dict.fromkeys(areas.names) if name in known]
    order += sorted(known - set(order))
    part.obs[key_added] = pd.Categorical(values, categories=order)
    part.uns.pop(f"{key_added}_colors", None)
    if set(order) <= set(areas.colors):
        part.uns[f"{key_added}_colors"] = [areas.colors[name] for name in order]
    part.uns[f"{key_added}_regions"] = table.set_index(table.index.astype(str))
