"""Cells to draw: labels, coordinates, slides and scales of one object or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._input import Tables, join_tables, read_coordinates, read_slide_codes, read_tables, slide_name
from stage_sc._result import read_result
from stage_sc.graph import graph_scale
from stage_sc.pl._palette import category_colors


class Cells(NamedTuple):
    """Cells of all objects that were given to a plot function."""

    tables: Tables
    adata: AnnData
    """The object that was given, or the annotations of several joined."""
    key_added: str
    library_key: str | None

    @property
    def result(self) -> Mapping[str, Any]:
        """``uns[key_added]``; empty where there are no niches."""
        return read_result(next(iter(self.tables.by_name.values())), self.key_added)

    @property
    def spatial_key(self) -> str:
        """Key of the coordinates with which the niches were computed."""
        return str(self.result.get("params", {}).get("spatial_key", "spatial"))

    def coordinates(self, spatial_key: str | None) -> np.ndarray:
        """Return x and y of each cell, float64 (n, 2); a third coordinate is left out."""
        key = spatial_key or self.spatial_key
        parts = self.tables.by_name.values()
        xy = np.concatenate([read_coordinates(part, key)[:, :2] for part in parts])
        if len(xy) == 0:
            raise ValueError("adata has no cells to draw")
        return xy

    def rows(self, libraries: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Cells of each slide to draw as boolean masks, by name, in the order of the categories.

        All cells are under "" where there is one slide only.
        """
        key = self.library_key
        if key is None and libraries is not None:
            raise ValueError(
                "`libraries` chooses slides by name and needs `library_key`, the column of obs that names them"
            )
        names, codes = read_slide_codes(self.adata, key)
        present = names
        if key is not None:
            present = [str(name) for name in pd.Categorical(self.adata.obs[key]).remove_unused_categories().categories]
        chosen = present if libraries is None else [str(name) for name in np.atleast_1d(libraries)]
        if not chosen:
            raise ValueError(f"`libraries` is empty: name some of {present}, or leave it out for all")
        unknown = [name for name in chosen if name not in present]
        if unknown:
            raise KeyError(f"no slides {unknown} in adata.obs[{key!r}], which has {present}")
        return {name: codes == names.index(name) for name in chosen}

    def colors(self, key: str, palette: Mapping[str, str] | None) -> dict[object, str]:
        """Colour of each category of `obs[key]`; remembered in ``uns`` of every object, see `category_colors`."""
        stored = [part.uns.get(f"{key}_colors") for part in self.tables.by_name.values()]
        if len(stored) > 1 and stored[0] is not None:
            first = next(iter(self.tables.by_name.values()))
            known = category_colors(first, key, self.result, key_added=self.key_added)
            palette = {**{str(name): color for name, color in known.items()}, **(palette or {})}
        colors = category_colors(self.adata, key, self.result, key_added=self.key_added, palette=palette)
        if len(stored) > 1:
            by_name = {str(name): color for name, color in colors.items()}
            for part in self.tables.by_name.values():
                category_colors(part, key, self.result, key_added=self.key_added, palette=by_name)
        return colors

    def scales(self, spatial_key: str | None) -> dict[str, float]:
        """µm per unit of the coordinates of each slide, by its name, where the graph of these coordinates tells it."""
        found: dict[str, float] = {}
        for prefix, part in self.tables.by_name.items():
            scales = graph_scale(part, spatial_key or self.spatial_key)
            found |= {slide_name(prefix, name): scale for name, scale in scales.items()}
        return found


def read_cells(data: Any, key_added: str, library_key: str | None) -> Cells:
    """Read the objects of a container. Without `library_key`, it is the one with which the niches were computed."""
    tables = read_tables(data)
    first = next(iter(tables.by_name.values()))
    if library_key is None:
        library_key = read_result(first, key_added).get("params", {}).get("library_key") or None
    adata = join_tables(tables, library_key)
    return Cells(tables, adata, key_added, library_key if adata is data else "slide")
