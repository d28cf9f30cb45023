"""Log-normalised expression from whatever a user keeps in `X`, without ever touching it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from stage_sc._checks import check_positive

logger = logging.getLogger("stage_sc.pp")

# Counts that went through a scaling and back are integers up to this.
COUNT_TOLERANCE = 2e-3
# log1p of any real count lies below (log1p(10^9) = 20.7); linear values of a section do not.
MAX_LOGGED = 25.0


def expression(adata: AnnData, layer: str | None = None) -> Any:
    """Return the matrix of `layer`, or ``adata.X``, as it is stored.

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If ``adata.X`` is ``None``.
    """
    if layer is None:
        if adata.X is None:
            raise ValueError("`adata.X` is None. Pass `layer`, the entry of `adata.layers` with the counts.")
        return adata.X
    if layer not in adata.layers:
        present = ", ".join(repr(key) for key in adata.layers if key is not None) or "none"
        raise KeyError(f"`adata.layers[{layer!r}]` does not exist, layers are: {present}.")
    return adata.layers[layer]


def to_csr(X: Any) -> sp.csr_matrix:
    """Copy expression into memory as csr float32 with sorted indices and without explicit zeros.

    Parameters
    ----------
    X
        ``(n_cells, n_genes)``: csr, csc, dense, of any numeric dtype; a view, a dask array, a matrix on disk.

    Raises
    ------
    ValueError
        If there are negative, NaN or infinite values.
    """
    if hasattr(X, "compute"):  # dask
        X = X.compute()
    if hasattr(X, "to_memory"):  # sparse matrix on disk
        X = X.to_memory()
    elif not sp.issparse(X):
        X = np.asarray(X[...])  # dense in memory or on disk
    matrix = sp.csr_matrix(X, dtype=np.float32, copy=True)
    matrix.sum_duplicates()  # sorts too
    matrix.eliminate_zeros()
    finite = np.isfinite(matrix.data)
    if not finite.all():
        raise ValueError(
            f"Expression has {int((~finite).sum())} NaN or infinite values. Set them to 0 or drop the cells."
        )
    negative = int((matrix.data < 0).sum())
    if negative:
        raise ValueError(
            f"Expression has {negative} negative values (smallest {matrix.data.min():g}): scaled or centred data. "
            "Pass raw counts, e.g. `layer='counts'`."
        )
    return matrix


def log_normalize(X: Any, *, target_sum: float | None = None) -> tuple[sp.csr_matrix, bool]:
    """Scale every cell to the same total and take ``log(1 + x)``, as scanpy does.

    Values that are whole numbers are counts. Others are taken as already logged where none is above 25 (and kept as
    they are, with a warning), and as linear values otherwise (scaled and logged, with a warning).

    Parameters
    ----------
    X
        ``(n_cells, n_genes)`` expression, see `to_csr`. It is not changed.
    target_sum
        Total of a cell after scaling. ``None``: the median total of the cells that have any.

    Returns
    -------
    ``(n_cells, n_genes)`` csr float32 with sorted indices, and whether `X` held counts. Empty cells stay empty.

    Raises
    ------
    ValueError
        If there are negative, NaN or infinite values, or `target_sum` is not positive.

    Notes
    -----
    One pass over the stored values. Counts are rounded to whole numbers first, whose totals are exact in float64: the
    result does not depend on the order of genes and cells.
    """
    if target_sum is not None:
        check_positive(target_sum, "target_sum")
    matrix = to_csr(X)
    rounded = np.rint(matrix.data)
    counts = bool(np.abs(matrix.data - rounded).max(initial=0) <= COUNT_TOLERANCE)
    if counts:
        matrix.data = rounded
    else:
        high = float(matrix.data.max())
        share = float(np.mean(np.abs(matrix.data - rounded) > COUNT_TOLERANCE))
        if high <= MAX_LOGGED:
            logger.warning(
                "Expression is no counts (%.0f %% of the values are not whole, largest %.3g): taken as already "
                "log-normalised and used as it is. Pass raw counts if you have them.",
                *(100 * share, high),
            )
            return matrix, False
        logger.warning(
            "Expression is no counts (%.0f %% of the values are not whole) and not logged (largest %.3g): scaled and "
            "logged. Pass raw counts if you have them.",
            *(100 * share, high),
        )
    total = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    filled = total > 0
    if target_sum is None:
        target_sum = float(np.median(total[filled])) if filled.any() else 1.0
    factor = np.divide(target_sum, total, out=np.zeros_like(total), where=filled)
    matrix.data = np.log1p(matrix.data * np.repeat(factor, np.diff(matrix.indptr))).astype(np.float32)
    return matrix, counts
