"""Cell types that are more or less frequent in a niche than outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm, t

from stage_sc._checks import check_bool
from stage_sc._input import Data, read_tables
from stage_sc.analysis._expression import as_frame
from stage_sc.analysis._labels import read_column, read_groups
from stage_sc.analysis._store import check_key, write_stored
from stage_sc.analysis._tree_fdr import benjamini_hochberg

TOOL = "cell_type_enrichment"
FEW = 3  # slides; with fewer, cells are the units


def cell_type_enrichment(
    data: Data,
    *,
    cell_type_key: str,
    groupby: str | None = None,
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = TOOL,
    copy: bool = False,
) -> Any:
    r"""Compare the frequency of every cell type inside and outside of each niche, as log odds with intervals.

    Parameters
    ----------
    data
        Cells with niches and cell types; or a list or a dictionary of such objects.
    cell_type_key
        Column of ``obs`` with cell types; cells without one are left out.
    groupby
        Column of ``obs`` with labels. ``None``: the domains of `stage_sc.tl.stage_niches` if there are any, else its
        niches of level 2.
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
        Data frame with a row for each pair of ``group`` and ``cell_type``: ``n_cells`` of both, ``fraction`` of the
        niche, ``expected`` fraction (that of all cells on slides with the niche), ``log2_odds`` with its 95 % interval
        ``lower`` and ``upper``, ``p_value``, ``fdr``, and ``n_slides`` with both the niche and the cell type. NaN where
        no slide has both inside and outside.
    ``"params"``
        Arguments, and ``units`` of the intervals: ``"slides"`` or ``"cells"``.

    Raises
    ------
    KeyError
        If a column does not exist, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type.
    ValueError
        If no cell has both labels, both columns are the same, or ``uns[key_added]`` holds something else.

    See Also
    --------
    stage_sc.tl.composition : Fractions of cell types in niches.
    stage_sc.pl.cell_type_enrichment : Heat map of log odds.

    Notes
    -----
    On each slide the odds of a cell type inside over those outside of a niche, half a cell added to each of the four
    counts (Haldane and Anscombe), so that a slide is compared with itself. From three slides with the niche and the
    cell type on, slides are the units: the mean log odds and a t interval of it. With fewer, cells are: the mean by
    inverse variance :math:`\sum 1/n_{ij}` (Woolf), with intervals that say nothing about other slides, as cells side by
    side are not independent; so do hypergeometric tests of other tools.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500, n_slides=3)
    >>> st.tl.cell_type_enrichment(adata, cell_type_key="cell_type", groupby="domain", library_key="slide")
    >>> adata.uns["cell_type_enrichment"]["params"]["units"]
    'slides'
    """
    check_bool(copy, "copy")
    tables = read_tables(data, table_key=table_key)
    check_key(tables, key_added, TOOL, copy=copy)
    groups = read_groups(tables, groupby, library_key)
    types = read_column(tables, cell_type_key, "cell_type_key")
    if cell_type_key == groups.groupby:
        raise ValueError(f"`cell_type_key` and `groupby` are the same column, {cell_type_key!r}: name two.")
    shape = len(groups.slides.names), len(groups.labels.names), len(types.names)
    known = (groups.labels.codes >= 0) & (types.codes >= 0)
    if not known.any():
        raise ValueError(f"`cell_type_key`: no cell has a label in obs[{cell_type_key!r}] and obs[{groups.groupby!r}].")
    place = np.ravel_multi_index((groups.slides.codes[known], groups.labels.codes[known], types.codes[known]), shape)
    counts = np.bincount(place, minlength=int(np.prod(shape))).reshape(shape)
    by_slide = shape[0] >= FEW
    columns = _enrichment(counts, by_slide=by_slide)
    one, other = np.divmod(np.arange(shape[1] * shape[2]), shape[2])
    table = as_frame({"group": one, "cell_type": other, **columns}, group=groups.labels.names, cell_type=types.names)
    params = {"groupby": groups.groupby, "cell_type_key": cell_type_key, "library_key": library_key}
    tables = tables.copy() if copy else tables
    write_stored(tables, key_added, TOOL, table, {**params, "units": "slides" if by_slide else "cells"})
    return tables.given if copy else None


def _enrichment(counts: np.ndarray, *, by_slide: bool) -> dict[str, np.ndarray]:
    """Columns from cells by slide, niche and type, each ``(n_niches * n_types,)``."""
    niche, kind = counts.sum(axis=2, keepdims=True), counts.sum(axis=1, keepdims=True)
    total = counts.sum(axis=(1, 2), keepdims=True)
    four = [counts, niche - counts, kind - counts, total - niche - kind + counts]
    there = (niche > 0) & (niche < total) & (kind > 0) & (kind < total)
    odds = np.log2((four[0] + 0.5) * (four[3] + 0.5) / ((four[1] + 0.5) * (four[2] + 0.5)))
    number = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        if by_slide:
            mean = np.where(there, odds, 0).sum(axis=0) / number
            square = np.where(there, (odds - mean) ** 2, 0).sum(axis=0)
            error = np.where(number >= FEW, np.sqrt(square / (number - 1) / number), np.nan)
            freedom = np.maximum(number - 1, 1)
            reach, p_value = t.ppf(0.975, freedom) * error, 2 * t.sf(np.abs(mean) / error, freedom)
        else:
            weight = there * np.log(2) ** 2 / sum(1 / (one + 0.5) for one in four)
            mean = (weight * odds).sum(axis=0) / weight.sum(axis=0)
            error = 1 / np.sqrt(weight.sum(axis=0))
            reach, p_value = norm.ppf(0.975) * error, 2 * norm.sf(np.abs(mean) / error)
        cells = counts.sum(axis=0)
        slides = np.where(niche > 0, 1, 0)
        expected = (kind * slides).sum(axis=0) / (total * slides).sum(axis=0)
        fraction = cells / cells.sum(axis=1, keepdims=True)
    p_value = np.where(number > 0, p_value, np.nan)
    fdr = np.full(p_value.shape, np.nan)
    fdr[~np.isnan(p_value)] = benjamini_hochberg(p_value[~np.isnan(p_value)])
    found = {"n_cells": cells, "fraction": fraction, "expected": expected, "log2_odds": mean, "lower": mean - reach}
    found |= {"upper": mean + reach, "p_value": p_value, "fdr": fdr, "n_slides": number}
    return {key: values.ravel() for key, values in found.items()}
