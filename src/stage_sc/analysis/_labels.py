"""Labels and slides of the cells of a container, one object after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_name
from stage_sc._input import Tables, read_labels, read_slide_codes, slide_name
from stage_sc._messages import element_name, naming
from stage_sc._palette import children_of
from stage_sc._result import Columns, default_column, read_result

logger = logging.getLogger("stage_sc.tl")


class Column(NamedTuple):
    """One column of ``obs`` over all objects."""

    names: list[str]
    """Labels in use: in the order of the tree for niches, by number for domains, else in the order of categories."""
    codes: np.ndarray
    """``(n_cells,)`` intp, position in `names`, -1 without a label."""

    def counts(self) -> np.ndarray:
        """Count the cells of each label, ``(n_labels,)``."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))


class Groups(NamedTuple):
    """Labels and slides of all cells, one object after the other."""

    groupby: str
    """Column of ``obs``."""
    labels: Column
    slides: Column
    """Slides of all objects as ``"object/slide"``; the only one may be called ``""``."""
    result: Mapping[str, Any]
    """``uns`` entry of the niches that `groupby` is part of, or empty."""

    @property
    def n_cells(self) -> int:
        """Number of cells of all objects."""
        return len(self.labels.codes)

    @property
    def in_tree(self) -> bool:
        """True if all labels are nodes of the tree in `result`."""
        return bool(self.result) and set(self.labels.names) <= set(self.result["tree"].index)


def read_groups(tables: Tables, groupby: str | None = None, library_key: str | None = None) -> Groups:
    """Read the labels and the slides of all cells.

    `groupby` is a column of ``obs`` in every object. ``None``: the domains of `stage_sc.tl.stage_niches` if there are
    any (``"stage_domain"``), else its niches of level 2 (of level 1 if the tree has one level). `library_key` ``None``:
    the slides of the niches, else those of the stored graph, else each object is one slide.
    """
    if library_key is not None and not isinstance(library_key, str):
        check_name(library_key, "library_key")
    if groupby is not None:
        check_name(groupby, "groupby")
    column = default_column(tables.by_name) if groupby is None else groupby
    labels = read_column(tables, column, "groupby")
    result = find_result(tables, column)
    library_key = result.get("params", {}).get("library_key") or None if library_key is None else library_key
    return Groups(column, labels, _read_slides(tables, library_key), result)


def read_column(tables: Tables, key: str, argument: str) -> Column:
    """Read a column of labels of all objects, which must have it; `argument` is the name of the argument with the key.

    Missing values have the code -1. A ValueError if no cell has a label.
    """
    check_name(key, argument)
    parts = {}
    for name, part in tables.by_name.items():
        with naming(element_name("data", name), repr(name)):
            parts[name] = read_labels(part, key, argument=argument)
    used: dict[str, None] = {}
    for values in parts.values():
        used |= dict.fromkeys(str(values.categories[code]) for code in np.unique(values.codes[values.codes >= 0]))
    if not used:
        raise ValueError(f"`{argument}`: no cell has a label in obs[{key!r}].")
    names = _in_order(list(used), key, find_result(tables, key), list(parts.values()))
    position = {name: number for number, name in enumerate(names)}
    codes = [
        np.array([*(position.get(str(name), -1) for name in values.categories), -1], dtype=np.intp)[values.codes]
        for values in parts.values()
    ]
    return Column(names, np.concatenate(codes))


def find_result(tables: Tables, column: str) -> Mapping[str, Any]:
    """Find the entry of ``uns`` with the niches or domains of which `column` is one; empty for other columns."""
    for part in tables.by_name.values():
        for key in map(str, part.uns):
            result = read_result(part, key)
            if result and column in (*result["levels"], Columns(key).domain):
                return result
    return {}


def warn_left_out(names: Sequence[str], min_cells: int, cell_type: str = "", where: str = "fewer") -> None:
    """Name the labels that are left out, as they or the cells they are compared with are too few."""
    if names:
        shown = ", ".join(map(repr, names[:8])) + (" …" if len(names) > 8 else "")
        logger.warning(
            "%s%d %s left out, with %s than %d cells: %s.",
            *(f"{cell_type}: " if cell_type else "", len(names), "niche is" if len(names) == 1 else "niches are"),
            *(where, min_cells, shown),
        )


def _in_order(names: list[str], key: str, result: Mapping[str, Any], parts: Sequence[pd.Categorical]) -> list[str]:
    """Sort nodes as the tree, domains by number, and other labels as their categories if objects agree."""
    if result:
        ranks = {node: rank for rank, node in enumerate(_depth_first(children_of(result["tree"])))}
        if set(names) <= set(ranks):
            return sorted(names, key=ranks.__getitem__)
        if all(name[:1] == "D" and name[1:].isdecimal() for name in names):
            return sorted(names, key=lambda name: (int(name[1:]), name))
    orders = [[str(name) for name in one.categories if str(name) in set(names)] for one in parts]
    longest = max(orders, key=len)
    agree = all(order == [name for name in longest if name in set(order)] for order in orders)
    return longest if agree and len(longest) == len(names) else sorted(names)


def _depth_first(children: Mapping[str, Sequence[str]], node: str = "") -> list[str]:
    """Nodes below `node`, each before its children."""
    return [one for child in children.get(node, []) for one in (child, *_depth_first(children, child))]


def _read_slides(tables: Tables, library_key: str | None) -> Column:
    """Slides of all objects."""
    names: dict[str, int] = {}
    codes = []
    for prefix, part in tables.by_name.items():
        with naming(element_name("data", prefix), repr(prefix)):
            _require_cells(part)
            slides = read_slide_codes(part, library_key)
        own = [slide_name(prefix, name) for name in slides.names]
        for name in own:
            names.setdefault(name, len(names))
        codes.append(np.array([names[name] for name in own], dtype=np.intp)[slides.codes])
    return Column(list(names), np.concatenate(codes))


def _require_cells(part: AnnData) -> None:
    if part.n_obs == 0:
        raise ValueError("`adata` has no cells.")
