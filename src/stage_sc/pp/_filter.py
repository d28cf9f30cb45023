"""Quality control before the graph: rare genes and cells without coordinates."""

from __future__ import annotations

import logging
import math
from functools import partial

import numpy as np
from anndata import AnnData

from stage_sc._checks import check_bool, check_positive
from stage_sc._input import check_anndata, check_columns, read_coordinates
from stage_sc._matrix import find_counts, read_matrix, to_csr
from stage_sc.genes import is_control

logger = logging.getLogger("stage_sc.pp")


def filter_cells(adata: AnnData, *, spatial_key: str = "spatial", copy: bool = False) -> AnnData | int:
    """Remove cells without coordinates (NaN or infinite); cells without counts stay.

    Parameters
    ----------
    adata
        Cells in memory.
    spatial_key
        Entry of ``adata.obsm`` with the coordinates.
    copy
        Return a filtered copy instead of changing `adata`.

    Returns
    -------
    Number of removed cells, or the filtered copy if ``copy=True``.

    Raises
    ------
    KeyError
        If the coordinates do not exist.
    ValueError
        If no cell would be left, or `adata` is backed.

    Examples
    --------
    >>> import anndata as ad, numpy as np, stage_sc as st
    >>> adata = ad.AnnData(np.ones((3, 2)), obsm={"spatial": np.array([[0.0, 1.0], [np.nan, 1.0], [2.0, 2.0]])})
    >>> st.pp.filter_cells(adata)
    1
    >>> adata.n_obs
    2
    """
    _check_in_memory(adata)
    check_bool(copy, "copy")
    keep = np.isfinite(read_coordinates(adata, spatial_key, finite=False)).all(axis=1)
    if not keep.any():
        raise ValueError(f"None of the {adata.n_obs} cells has coordinates in `adata.obsm[{spatial_key!r}]`.")
    removed = int((~keep).sum())
    logger.info("Removed %d of %d cells without coordinates.", removed, adata.n_obs)
    adata = adata.copy() if copy else adata
    if removed:
        adata._inplace_subset_obs(keep)
    return adata if copy else removed


def filter_genes(adata: AnnData, *, min_cells: int = 50, layer: str | None = None, copy: bool = False) -> AnnData | int:
    """Remove genes with counts in too few cells, and control probes.

    Parameters
    ----------
    adata
        Cells in memory.
    min_cells
        Minimum number of cells with counts of a gene, or 1 % of the cells if that is less (for small sections).
    layer
        Entry of ``adata.layers`` with the counts. ``None``: ``adata.X``.
    copy
        Return a filtered copy instead of changing `adata`.

    Returns
    -------
    Number of removed genes, or the filtered copy if ``copy=True``.

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If no gene would be left, values are negative, NaN or infinite, or `adata` is backed.

    Notes
    -----
    The paper uses 50 cells (F.3.1). Control probes and other features that are no genes are recognised by
    name (``NegControlProbe_…``, ``BLANK_…`` …), in ``adata.var_names`` or columns of ``adata.var`` with names, and by
    columns with types (``feature_types`` …).

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, stage_sc as st
    >>> adata = ad.AnnData(np.array([[1.0, 0, 2], [3, 0, 1]]), var=pd.DataFrame(index=["GAD1", "PVALB", "BLANK_0001"]))
    >>> st.pp.filter_genes(adata)
    2
    >>> adata.var_names.tolist()
    ['GAD1']
    """
    _check_in_memory(adata)
    check_bool(copy, "copy")
    check_positive(min_cells, "min_cells", integer=True)
    n_cells = to_csr(read_matrix(adata, layer), partial(find_counts, adata, layer)).getnnz(axis=0)
    needed = min(min_cells, math.ceil(0.01 * adata.n_obs))
    rare, control = n_cells < needed, np.array(is_control(adata.var))
    keep = ~rare & ~control
    if not keep.any():
        raise ValueError(f"None of the {adata.n_vars} genes has counts in {needed} of {adata.n_obs} cells (`layer`?).")
    removed = int((~keep).sum())
    logger.info(
        "Removed %d of %d genes: %d control probes or other features, %d others with counts in fewer than %d cells.",
        *(removed, adata.n_vars, control.sum(), (rare & ~control).sum(), needed),
    )
    adata = adata.copy() if copy else adata
    if removed:
        adata._inplace_subset_var(keep)
    return adata if copy else removed


def _check_in_memory(adata: AnnData) -> None:
    check_anndata(adata)
    if adata.isbacked:
        raise ValueError("A backed object cannot be filtered: read it first, `adata = adata.to_memory()`.")
    check_columns(adata)
    if adata.n_obs == 0:
        raise ValueError("`adata` has no cells.")
