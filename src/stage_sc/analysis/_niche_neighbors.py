"""Niches that touch more or less than by chance, on many slides and between conditions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import norm

from stage_sc._checks import check_bool, check_name, check_positive, read_names
from stage_sc._input import Data, read_tables
from stage_sc.analysis._cohort import Cohort, read_cohort
from stage_sc.analysis._contacts import Edges, patch_contacts, residual_variance, shuffled_moments
from stage_sc.analysis._edges import read_edges
from stage_sc.analysis._expression import as_frame
from stage_sc.analysis._labels import Groups, read_column, read_groups
from stage_sc.analysis._share_model import Shares
from stage_sc.analysis._share_test import compare_shares
from stage_sc.analysis._store import check_key, write_stored
from stage_sc.analysis._tree_fdr import Family, benjamini_hochberg, tree_adjust

logger = logging.getLogger("stage_sc.tl")

TOOL = "niche_neighbors"


def niche_neighbors(
    data: Data,
    *,
    groupby: str | None = None,
    condition_key: str | None = None,
    sample_key: str | None = None,
    reference: str | None = None,
    covariates: str | Sequence[str] = (),
    min_cells: int = 10,
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = TOOL,
    copy: bool = False,
) -> Any:
    r"""Find niches that touch, beyond chance and beyond their size, and those that touch otherwise in a condition.

    Parameters
    ----------
    data
        Cells with labels and the graph of `stage_sc.pp.build_graph`; or a list or a dictionary of such objects.
    groupby
        Column of ``obs`` with labels, such as niches or cell types; cells without one are left out. ``None``: the
        domains of `stage_sc.tl.stage_niches` if there are any, else its niches of level 2.
    condition_key
        Column of ``obs`` with the condition of the samples, to compare neighbours between conditions. ``None``: no
        comparison.
    sample_key, reference, covariates
        As in `stage_sc.tl.differential_abundance`; used with `condition_key`.
    min_cells
        In a comparison, the least number of cells of both niches in a sample that counts.
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
        Data frame with a row for each ordered pair of ``group`` and ``neighbor``: ``n_edges``, pairs of neighbouring
        cells; ``share``, the part of the edges that leave ``group`` which lead to ``neighbor`` (NaN within a group);
        ``expected`` number of edges and ``z_score`` for shuffled cells; ``n_contacts``, pairs of touching patches,
        ``expected_contacts``, ``log2_ratio`` of these, its ``p_value`` and ``fdr`` for shuffled patches (NaN within a
        group, and where nothing is left to vary).
    ``"differences"``
        With `condition_key`, a row for each ordered pair of different labels and each condition but the reference:
        ``group``, ``neighbor``, ``condition``, ``reference``, ``share``, ``reference_share`` (means over samples),
        ``log2_fold`` of the share beyond the change of the neighbour's abundance, ``lower`` and ``upper`` (95 %),
        ``p_value`` and ``fdr``.
    ``"params"``
        Arguments.

    Raises
    ------
    KeyError
        If there is no graph or no column, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type.
    ValueError
        If no two labelled cells are neighbours, ``uns[key_added]`` holds something else, or as
        `stage_sc.tl.differential_abundance`.

    See Also
    --------
    stage_sc.pl.niche_neighbors : Heat map of contacts, or of differences.
    stage_sc.tl.differential_abundance : Shares of niches between conditions.

    Notes
    -----
    **Shuffled cells.** ``z_score`` compares edges with those after all permutations of the labels of each slide, by
    exact mean and variance of join counts [1]_; squidpy's ``nhood_enrichment`` estimates the same from permutations.
    Niches are pieces of tissue, so every niche is far above chance with itself and below with most others: this score
    is for cell types, and to compare with other tools.

    **Shuffled patches.** Contacts beyond size: connected pieces of a niche are the units, two that touch count once,
    and niches are expected to touch in proportion to all contacts that they have (quasi-independence [2]_). A
    ``log2_ratio`` of 1 is twice as often as that. Variances are those of Poisson counts given the sums, with which
    p-values of tiles with random labels are too large rather than too small. Slides are added up.

    **Conditions.** The share of neighbours is tested as in `stage_sc.tl.differential_abundance`, with samples as
    replicates, on top of the share by abundance: cells of the neighbour among all cells outside the group. ``fdr`` is
    that of TreeBH, pairs within groups.

    Linear in the edges, quadratic in the labels.

    References
    ----------
    .. [1] Cliff, Ord. Spatial processes: models and applications. Pion (1981).
    .. [2] Goodman. The analysis of cross-classified data: independence, quasi-independence, and interactions in
       contingency tables. Journal of the American Statistical Association 63 (1968).

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(600)
    >>> st.pp.build_graph(adata)
    >>> st.tl.niche_neighbors(adata, groupby="domain")
    >>> table = adata.uns["niche_neighbors"]["table"]
    >>> float(table.set_index(["group", "neighbor"]).loc[("L1", "L6"), "n_edges"])
    0.0
    """
    for value, name in ((condition_key, "condition_key"), (sample_key, "sample_key")):
        if value is not None:
            check_name(value, name)
    covariates = read_names(covariates, "covariates")
    check_positive(min_cells, "min_cells", integer=True)
    check_bool(copy, "copy")
    if condition_key is None and (sample_key is not None or reference is not None or covariates):
        raise ValueError(
            "`condition_key` is needed to compare: `sample_key`, `reference` and `covariates` are about it."
        )
    tables = read_tables(data, table_key=table_key)
    check_key(tables, key_added, TOOL, copy=copy)
    groups = read_groups(tables, groupby, library_key)
    cohort = None
    if condition_key is not None:
        samples = groups.slides if sample_key is None else read_column(tables, sample_key, "sample_key")
        cohort = read_cohort(tables, samples, condition_key, covariates, reference)
        if not cohort.replicated:
            logger.warning(
                "No replicates: at least two samples of both conditions are needed for p-values and intervals of "
                "differences between neighbours; there are shares alone."
            )
    edges = read_edges(tables)
    table = _contacts(edges, groups)
    params = {
        "groupby": groups.groupby,
        "condition_key": condition_key,
        "sample_key": sample_key,
        "reference": cohort.conditions[0] if cohort else None,
        "covariates": ", ".join(covariates),
        "min_cells": int(min_cells),
        "library_key": library_key,
    }
    more = {"differences": _differences(edges, groups, cohort, int(min_cells))} if cohort else {}
    tables = tables.copy() if copy else tables
    write_stored(tables, key_added, TOOL, table, params, **more)
    return tables.given if copy else None


def _by_slide(edges: sp.csr_matrix, groups: Groups) -> Iterator[Edges]:
    """Labelled cells of each slide and the edges between them."""
    slide = groups.slides.codes
    for number in range(len(groups.slides.names)):
        cells = np.flatnonzero((slide == number) & (groups.labels.codes >= 0))
        part = sp.triu(edges[cells][:, cells], 1, format="coo")
        yield Edges(part.row.astype(np.intp), part.col.astype(np.intp), groups.labels.codes[cells])


def _contacts(edges: sp.csr_matrix, groups: Groups) -> pd.DataFrame:
    """Table of all ordered pairs of labels, added up over slides."""
    n = len(groups.labels.names)
    sums = np.zeros((6, n, n))
    for part in _by_slide(edges, groups):
        touching, expected = patch_contacts(part, n)
        sums += (part.count_pairs(n), *shuffled_moments(part, n), touching, expected, residual_variance(expected))
    found, mean, variance, touching, expected, spread = sums
    if not found.any():
        raise ValueError(f"No two cells with a label in obs[{groups.groupby!r}] are neighbours in the graph.")
    outside = ~np.eye(n, dtype=bool)
    leaving = (found * outside).sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        z_score = np.where(variance > 0, (found - mean) / np.sqrt(variance), np.nan)
        share = np.where(outside & (leaving > 0), found / leaving, np.nan)
        known = outside & (spread > 0)
        p_value = np.where(known, 2 * norm.sf(np.abs(touching - expected) / np.sqrt(spread)), np.nan)
    pairs = np.triu(known, 1)
    fdr = np.full((n, n), np.nan)
    if pairs.any():
        fdr[pairs] = benjamini_hochberg(p_value[pairs])
        fdr.T[pairs] = fdr[pairs]
    counts = (touching, expected, np.log2((touching + 0.5) / (expected + 0.5)), p_value, fdr)
    one, other = np.divmod(np.arange(n * n), n)
    columns = {"group": one, "neighbor": other, "n_edges": found.ravel().astype(np.int64), "share": share.ravel()}
    columns |= {"expected": mean.ravel(), "z_score": z_score.ravel()}
    names = ("n_contacts", "expected_contacts", "log2_ratio", "p_value", "fdr")
    columns |= {name: np.where(outside, one, np.nan).ravel() for name, one in zip(names, counts, strict=True)}
    return as_frame(columns, group=groups.labels.names, neighbor=groups.labels.names)


def _differences(edges: sp.csr_matrix, groups: Groups, cohort: Cohort, min_cells: int) -> pd.DataFrame:
    """Table of all ordered pairs of different labels and all conditions but the reference."""
    n, n_samples = len(groups.labels.names), len(cohort.samples.names)
    codes, sample = groups.labels.codes, cohort.samples.codes
    part = sp.triu(edges, 1, format="coo")
    known = (codes[part.row] >= 0) & (codes[part.col] >= 0) & (sample[part.row] >= 0)
    known &= sample[part.row] == sample[part.col]
    one, other = part.row[known], part.col[known]
    place = (codes[one] * n + codes[other]) * n_samples + sample[one]
    found = np.bincount(place, minlength=n * n * n_samples).reshape(n, n, n_samples).astype(np.float64)
    found += found.transpose(1, 0, 2)
    cells = (codes >= 0) & (sample >= 0)
    size = np.bincount(codes[cells] * n_samples + sample[cells], minlength=n * n_samples).reshape(n, n_samples)
    group, neighbor = np.nonzero(~np.eye(n, dtype=bool))
    reaching = found[group, neighbor]
    leaving = (found.sum(axis=1) - found[np.arange(n), np.arange(n)])[group]
    # Both niches, and a third one to touch instead, must be there.
    rest = size.sum(axis=0) - size[group] - size[neighbor]
    there = (np.minimum(size[group], size[neighbor]) >= min_cells) & (rest >= min_cells) & (leaving > 0)
    offset = np.where(there, np.log(np.maximum(size[neighbor], 1) / np.maximum(rest, 1)), 0.0)
    shares = Shares(np.where(there, reaching, 0.0), np.where(there, leaving, 0.0), offset)
    parts = []
    for condition in range(1, len(cohort.conditions)):
        parts.append(_difference(shares, cohort, condition, group, neighbor))
    table = pd.concat(parts, ignore_index=True)
    return as_frame(
        {str(key): values.to_numpy() for key, values in table.items()},
        group=groups.labels.names,
        neighbor=groups.labels.names,
        condition=cohort.conditions,
        reference=cohort.conditions,
    )


def _difference(
    shares: Shares, cohort: Cohort, condition: int, group: np.ndarray, neighbor: np.ndarray
) -> pd.DataFrame:
    """Rows of one condition; names are positions."""
    result = np.full((4, len(group)), np.nan)
    cells, totals = shares.cells.sum(axis=1), shares.totals.sum(axis=1)
    enough = np.flatnonzero((cells > 0) & (cells < totals))
    groups = cohort.groups(condition)
    if len(enough) and cohort.replicated:
        result[:, enough] = compare_shares(shares.rows(enough), cohort.design, condition, groups)
    p_value, log2_fold, lower, upper = result
    families: dict[Any, Family] = {"root": Family({}, list(dict.fromkeys(group.tolist())))}
    for one in families["root"].nested:
        families[one] = Family({int(row): p_value[row] for row in np.flatnonzero(group == one)}, [])
    fdr = np.full(len(group), np.nan)
    for row, rate in tree_adjust(families, "root").items():
        fdr[row] = rate
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = np.where(shares.totals > 0, shares.cells / shares.totals, np.nan)
    means = pd.DataFrame(fraction).T.groupby(groups).mean()
    return pd.DataFrame(
        {
            "group": group,
            "neighbor": neighbor,
            "condition": condition,
            "reference": 0,
            "share": means.loc[1].to_numpy(),
            "reference_share": means.loc[0].to_numpy(),
            "log2_fold": log2_fold,
            "lower": lower,
            "upper": upper,
            "p_value": p_value,
            "fdr": fdr,
        }
    )
