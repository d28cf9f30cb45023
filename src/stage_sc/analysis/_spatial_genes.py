"""Genes that vary in space and between niches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stage_sc._checks import check_bool, check_positive
from stage_sc._input import Data, read_tables
from stage_sc.analysis._edges import read_edges
from stage_sc.analysis._expression import LogExpression, adjust, as_frame, group_moments, read_log_expression
from stage_sc.analysis._labels import Groups, read_groups
from stage_sc.analysis._store import check_key, write_stored

logger = logging.getLogger("stage_sc.tl")

TOOL = "spatial_genes"


def spatial_genes(
    data: Data,
    *,
    groupby: str | None = None,
    min_cells: int = 10,
    library_key: str | None = None,
    layer: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = TOOL,
    copy: bool = False,
) -> Any:
    r"""Rank genes by how much they vary in space, beside how much of that is between niches.

    Each slide is measured by itself, so that differences between slides do not count.

    Parameters
    ----------
    data
        Cells with counts, labels and the graph of `stage_sc.pp.build_graph`; or a list or a dictionary of such objects,
        of which the common genes are used.
    groupby
        Column of ``obs`` with labels. ``None``: the domains of `stage_sc.tl.stage_niches` if there are any, else its
        niches of level 2. Cells without a label count for Moran's I only.
    min_cells
        Genes in fewer cells of a slide are left out on it, and niches of fewer cells are no ``group`` of a gene.
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
        Data frame with a row for each gene, the largest Moran's I first: ``names``; ``moran_i`` and ``eta_squared``,
        means over the slides weighted by their cells; ``pvals`` of no autocorrelation on any slide and ``pvals_adj``
        (Benjamini and Hochberg); ``n_slides`` with the gene; ``group``, the niche with the highest mean.
    ``"slides"``
        Data frame with ``names``, ``slide``, ``moran_i`` and ``eta_squared`` of every slide.
    ``"params"``
        Arguments.

    Raises
    ------
    KeyError
        If there is no graph, a column or layer does not exist, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type.
    ValueError
        If no gene is in `min_cells` cells, expression is not valid, the objects have no common gene, or
        ``uns[key_added]`` holds something else.

    See Also
    --------
    stage_sc.pl.spatial_genes : Both values of every gene.
    stage_sc.tl.rank_niche_genes : Genes of each niche.

    Notes
    -----
    With x the log-normalised expression of a gene on a slide, w the graph with rows of sum 1, and k its niches,

    .. math::
        I = \frac{n}{\sum w_{ij}} \frac{\sum_{ij} w_{ij} (x_i - \bar x)(x_j - \bar x)}{\sum_i (x_i - \bar x)^2},
        \qquad \eta^2 = \frac{\sum_k n_k (\bar x_k - \bar x)^2}{\sum_i (x_i - \bar x)^2}.

    I is that of ``squidpy.gr.spatial_autocorr``, with its p-value for normal values; p-values of slides are joined by
    Stouffer's method, weighted by the root of the cells. A gene with a large I and a small :math:`\eta^2` has a pattern
    that niches miss; with both large, niches explain it. :math:`\eta^2` of noise is (niches - 1) / (cells - 1), and
    niches were found from the same genes. Time is linear in cells times genes.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> st.tl.spatial_genes(adata, groupby="domain")
    >>> adata.uns["spatial_genes"]["table"].columns.tolist()[:3]
    ['names', 'moran_i', 'eta_squared']
    """
    check_positive(min_cells, "min_cells", integer=True)
    check_bool(copy, "copy")
    tables = read_tables(data, table_key=table_key)
    check_key(tables, key_added, TOOL, copy=copy)
    groups = read_groups(tables, groupby, library_key)
    edges = read_edges(tables)
    expression = read_log_expression(tables, groups.slides, layer)
    slides = _measure_slides(expression, groups, edges, int(min_cells))
    if not len(slides):
        raise ValueError(f"`min_cells`: no gene is in {min_cells} cells of a slide. Lower it.")
    table = _join_slides(slides, expression, groups, int(min_cells))
    params = {"groupby": groups.groupby, "min_cells": int(min_cells), "layer": layer}
    tables = tables.copy() if copy else tables
    names = {"names": expression.genes, "slide": [name or "all" for name in groups.slides.names]}
    kept = as_frame({key: slides[key] for key in ("names", "slide", "moran_i", "eta_squared")}, **names)
    write_stored(tables, key_added, TOOL, table, params, slides=kept)
    return tables.given if copy else None


def _measure_slides(expression: LogExpression, groups: Groups, edges: sp.csr_matrix, min_cells: int) -> pd.DataFrame:
    """Moran's I with its p-value, and eta squared, of every gene on every slide, by their numbers."""
    found = []
    for slide in range(len(groups.slides.names)):
        cells = np.flatnonzero(groups.slides.codes == slide)
        whole = len(cells) == groups.n_cells
        matrix = expression.matrix if whole else expression.matrix[cells]
        graph = edges if whole else edges[cells][:, cells]
        detected = np.bincount(matrix.indices[matrix.data > 0], minlength=matrix.shape[1])
        genes = np.flatnonzero((detected >= min_cells) & (detected > 0))
        if not len(genes) or graph.nnz == 0:
            logger.warning("Slide %r is left out: no gene is in %d cells.", groups.slides.names[slide], min_cells)
            continue
        matrix = matrix if len(genes) == matrix.shape[1] else matrix[:, genes]
        moran = _moran(matrix, graph)
        columns = {"names": genes, "slide": slide, "n_cells": len(cells), **moran}
        columns["eta_squared"] = _explained(matrix, groups.labels.codes[cells], len(groups.labels.names))
        found.append(pd.DataFrame(columns))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _moran(matrix: sp.csr_matrix, graph: sp.csr_matrix) -> dict[str, np.ndarray]:
    """Moran's I of every gene and its one-sided p-value, by squidpy."""
    import squidpy as sq

    names = [str(column) for column in range(matrix.shape[1])]
    adata = AnnData(matrix, var=pd.DataFrame(index=names), obsp={"spatial_connectivities": graph})
    result = sq.gr.spatial_autocorr(
        adata, mode="moran", genes=names, n_perms=None, corr_method=None, copy=True, show_progress_bar=False, n_jobs=1
    ).loc[names]
    return {"moran_i": result["I"].to_numpy(dtype=float), "pvals": result["pval_norm"].to_numpy(dtype=float)}


def _explained(matrix: sp.csr_matrix, codes: np.ndarray, n_groups: int) -> np.ndarray:
    """Fraction of the variance of every gene that is between groups; NaN where nothing varies."""
    moments = group_moments(matrix, codes, n_groups)
    number, total = moments.n_cells.sum(), moments.total.sum(axis=0)
    if number == 0:
        return np.full(matrix.shape[1], np.nan)
    centre = total**2 / number
    between = np.nansum(np.where(moments.n_cells > 0, moments.total * moments.mean, 0), axis=0) - centre
    spread = moments.squares.sum(axis=0) - centre
    return np.divide(np.maximum(between, 0), spread, out=np.full(len(spread), np.nan), where=spread > 1e-9 * number)


def _join_slides(slides: pd.DataFrame, expression: LogExpression, groups: Groups, min_cells: int) -> pd.DataFrame:
    """One row for each gene: means over slides weighted by cells, and joint p-values."""
    from scipy.stats import norm

    weight = slides["n_cells"].astype(float)
    z = norm.isf(slides["pvals"].clip(1e-300, 1 - 1e-16))
    sums = (
        pd.DataFrame(
            {
                "names": slides["names"],
                "weight": weight,
                "moran_i": weight * slides["moran_i"],
                "known": weight.where(slides["eta_squared"].notna(), 0.0),
                "eta_squared": weight * slides["eta_squared"],
                "z": np.sqrt(weight) * z,
                "n_slides": 1,
            }
        )
        .groupby("names")
        .sum()
    )
    moments = group_moments(expression.matrix, groups.labels.codes, len(groups.labels.names))
    few = moments.n_cells < min(min_cells, moments.n_cells.max())
    highest = np.argmax(np.where(few, -1.0, np.nan_to_num(moments.mean, nan=-1.0)), axis=0)
    pvals = norm.sf(sums["z"] / np.sqrt(sums["weight"])).clip(1e-300)
    moran = (sums["moran_i"] / sums["weight"]).to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        eta = (sums["eta_squared"] / sums["known"]).to_numpy()
    columns = {
        "names": sums.index.to_numpy(),
        "moran_i": moran,
        "eta_squared": eta,
        "pvals": pvals,
        "pvals_adj": adjust(pvals),
        "n_slides": sums["n_slides"].to_numpy(),
        "group": highest[sums.index],
    }
    order = np.argsort(-moran, kind="stable")
    columns = {key: values[order] for key, values in columns.items()}
    return as_frame(columns, names=expression.genes, group=groups.labels.names)
