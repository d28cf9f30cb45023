"""Tests of genes between the cells of niches, and the table of ranked genes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc.analysis._expression import LogExpression, Moments, adjust, as_frame, group_moments
from stage_sc.analysis._labels import Column, warn_left_out

COUNT = 1e-9  # added before the logarithm of a fold change, as in scanpy


def rank_cells(
    expression: LogExpression, codes: np.ndarray, labels: Column, method: str, min_cells: int, cell_type: str
) -> pd.DataFrame | None:
    """Compare the cells of each niche with all others; ``None`` if no niche is large enough.

    `codes` are those of `labels`, -1 for cells that are left out.
    """
    number = np.bincount(codes[codes >= 0], minlength=len(labels.names))
    large = (number >= min_cells) & (number.sum() - number >= min_cells)
    small = [labels.names[code] for code in np.flatnonzero((number > 0) & ~large)]
    warn_left_out(small, min_cells, cell_type, "inside or outside fewer")
    if not large.any():
        return None
    chosen = np.flatnonzero(large)
    inside = group_moments(expression.matrix, codes, len(labels.names))
    one, other = (Moments(*(values[chosen] for values in each)) for each in (inside, inside.rest()))
    if method == "t-test":
        scores, pvals = _test_means(one, other)
        change = np.log2(np.expm1(one.mean) + COUNT) - np.log2(np.expm1(other.mean) + COUNT)
    else:
        scores, pvals, change = _test_ranks(expression, codes, chosen)
    return tidy(labels, chosen, expression.genes, scores, change, pvals, one.fraction, other.fraction)


def _test_means(one: Moments, other: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Welch's t and its p-value for all niches and genes, as scanpy computes them, from one pass over the values."""
    from scipy.stats import ttest_ind_from_stats

    with np.errstate(invalid="ignore", divide="ignore"):
        scores, pvals = ttest_ind_from_stats(
            *(one.mean, one.deviation, one.n_cells, other.mean, other.deviation, other.n_cells), equal_var=False
        )
    return np.nan_to_num(scores, posinf=0, neginf=0), np.nan_to_num(pvals, nan=1.0)


def _test_ranks(
    expression: LogExpression, codes: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wilcoxon's rank sum test of scanpy: scores, p-values and fold changes."""
    import scanpy as sc

    cells = np.flatnonzero(codes >= 0)
    names = pd.Categorical(codes[cells].astype(str))
    adata = AnnData(expression.matrix[cells], obs=pd.DataFrame({"group": names}, index=cells.astype(str)))
    adata.var_names = expression.genes
    groups = chosen.astype(str).tolist()
    sc.tl.rank_genes_groups(adata, "group", groups=groups, method="wilcoxon", tie_correct=True)
    found = [sc.get.rank_genes_groups_df(adata, group).set_index("names").loc[expression.genes] for group in groups]
    scores, pvals, change = (np.stack([one[key] for one in found]) for key in ("scores", "pvals", "logfoldchanges"))
    return scores, pvals, change


def tidy(
    labels: Column,
    chosen: Sequence[int] | np.ndarray,
    genes: Sequence[str],
    scores: np.ndarray,
    change: np.ndarray,
    pvals: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
) -> pd.DataFrame:
    """Table of the genes of each niche in the order of their scores; matrices are ``(n_chosen, n_genes)``.

    Equal scores are in the order of names. Genes without a score (NaN) come last.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    columns = {
        "group": np.repeat(np.asarray(chosen), len(genes)),
        "names": order.ravel(),
        **{
            key: np.take_along_axis(values, order, axis=1).ravel()
            for key, values in {
                "scores": scores,
                "logfoldchanges": change,
                "pvals": pvals,
                "pvals_adj": np.stack([adjust(row) for row in pvals]),
                "pct_nz_group": inside,
                "pct_nz_reference": outside,
            }.items()
        },
    }
    return as_frame(columns, group=labels.names, names=list(genes))


def describe(expression: LogExpression, codes: np.ndarray, labels: Column, ranked: pd.DataFrame) -> pd.DataFrame:
    """Mean and fraction of cells of the ranked genes in all niches with cells."""
    genes = np.unique(ranked["names"].cat.codes)
    inside = group_moments(expression.matrix[:, genes], codes, len(labels.names))
    used = np.flatnonzero(inside.n_cells.ravel())
    columns = {
        "group": np.repeat(used, len(genes)),
        "names": np.tile(genes, len(used)),
        "mean": inside.mean[used].ravel().astype(np.float32),
        "fraction": inside.fraction[used].ravel().astype(np.float32),
    }
    return as_frame(columns, group=labels.names, names=expression.genes)
