"""Names of niches and drawn regions, as the page of a report saves them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import shapely

from stage_sc._files import as_path
from stage_sc._input import Tables, read_coordinates, read_slide_codes, slide_name
from stage_sc._result import require_result
from stage_sc.outlines import find_regions


class Saved(NamedTuple):
    """Content of a file."""

    names: dict[str, str]
    """New name by id or present name; "" takes a name away."""
    regions: list[tuple[str, str, Any]]
    """Name, slide ("" where it is not said) and polygon of each region."""


def read_saved(names: Any) -> Saved:
    """Read names from a mapping, a series or a file; a file may hold regions too."""
    if names is None:
        return Saved({}, [])
    if isinstance(names, str | os.PathLike):
        return _read_file(names)
    if not isinstance(names, Mapping | pd.Series):
        raise TypeError(
            f"`names` must be names by id, as {{'N61': 'T zone'}}, a series or a path, got {type(names).__name__}."
        )
    if isinstance(names, pd.Series) and not names.index.is_unique:
        raise ValueError("`names`: the index of the series has an id twice.")
    return Saved({_check_id(id_): _check_text(id_, name) for id_, name in names.items()}, [])


def _check_id(id_: Any) -> str:
    if not isinstance(id_, str) or not id_:
        raise TypeError(f"`names`: an id is a string such as 'N61', got {id_!r}.")
    return id_


def _check_text(id_: str, name: Any) -> str:
    """Return a name without blanks around it; "" for None and NaN."""
    if name is None or (isinstance(name, float) and np.isnan(name)):
        return ""
    if not isinstance(name, str):
        raise TypeError(f"`names`: the name of {id_!r} must be a string, got {name!r} ({type(name).__name__}).")
    if not name.isprintable():
        raise ValueError(f"`names`: the name of {id_!r} has characters that cannot be printed: {name!r}.")
    return name.strip()


def _read_file(given: str | os.PathLike[str]) -> Saved:
    path = as_path(given, "names")
    if not path.is_file():
        raise FileNotFoundError(f"`names`: there is no file {str(path)!r}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        features = content.get("features", []) if isinstance(content, Mapping) else None
        head = content.get("stage_sc", content) if features is not None else None
        names = head.get("names", {}) if isinstance(head, Mapping) else None
        if not isinstance(names, Mapping) or not isinstance(features, list) or not (names or features):
            raise ValueError("it has neither names nor regions")
        regions = [_read_region(feature, number) for number, feature in enumerate(features, start=1)]
    except (UnicodeDecodeError, ValueError, AttributeError) as error:
        raise ValueError(f"`names`: {str(path)!r} was not saved by a report: {error}.") from error
    return Saved({_check_id(id_): _check_text(id_, name) for id_, name in names.items()}, regions)


def _read_region(feature: Any, number: int) -> tuple[str, str, Any]:
    properties = feature.get("properties") or {}
    try:
        area = shapely.from_geojson(json.dumps(feature.get("geometry")))
    except shapely.errors.GEOSException as error:
        raise ValueError(f"the geometry of region {number} is broken") from error
    if not isinstance(area, shapely.Polygon | shapely.MultiPolygon):
        raise ValueError(f"region {number} is no polygon")
    name = properties.get("name") or f"region {number}"
    return str(name), str(properties.get("slide") or ""), area if area.is_valid else shapely.make_valid(area)


def find_cells(tables: Tables, saved: Saved, key_added: str) -> list[pd.Categorical]:
    """Name of the smallest region around each cell of every object."""
    codes, places = {}, {}
    for key, part in tables.by_name.items():
        params = require_result(part, key_added)["params"]
        xy = read_coordinates(part, str(params.get("spatial_key", "spatial")))[:, :2]
        codes[key] = np.full(part.n_obs, -1)
        for own, rows in read_slide_codes(part, params.get("library_key") or None).rows().items():
            places[slide_name(key, own)] = key, rows, xy[rows]
    names = list(dict.fromkeys(name for name, *_ in saved.regions))
    on_slide: dict[str, list[int]] = {}
    for number, (name, slide, _) in enumerate(saved.regions):
        slide = next(iter(places)) if len(places) == 1 and (not slide or slide not in places) else slide
        if slide not in places:
            raise KeyError(f"`names`: region {name!r} lies on slide {slide!r}, slides here are {list(places)[:10]}.")
        on_slide.setdefault(slide, []).append(number)
    for slide, numbers in on_slide.items():
        key, rows, xy = places[slide]
        found = find_regions(xy, np.array([saved.regions[number][2] for number in numbers]))
        position = np.array([*(names.index(saved.regions[number][0]) for number in numbers), -1])
        codes[key][rows] = position[found]
    return [pd.Categorical.from_codes(codes[key], names) for key in tables.by_name]
