"""Colours of labels in pictures of tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import is_color_like, to_hex

from stage_sc._input import Tables, read_labels
from stage_sc._palette import distinct_colors
from stage_sc._result import label_colors
from stage_sc.analysis import find_result


def label_palette(tables: Tables, key: str, names: Sequence[str]) -> dict[str, str]:
    """Colour of each of `names`, labels of ``obs[key]``: as stored, else by the tree, else as far apart as possible."""
    for part in tables.by_name.values():
        colors = part.uns.get(f"{key}_colors")
        if key not in part.obs or not isinstance(colors, list | tuple | np.ndarray):
            continue
        try:
            categories = [str(name) for name in read_labels(part, key).categories]
        except (TypeError, ValueError):  # the picture shows a table, and needs no column
            continue
        if len(categories) == len(colors) and all(map(is_color_like, colors)) and set(names) <= set(categories):
            return {name: to_hex(color) for name, color in zip(categories, colors, strict=True)}
    result = find_result(tables, key)
    if result:
        nodes: dict[object, str] = {name: name for name in names} if set(names) <= set(result["tree"].index) else {}
        found = label_colors(result, key, str(result["params"].get("key_added", "stage")), list(names), nodes)
        if set(names) <= set(found):
            return {name: str(found[name]) for name in names}
    return dict(zip(names, distinct_colors(len(names)), strict=True))
