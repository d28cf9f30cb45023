"""Outlines as elements of a SpatialData."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stage_sc._evidence import region_column
from stage_sc.outlines._labels import LabelledSlide

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

logger = logging.getLogger("stage_sc.tl")

# Columns that show that an element was written here.
OURS = {"label", "n_components", "elongation"}


def check_element(sdata: Any, name: str) -> None:
    """Raise a ValueError if the name of an element cannot be used, or is that of an element of another kind."""
    if re.fullmatch(r"[A-Za-z0-9_.-]+", name) is None:
        raise ValueError(f"`shapes_key` must have only letters, digits, '_', '.' and '-', got {name!r}.")
    if name in sdata and not (name in sdata.shapes and set(sdata.shapes[name].columns) >= OURS):
        raise ValueError(f"`shapes_key`: {name!r} exists and holds no outlines. Choose another name.")


def write_shapes(sdata: Any, outlines: GeoDataFrame, name: str, slide: LabelledSlide) -> None:
    """Add the outlines of a slide as an element, in the coordinate systems of the region that its cells annotate."""
    from spatialdata.models import ShapesModel

    table = outlines.drop(columns="slide").set_index(outlines["label"].astype(str).to_numpy())
    table.attrs = {}
    element = ShapesModel.parse(table, transformations=_transformations(sdata, slide))
    if name in sdata.shapes:
        del sdata.shapes[name]
    sdata.shapes[name] = element


def _transformations(sdata: Any, slide: LabelledSlide) -> dict[str, Any]:
    """Find the transformations of the coordinates of the cells into coordinate systems.

    They are those of the annotated region if the coordinates are its own, else the identity of the coordinate system
    in which the region has these coordinates.
    """
    from spatialdata.transformations import Identity, get_transformation

    region = _region(slide)
    if region not in sdata:
        logger.warning(
            "Slide %r: the cells annotate no element, so their coordinates are taken as those of 'global'.", slide.name
        )
        return {"global": Identity()}
    own = get_transformation(sdata[region], get_all=True)
    if _same_places(sdata[region], None, slide):
        return dict(own)
    for system in own:
        if _same_places(sdata[region], system, slide):
            return {system: Identity()}
    logger.warning(
        "Slide %r: the coordinates of the cells are not those of %r in any coordinate system, and are taken as those "
        "of 'global'.",
        *(slide.name, region),
    )
    return {"global": Identity()}


def _region(slide: LabelledSlide) -> str:
    """Element that the cells of a slide annotate, or "" for none or several."""
    key = region_column(slide.part.uns)
    found = slide.part.obs[key].iloc[slide.rows].astype(str).unique() if key in slide.part.obs else []
    return str(found[0]) if len(found) == 1 else ""


def _same_places(element: Any, system: str | None, slide: LabelledSlide) -> bool:
    """Compare the centroids of an element with the coordinates of the cells: its own, or those in a system."""
    from spatialdata import get_centroids
    from spatialdata.transformations import Identity, set_transformation

    if system is None:
        system, element = "own", element.copy() if hasattr(element, "columns") else element.copy(deep=False)
        set_transformation(element, {"own": Identity()}, set_all=True)
    centroids = get_centroids(element, coordinate_system=system).compute()
    attrs = slide.part.uns["spatialdata_attrs"]
    key = attrs.get("instance_key") if isinstance(attrs, Mapping) else None
    if key not in slide.part.obs:
        return False
    instances = slide.part.obs[key].iloc[slide.rows]
    there = instances.isin(centroids.index).to_numpy()
    if not there.any():
        return False
    expected = centroids.loc[instances[there], ["x", "y"]].to_numpy()
    error = np.abs(expected - slide.xy[there]).max()
    return bool(error <= 1e-3 * max(np.ptp(expected, axis=0).max(), 1e-9))
