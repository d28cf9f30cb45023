"""Matrices of expression in an AnnData: read as they are stored, checked, and copied into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

# Largest value of expression: counts are below, differences of unsigned integers that overflow are above.
MAX_VALUE = 2.0**31


def read_matrix(adata: AnnData, layer: str | None = None) -> Any:
    """Return the matrix of `layer`, or ``adata.X``, as it is stored; a damaged sparse matrix is refused."""
    if layer is None:
        if adata.X is None:
            raise ValueError(
                f"`adata.X` is None. Pass `layer`, the entry of `adata.layers` with the counts. {find_counts(adata)}"
            )
        matrix = adata.X
    elif not isinstance(layer, str):
        raise TypeError(f"`layer` must be a key of `adata.layers`, got {layer!r} ({type(layer).__name__}).")
    elif layer in adata.layers:
        matrix = adata.layers[layer]
    else:
        present = ", ".join(repr(key) for key in adata.layers if key is not None) or "none"
        raise KeyError(f"`adata.layers[{layer!r}]` does not exist, layers are: {present}.")
    check_sparse(matrix)
    return matrix


def to_csr(X: Any, advice: Callable[[], str] = lambda: "Pass raw counts.") -> sp.csr_matrix:
    """Copy expression into memory as csr float32 with sorted indices and without explicit zeros.

    `X` is csr, csc or dense, of any real dtype; a view, a dask array, or a matrix on disk. Negative, NaN, infinite,
    masked and overflown values and damaged sparse matrices are refused; `advice` says where the counts are.
    """
    if hasattr(X, "compute"):  # dask
        X = X.compute(scheduler="synchronous")  # pools of threads hang after a fork
    if hasattr(X, "to_memory"):  # sparse matrix on disk
        X = X.to_memory()
    elif not sp.issparse(X):
        X = X[...]  # dense in memory or on disk
        if masked := int(np.ma.count_masked(X)):
            raise ValueError(f"Expression has {masked} masked values. Set them to 0, `X.filled(0)`, or drop the cells.")
        X = np.asarray(X)
    if X.dtype.kind not in "buif":
        raise TypeError(f"Expression must be real numbers, got dtype {X.dtype}. Convert it: `X.astype('float32')`.")
    check_sparse(X)
    with np.errstate(over="ignore"):  # infinite values are refused
        matrix = sp.csr_matrix(X, dtype=np.float32, copy=True)
    matrix.sum_duplicates()  # sorts too
    low, high = matrix.data.min(initial=0.0), matrix.data.max(initial=0.0)
    if not (np.isfinite(low) and np.isfinite(high)):  # NaN comes through min and max
        broken = int((~np.isfinite(matrix.data)).sum())
        raise ValueError(f"Expression has {broken} NaN or infinite values. Set them to 0 or drop the cells.")
    if low < 0:
        raise ValueError(
            f"Expression has {int((matrix.data < 0).sum())} negative values (smallest {low:g}): scaled or centred "
            f"data. {advice()}"
        )
    if high > MAX_VALUE:
        raise ValueError(
            f"Expression has values up to {high:g}, which no count reaches: an overflow of integers? Convert counts to "
            f"float32 before any arithmetic, and divide intensities. {advice()}"
        )
    if matrix.nnz and not matrix.data.all():
        matrix.eliminate_zeros()
    return matrix


def read_pairs(adata: AnnData, key: str) -> sp.csr_array:
    """Return ``adata.obsp[key]``, a dense or sparse matrix of finite numbers ``(n_cells, n_cells)``, as csr."""
    matrix, name = adata.obsp[key], f"`adata.obsp[{key!r}]`"
    matrix = matrix if sp.issparse(matrix) else np.asarray(matrix)
    if matrix.dtype.kind not in "buif" or matrix.shape != (adata.n_obs, adata.n_obs):
        raise ValueError(
            f"{name} must hold numbers for {adata.n_obs} x {adata.n_obs} cells, got {matrix.dtype} of shape "
            f"{matrix.shape}: run `st.pp.build_graph(adata)` again."
        )
    check_sparse(matrix, name)
    pairs = sp.csr_array(matrix)
    if bad := int((~np.isfinite(pairs.data)).sum()):
        raise ValueError(f"{name} has {bad} NaN or infinite values: run `st.pp.build_graph(adata)` again.")
    return pairs


def check_sparse(X: Any, name: str = "The expression") -> None:
    """Refuse a csr or csc matrix whose indices are outside of its shape, which scipy uses without a test."""
    if getattr(X, "format", "") not in ("csr", "csc"):
        return
    if sp.issparse(X):
        indptr, indices, n_values = X.indptr, X.indices[: X.indptr[-1]], len(X.data)
        width = X.shape[1 if X.format == "csr" else 0]
        inside = not len(indices) or (indices.min() >= 0 and indices.max() < width)
        lengths = len(X.indices), n_values
    elif hasattr(X, "group"):  # on disk: the rest is tested when rows are read
        indptr, inside = X.group["indptr"][:], True
        lengths = X.group["indices"].shape[0], X.group["data"].shape[0]
    else:
        return
    ordered = indptr[0] == 0 and (np.diff(indptr) >= 0).all() and lengths[0] == lengths[1] and indptr[-1] <= lengths[0]
    if not (inside and ordered):
        raise ValueError(
            f"{name}, a {X.format} matrix ({X.shape[0]} x {X.shape[1]}), is damaged: "
            + ("`indptr` does not increase from 0 to the number of values." if not ordered else "")
            + (f"`indices` reach from {indices.min()} to {indices.max()}, outside of the matrix." if ordered else "")
            + " Read or write the file anew."
        )


def find_counts(adata: AnnData, layer: str | None = None) -> str:
    """Sentence that names the matrices with whole numbers, where `layer` (``None``: ``adata.X``) is not one."""
    if layer is not None and holds_counts(adata.X):
        return "`adata.X` holds whole numbers: leave out `layer`."
    layers = sorted(
        (key for key in adata.layers if key not in (None, layer)), key=lambda key: ("count" not in key, key)
    )
    if found := [key for key in layers if holds_counts(adata.layers[key])]:
        others = f" (so do {', '.join(map(repr, found[1:]))})" if found[1:] else ""
        return f"`adata.layers[{found[0]!r}]` holds whole numbers{others}: pass `layer={found[0]!r}`."
    if adata.raw is not None and holds_counts(adata.raw.X):
        if not adata.var_names.isin(adata.raw.var_names).all():
            return "`adata.raw` holds whole numbers: pass `adata.raw.to_adata()`."
        key = "counts" if "counts" not in adata.layers else "raw_counts"
        return (
            f"`adata.raw` holds whole numbers: `adata.layers[{key!r}] = adata.raw[:, adata.var_names].X`, and pass "
            f"`layer={key!r}`."
        )
    return "Pass raw counts: neither `adata.X`, a layer nor `adata.raw` holds whole numbers."


def holds_counts(X: Any) -> bool:
    """Test the first rows of a matrix, up to 500, for whole numbers above 0."""
    if X is None or X.dtype.kind not in "uif":
        return False
    try:
        values = to_csr(X[:500], str).data
    except ValueError:
        return False
    return len(values) > 0 and np.array_equal(values, np.rint(values))
