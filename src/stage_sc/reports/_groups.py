"""Facts about the groups of a labelling: slides, conditions, cell types, confidence, neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._matrix import read_pairs
from stage_sc._result import Columns
from stage_sc.analysis import find_stored
from stage_sc.pl import Cells
from stage_sc.reports._layers import Layer

BINS = 10  # of the histogram of confidence
MOST = 8  # neighbours that are shown
FEWEST_EDGES = 5


def count_pairs(one: np.ndarray, other: np.ndarray, n: int, m: int) -> np.ndarray:
    """Count the cells with every pair of codes, ``(n, m)``; cells without one of them are left out."""
    known = (one >= 0) & (other >= 0)
    return np.bincount(one[known] * m + other[known], minlength=n * m).reshape(n, m)


def slide_codes(cells: Cells, n: int) -> np.ndarray:
    """Position of the slide of each cell."""
    codes = np.full(n, -1)
    for number, rows in enumerate(cells.slides.values()):
        codes[rows] = number
    return codes


def shares(counts: np.ndarray) -> list[list[list[int]]]:
    """Position and number of cells, for each row of counts; zeros are left out."""
    return [[[int(column), int(row[column])] for column in np.flatnonzero(row)] for row in counts]


def read_confidence(cells: Cells) -> np.ndarray | None:
    """Confidence of each cell, NaN where there is none; None without the column."""
    column = Columns(cells.key_added).confidence
    if not any(column in part.obs for part in cells.parts):
        return None
    values = [
        pd.to_numeric(part.obs[column], errors="coerce").to_numpy(np.float64)
        if column in part.obs
        else np.full(part.n_obs, np.nan)
        for part in cells.parts
    ]
    return np.concatenate(values).clip(0, 1)


def confidence_of(codes: np.ndarray, n: int, values: np.ndarray) -> list[dict[str, Any]]:
    """Mean confidence of each group, and number of cells in ten bins from 0 to 1."""
    known = np.isfinite(values)
    bins = np.where(known, np.minimum(np.nan_to_num(values) * BINS, BINS - 1), -1).astype(np.int64)
    counts = count_pairs(codes, bins, n, BINS)
    held = known & (codes >= 0)
    sums = np.bincount(codes[held], values[held], minlength=n)
    return [
        {"mean": round(float(total / max(row.sum(), 1)), 4), "bins": row.tolist()}
        for total, row in zip(sums, counts, strict=True)
    ]


def count_edges(cells: Cells, leaf: Layer) -> np.ndarray | None:
    """Count the edges of the neighbourhood graph between groups, ``(n, n)``; None without a graph."""
    n, offset, found = len(leaf.ids), 0, None
    for part in cells.parts:
        codes = leaf.codes[offset : offset + part.n_obs]
        offset += part.n_obs
        if "spatial_connectivities" in part.obsp:
            edges = read_pairs(part, "spatial_connectivities").tocoo()
            counts = count_pairs(codes[edges.row], codes[edges.col], n, n)
            found = counts if found is None else found + counts
    return found


def light_neighbors(edges: np.ndarray) -> list[list[list[Any]]]:
    """Find the groups that touch each group most: position, share of the edges that leave it, and its rise.

    The rise is the ratio to the share of a group in all edge ends outside of the first group, that is, by size alone.
    """
    ends, found = edges.sum(axis=1), []
    for group, row in enumerate(edges):
        leaving = np.where(np.arange(len(edges)) == group, 0, row)
        outside = max(ends.sum() - ends[group], 1)
        share = leaving / max(leaving.sum(), 1)
        best = np.lexsort((np.arange(len(row)), -leaving))[:MOST]
        found.append(
            [
                [int(other), round(float(share[other]), 4), round(float(share[other] * outside / ends[other]), 3)]
                for other in best
                if leaving[other] >= FEWEST_EDGES
            ]
        )
    return found


def sum_blocks(edges: np.ndarray, groups: Sequence[int], n: int) -> np.ndarray:
    """Join groups of a table of edges."""
    onto = np.zeros((n, len(edges)), dtype=edges.dtype)
    for old, new in enumerate(groups):
        if new >= 0:
            onto[new, old] = 1
    return onto @ edges @ onto.T


def stored_rows(
    parts: Sequence[AnnData], tool: str, name: str, value: str, layer: Layer, most: int = 12
) -> list[list[list[Any]]]:
    """Names with the largest values for each group, from the table of `tool` if it is about the labels of `layer`.

    `name` and `value` are columns of the table. Groups are found by their present name or by their id.
    """
    stored = find_stored(parts, tool, tool)
    if not stored or str(stored["params"].get("groupby")) != layer.key:
        return []
    table = stored["table"].dropna(subset=[value])
    table = pd.DataFrame({"group": table["group"].astype(str), "name": table[name].astype(str), "value": table[value]})
    table = table.sort_values(["group", "value", "name"], ascending=[True, False, True], kind="stable")
    table = table.drop_duplicates(["group", "name"])  # the best of the cell types
    rows: dict[str, list[list[Any]]] = {}
    for group, some in table.groupby("group", sort=False):
        best = some.head(most)
        rows[str(group)] = [
            [one, round(float(number), 4)] for one, number in zip(best["name"], best["value"], strict=True)
        ]
    return [rows.get(shown, rows.get(id_, [])) for shown, id_ in zip(layer.names, layer.ids, strict=True)]
