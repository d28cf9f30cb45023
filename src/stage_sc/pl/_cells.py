"""Cells to draw: slides, coordinates, labels and colours of one object or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import is_color_like, to_hex
from pandas.api.types import union_categoricals

from stage_sc._checks import check_name, read_names
from stage_sc._evidence import slide_column
from stage_sc._input import (
    read_coordinates,
    read_labels,
    read_slide_codes,
    read_tables,
    slide_name,
    warn_if_overlapping,
)
from stage_sc._matrix import read_pairs
from stage_sc._palette import MISSING_COLOR, distinct_colors, label_colors, tree_colors
from stage_sc._result import Columns, read_result
from stage_sc.pl._figure import CATEGORY


class Scale(NamedTuple):
    """Scale of a slide."""

    micrometres: float
    """µm per unit of the coordinates."""
    guessed: bool


class Cells(NamedTuple):
    """Cells of all objects that were given to a plot function, one object after the other."""

    parts: list[AnnData]
    key_added: str
    result: Mapping[str, Any]
    """``uns[key_added]`` of the first object that has niches, or empty."""
    spatial_key: str
    library_key: str | None
    slides: dict[str, np.ndarray]
    """Row numbers of the cells of each slide, in the order of objects and categories; "" for a single slide."""
    places: dict[str, tuple[int, int, str]]
    """Of each slide: position of its object, row number of the first cell of the object, and own name in the object."""

    def choose(self, libraries: Sequence[str] | None) -> dict[str, np.ndarray]:
        """Rows of the slides to draw, in the order of `libraries`; all by default."""
        if libraries is None:
            return self.slides
        if list(self.slides) == [""]:
            raise ValueError("`libraries` chooses slides by name: set `library_key`, the column of obs with the names")
        chosen = read_names(libraries, "libraries", CATEGORY)
        if not chosen:
            raise ValueError(f"`libraries` is empty: name some of {list(self.slides)}, or leave it out for all")
        unknown = [name for name in chosen if name not in self.slides]
        if unknown:
            raise KeyError(f"no slides {unknown} (`libraries`), there are {list(self.slides)}")
        return {name: self.slides[name] for name in chosen}

    def coordinates(self) -> np.ndarray:
        """Coordinates x and y of every cell, float64 (n, 2); a third coordinate is left out."""
        for name, part in read_tables(self.parts).by_name.items():
            warn_if_overlapping(part, self.spatial_key, self.library_key, name if len(self.parts) > 1 else "")
        return np.concatenate([read_coordinates(part, self.spatial_key)[:, :2] for part in self.parts])

    def labels(self, key: str) -> pd.Categorical:
        """`obs[key]` of all cells, missing in objects without this column.

        Categories of several objects are in the order of the tree, sorted if those of each object are, or as found.
        """
        anywhere = any(key in part.obs for part in self.parts)
        found = [
            read_labels(part, key, integers=False, argument="keys")
            if key in part.obs or not anywhere  # the error lists the columns
            else pd.Categorical([None] * part.n_obs)
            for part in self.parts
        ]
        if len(found) == 1:
            return found[0]
        in_order = all(values.categories.is_monotonic_increasing for values in found)
        joined = _join(found, in_order)
        order = label_colors(self.result, key, self.key_added, list(joined.categories), self.nodes(key, joined))
        return joined.reorder_categories(list(order)) if len(order) == len(joined.categories) else joined

    def node_labels(self, key: str) -> pd.Categorical | None:
        """Node of the tree of each cell at the level `key`, also if renamed; None where this is uncertain."""
        found = [_read_nodes(part, self.result, key, self.key_added) for part in self.parts]
        known = [nodes for nodes in found if nodes is not None]
        return _join(known, False) if len(known) == len(found) else None

    def nodes(self, key: str, labels: pd.Categorical) -> dict[object, str]:
        """Node of each category of `labels`, a level or the paths; empty for other labels and where it is uncertain."""
        if key == Columns(self.key_added).path and self.result:
            ends = {name: str(name).rsplit(">", 1)[-1] for name in labels.categories}
            return ends if set(ends.values()) <= set(self.result["tree"].index) else {}
        if key not in self.result.get("levels", []) or (nodes := self.node_labels(key)) is None:
            return {}
        pairs = pd.DataFrame({"name": labels.codes, "node": nodes.codes}).drop_duplicates()
        pairs = pairs[(pairs >= 0).all(axis=1)]
        if not (pairs["name"].is_unique and pairs["node"].is_unique):
            return {}
        found = {labels.categories[name]: str(nodes.categories[node]) for name, node in pairs.to_numpy()}
        free = set(self.result["tree"].index) - set(found.values())
        return {name: str(name) for name in labels.categories if str(name) in free and name not in found} | found

    def colors(self, key: str, names: Sequence[object], palette: Mapping[Any, str]) -> dict[object, str]:
        """Colour of each of `names`, the categories of `obs[key]`.

        In order of precedence: `palette`, the colours in ``uns`` of the first object that has as many as categories,
        `label_colors`, and `distinct_colors`.
        """
        stored = [_stored_colors(part, key) for part in self.parts if key in part.obs]
        known = next((dict(zip(own, old, strict=True)) for own, old in stored if old), {})
        default = label_colors(self.result, key, self.key_added, names, self.nodes(key, self.labels(key)))
        if not default:  # colours that are taken come last
            free = sorted(distinct_colors(len(names)), key=lambda color: color in known.values())
            default = dict(zip([name for name in names if name not in known], free, strict=False))
        merged: dict[Any, str] = {**default, **known, **palette}
        return {name: to_hex(merged.get(name, MISSING_COLOR)) for name in names}

    def write_colors(self, colors: Mapping[str, Mapping[object, str]]) -> None:
        """Remember the colours of each key in ``uns[f"{key}_colors"]``, but for views, which this would copy."""
        for key, by_name in colors.items():
            for part in self.parts:
                if key not in part.obs or part.is_view:
                    continue
                own, old = _stored_colors(part, key)
                new = [by_name[name] for name in own]
                if new != old and isinstance(part.uns.get(f"{key}_colors", []), list | tuple | np.ndarray):
                    part.uns[f"{key}_colors"] = new

    def scales(self, xy: np.ndarray) -> dict[str, Scale | None]:
        """Scale of each slide; None without a graph of these coordinates."""
        return {
            slide: _read_scale(self.parts[part], self.spatial_key, name, self.slides[slide] - offset, xy[offset:])
            for slide, (part, offset, name) in self.places.items()
        }


def read_cells(data: Any, key_added: str, library_key: str | None, spatial_key: str | None = None) -> Cells:
    """Read the objects of a container; the default keys are those with which the niches were computed."""
    tables = read_tables(data)
    check_name(key_added, "key_added")
    for value, name in ((library_key, "library_key"), (spatial_key, "spatial_key")):
        if value is not None and not (name == "library_key" and isinstance(value, str)):
            check_name(value, name)
    parts = list(tables.by_name.values())
    result = next((found for part in parts if (found := read_result(part, key_added))), {})
    params = result.get("params", {})
    library_key = params.get("library_key") or None if library_key is None else library_key
    spatial_key = spatial_key or str(params.get("spatial_key", "spatial"))
    slides: dict[str, np.ndarray] = {}
    places: dict[str, tuple[int, int, str]] = {}
    offset = 0
    for number, (prefix, part) in enumerate(tables.by_name.items()):
        rows = read_slide_codes(part, library_key).rows() if part.n_obs else {}
        column = slide_column(part) if library_key is None else library_key
        order = pd.Categorical(part.obs[column]).categories.astype(str) if column and rows else rows
        slides |= {slide_name(prefix, name): offset + rows[name] for name in order if name in rows}
        places |= {slide_name(prefix, name): (number, offset, name) for name in rows}
        offset += part.n_obs
    if not slides:
        raise ValueError("`data` has no cells to draw")
    return Cells(parts, key_added, result, spatial_key, library_key, slides, places)


def _read_scale(adata: AnnData, spatial_key: str, slide: str, rows: np.ndarray, xy: np.ndarray) -> Scale | None:
    """Scale of the cells `rows`: of their edges, whose lengths are in µm; else of the slide of this name.

    Objects that were joined may keep the table of slides of the first alone.
    """
    graph = adata.uns.get("stage_graph")
    graph = graph if isinstance(graph, Mapping) else {}
    table, params = graph.get("slides"), graph.get("params")
    if not (isinstance(table, pd.DataFrame) and "scale" in table and isinstance(params, Mapping)):
        return None
    if params.get("spatial_key") != spatial_key:
        return None
    table = table.set_axis(table.index.astype(str))
    source = table.get("scale_source", pd.Series("", table.index)) == "guess"
    guessed = bool(source.get(slide, source.any()))
    if "spatial_distances" in adata.obsp:
        some = rows[:: max(1, len(rows) // 500)]
        edges = read_pairs(adata, "spatial_distances")[some].tocoo()
        steps = np.linalg.norm(xy[some[edges.row]] - xy[edges.col], axis=1)
        ratio = (edges.data / np.where(steps > 0, steps, np.nan))[steps > 0]
        if ratio.size:
            scale = float(np.median(ratio))
            return Scale(scale, guessed) if np.allclose(ratio, scale, rtol=1e-2) and 0 < scale < np.inf else None
    whole = "n_cells" not in table or adata.n_obs <= table["n_cells"].sum()
    if slide not in table.index or not whole:
        common = table["scale"].nunique() == 1 and slide == "" and whole
        return Scale(float(table["scale"].iloc[0]), guessed) if common else None
    return Scale(float(table.loc[slide, "scale"]), guessed)


def _join(values: list[pd.Categorical], in_order: bool) -> pd.Categorical:
    """Put categoricals one after the other."""
    same_type = [part.rename_categories(part.categories.astype(object)) for part in values]
    return union_categoricals(same_type, sort_categories=in_order, ignore_order=True)


def _read_nodes(adata: AnnData, result: Mapping[str, Any], key: str, key_added: str) -> pd.Categorical | None:
    """Node of each cell at a level: its category, else by its path, else by the order and numbers of the categories.

    None where none of these is certain, as categories have been renamed or joined.
    """
    tree, depth = result["tree"], list(result["levels"]).index(key)
    nodes = [node for node in tree_colors(tree) if tree["level"][node] == depth + 1]
    if key not in adata.obs:
        return pd.Categorical([None] * adata.n_obs)
    labels = read_labels(adata, key, integers=False, argument="keys")
    if set(map(str, labels.categories)) <= set(nodes):
        return labels.rename_categories(str)
    if (path := Columns(key_added).path) in adata.obs:
        paths = read_labels(adata, path, integers=False, argument="keys")
        steps = [str(name).split(">")[depth : depth + 1] for name in paths.categories]
        position = np.array([nodes.index(step[0]) if step and step[0] in nodes else -1 for step in steps] + [-1])
        if (position[:-1] >= 0).all():
            return pd.Categorical.from_codes(position[paths.codes], nodes)
    used = [node for node in nodes if tree.get("n_cells", {}).get(node, 0) > 0]
    counts = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.categories))
    if len(used) == len(counts) and (counts == tree["n_cells"][used]).all():
        return labels.rename_categories(used)
    return None


def _stored_colors(adata: AnnData, key: str) -> tuple[list[object], list[str]]:
    """Categories of `obs[key]`, and their colours in ``uns``; none unless there are as many valid ones."""
    names = list(read_labels(adata, key, integers=False, argument="keys").categories)
    colors = adata.uns.get(f"{key}_colors")
    valid = isinstance(colors, list | tuple | np.ndarray) and len(np.atleast_1d(colors)) == len(names)
    valid = valid and all(map(is_color_like, colors))
    return names, [to_hex(color) for color in colors] if valid else []
