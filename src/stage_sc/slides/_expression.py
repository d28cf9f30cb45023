"""Expression of each slide, read once, block by block, from `X` in any form."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from stage_sc._input import read_matrix, to_csr
from stage_sc.slides._canonical import row_sums
from stage_sc.slides._stored import MatrixWriter, StoredMatrix
from stage_sc.slides._values import Values

logger = logging.getLogger("stage_sc.data")

# A block has at most so many rows, and so many entries if it were dense.
BLOCK_ROWS, BLOCK_ENTRIES = 32_768, 2**25
# Sums over cells are taken in whole multiples of this: they are exact, and so the same for any order of the cells.
UNIT = 2.0**-24


class Expression(NamedTuple):
    """Log-normalised expression of one slide, cells in the order of the AnnData."""

    matrix: sp.csr_matrix | StoredMatrix
    """``(n, P)`` float32, in memory, or on disk if `X` was."""
    genes: list[str]
    """Tokens of the columns, sorted: those of the vocabulary with any count on this slide."""
    mean: np.ndarray
    """``(P,)`` float64."""
    deviation: np.ndarray
    """``(P,)`` float64 standard deviation."""
    identity: np.ndarray
    """``(n,)`` uint64, the same for cells with the same counts."""
    filled: np.ndarray
    """``(n,)`` bool: any count of these genes."""


@contextmanager
def scratch_folder(adata: AnnData, layer: str | None = None) -> Iterator[Path | None]:
    """Give a folder for the time of the block where the expression of `adata` is on disk, else ``None``."""
    values = read_matrix(adata, layer)
    if sp.issparse(values) or isinstance(values, np.ndarray):
        yield None
    else:
        with TemporaryDirectory(prefix="stage_sc-") as folder:
            yield Path(folder)


class Columns(NamedTuple):
    """Which columns of `X` are used, and for what."""

    names: list[str]
    """Sorted tokens of all columns that are genes."""
    merge: sp.csr_matrix
    """``(n_vars, len(names))`` 0/1: adds up columns of one token, and leaves out those without."""
    simple: np.ndarray | None
    """Column of every name, where no token has two."""
    known: np.ndarray
    """``(len(names),)`` bool: in the vocabulary."""


def plan_columns(tokens: list[str | None], known: Callable[[str], bool]) -> Columns:
    """Sort columns by token, add up those of one token, leave out those with ``None``.

    Parameters
    ----------
    tokens
        Of all columns.
    known
        Function that tells whether a token is in the vocabulary.
    """
    uses = Counter(token for token in tokens if token is not None)
    repeated = sorted(token for token, n in uses.items() if n > 1)
    if repeated:
        shown = ", ".join(repeated[:5]) + (", …" if len(repeated) > 5 else "")
        logger.warning("%d genes have several columns, which were added up: %s.", len(repeated), shown)
    names = sorted(uses)
    if not names:
        raise ValueError(f"There are no genes: `adata.var_names` holds {len(tokens)} control probes and nothing else.")
    column = {token: position for position, token in enumerate(names)}
    pairs = [(row, column[token]) for row, token in enumerate(tokens) if token is not None]
    rows, cols = np.array(pairs, dtype=np.intp).T
    merge = sp.csr_matrix((np.ones(len(rows)), (rows, cols)), (len(tokens), len(names)))
    simple = None if repeated else rows[np.argsort(cols)]
    return Columns(names, merge, simple, np.array([known(name) for name in names]))


def read_expression(
    X: Any, columns: Columns, codes: np.ndarray, n_slides: int, scratch: Path | None = None
) -> list[Expression]:
    """Read the expression of every slide.

    Parameters
    ----------
    X
        ``(n_cells, n_vars)`` matrix in memory, on disk or a dask array. Every block is read once.
    columns
        From `plan_columns`.
    codes
        ``(n_cells,)`` slide of every cell.
    n_slides
        Number of slides.
    scratch
        Folder for what does not stay in memory. ``None``: all stays in memory.

    Returns
    -------
    One entry per slide.

    Raises
    ------
    ValueError
        If there are negative, NaN or infinite values.
    """
    known = np.flatnonzero(columns.known)
    gene = np.array([_name_hash(columns.names[position]) for position in known], np.uint64)
    slides = [_SlideReader(len(known), scratch and scratch / f"slide{code}") for code in range(n_slides)]
    start = 0
    for part in _row_blocks(X):
        block = _select(to_csr(part), columns)
        here = codes[start : start + block.shape[0]]
        start += block.shape[0]
        inside = np.unique(here)
        for code in inside:
            rows = block if len(inside) == 1 else block[here == code]
            slides[code].add(rows, rows if len(known) == block.shape[1] else rows[:, known], gene)
    return [slide.finish([columns.names[position] for position in known]) for slide in slides]


class _SlideReader:
    """Collects one slide from blocks."""

    def __init__(self, n_genes: int, base: Path | None) -> None:
        self.values, self.seen = Values(), np.zeros(n_genes, dtype=np.int64)
        self.identity: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.blocks: list[sp.csr_matrix] = []
        self.writer = None if base is None else MatrixWriter(base, n_genes)

    def add(self, counts: sp.csr_matrix, known: sp.csr_matrix, gene: np.ndarray) -> None:
        """Take in rows: `counts` of all genes, for the totals, and of those in the vocabulary."""
        self.values.add(counts)
        terms = gene[known.indices]  # a sum of odd numbers times values, modulo 2⁶⁴, is a universal hash
        terms *= known.data.view(np.uint32)
        self.identity.append(row_sums(terms, known.indptr))
        self.lengths.append(np.diff(known.indptr))
        self.seen += np.bincount(known.indices, minlength=len(self.seen))
        if self.writer is None:
            self.blocks.append(known)
        else:
            self.writer.append(known)

    def finish(self, names: list[str]) -> Expression:
        """Normalise, now that the totals of all cells are known, and drop genes that are never seen."""
        used = self.seen > 0 if self.seen.any() else self.seen == 0
        rename = (np.cumsum(used) - 1).astype(np.int32)
        names = [name for name, use in zip(names, used, strict=True) if use]
        length, nnz, factors = np.concatenate(self.lengths), int(self.seen.sum()), self.values.factors()
        matrix: sp.csr_matrix | StoredMatrix
        if self.writer is None:
            indptr = np.concatenate([[0], np.cumsum(length)])
            parts = np.empty(nnz, np.float32), np.empty(nnz, np.int32), indptr
            matrix = sp.csr_matrix(parts, shape=(len(length), len(names)), copy=False)
        else:
            matrix = self.writer.finish()
        sums = np.zeros((2, len(names)), dtype=np.int64)
        start = first = 0
        for block in self._take(matrix):
            rows = slice(start, start + block.shape[0])
            columns, data = rename[block.indices], block.data
            if factors is not None:
                data = self.values.normalize(data, np.repeat(factors[rows], length[rows]))
            exact = data.astype(np.float64)
            for row, terms in enumerate((exact, exact * exact)):
                sums[row] += np.bincount(columns, np.rint(terms / UNIT), minlength=len(names)).astype(np.int64)
            _overwrite(matrix.data, first, data)
            _overwrite(matrix.indices, first, columns)
            start, first = rows.stop, first + block.nnz
        if isinstance(matrix, StoredMatrix):
            matrix.shape = (len(length), len(names))
        mean, square = sums * (UNIT / max(len(length), 1))
        deviation = np.sqrt(np.maximum(square - np.square(mean), 0))
        return Expression(matrix, names, mean, deviation, np.concatenate(self.identity), length > 0)

    def _take(self, matrix: sp.csr_matrix | StoredMatrix) -> Iterator[sp.csr_matrix]:
        """Give the blocks back, and forget them."""
        if self.writer is None:
            self.blocks.reverse()
            while self.blocks:
                yield self.blocks.pop()
        else:
            for start in range(0, matrix.shape[0], BLOCK_ROWS):
                yield matrix[start : start + BLOCK_ROWS]


def _row_blocks(X: Any) -> Iterator[Any]:
    """Cut `X` into blocks of rows; on-disk and dask data in whole chunks, each of which is read once."""
    n, width = X.shape
    step = max(1, min(BLOCK_ROWS, BLOCK_ENTRIES // max(width, 1)))
    ends = np.arange(step, n, step)
    if hasattr(X, "dask"):
        chunk_ends = np.cumsum(X.chunks[0])
        ends = chunk_ends[np.unique(np.searchsorted(chunk_ends, ends))]
    elif hasattr(X, "to_memory") and getattr(X, "format", "csr") == "csc":
        X = X.to_memory()  # rows of a csc file can only be had all at once
    bounds = [0, *(int(end) for end in ends if end < n), n]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        if stop > start:
            yield X if stop - start == n else X[start:stop]


def _select(block: sp.csr_matrix, columns: Columns) -> sp.csr_matrix:
    """Columns of the genes, sorted by token."""
    if columns.simple is None:  # in float64, where the order of a few float32 terms makes no difference
        block = sp.csr_matrix(block.astype(np.float64) @ columns.merge, dtype=np.float32)
        block.sort_indices()
    elif not np.array_equal(columns.simple, np.arange(block.shape[1])):
        by_gene = block.tocsc()[:, columns.simple]  # two counting sorts are faster than one sort within the rows
        block = by_gene.tocsr()
    return block


def _overwrite(array: Any, start: int, values: np.ndarray) -> None:
    if isinstance(array, np.ndarray):
        array[start : start + len(values)] = values
    else:
        array.overwrite(start, values)


def _name_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") | 1
