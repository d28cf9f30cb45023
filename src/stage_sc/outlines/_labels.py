"""Labels, colours and places of the cells of each slide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import is_color_like, to_hex

from stage_sc._input import Tables, planar_coordinates, read_labels, slide_name
from stage_sc._messages import element_name, naming
from stage_sc._palette import distinct_colors
from stage_sc._result import label_colors, read_result


class LabelledSlide(NamedTuple):
    """Cells of one slide."""

    name: str
    own_name: str
    """Name of the slide in its object."""
    part: AnnData
    rows: np.ndarray
    """``(n,)`` row numbers of the cells in `part`."""
    xy: np.ndarray
    """``(n, 2)`` float64 coordinates as stored."""
    codes: np.ndarray
    """``(n,)`` position in the names of all labels, -1 for missing ones."""


def read_slides(
    tables: Tables, groupby: str, key_added: str, spatial_key: str | None, library_key: str | None
) -> tuple[dict[str, str], Iterator[LabelledSlide]]:
    """Colour of each label by its name, in the order of categories, and the slides of all objects."""
    labels, places = {}, {}
    for key, part in tables.by_name.items():
        with naming(element_name("data", key), repr(key)):
            labels[key] = read_labels(part, groupby, argument="groupby")
            params = read_result(part, key_added).get("params", {})
            where = spatial_key or str(params.get("spatial_key", "spatial"))
            library = params.get("library_key") or None if library_key is None else library_key
            places[key] = planar_coordinates(part, where, library, prefix=key)
    used = [str(name) for one in labels.values() for name in one.categories[np.unique(one.codes[one.codes >= 0])]]
    if not used:
        raise ValueError(f"`groupby`: no cell has a label in obs[{groupby!r}].")
    colors = category_colors(list(tables.by_name.values()), groupby, key_added, list(dict.fromkeys(used)))
    number = {name: position for position, name in enumerate(colors)}

    def slides() -> Iterator[LabelledSlide]:
        for key, part in tables.by_name.items():
            xy, slides = places[key]
            position = np.array([*(number.get(str(name), -1) for name in labels[key].categories), -1])
            codes = position[labels[key].codes]
            for name, rows in slides.rows().items():
                yield LabelledSlide(slide_name(key, name), name, part, rows, xy[rows], codes[rows])

    return colors, slides()


def category_colors(parts: Sequence[AnnData], key: str, key_added: str, names: Sequence[str]) -> dict[str, str]:
    """Colour of each of `names`: stored in ``uns``, else by the tree, else as far apart as possible."""
    result: Any = next((found for part in parts if (found := read_result(part, key_added))), {})
    in_tree = key in result.get("levels", []) and set(names) <= set(result["tree"].index)
    default = label_colors(result, key, key_added, names, {name: name for name in names} if in_tree else {})
    default = default or dict(zip(names, distinct_colors(len(names)), strict=True))
    return {str(name): color for name, color in default.items()} | {
        name: color for part in reversed(parts) for name, color in _stored(part, key).items() if name in names
    }


def _stored(part: AnnData, key: str) -> dict[str, str]:
    """Colours in ``uns`` by category; none unless there are as many valid ones."""
    colors = part.uns.get(f"{key}_colors")
    if key not in part.obs or not isinstance(colors, list | tuple | np.ndarray):
        return {}
    names = pd.Categorical(part.obs[key]).categories
    if len(names) != len(np.atleast_1d(colors)) or not all(map(is_color_like, colors)):
        return {}
    return {str(name): to_hex(color) for name, color in zip(names, colors, strict=True)}
