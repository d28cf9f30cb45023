"""Expression of all cells of a container: log-normalised in memory, or summed up as it is stored."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stage_sc._input import Tables
from stage_sc._matrix import find_counts, read_matrix, to_csr
from stage_sc._messages import element_name, naming
from stage_sc.analysis._labels import Column
from stage_sc.genes import is_control

logger = logging.getLogger("stage_sc.tl")

BLOCK = 32_768  # rows


class LogExpression(NamedTuple):
    """Log-normalised expression of all cells, one object after the other."""

    matrix: sp.csr_matrix
    """``(n_cells, n_genes)`` float32, ``log(1 + counts of the cell scaled to the median total of its slide)``."""
    genes: list[str]
    """Sorted names of the genes that all objects have."""


def read_log_expression(tables: Tables, slides: Column, layer: str | None) -> LogExpression:
    """Read and log-normalise the expression of every slide; objects are not changed.

    Values that are no counts are recognised, with a warning. Control probes are left out, columns of one name are
    added up. A ValueError if the objects have no gene in common.
    """
    from stage_sc.slides import plan_columns, read_expression  # torch takes seconds to import

    genes = _common_genes(tables)
    number = {gene: position for position, gene in enumerate(genes)}
    parts, start = [], 0
    for name, part in tables.by_name.items():
        codes = slides.codes[start : start + part.n_obs]
        start += part.n_obs
        used, own = np.unique(codes, return_inverse=True)
        with naming(element_name("data", name), repr(name)):
            found = read_expression(
                read_matrix(part, layer),
                plan_columns(_tokens(part), number.__contains__),
                own,
                len(used),
                names=[slides.names[code] for code in used],
                advice=partial(find_counts, part, layer),
            )
        blocks = []
        for one in found:
            columns = np.array([number[gene] for gene in one.genes], np.int32)
            entries = one.matrix.data, columns[np.asarray(one.matrix.indices)], one.matrix.indptr
            blocks.append(sp.csr_matrix(entries, shape=(one.matrix.shape[0], len(genes)), copy=False))
        order = np.argsort(np.argsort(own, kind="stable"), kind="stable")
        parts.append(blocks[0] if len(blocks) == 1 else sp.vstack(blocks, format="csr")[order])
    return LogExpression(parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr"), genes)


def sum_counts(tables: Tables, codes: np.ndarray, n_groups: int, genes: list[str], layer: str | None) -> np.ndarray:
    """Sum the stored values of the cells of each group, ``(n_groups, n_genes)`` float64; the code -1 is left out."""
    total, start = np.zeros((n_groups, len(genes))), 0
    number = {gene: position for position, gene in enumerate(genes)}
    for name, part in tables.by_name.items():
        columns = np.array([number.get(str(gene), -1) for gene in part.var_names])
        merge = indicator(columns, len(genes))
        with naming(element_name("data", name), repr(name)):
            matrix = read_matrix(part, layer)
        for first in range(0, part.n_obs, BLOCK):
            block = to_csr(matrix[first : first + BLOCK]).astype(np.float64)
            own = codes[start + first : start + first + block.shape[0]]
            total += (indicator(own, n_groups).T @ block @ merge).toarray()
        start += part.n_obs
    return total


def indicator(codes: np.ndarray, n_groups: int) -> sp.csr_matrix:
    """``(n_cells, n_groups)`` 0/1 matrix of memberships; rows of the code -1 are empty."""
    cells = np.flatnonzero(codes >= 0)
    return sp.csr_matrix((np.ones(len(cells)), (cells, codes[cells])), shape=(len(codes), n_groups))


class Moments(NamedTuple):
    """Sums over the cells of each group, ``(n_groups, n_genes)`` float64."""

    n_cells: np.ndarray
    """``(n_groups, 1)``."""
    total: np.ndarray
    squares: np.ndarray
    detected: np.ndarray
    """Number of cells with a value above 0."""

    @property
    def mean(self) -> np.ndarray:
        """Mean of each group; NaN without cells."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.total / self.n_cells

    @property
    def deviation(self) -> np.ndarray:
        """Sample sd of each group; NaN without two cells."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(np.maximum(self.squares - self.n_cells * self.mean**2, 0) / (self.n_cells - 1))

    @property
    def fraction(self) -> np.ndarray:
        """Fraction of the cells of each group with a value above 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.detected / self.n_cells

    def rest(self) -> Moments:
        """Add up the cells of all other groups."""
        return Moments(*(values.sum(axis=0) - values for values in self))


def group_moments(matrix: sp.csr_matrix, codes: np.ndarray, n_groups: int) -> Moments:
    """Add up the cells of each group in one pass over the values; the code -1 is left out."""
    members = indicator(codes, n_groups).T.tocsr()
    shared = matrix.indices, matrix.indptr

    def add_up(values: np.ndarray) -> np.ndarray:
        return (members @ sp.csr_matrix((values, *shared), shape=matrix.shape, copy=False)).toarray().astype(np.float64)

    number = np.bincount(codes[codes >= 0], minlength=n_groups)[:, None].astype(np.float64)
    data = matrix.data.astype(np.float64)
    return Moments(number, add_up(data), add_up(np.square(data)), add_up((data > 0).astype(np.float32)))


def adjust(pvals: Any) -> np.ndarray:
    """Adjust p-values for the false discovery rate (Benjamini and Hochberg); NaN stay."""
    from scipy.stats import false_discovery_control

    values = np.array(pvals, dtype=np.float64)
    known = np.isfinite(values)
    values[known] = false_discovery_control(values[known]) if known.any() else values[known]
    return values


def as_frame(columns: dict[str, Any], **categories: list[str]) -> pd.DataFrame:
    """Make a data frame of columns, of which those with `categories` hold positions in these."""
    made = {
        key: pd.Categorical.from_codes(np.asarray(values), categories[key]) if key in categories else values
        for key, values in columns.items()
    }
    return pd.DataFrame(made)


def _tokens(part: AnnData) -> list[str | None]:
    """Name of every column; ``None`` for control probes, unless there is nothing else."""
    control = is_control(part.var)
    return [None if left_out else str(name) for name, left_out in zip(part.var_names, control, strict=True)]


def _common_genes(tables: Tables) -> list[str]:
    """Sorted names of the genes that all objects have."""
    panels = []
    for name, part in tables.by_name.items():
        with naming(element_name("data", name), repr(name)):
            panels.append({token for token in _tokens(part) if token is not None})
            if not panels[-1]:
                raise ValueError("There are no genes in `adata.var_names`.")
    common, union = set.intersection(*panels), set.union(*panels)
    if not common:
        raise ValueError(f"The {len(panels)} objects have no gene in common: compare their `var_names`.")
    if len(common) < len(union):
        logger.info("%d of %d genes are in all objects; the others are left out.", len(common), len(union))
    return sorted(common)
