"""Genes that mark niches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import pandas as pd

from stage_sc._checks import check_bool, check_choice, check_name, check_positive
from stage_sc._input import Data, read_tables
from stage_sc.analysis._expression import read_log_expression
from stage_sc.analysis._labels import Column, Groups, read_column, read_groups
from stage_sc.analysis._pseudobulk import REPLICATES, rank_replicates
from stage_sc.analysis._rank_tests import describe, rank_cells
from stage_sc.analysis._store import check_key, write_stored

logger = logging.getLogger("stage_sc.tl")

METHODS = ("auto", "t-test", "wilcoxon", "pseudobulk")
TOOL = "rank_niche_genes"


def rank_niche_genes(
    data: Data,
    *,
    groupby: str | None = None,
    cell_type_key: str | None = None,
    method: Literal["auto", "t-test", "wilcoxon", "pseudobulk"] = "auto",
    n_genes: int | None = 100,
    min_cells: int = 10,
    library_key: str | None = None,
    layer: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = TOOL,
    copy: bool = False,
) -> Any:
    r"""Rank the genes that mark each niche against all other cells.

    Counts are log-normalised slide by slide (scaled to the median total of the slide); `X` is not changed. With
    replicates, slides instead of cells are compared.

    Parameters
    ----------
    data
        Cells with counts and labels; or a list or a dictionary of such objects, of which the common genes are used.
    groupby
        Column of ``obs`` with labels; cells without one are left out. ``None``: the domains of
        `stage_sc.tl.stage_niches` if there are any, else its niches of level 2.
    cell_type_key
        Column of ``obs`` with cell types. Each type is then ranked by itself, its cells in a niche against its cells
        elsewhere: what the surrounding changes in a cell, instead of which cells there are.
    method
        ``"t-test"`` (Welch) and ``"wilcoxon"`` compare cells, as ``scanpy.tl.rank_genes_groups``; the second takes
        minutes for a million cells. ``"pseudobulk"`` adds up the counts of a niche, and of the other cells, on every
        slide, and fits a negative binomial model with the slide as a covariate (pydeseq2, an extra), so that the
        variation between slides counts. ``"auto"``: the last with three slides or more, else the first.
    n_genes
        Number of genes that are kept for each niche, those with the largest scores. ``None``: all.
    min_cells
        Smaller niches are not ranked, and are named in a warning; their cells are part of the others. For
        pseudobulk, on each slide: a niche needs three slides with as many cells inside and outside.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one of the niches or of the graph.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``.
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
        Data frame with a row for each gene of each niche, best first, and the columns of scanpy: ``group``,
        ``names``, ``scores`` (of the test, positive for genes that are higher in the niche), ``logfoldchanges``
        (log2), ``pvals``, ``pvals_adj`` (Benjamini and Hochberg, within a niche), ``pct_nz_group`` and
        ``pct_nz_reference`` (fraction of cells with the gene, 0 to 1); with `cell_type_key` also ``cell_type``.
    ``"expression"``
        Data frame with ``group``, ``names``, ``mean`` (log-normalised) and ``fraction`` of cells with the gene, for
        the genes of the table in all niches (with `cell_type_key` of each type, in the column ``cell_type``).
    ``"params"``
        Arguments, and the method that was used.

    Raises
    ------
    KeyError
        If a column or layer does not exist, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type.
    ValueError
        If fewer than two niches are left, expression is not valid, the objects have no common gene, ``uns[key_added]``
        holds something else, or there are no three slides, or no counts, for ``"pseudobulk"``.
    ImportError
        If ``"pseudobulk"`` is asked for without pydeseq2: ``pip install "stage-sc[pseudobulk]"``.

    See Also
    --------
    stage_sc.pl.rank_niche_genes : Dot plot and heat map.
    stage_sc.tl.spatial_genes : Genes that vary over all niches.
    stage_sc.tl.pathways : Sets of genes.

    Notes
    -----
    Niches were found from the same expression, so that p-values say how clear a marker is, not if niches exist. Those
    of cells are small in any large section, as neighbouring cells are no replicates: choose by ``logfoldchanges`` and
    ``pct_nz_group`` too.

    The fold change of cells is :math:`\log_2 (e^{m_1} - 1 + \epsilon) - \log_2 (e^{m_0} - 1 + \epsilon)`, with m the
    means of log-normalised values and :math:`\epsilon = 10^{-9}`, as in scanpy. Pseudobulk samples are scaled by their
    totals, as cells are, since medians of ratios are biased on panels of markers. Time and memory of the t-test are
    linear in the cells; benchmarks/README.md has figures.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.tl.rank_niche_genes(adata, groupby="domain")
    >>> adata.uns["rank_niche_genes"]["table"].columns.tolist()[:3]
    ['group', 'names', 'scores']
    """
    check_choice(method, "method", METHODS)
    if n_genes is not None:
        check_positive(n_genes, "n_genes", integer=True)
    check_positive(min_cells, "min_cells", integer=True)
    if cell_type_key is not None:
        check_name(cell_type_key, "cell_type_key")
    check_bool(copy, "copy")
    tables = read_tables(data, table_key=table_key)
    check_key(tables, key_added, TOOL, copy=copy)
    groups = read_groups(tables, groupby, library_key)
    cell_types = None if cell_type_key is None else read_column(tables, cell_type_key, "cell_type_key")
    used = _choose_method(method, groups)
    expression = read_log_expression(tables, groups.slides, layer)
    pieces, means = [], []
    for name, rows in _cells_of_types(groups, cell_types):
        codes = np.where(rows, groups.labels.codes, -1)
        if used == "pseudobulk":
            ranked = rank_replicates(tables, groups, codes, expression, layer, min_cells, name)
        else:
            ranked = rank_cells(expression, codes, groups.labels, used, min_cells, name)
        if ranked is not None:
            ranked = ranked.groupby("group", observed=True, sort=True).head(n_genes or len(expression.genes))
            pieces.append(_with_type(ranked, name, cell_types))
            means.append(_with_type(describe(expression, codes, groups.labels, ranked), name, cell_types))
    if not pieces:
        raise ValueError(
            f"`groupby`: no two niches of obs[{groups.groupby!r}] can be compared, as a niche and the other cells need "
            f"{min_cells} cells each{' on three slides' if used == 'pseudobulk' else ''}. Lower `min_cells`."
        )
    params = {"groupby": groups.groupby, "cell_type_key": cell_type_key, "method": used, "min_cells": int(min_cells)}
    tables = tables.copy() if copy else tables
    table, expressed = (pd.concat(parts, ignore_index=True) for parts in (pieces, means))
    write_stored(tables, key_added, TOOL, table, {**params, "layer": layer}, expression=expressed)
    return tables.given if copy else None


def _choose_method(method: str, groups: Groups) -> str:
    """Choose the method for these slides; an ImportError or a ValueError if the one asked for cannot be used."""
    n_slides, installed = len(groups.slides.names), find_spec("pydeseq2") is not None
    if method == "pseudobulk" and n_slides < REPLICATES:
        raise ValueError(
            f"`method`: 'pseudobulk' compares slides and needs {REPLICATES}, but there are {n_slides}. Name slides by "
            "`library_key`, or pass 't-test'."
        )
    if method == "pseudobulk" and not installed:
        raise ImportError("`method`: 'pseudobulk' needs the package pydeseq2: `pip install pydeseq2`.")
    if method != "auto":
        return method
    if n_slides >= REPLICATES and not installed:
        logger.warning(
            "Cells are compared although there are %d slides, as pydeseq2 is not installed: p-values are far too "
            "small. `pip install pydeseq2`.",
            n_slides,
        )
    return "pseudobulk" if n_slides >= REPLICATES and installed else "t-test"


def _cells_of_types(groups: Groups, cell_types: Column | None) -> list[tuple[str, np.ndarray]]:
    """Name of each cell type, and its cells as ``(n_cells,)`` bool; all cells without types."""
    if cell_types is None:
        return [("", np.ones(groups.n_cells, dtype=bool))]
    return [(name, cell_types.codes == code) for code, name in enumerate(cell_types.names)]


def _with_type(frame: pd.DataFrame, name: str, cell_types: Column | None) -> pd.DataFrame:
    if cell_types is not None:
        frame.insert(0, "cell_type", pd.Categorical([name] * len(frame), cell_types.names))
    return frame
