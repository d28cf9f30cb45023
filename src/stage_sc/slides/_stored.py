"""Sparse matrices and arrays in plain files, read by rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

# Suffix and dtype of the files of a csr matrix.
PARTS = {"indptr": "<i8", "indices": "<i4", "data": "<f4"}
# Number of indices compared with the bounds at a time.
CHECKED = 4_194_304


class StoredArray:
    """An array in a file without header, `width` entries a row (``None``: one-dimensional).

    Every access maps the file anew and returns a copy, so that nothing read before stays in memory.
    """

    def __init__(self, path: Path, dtype: str, width: int | None = None) -> None:
        self.path, self.dtype, self.width = path, np.dtype(dtype), width

    def __len__(self) -> int:
        return self.path.stat().st_size // (self.dtype.itemsize * (self.width or 1))

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        shape = (len(self),) if self.width is None else (len(self), self.width)
        if not shape[0]:  # an empty file cannot be mapped
            return np.empty(shape, self.dtype)[rows]
        return np.array(np.memmap(self.path, self.dtype, "r", shape=shape)[rows])

    def overwrite(self, start: int, values: np.ndarray) -> None:
        """Replace entries of a one-dimensional array from `start` on."""
        with self.path.open("r+b") as file:
            file.seek(start * self.dtype.itemsize)
            file.write(np.ascontiguousarray(values, self.dtype).data)


class StoredMatrix:
    """A csr matrix with `n_columns` columns in the files of `base`; ``matrix[rows]`` reads rows into memory.

    Reading is restricted to the sorted `columns` (``None``: all).
    """

    def __init__(self, base: Path, n_columns: int, columns: np.ndarray | None = None) -> None:
        self.n_columns, self.columns = n_columns, columns
        self.indptr, self.indices, self.data = map(StoredArray, files_of(base), PARTS.values())
        self.shape = (len(self.indptr) - 1, n_columns if columns is None else len(columns))

    def __getitem__(self, rows: slice | np.ndarray) -> sp.csr_matrix:
        if isinstance(rows, slice):
            first, last, _ = rows.indices(self.shape[0])
            indptr = self.indptr[first : max(first, last) + 1]
            entries: slice | np.ndarray = slice(indptr[0], indptr[-1])
            indptr = indptr - indptr[0]
        else:
            start = self.indptr[rows]
            length = self.indptr[rows + 1] - start
            indptr = np.concatenate([[0], np.cumsum(length)])
            entries = np.repeat(start - indptr[:-1], length) + np.arange(indptr[-1])
        parts = self.data[entries], self.indices[entries], indptr  # in bounds, see `check`
        matrix = sp.csr_matrix(parts, shape=(len(indptr) - 1, self.n_columns), copy=False)
        return matrix if self.columns is None else select_columns(matrix, self.columns)

    def check(self, n_rows: int) -> None:
        """Raise a ValueError unless the files hold a csr matrix of `n_rows` rows."""
        ends, base = self.indptr[:], self.indptr.path.with_suffix("")
        if len(ends) != n_rows + 1 or ends[0] != 0 or (np.diff(ends) < 0).any():
            raise ValueError(f"{str(self.indptr.path)!r} is damaged: no ends of {n_rows} rows.")
        if not ends[-1] == len(self.indices) == len(self.data):
            raise ValueError(f"{str(base)!r} is damaged: indices and values do not have {ends[-1]} entries.")
        for start in range(0, len(self.indices), CHECKED):
            block = self.indices[start : start + CHECKED]
            if block.min() < 0 or block.max() >= self.n_columns:
                raise ValueError(f"{str(self.indices.path)!r} is damaged: an index is not below {self.n_columns}.")


def select_columns(matrix: sp.csr_matrix, columns: np.ndarray) -> sp.csr_matrix:
    """``matrix[:, columns]`` for sorted `columns`, at a cost that does not grow with the width of the matrix."""
    position = np.searchsorted(columns, matrix.indices)
    position[position == len(columns)] = 0
    inside = columns[position] == matrix.indices
    indptr = np.concatenate([[0], np.cumsum(inside)])[matrix.indptr]
    parts = matrix.data[inside], position[inside].astype(np.int32), indptr
    return sp.csr_matrix(parts, shape=(matrix.shape[0], len(columns)), copy=False)


class MatrixWriter:
    """Writes a csr matrix with `n_columns` columns to the files of `base` (replaced if they exist), rows by rows."""

    def __init__(self, base: Path, n_columns: int) -> None:
        self.base, self.n_columns, self.nnz = base, n_columns, 0
        for path, start in zip(files_of(base), (bytes(8), b"", b""), strict=True):
            path.write_bytes(start)

    def append(self, block: sp.csr_matrix) -> None:
        """Add rows below those written."""
        parts = (block.indptr[1:].astype(np.int64) + self.nnz, block.indices, block.data)
        for path, values, dtype in zip(files_of(self.base), parts, PARTS.values(), strict=True):
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(values, dtype).data)
        self.nnz += block.nnz

    def finish(self) -> StoredMatrix:
        """Return the matrix."""
        return StoredMatrix(self.base, self.n_columns)


def files_of(base: Path) -> list[Path]:
    """Files of a matrix: row ends, columns, values."""
    return [base.with_name(f"{base.name}.{part}") for part in PARTS]
