"""Unit, spacing and neighbours of slides, measured without writing a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._elements import locate
from stage_sc._evidence import slide_column
from stage_sc._input import planar_coordinates, read_slide_codes, slide_name
from stage_sc.graph._neighbors import slide_graph
from stage_sc.graph._platforms import GRID_NEIGHBOURS
from stage_sc.graph._settings import GraphOptions, SlideSettings
from stage_sc.graph._state import graph_view
from stage_sc.graph._units import measure_spacing, resolve_settings, sorted_places

# Cells up to which neighbours are counted without a stored graph: a second.
MAX_CELLS = 100_000


class Measures(NamedTuple):
    """One slide of an object."""

    name: str
    """Name in the object; ``""`` for a single slide."""
    rows: np.ndarray
    """Row numbers of its cells."""
    scale: float = np.nan
    """µm per unit of the coordinates."""
    source: str = ""
    """Origin of the scale (see `SlideSettings`)."""
    layout: str = ""
    spacing: float = np.nan
    """Median distance to the nearest cell or spot, µm."""
    neighbours: float = np.nan
    """Median number of neighbours in the graph; NaN for large slides without a graph."""
    problem: str = ""
    """Error about the slide."""


def measure_slides(
    adata: AnnData,
    owner: Any,
    name: str,
    *,
    spatial_key: str,
    library_key: str | None,
    coordinate_system: str | None,
    technology: str | None,
    scale: float | Mapping[str, float] | None,
) -> Iterator[Measures]:
    """Measure the slides of an object of the container `owner`, one after the other; errors about one are noted."""
    place = locate(adata, owner, spatial_key, coordinate_system, name)
    view = graph_view(adata)
    if place.xy is not None:
        view.obsm[place.key] = place.xy
    column = slide_column(view) if library_key is None else library_key
    options = GraphOptions(technology or place.technology, None, 100.0, None, None, None)
    for slide, rows in read_slide_codes(view, column).rows().items():
        whole = slide_name(name, slide)
        obsm = {place.key: np.asarray(view.obsm[place.key])[rows]} if place.key in view.obsm else {}
        part = AnnData(obs=view.obs.iloc[rows], obsm=obsm, uns=dict(view.uns))
        given = scale.get(whole) if isinstance(scale, Mapping) else scale
        try:
            xy, codes = planar_coordinates(part, place.key, "", prefix=whole)
            known = place.scales.get(slide or next(iter(place.scales), "")) if given is None else given
            settings = _stored_settings(view, slide, place.key) if given is None else None
            if settings is None:
                (settings,) = resolve_settings(
                    xy, codes, options, [known], [whole], part, place.key, pitch=place.pitch, strict=True
                )
            spacing = measure_spacing(sorted_places(xy))[0] * settings.scale
            degree = _neighbours(view, rows, xy, settings)
        except (KeyError, TypeError, ValueError) as error:
            yield Measures(slide, rows, problem=str(error.args[0] if error.args else error))
            continue
        yield Measures(slide, rows, settings.scale, settings.scale_source, settings.layout, spacing, degree)


def _stored_settings(view: AnnData, slide: str, spatial_key: str) -> SlideSettings | None:
    """Read the settings of the stored graph of these coordinates; ``None`` without one."""
    state = view.uns.get("stage_graph")
    table, params = (state.get(key) for key in ("slides", "params")) if isinstance(state, Mapping) else (None, None)
    if not isinstance(table, pd.DataFrame) or not isinstance(params, Mapping) or slide not in table.index:
        return None
    names = list(SlideSettings.__dataclass_fields__)
    if params.get("spatial_key") != spatial_key or not set(names) <= set(table.columns):
        return None
    return SlideSettings(**table.loc[slide, names].to_dict())


def _neighbours(view: AnnData, rows: np.ndarray, xy: np.ndarray, settings: SlideSettings) -> float:
    """Median number of neighbours, by the stored graph where there is one."""
    if "spatial_connectivities" in view.obsp:
        return float(np.median(np.diff(view.obsp["spatial_connectivities"].tocsr().indptr)[rows]))
    if len(rows) > MAX_CELLS:
        return float(GRID_NEIGHBOURS.get(settings.layout, np.nan))
    return float(np.median(np.diff(slide_graph(xy * settings.scale, settings).edges.indptr)))
