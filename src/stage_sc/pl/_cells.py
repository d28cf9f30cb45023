"""Cells to draw: slides, coordinates, labels and colours of one object or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import is_color_like, to_hex
from pandas.api.types import union_categoricals

from stage_sc._input import read_coordinates, read_labels, read_slide_codes, read_tables, slide_name
from stage_sc._result import read_result
from stage_sc.graph import graph_scale
from stage_sc.pl._palette import distinct_colors, niche_colors


class Cells(NamedTuple):
    """Cells of all objects that were given to a plot function, one object after the other."""

    parts: list[AnnData]
    key_added: str
    result: Mapping[str, Any]
    """``uns[key_added]`` of the first object that has niches, or empty."""
    spatial_key: str
    slides: dict[str, np.ndarray]
    """Row numbers of the cells of each slide, in the order of objects and categories; "" for a single slide."""
    scales: dict[str, float | None]
    """µm per unit of the coordinates of each slide; None without a graph of these coordinates."""

    def choose(self, libraries: Sequence[str] | None) -> dict[str, np.ndarray]:
        """Rows of the slides to draw, in the order of `libraries`; all by default."""
        if libraries is None:
            return self.slides
        if list(self.slides) == [""]:
            raise ValueError("`libraries` chooses slides by name: set `library_key`, the column of obs with the names")
        chosen = [str(name) for name in np.atleast_1d(libraries)]
        if not chosen:
            raise ValueError(f"`libraries` is empty: name some of {list(self.slides)}, or leave it out for all")
        unknown = [name for name in chosen if name not in self.slides]
        if unknown:
            raise KeyError(f"no slides {unknown} (`libraries`), there are {list(self.slides)}")
        return {name: self.slides[name] for name in chosen}

    def coordinates(self) -> np.ndarray:
        """Coordinates x and y of every cell, float64 (n, 2); a third coordinate is left out."""
        return np.concatenate([read_coordinates(part, self.spatial_key)[:, :2] for part in self.parts])

    def labels(self, key: str) -> pd.Categorical:
        """`obs[key]` of all cells, missing in objects without this column.

        Categories of several objects are in the order of the tree, sorted if those of each object are, or as found.
        """
        anywhere = any(key in part.obs for part in self.parts)
        found = [
            read_labels(part, key, integers=False)
            if key in part.obs or not anywhere  # the error lists the columns
            else pd.Categorical([None] * part.n_obs)
            for part in self.parts
        ]
        if len(found) == 1:
            return found[0]
        found = [values.rename_categories(values.categories.astype(object)) for values in found]
        in_order = all(values.categories.is_monotonic_increasing for values in found)
        joined = union_categoricals(found, sort_categories=in_order, ignore_order=True)
        order = niche_colors(self.result, key, list(joined.categories), self.key_added)
        return joined.reorder_categories(list(order)) if order else joined

    def colors(self, key: str, names: Sequence[object], palette: Mapping[str, str] | None) -> dict[object, str]:
        """Colour of each of `names`, the categories of `obs[key]`; remembered in ``uns[f"{key}_colors"]``.

        In order of precedence: `palette`, the colours in ``uns`` of the first object that has as many as categories,
        `niche_colors`, and `distinct_colors`. Views are not written to, as that would turn them into copies.
        """
        palette = {} if palette is None else palette
        if not isinstance(palette, Mapping):
            raise TypeError(f"`palette` must map names to colours, e.g. {{'N3': 'gold'}}, not {type(palette).__name__}")
        wrong = {name: color for name, color in palette.items() if not is_color_like(color)}
        if wrong:
            raise ValueError(f"`palette` has colours that matplotlib does not know: {wrong}")
        stored = [(part, *_stored_colors(part, key)) for part in self.parts if key in part.obs]
        known = next((dict(zip(own, old, strict=True)) for _, own, old in stored if old), {})
        default = niche_colors(self.result, key, names, self.key_added)
        if not default:  # colours that are taken come last
            free = sorted(distinct_colors(len(names)), key=lambda color: color in known.values())
            default = dict(zip([name for name in names if name not in known], free, strict=False))
        merged: dict[Any, str] = {**default, **known, **palette}
        colors = {name: to_hex(merged[name]) for name in names}
        for part, own, old in stored:
            new = [colors[name] for name in own]
            if new != old and not part.is_view:
                part.uns[f"{key}_colors"] = new
        return colors


def read_cells(data: Any, key_added: str, library_key: str | None, spatial_key: str | None = None) -> Cells:
    """Read the objects of a container; the default keys are those with which the niches were computed."""
    tables = read_tables(data)
    parts = list(tables.by_name.values())
    result = next((found for part in parts if (found := read_result(part, key_added))), {})
    params = result.get("params", {})
    library_key = params.get("library_key") if library_key is None else library_key
    spatial_key = spatial_key or str(params.get("spatial_key", "spatial"))
    slides: dict[str, np.ndarray] = {}
    scales: dict[str, float | None] = {}
    offset = 0
    for prefix, part in tables.by_name.items():
        rows = read_slide_codes(part, library_key).rows() if part.n_obs else {}
        order = pd.Categorical(part.obs[library_key]).categories.astype(str) if library_key and rows else rows
        slides |= {slide_name(prefix, name): offset + rows[name] for name in order if name in rows}
        scale_of = graph_scale(part, spatial_key)
        common = next(iter(scale_of.values())) if len(set(scale_of.values())) == 1 else None
        scales |= {slide_name(prefix, name): scale_of.get(name, common) for name in rows}
        offset += part.n_obs
    if not slides:
        raise ValueError("`data` has no cells to draw")
    return Cells(parts, key_added, result, spatial_key, slides, scales)


def _stored_colors(adata: AnnData, key: str) -> tuple[list[object], list[str]]:
    """Categories of `obs[key]`, and their colours in ``uns``; none unless there are as many valid ones."""
    names = list(read_labels(adata, key, integers=False).categories)
    colors = adata.uns.get(f"{key}_colors", [])
    valid = len(colors) == len(names) and all(map(is_color_like, colors))
    return names, [to_hex(color) for color in colors] if valid else []
