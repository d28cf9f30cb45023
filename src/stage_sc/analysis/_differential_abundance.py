"""Shares of niches compared between conditions, with samples as replicates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stage_sc._checks import check_bool, check_name, check_positive, read_names
from stage_sc._input import Data, read_tables
from stage_sc.analysis._cohort import Cohort, read_cohort
from stage_sc.analysis._labels import read_column, read_groups
from stage_sc.analysis._nested import Nested, read_nested
from stage_sc.analysis._share_model import Shares
from stage_sc.analysis._share_test import ShareTest, compare_shares
from stage_sc.analysis._store import check_key, write_stored

logger = logging.getLogger("stage_sc.tl")

TOOL = "differential_abundance"
FOUND = 0.001  # least share of a sample of a niche that is found there


def differential_abundance(
    data: Data,
    *,
    condition_key: str,
    sample_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    reference: str | None = None,
    covariates: str | Sequence[str] = (),
    min_cells: int = 10,
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = TOOL,
    copy: bool = False,
) -> Any:
    r"""Compare the share of every niche between conditions; samples are the replicates, not cells.

    A niche is tested within its parent, so that a difference is found where it lies: a niche whose share changes only
    because its parent does is not reported. The rate of false discoveries holds for the whole tree.

    Parameters
    ----------
    data
        Cells with niches of `stage_sc.tl.stage_niches` or other labels; or a list or a dictionary of such objects.
    condition_key
        Column of ``obs`` with the condition; all cells of a sample have the same.
    sample_key
        Column of ``obs`` with the samples: the units that were drawn independently, such as patients or animals. Two
        sections of one patient are one sample. To compare parts of slides (tumour and margin), name a column that
        joins patient and part, and the patients in `covariates`. ``None``: the slides.
    groupby
        Column of ``obs`` with labels, or nested columns from coarse to fine. A level of the niches stands for the
        levels above it too. ``None``: all levels of the niches.
    reference
        Condition with which the others are compared. ``None``: the first category.
    covariates
        Columns of ``obs`` with one value in each sample, which may explain shares too, such as age or patient (for
        pairs). Numbers are used as such; make categories of codes. Each takes degrees of freedom.
    min_cells
        Samples with fewer cells of a parent tell nothing about its children, and niches with fewer cells in all samples
        together are not tested.
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
        Data frame with a row for each label and each condition but the reference. ``groupby``, ``level`` (1 is the
        coarsest column), ``group``, ``parent`` ("" if all cells), ``condition``, ``reference``; ``n_cells`` in all
        samples; ``fraction`` and ``reference_fraction``, means over samples of the share of all cells; the change of
        that share, ``log2_fold``, with its 95 % interval ``lower`` and ``upper``; the change of the share within the
        parent, ``log2_fold_within``, ``lower_within``, ``upper_within``, its ``p_value`` and ``fdr``; ``found_in``,
        conditions in which at least half of the samples have it, and ``specific_to``, the condition that alone has it
        ("" if shared). Untested p-values are NaN: of only children, of rare niches, and without replicates.
    ``"samples"``
        Data frame with ``sample``, ``condition`` and ``n_cells``.
    ``"fractions"``
        ``(n_samples, n_labels)`` float64 share of all cells, labels in the order of the table.
    ``"params"``
        Arguments.

    Raises
    ------
    KeyError
        If a column does not exist, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type.
    ValueError
        If samples have several conditions, there is one condition only, covariates cannot be told apart from it,
        columns are not nested, or ``uns[key_added]`` holds something else.

    See Also
    --------
    stage_sc.pl.differential_abundance : Changes with intervals and the shares of samples.
    stage_sc.tl.niche_neighbors : Differences between the neighbours of niches.

    Notes
    -----
    **Replicates.** Both conditions need two samples; otherwise the table has changes without intervals and p-values,
    and a warning. With three samples each, shares must differ several times to be found.

    **Model.** The cells :math:`y_{cs}` of niche c among the :math:`n_{cs}` of its parent in sample s have the mean
    :math:`n\pi` with :math:`\operatorname{logit}\pi_{cs} = x_s^\top\beta_c`, and the variance
    :math:`\phi_c\, n\pi(1-\pi)\,(1+(n-1)\rho)`. The correlation :math:`\rho` of cells of a sample weighs samples by
    size; the dispersion :math:`\phi_c` is moderated by those of all niches [1]_ and tested by quasi-likelihood [2]_:
    the difference of deviance over it is an F. At most four degrees of freedom are borrowed, which keeps the promise
    with three samples. Intervals are those of the profile of this statistic.

    **False discoveries.** Children of a parent are a family, entered only if something at or below them differs, by
    TreeBH [3]_: ``fdr`` is the smallest rate q at which a niche is rejected. Of the niches with ``fdr <= q`` about a
    share q is expected to be false; `benchmarks/abundance.py` measures it. Each condition has its own.

    Shares add up to 1: where one child of a parent grows the others shrink, and of two children both differ. The
    changes tell which moved most.

    Linear in the cells; the test of 200 niches in 20 samples takes a second or two.

    References
    ----------
    .. [1] Smyth. Linear models and empirical Bayes methods for assessing differential expression in microarray
       experiments. Statistical Applications in Genetics and Molecular Biology 3 (2004).
    .. [2] Lund, Nettleton, McCarthy, Smyth. Detecting differential expression in RNA-sequence data using
       quasi-likelihood with shrunken dispersion estimates. Statistical Applications in Genetics and Molecular Biology
       11 (2012).
    .. [3] Bogomolov, Peterson, Benjamini, Sabatti. Hypotheses on a tree: new error rates and testing strategies.
       Biometrika 108 (2021).

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(300, n_slides=6, lesion=["slide4", "slide5", "slide6"])
    >>> adata.obs["condition"] = adata.obs["slide"].isin(["slide4", "slide5", "slide6"]).map({True: "b", False: "a"})
    >>> st.tl.differential_abundance(adata, condition_key="condition", groupby="domain", library_key="slide")
    >>> table = adata.uns["differential_abundance"]["table"].set_index("group")
    >>> table["fdr"].idxmin(), table["specific_to"]["lesion"]
    ('lesion', 'b')
    """
    check_name(condition_key, "condition_key")
    if sample_key is not None:
        check_name(sample_key, "sample_key")
    covariates = read_names(covariates, "covariates")
    check_positive(min_cells, "min_cells", integer=True)
    check_bool(copy, "copy")
    tables = read_tables(data, table_key=table_key)
    check_key(tables, key_added, TOOL, copy=copy)
    nested = read_nested(tables, groupby)
    if sample_key is None:
        samples = read_groups(tables, nested.columns[-1], library_key).slides
    else:
        samples = read_column(tables, sample_key, "sample_key")
    cohort = read_cohort(tables, samples, condition_key, covariates, reference)
    if not cohort.replicated:
        number = dict(zip(cohort.conditions, np.bincount(cohort.condition).tolist(), strict=True))
        logger.warning(
            "No replicates: %s samples. At least two of both conditions are needed for p-values and intervals; the "
            "table has changes alone, which may be differences between any two samples.",
            number,
        )
    cells, totals = nested.count_cells(cohort.samples)
    parts = [
        _compare(nested, cohort, condition, cells, totals, min_cells) for condition in range(1, len(cohort.conditions))
    ]
    table = pd.concat(parts, ignore_index=True)
    for name in ("groupby", "group", "parent", "condition", "reference", "found_in", "specific_to"):
        table[name] = pd.Categorical(table[name], categories=list(dict.fromkeys(table[name])))
    whole = _sizes(nested, cells)
    frame = pd.DataFrame(
        {
            "sample": [name or "all" for name in cohort.samples.names],
            "condition": pd.Categorical.from_codes(cohort.condition, cohort.conditions),
            "n_cells": whole,
        }
    )
    params = {
        "condition_key": condition_key,
        "sample_key": sample_key,
        "groupby": nested.columns[-1],
        "reference": cohort.conditions[0],
        "covariates": ", ".join(covariates),
        "min_cells": min_cells,
        "library_key": library_key,
    }
    tables = tables.copy() if copy else tables
    fractions = (cells / np.maximum(whole, 1)).T
    write_stored(tables, key_added, TOOL, table, params, samples=frame, fractions=fractions)
    return tables.given if copy else None


def _sizes(nested: Nested, cells: np.ndarray) -> np.ndarray:
    """Cells of every sample."""
    return cells[nested.level == 0].sum(axis=0)


def _compare(
    nested: Nested, cohort: Cohort, condition: int, cells: np.ndarray, totals: np.ndarray, min_cells: int
) -> pd.DataFrame:
    """Rows of one condition."""
    whole = np.broadcast_to(_sizes(nested, cells), cells.shape)
    within = _test(cohort, condition, cells, totals, min_cells)
    overall = _test(cohort, condition, cells, whole, min_cells)
    top = nested.parent < 0  # the same question, asked once
    overall = ShareTest(*(np.where(top, one, other) for one, other in zip(within, overall, strict=True)))
    fractions = cells / np.maximum(whole, 1)
    found = (cells >= min_cells) & (fractions >= FOUND)
    names = np.array([*nested.names, ""], dtype=object)
    return pd.DataFrame(
        {
            "groupby": [nested.columns[level] for level in nested.level],
            "level": nested.level + 1,
            "group": nested.names,
            "parent": names[nested.parent],
            "condition": cohort.conditions[condition],
            "reference": cohort.conditions[0],
            "n_cells": cells.sum(axis=1),
            "fraction": fractions[:, cohort.condition == condition].mean(axis=1),
            "reference_fraction": fractions[:, cohort.condition == 0].mean(axis=1),
            "log2_fold": overall.log2_fold,
            "lower": overall.lower,
            "upper": overall.upper,
            "log2_fold_within": within.log2_fold,
            "lower_within": within.lower,
            "upper_within": within.upper,
            "p_value": within.p_value,
            "fdr": nested.adjust(within.p_value),
            "found_in": _found_in(found, cohort),
            "specific_to": _specific_to(found, cohort),
        }
    )


def _test(cohort: Cohort, condition: int, cells: np.ndarray, totals: np.ndarray, min_cells: int) -> ShareTest:
    """Compare shares where there are enough cells; the others get a change of mean shares alone."""
    groups = cohort.groups(condition)
    shares = [_mean_share(cells[:, groups == group], totals[:, groups == group]) for group in (0, 1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        plain = np.log2(shares[1] / shares[0])
    unknown = np.full(len(cells), np.nan)
    result = [unknown.copy(), plain, unknown.copy(), unknown.copy()]
    counted = totals >= min_cells
    kept, among = np.where(counted, cells, 0).astype(np.float64), np.where(counted, totals, 0).astype(np.float64)
    number = kept.sum(axis=1)
    enough = np.flatnonzero((number >= min_cells) & (among.sum(axis=1) - number >= min_cells))
    if len(enough) and cohort.replicated:
        tested = compare_shares(Shares(kept, among, np.zeros_like(kept)).rows(enough), cohort.design, condition, groups)
        known = ~np.isnan(tested.p_value)
        for column, values in zip(result, tested, strict=True):
            column[enough[known]] = values[known]
    return ShareTest(*result)


def _mean_share(cells: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Mean over samples of the share, at least that of half a cell; NaN without any cell of the parent."""
    there = totals > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(there, cells / totals, 0).sum(axis=1) / there.sum(axis=1)
        return np.maximum(share, 0.5 / totals.sum(axis=1))


def _has(found: np.ndarray, cohort: Cohort) -> np.ndarray:
    """Conditions in which at least half of the samples have a niche, ``(n_nodes, n_conditions)``."""
    return np.stack(
        [found[:, cohort.condition == code].mean(axis=1) >= 0.5 for code in range(len(cohort.conditions))], axis=1
    )


def _found_in(found: np.ndarray, cohort: Cohort) -> list[str]:
    return [", ".join(np.array(cohort.conditions, dtype=object)[row]) for row in _has(found, cohort)]


def _specific_to(found: np.ndarray, cohort: Cohort) -> list[str]:
    """Condition that has a niche while no sample of the others does, else empty."""
    has = _has(found, cohort)
    any_sample = np.stack(
        [found[:, cohort.condition == code].any(axis=1) for code in range(len(cohort.conditions))], axis=1
    )
    alone = has & (any_sample.sum(axis=1, keepdims=True) == 1)
    return [cohort.conditions[int(row.argmax())] if row.any() else "" for row in alone]
