"""Regions that were drawn: read from files or tables, and found for cells."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely

from stage_sc._files import as_path

# Entries of a feature or columns of a table with its name, in this order.
NAMES = ("label", "classification", "name")


class Regions(NamedTuple):
    """Areas with names."""

    geometry: np.ndarray
    """Polygons and MultiPolygons."""
    names: list[str]
    slides: list[str] | None
    """Slide of each, where the source says so."""
    colors: dict[str, str]

    @property
    def area(self) -> np.ndarray:
        """Area of each."""
        return np.asarray(shapely.area(self.geometry))

    @property
    def extent(self) -> np.ndarray:
        """Least x and y, largest x and y of all."""
        return np.asarray(shapely.total_bounds(self.geometry))


def read_regions(regions: Any, name_key: str | None, scale: float) -> Regions:
    """Read areas from a table, a GeoJSON (file or dictionary) or selections of Xenium Explorer; others are left out."""
    import geopandas as gpd

    slides, colors = None, []
    if isinstance(regions, gpd.GeoSeries):
        regions = regions.to_frame("geometry").set_geometry("geometry")
    if isinstance(regions, gpd.GeoDataFrame):
        rows: list[Mapping[str, Any]] = regions.drop(columns=regions.geometry.name).to_dict("records")
        geometry = np.asarray(regions.geometry)
        slides = regions["slide"].astype(str).tolist() if "slide" in regions else None
    elif isinstance(regions, Mapping):
        geometry, rows = _from_geojson(regions)
    elif isinstance(regions, str | os.PathLike):
        geometry, rows = _from_file(as_path(regions, "regions"))
    else:
        raise TypeError(
            "`regions` must be a GeoDataFrame, a GeoJSON (path or dictionary) or the path of a CSV of selections, got "
            f"{type(regions).__name__}."
        )
    names = [_name(row, name_key, number) for number, row in enumerate(rows, start=1)]
    areas = np.isin(shapely.get_type_id(geometry), (3, 6)) & ~shapely.is_empty(geometry)
    if not areas.any():
        raise ValueError(f"`regions` holds no polygons, but {len(geometry)} other shapes.")
    colors = [_color(row) for row in rows]
    geometry = shapely.transform(geometry[areas], lambda points: points[:, :2] * scale)
    invalid = ~shapely.is_valid(geometry)
    geometry[invalid] = shapely.make_valid(geometry[invalid])
    return Regions(
        geometry,
        [name for name, area in zip(names, areas, strict=True) if area],
        None if slides is None else [slide for slide, area in zip(slides, areas, strict=True) if area],
        {name: color for name, color, area in zip(names, colors, areas, strict=True) if area and color},
    )


def find_regions(xy: np.ndarray, geometry: np.ndarray) -> np.ndarray:
    """``(n,)`` position of the smallest area around each point, its border included; -1 outside of all."""
    found = np.full(len(xy), -1)
    tree = shapely.STRtree(shapely.points(xy))
    # Areas are indexed once and asked about all points near them.
    region, point = tree.query(geometry, predicate="intersects")
    order = np.lexsort((-region, -shapely.area(geometry)[region]))  # the smallest last
    found[point[order]] = region[order]
    return found


def _from_file(path: Path) -> tuple[np.ndarray, list[Mapping[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"`regions`: there is no file {str(path)!r}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        return _from_selections(text) if path.suffix.lower() == ".csv" else _from_geojson(json.loads(text))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, ValueError) as error:
        raise ValueError(f"`regions`: {str(path)!r} is no GeoJSON and no CSV of selections ({error}).") from error


def _from_geojson(content: Any) -> tuple[np.ndarray, list[Mapping[str, Any]]]:
    """Geometry and properties of the features of a collection, a list or a single one."""
    features = content.get("features", [content]) if isinstance(content, Mapping) else content
    whole = isinstance(features, list) and all(isinstance(one, Mapping) and one.get("geometry") for one in features)
    if not whole or not features:
        raise ValueError("`regions`: no features with a geometry were found in the GeoJSON")
    try:
        geometry = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
    except (shapely.errors.GEOSException, TypeError, ValueError) as error:
        raise ValueError(f"`regions`: a geometry of the GeoJSON is broken ({error})") from error
    return np.asarray(geometry), [feature.get("properties") or {} for feature in features]


def _from_selections(text: str) -> tuple[np.ndarray, list[Mapping[str, Any]]]:
    """Polygons of a CSV with the columns Selection, X and Y; a file of one may name it in its first line alone."""
    lines = text.splitlines()
    comments = [line for line in lines if line.startswith("#")]
    first = next((line.split(":", 1)[1].strip() for line in comments if line.startswith("#Selection name:")), "")
    table = list(csv.DictReader(line for line in lines if line and not line.startswith("#")))
    corners: dict[str, list[tuple[float, float]]] = {}
    for row in table:
        corners.setdefault(row.get("Selection") or first, []).append((float(row["X"]), float(row["Y"])))
    if not corners or min(map(len, corners.values())) < 3:
        raise ValueError("a selection has fewer than three corners")
    return np.array([shapely.Polygon(points) for points in corners.values()]), [{"name": name} for name in corners]


def _name(row: Mapping[str, Any], name_key: str | None, number: int) -> str:
    if name_key is not None and name_key not in row:
        raise KeyError(f"`name_key`: region {number} has no {name_key!r}, only {list(row)}.")
    for key in NAMES if name_key is None else (name_key,):
        value = row.get(key)
        value = value.get("name") if isinstance(value, Mapping) else value
        if isinstance(value, str) and value:
            return value
        if name_key is not None:
            return str(value)
    return f"region {number}"


def _color(row: Mapping[str, Any]) -> str:
    """Colour of QuPath or of an outline as hexadecimal text, or ""."""
    kind = row.get("classification")
    value = kind.get("color") if isinstance(kind, Mapping) else row.get("color")
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(one, int) for one in value):
        return "#{:02x}{:02x}{:02x}".format(*(min(max(one, 0), 255) for one in value))
    return ""
