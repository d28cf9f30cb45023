"""Nested columns of labels as a tree of nodes, counted in samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from stage_sc._checks import read_names
from stage_sc._input import Tables
from stage_sc._result import require_result
from stage_sc.analysis._labels import Column, find_result, read_column
from stage_sc.analysis._tree_fdr import Family, tree_adjust

ROOT = -1


class Nested(NamedTuple):
    """Nodes of all columns, the coarsest first."""

    columns: list[str]
    labels: list[Column]
    level: np.ndarray
    """``(n_nodes,)`` intp, position in `columns`."""
    names: list[str]
    """Label of each node."""
    parent: np.ndarray
    """``(n_nodes,)`` intp node, or -1 for all cells."""

    def count_cells(self, samples: Column) -> tuple[np.ndarray, np.ndarray]:
        """Cells of every node in every sample, ``(n_nodes, n_samples)`` int64, and those of its parent.

        Cells without a label in the first column belong to nothing.
        """
        n_samples, counted = len(samples.names), []
        for labels in self.labels:
            known = (samples.codes >= 0) & (labels.codes >= 0) & (self.labels[0].codes >= 0)
            place = labels.codes[known] * n_samples + samples.codes[known]
            counted.append(np.bincount(place, minlength=len(labels.names) * n_samples).reshape(-1, n_samples))
        cells = np.concatenate(counted)
        above = np.concatenate([cells, counted[0].sum(axis=0, keepdims=True)])
        return cells, above[self.parent]

    def adjust(self, p_values: np.ndarray) -> np.ndarray:
        """Adjust the p-values of all nodes for their number and place in the tree, ``(n_nodes,)``."""
        families: dict[Hashable, Family] = {}
        for node in (ROOT, *range(len(self.names))):
            children = np.flatnonzero(self.parent == node).tolist()
            tested = children[:1] if len(children) == 2 else children  # two shares add up to 1: one hypothesis
            families[node] = Family({child: p_values[child] for child in tested}, children)
        rates = np.full(len(p_values), np.nan)
        for node, rate in tree_adjust(families, ROOT).items():
            rates[node] = rate
        for node in range(len(self.names)):
            same = np.flatnonzero(self.parent == self.parent[node])
            if len(same) == 2:
                rates[node] = rates[same[0]]
        return rates


def read_nested(tables: Tables, groupby: str | Sequence[str] | None) -> Nested:
    """Read nested columns: those given, coarse to fine, or the levels of the niches down to the one given.

    ``None``: all levels of the niches ``"stage"``.
    """
    if groupby is None:
        results = [require_result(part) for part in tables.by_name.values()]
        columns = [str(level) for level in results[0]["levels"]]
    else:
        columns = read_names(groupby, "groupby")
        if not columns:
            raise TypeError("`groupby` must name a column of obs, got an empty list.")
    if len(columns) == 1:
        levels = [str(level) for level in find_result(tables, columns[0]).get("levels", ())]
        columns = levels[: levels.index(columns[0]) + 1] if columns[0] in levels else columns
    labels = [read_column(tables, column, "groupby") for column in columns]
    starts = np.cumsum([0, *(len(one.names) for one in labels)])
    parents = [np.full(len(labels[0].names), ROOT)]
    for number in range(1, len(labels)):
        parents.append(starts[number - 1] + _parents(labels[number], labels[number - 1], columns[number - 1 :]))
    return Nested(
        columns,
        labels,
        np.repeat(np.arange(len(labels)), np.diff(starts)),
        [name for one in labels for name in one.names],
        np.concatenate(parents),
    )


def _parents(fine: Column, coarse: Column, columns: Sequence[str]) -> np.ndarray:
    """Label of the coarser column for each label of the finer one."""
    known = fine.codes >= 0
    pairs = np.unique(np.c_[fine.codes[known], coarse.codes[known]], axis=0)
    child, number = np.unique(pairs[:, 0], return_counts=True)
    alone = [fine.names[code] for code in pairs[pairs[:, 1] < 0, 0]]
    several = [fine.names[code] for code in child[number > 1]]
    if several or alone:
        name, other = (several or alone)[0], "cells of several labels" if several else "cells without a label"
        raise ValueError(
            f"`groupby`: columns must be nested, from coarse to fine, but {name!r} of obs[{columns[1]!r}] has {other} "
            f"in obs[{columns[0]!r}]. Name one column alone to compare shares of all cells."
        )
    return pairs[:, 1]
