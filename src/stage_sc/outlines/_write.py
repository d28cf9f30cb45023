"""Outlines and labels in the formats of QuPath and of Xenium Explorer."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from matplotlib.colors import to_rgb

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

COLUMNS = ("slide", "label", "geometry", "color")


def read_outlines(outlines: Any, slide: str | None) -> GeoDataFrame:
    """Outlines of one slide; a TypeError for another table, a KeyError or ValueError that names the slides."""
    import geopandas as gpd

    if not isinstance(outlines, gpd.GeoDataFrame) or not set(COLUMNS) <= set(outlines.columns):
        raise TypeError(
            f"`outlines` must be the GeoDataFrame of `st.tl.outline_niches`, with the columns {', '.join(COLUMNS)}; "
            f"got {type(outlines).__name__}."
        )
    slides = list(dict.fromkeys(outlines["slide"].astype(str)))
    if slide is None:
        if len(slides) > 1:
            raise ValueError(f"`slide`: a file holds the outlines of one slide. Name one of {slides}.")
        return outlines
    if slide not in slides:
        raise KeyError(f"`slide`: no outlines of {slide!r}, only of {slides}.")
    return outlines[outlines["slide"].astype(str) == slide]


def to_geojson(outlines: GeoDataFrame, scale: float) -> bytes:
    """FeatureCollection of annotations for QuPath, with name and colour; coordinates are multiplied by `scale`."""
    features = []
    for label, color, geometry in _rows(outlines, scale):
        properties = {
            "objectType": "annotation",
            "name": label,
            "classification": {"name": label, "color": [round(255 * value) for value in to_rgb(color)]},
            "isLocked": False,
        }
        shape = json.loads(shapely.to_geojson(geometry))
        features.append({"type": "Feature", "geometry": shape, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def to_selections(outlines: GeoDataFrame, scale: float) -> bytes:
    """Write selections for Xenium Explorer: one for each piece, the largest first; holes are left out."""
    rows, names, areas = [], [], []
    for label, _, geometry in _rows(outlines, scale):
        parts = shapely.get_parts(geometry)
        parts = parts[np.argsort(-shapely.area(parts), kind="stable")]
        for number, part in enumerate(parts, start=1):
            # The first lines separate names by commas.
            name = " ".join(label.replace(",", ";").split()) + (f" {number}" if len(parts) > 1 else "")
            names.append(name)
            areas.append(f"{shapely.area(shapely.polygons(part.exterior)):.2f}")
            rows += [(name, f"{x:.3f}", f"{y:.3f}") for x, y in shapely.get_coordinates(part.exterior)]
    text = io.StringIO(newline="")
    several = "s" * (len(names) > 1)
    text.write(f"#Selection name{several}: {', '.join(names)}\n#Area{several} (µm^2): {', '.join(areas)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Selection", "X", "Y"])
    writer.writerows(rows)
    return text.getvalue().encode()


def cell_groups(cells: Any, labels: Any, colors: dict[str, str]) -> bytes:
    """Cell groups for Xenium Explorer: cells with a label, and colours."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell_id", "group", "color"])
    writer.writerows((cell, label, colors[label]) for cell, label in zip(cells, labels, strict=True))
    return text.getvalue().encode()


def _rows(outlines: GeoDataFrame, scale: float) -> Any:
    geometry = shapely.transform(np.asarray(outlines.geometry), lambda points: points * scale)
    return zip(outlines["label"].astype(str), outlines["color"], geometry, strict=True)
