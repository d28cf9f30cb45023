"""Expression of each slide, read once in blocks of rows from `X` in any form."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from stage_sc._files import temporary_folder
from stage_sc._matrix import read_matrix, to_csr
from stage_sc.slides._canonical import row_sums
from stage_sc.slides._intensities import Intensities
from stage_sc.slides._stored import MatrixWriter, StoredMatrix
from stage_sc.slides._values import Values

logger = logging.getLogger("stage_sc.data")

# Largest number of rows of a block, and of its entries as a dense matrix.
BLOCK_ROWS, BLOCK_ENTRIES = 32_768, 2**25
# Terms of sums over cells are rounded to multiples of this: sums are exact, and so the same for any order of the cells.
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
    """``(P,)`` float64 sd."""
    identity: np.ndarray
    """``(n,)`` uint64 hash of the counts."""
    filled: np.ndarray
    """``(n,)`` bool, any count of these genes."""
    intensities: bool
    """Values are no counts, and never were."""


@contextmanager
def scratch_folder(adata: AnnData, layer: str | None = None) -> Iterator[Path | None]:
    """Temporary folder for the expression of `adata` if that is on disk, else ``None``."""
    values = read_matrix(adata, layer)
    if sp.issparse(values) or isinstance(values, np.ndarray):
        yield None
    else:
        with temporary_folder() as folder:
            yield folder


class Columns(NamedTuple):
    """Columns of `X` that are genes."""

    names: list[str]
    """Sorted tokens."""
    merge: sp.csr_matrix
    """``(n_vars, len(names))`` 0/1, adds up the columns of each token."""
    simple: np.ndarray | None
    """Column of every token; ``None`` if any token has several."""
    known: np.ndarray
    """``(len(names),)`` bool, in the vocabulary."""


def plan_columns(tokens: list[str | None], known: Callable[[str], bool]) -> Columns:
    """Sort columns by their tokens (``None``: left out); `known` tests membership of a token in the vocabulary."""
    rows = np.flatnonzero([token is not None for token in tokens])
    if not len(rows):
        raise ValueError(f"There are no genes: `adata.var_names` holds {len(tokens)} control probes and nothing else.")
    unique, cols, counts = np.unique([str(tokens[row]) for row in rows], return_inverse=True, return_counts=True)
    names, repeated = unique.tolist(), unique[counts > 1].tolist()
    if repeated:
        shown = ", ".join(repeated[:5]) + (", …" if len(repeated) > 5 else "")
        logger.warning("%d genes have several columns, which were added up: %s.", len(repeated), shown)
    merge = sp.csr_matrix((np.ones(len(rows)), (rows, cols)), (len(tokens), len(names)))
    simple = None if repeated else rows[np.argsort(cols)]
    return Columns(names, merge, simple, np.array([known(name) for name in names]))


def read_expression(
    X: Any,
    columns: Columns,
    codes: np.ndarray,
    n_slides: int,
    scratch: Path | None = None,
    *,
    names: Sequence[str] | None = None,
    proteins: bool = False,
    advice: Callable[[], str] = lambda: "Pass raw counts if you have them.",
) -> list[Expression]:
    """Read the expression of every slide; every block of `X` is read once.

    Parameters
    ----------
    X
        ``(n_cells, n_vars)`` matrix in memory, on disk or a dask array. Negative, NaN and infinite values raise a
        ValueError.
    columns
        From `plan_columns`.
    codes
        ``(n_cells,)`` slide of every cell.
    n_slides
        Number of slides.
    scratch
        Folder for the expression. ``None``: it stays in memory.
    names
        Names of the slides, for messages.
    proteins
        `X` holds intensities of proteins.
    advice
        Returns a sentence about where the counts are, for messages about other values.
    """
    known = np.flatnonzero(columns.known)
    genes = list(compress(columns.names, columns.known))
    digests = (hashlib.sha256(gene.encode()).digest() for gene in genes)
    hashes = np.array([int.from_bytes(digest[:8], "little") | 1 for digest in digests], np.uint64)
    slides = []
    for code in range(n_slides):
        name, base = names[code] if names else "", scratch and scratch / f"slide{code}"
        slides.append(
            _SlideReader(hashes, base, Intensities(name, len(known)), None if proteins else Values(name, advice))
        )
    start = 0
    for part in _row_blocks(X):
        block = _select_genes(to_csr(part, advice), columns)
        block_codes = codes[start : start + block.shape[0]]
        start += block.shape[0]
        present = np.unique(block_codes)
        for code in present:
            rows = block if len(present) == 1 else block[block_codes == code]
            slides[code].add(rows, rows if len(known) == block.shape[1] else rows[:, known])
    return [slide.finish(genes) for slide in slides]


class _SlideReader:
    """Collects one slide from blocks, in memory or in the files of `base`; `hashes` are those of the genes.

    Without `values` it is of proteins. Otherwise these tell whether it is of counts or of intensities.
    """

    def __init__(self, hashes: np.ndarray, base: Path | None, proteins: Intensities, values: Values | None) -> None:
        self.proteins, self.values = proteins, values
        self.hashes, self.detected = hashes, np.zeros(len(hashes), dtype=np.int64)
        self.identity: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.blocks: list[sp.csr_matrix] = []
        self.writer = None if base is None else MatrixWriter(base, len(hashes))

    def add(self, counts: sp.csr_matrix, known: sp.csr_matrix) -> None:
        """Add rows: `counts` of all genes, for the totals, and those of the genes in the vocabulary."""
        if self.values is not None:
            self.values.add(counts)
        if self.values is None or self.values.may_be_intensities:
            self.proteins.add(known)
        terms = self.hashes[known.indices]  # a sum of odd numbers times values, modulo 2⁶⁴, is a universal hash
        terms *= known.data.view(np.uint32)
        self.identity.append(row_sums(terms, known.indptr))
        self.lengths.append(np.diff(known.indptr))
        self.detected += np.bincount(known.indices, minlength=len(self.detected))
        if self.writer is None:
            self.blocks.append(known)
        else:
            self.writer.append(known)

    def finish(self, genes: list[str]) -> Expression:
        """Normalise with the totals of all cells, and drop the genes without counts."""
        used = self.detected > 0 if self.detected.any() else self.detected == 0
        position = (np.cumsum(used) - 1).astype(np.int32)
        genes = list(compress(genes, used))
        intensities = self.values is None or self.values.intensities
        if intensities and self.values is not None:
            self.values.warn_of_intensities()
        length = np.concatenate(self.lengths)
        normalize = self.proteins.normalizer() if intensities or self.values is None else self.values.normalizer()
        matrix: sp.csr_matrix | StoredMatrix
        if self.writer is None:
            nnz, indptr = int(self.detected.sum()), np.concatenate([[0], np.cumsum(length)])
            parts = np.empty(nnz, np.float32), np.empty(nnz, np.int32), indptr
            matrix = sp.csr_matrix(parts, shape=(len(length), len(genes)), copy=False)
        else:
            matrix = self.writer.finish()
        sums = np.zeros((2, len(genes)), dtype=np.int64)
        start = first = 0
        for block in self._take_blocks(matrix):
            columns, data = position[block.indices], normalize(block, start)
            exact = data.astype(np.float64)
            for row, terms in enumerate((exact, exact * exact)):
                sums[row] += np.bincount(columns, np.rint(terms / UNIT), minlength=len(genes)).astype(np.int64)
            _overwrite(matrix.data, first, data)
            _overwrite(matrix.indices, first, columns)
            start, first = start + block.shape[0], first + block.nnz
        if self.writer is not None:
            matrix = StoredMatrix(self.writer.base, len(genes))
        mean, square = sums * (UNIT / max(len(length), 1))
        deviation = np.sqrt(np.maximum(square - np.square(mean), 0))
        identity = np.concatenate(self.identity)
        return Expression(matrix, genes, mean, deviation, identity, length > 0, intensities)

    def _take_blocks(self, matrix: sp.csr_matrix | StoredMatrix) -> Iterator[sp.csr_matrix]:
        """Blocks of rows; those in memory are freed one by one."""
        if self.writer is None:
            self.blocks.reverse()
            while self.blocks:
                yield self.blocks.pop()
        else:
            for start in range(0, matrix.shape[0], BLOCK_ROWS):
                yield matrix[start : start + BLOCK_ROWS]


def _row_blocks(X: Any) -> Iterator[Any]:
    """Cut `X` into blocks of rows; chunks of dask arrays are not cut, so that each is read once."""
    n, width = X.shape
    step = max(1, min(BLOCK_ROWS, BLOCK_ENTRIES // max(width, 1)))
    ends = np.arange(step, n, step)
    if hasattr(X, "dask"):
        chunk_ends = np.cumsum(X.chunks[0])
        ends = chunk_ends[np.unique(np.searchsorted(chunk_ends, ends))]
    elif hasattr(X, "to_memory") and getattr(X, "format", "csr") == "csc":
        X = X.to_memory()  # a csc file has no fast access to rows
    for start, stop in pairwise([0, *(int(end) for end in ends if end < n), n]):
        if stop > start:
            yield X if stop - start == n else X[start:stop]


def _select_genes(block: sp.csr_matrix, columns: Columns) -> sp.csr_matrix:
    """Columns of the genes, sorted by token."""
    if columns.simple is None:  # in float64, where the order of a few float32 terms makes no difference
        block = sp.csr_matrix(block.astype(np.float64) @ columns.merge, dtype=np.float32)
        block.sort_indices()
    elif not np.array_equal(columns.simple, np.arange(block.shape[1])):
        block = block.tocsc()[:, columns.simple].tocsr()  # two counting sorts are faster than one sort within the rows
    return block


def _overwrite(array: Any, start: int, values: np.ndarray) -> None:
    if isinstance(array, np.ndarray):
        array[start : start + len(values)] = values
    else:
        array.overwrite(start, values)
