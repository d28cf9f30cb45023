"""Composition of slides, conditions or niches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stage_sc._checks import check_bool, check_name
from stage_sc._input import Data, read_tables
from stage_sc.analysis._expression import as_frame
from stage_sc.analysis._labels import Column, read_column, read_groups
from stage_sc.analysis._store import check_key, write_stored

TOOL = "composition"
MOST_ORDERED = 2000  # rows; more are clustered, but their branches are not turned


def composition(
    data: Data,
    *,
    groupby: str | None = None,
    by: str | None = None,
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = TOOL,
    copy: bool = False,
) -> Any:
    r"""Count the cells of each niche in each slide, tissue or condition, or those of each cell type in each niche.

    Rows with a similar composition are clustered.

    Parameters
    ----------
    data
        Cells with labels; or a list or a dictionary of such objects.
    groupby
        Column of ``obs`` with the labels that are counted, such as niches or cell types; cells without one are left
        out. ``None``: the domains of `stage_sc.tl.stage_niches` if there are any, else its niches of level 2.
    by
        Column of ``obs`` with the rows: tissue, condition, or niches when cell types are counted; cells without a
        value are left out. ``None``: the slides.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one of the niches or of the graph.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    copy
        Return a copy of `data` with the result instead of writing into `data`.

    Returns
    -------
    ``None``, or with `copy` a copy of `data`. Written into every object is ``uns[key_added]``, about all of them:

    ``"table"``
        Data frame with a row for each pair of ``by`` and ``group``, also those without cells: ``n_cells``, the
        ``fraction`` of the cells of the row in the group, and over the slides with cells of the row their number
        ``n_slides``, and ``slide_mean`` and ``slide_sd`` of the fraction, in which every slide counts the same.
    ``"linkage"``
        ``(n_rows - 1, 4)`` float64, the tree of rows as of ``scipy.cluster.hierarchy.linkage``, for the categories of
        ``by`` in their order; not with a single row.
    ``"params"``
        Arguments.

    Raises
    ------
    KeyError
        If a column does not exist, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type, or a column holds no labels.
    ValueError
        If no cell has a label in both columns, both are the same, or ``uns[key_added]`` holds something else.

    See Also
    --------
    stage_sc.pl.composition : Bars, or a heat map with the tree of rows.

    Notes
    -----
    ``fraction`` pools the cells of a row, so that large slides count more; with replicates, ``slide_mean`` is the fair
    value of a condition. Rows are clustered by average linkage of Hellinger distances,
    :math:`\sqrt{\tfrac 1 2 \sum_k (\sqrt{p_k} - \sqrt{q_k})^2}`, which rare groups count in too, and
    branches are turned so that neighbours are alike. Linear in the cells, quadratic in the rows.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500, n_slides=3)
    >>> st.tl.composition(adata, groupby="domain", library_key="slide")
    >>> adata.uns["composition"]["table"].columns.tolist()[:4]
    ['by', 'group', 'n_cells', 'fraction']
    """
    if by is not None:
        check_name(by, "by")
    check_bool(copy, "copy")
    tables = read_tables(data, table_key=table_key)
    check_key(tables, key_added, TOOL, copy=copy)
    groups = read_groups(tables, groupby, library_key)
    if by == groups.groupby:
        raise ValueError(f"`by` and `groupby` are the same column, {by!r}: name two, or leave out `by` for slides.")
    rows = groups.slides if by is None else read_column(tables, by, "by")
    rows = _named(rows)
    table = _count(rows, groups.labels, groups.slides)
    if table["n_cells"].sum() == 0:
        raise ValueError(f"`by`: no cell has a label both in obs[{by!r}] and in obs[{groups.groupby!r}].")
    params = {"groupby": groups.groupby, "by": by, "library_key": library_key}
    tables = tables.copy() if copy else tables
    fractions = table["fraction"].to_numpy().reshape(-1, len(groups.labels.names))
    more = {"linkage": _cluster(fractions)} if len(fractions) > 1 else {}
    write_stored(tables, key_added, TOOL, table, params, **more)
    return tables.given if copy else None


def _named(rows: Column) -> Column:
    """Give the slide without a name one."""
    return Column([name or "all" for name in rows.names], rows.codes)


def _count(rows: Column, labels: Column, slides: Column) -> pd.DataFrame:
    """Table of all pairs of rows and labels; rows without any labelled cell are left out."""
    shape = len(slides.names), len(rows.names), len(labels.names)
    known = (rows.codes >= 0) & (labels.codes >= 0)
    place = np.ravel_multi_index((rows.codes[known], labels.codes[known]), shape[1:])
    n_cells = np.bincount(place, minlength=shape[1] * shape[2]).reshape(shape[1:])
    used = np.flatnonzero(n_cells.any(axis=1))
    n_cells = n_cells[used]
    mean, square, number = np.zeros(shape[1:]), np.zeros(shape[1:]), np.zeros(shape[1], dtype=np.int64)
    for own in _cells_by_slide(slides.codes[known], shape[0]):
        part = np.bincount(place[own], minlength=shape[1] * shape[2]).reshape(shape[1:])
        here = np.flatnonzero(part.any(axis=1))
        fraction = part[here] / part[here].sum(axis=1, keepdims=True)
        number[here] += 1
        step = fraction - mean[here]  # Welford
        mean[here] += step / number[here, None]
        square[here] += step * (fraction - mean[here])
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.sqrt(square[used] / (number[used, None] - 1))
    columns = {
        "by": np.repeat(np.arange(len(used)), shape[2]),
        "group": np.tile(np.arange(shape[2]), len(used)),
        "n_cells": n_cells.ravel(),
        "fraction": (n_cells / np.maximum(n_cells.sum(axis=1, keepdims=True), 1)).ravel(),
        "n_slides": np.repeat(number[used], shape[2]),
        "slide_mean": mean[used].ravel(),
        "slide_sd": deviation.ravel(),
    }
    return as_frame(columns, by=[rows.names[row] for row in used], group=labels.names)


def _cells_by_slide(codes: np.ndarray, n_slides: int) -> list[np.ndarray]:
    """Row numbers of the cells of each slide."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.searchsorted(codes[order], np.arange(1, n_slides)))


def _cluster(fractions: np.ndarray) -> np.ndarray:
    """Average linkage of Hellinger distances between rows."""
    from scipy.cluster.hierarchy import linkage

    points = np.sqrt(fractions / 2)
    return np.asarray(linkage(points, "average", optimal_ordering=len(points) <= MOST_ORDERED))
