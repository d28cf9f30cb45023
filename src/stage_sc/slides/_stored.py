"""Sparse matrices and arrays in plain files, of which just the rows asked for are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

INDPTR, INDICES, VALUES = "<i8", "<i4", "<f4"


class StoredArray:
    """An array in a file, row after row.

    Every access maps the file anew and gives a copy, so that what was read before does not stay in memory.

    Parameters
    ----------
    path
        The file, without any header.
    dtype
        Of an entry.
    width
        Entries of a row; ``None``: the array is flat.
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
        """Replace entries of a flat array from `start` on."""
        with self.path.open("r+b") as file:
            file.seek(start * self.dtype.itemsize)
            file.write(np.ascontiguousarray(values, self.dtype).data)


class StoredMatrix:
    """A csr matrix in three files; ``matrix[rows]`` reads rows into memory.

    Parameters
    ----------
    base
        Path that the names of the files begin with.
    n_columns
        Columns of the matrix.
    columns
        Sorted columns to keep of what is read. ``None``: all.
    """

    def __init__(self, base: Path, n_columns: int, columns: np.ndarray | None = None) -> None:
        self.columns = columns
        self.indptr, self.indices, self.data = (
            StoredArray(path, dtype) for path, dtype in zip(files_of(base), (INDPTR, INDICES, VALUES), strict=True)
        )
        self.shape = (len(self.indptr) - 1, n_columns if columns is None else len(columns))

    def __getitem__(self, rows: slice | np.ndarray) -> sp.csr_matrix:
        if isinstance(rows, slice):
            first, last, _ = rows.indices(self.shape[0])
            indptr = self.indptr[first : max(first, last) + 1]
            which: slice | np.ndarray = slice(indptr[0], indptr[-1])
            indptr = indptr - indptr[0]
        else:
            begin, length = self.indptr[rows], self.indptr[rows + 1]
            length -= begin
            indptr = np.concatenate([[0], np.cumsum(length)])
            which = np.repeat(begin - indptr[:-1], length) + np.arange(indptr[-1])
        values, indices = self.data[which], self.indices[which]
        if self.columns is not None:
            return restrict(values, indices, indptr, self.columns)
        return sp.csr_matrix((values, indices, indptr), shape=(len(indptr) - 1, self.shape[1]), copy=False)


def restrict(values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, columns: np.ndarray) -> sp.csr_matrix:
    """Return the sorted `columns` of a csr matrix given by its parts; the work does not grow with its width."""
    position = np.searchsorted(columns, indices)
    position[position == len(columns)] = 0
    inside = columns[position] == indices
    ends = np.concatenate([[0], np.cumsum(inside)])[indptr]
    shape = (len(indptr) - 1, len(columns))
    return sp.csr_matrix((values[inside], position[inside].astype(np.int32), ends), shape=shape, copy=False)


class MatrixWriter:
    """Writes a csr matrix to files, block of rows after block of rows.

    Parameters
    ----------
    base
        Path that the names of the files begin with. Files that exist are replaced.
    n_columns
        Columns of the matrix.
    """

    def __init__(self, base: Path, n_columns: int) -> None:
        self.base, self.n_columns, self.nnz = base, n_columns, 0
        for path in files_of(base):
            path.write_bytes(b"")
        files_of(base)[0].write_bytes(np.zeros(1, INDPTR).tobytes())

    def append(self, block: sp.csr_matrix) -> None:
        """Add rows below those written."""
        columns = (block.indptr[1:].astype(np.int64) + self.nnz, block.indices, block.data)
        for path, values, dtype in zip(files_of(self.base), columns, (INDPTR, INDICES, VALUES), strict=True):
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(values, dtype).data)
        self.nnz += block.nnz

    def finish(self) -> StoredMatrix:
        """Return what was written, to read from."""
        return StoredMatrix(self.base, self.n_columns)


def files_of(base: Path) -> tuple[Path, Path, Path]:
    """Return the three files of a matrix: row ends, columns, values."""
    return (
        base.with_name(f"{base.name}.indptr"),
        base.with_name(f"{base.name}.indices"),
        base.with_name(f"{base.name}.data"),
    )
