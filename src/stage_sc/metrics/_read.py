"""What the metrics read from an AnnData, with errors that say what to do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stage_sc.metrics")

MISSING = -1
"""Code of a cell that has no label."""


def labels(adata: AnnData, key: str) -> np.ndarray:
    """`obs[key]` as integer codes, int64 (n,); `MISSING` where a cell has no label."""
    column = _column(adata, key)
    if pd.api.types.is_float_dtype(column.dtype):
        values = column.dropna().to_numpy(dtype=float)
        if (values != np.round(values)).any():
            raise TypeError(
                f"adata.obs[{key!r}] holds continuous numbers ({column.dtype}), not labels: give a column of "
                "categories, strings or integers"
            )
    codes = pd.factorize(column)[0].astype(np.int64)
    if (codes == MISSING).all():
        raise ValueError(f"adata.obs[{key!r}] has no label for any of the {adata.n_obs} cells")
    return codes


def slides(adata: AnnData, library_key: str | None) -> dict[Hashable, np.ndarray]:
    """Row numbers of each slide by its name; all cells under "" without `library_key`."""
    if library_key is None:
        return {"": np.arange(adata.n_obs)}
    column = pd.Categorical(_column(adata, library_key)).remove_unused_categories()
    missing = int((column.codes == MISSING).sum())
    if missing:
        raise ValueError(
            f"adata.obs[{library_key!r}] is missing for {missing} of {adata.n_obs} cells: name their slide or leave "
            f"them out with adata[adata.obs[{library_key!r}].notna()]"
        )
    return {name: np.flatnonzero(column.codes == code) for code, name in enumerate(column.categories)}


def coordinates(adata: AnnData, spatial_key: str) -> np.ndarray:
    """`obsm[spatial_key]`, float64 (n, 2) or (n, 3)."""
    if spatial_key not in adata.obsm:
        raise KeyError(
            f"no coordinates in adata.obsm[{spatial_key!r}], which has {list(adata.obsm)}: set `spatial_key`"
        )
    xy = np.asarray(adata.obsm[spatial_key], dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] not in (2, 3):
        raise ValueError(f"adata.obsm[{spatial_key!r}] must have two or three columns; its shape is {xy.shape}")
    bad = int((~np.isfinite(xy).all(axis=1)).sum())
    if bad:
        raise ValueError(
            f"adata.obsm[{spatial_key!r}] is NaN or infinite for {bad} of {len(xy)} cells: leave them out with "
            f"adata[np.isfinite(adata.obsm[{spatial_key!r}]).all(axis=1)]"
        )
    if len(xy) > 1 and (xy == xy[0]).all():
        raise ValueError(f"adata.obsm[{spatial_key!r}] is {xy[0].tolist()} for all {len(xy)} cells: set `spatial_key`")
    return xy


def graph(adata: AnnData, connectivities_key: str) -> sparse.csr_array:
    """`obsp[connectivities_key]` as a csr array (n, n)."""
    if connectivities_key not in adata.obsp:
        raise KeyError(
            f"no graph in adata.obsp[{connectivities_key!r}], which has {list(adata.obsp)}: "
            "run st.pp.build_graph(adata) or set `connectivities_key`"
        )
    return sparse.csr_array(adata.obsp[connectivities_key])


def mean_over_slides(figure: Callable[[np.ndarray], float], rows_of: dict[Hashable, np.ndarray]) -> float:
    """Mean of `figure(rows)` over the slides, each counting the same; those where it is NaN are left out."""
    return mean([figure(rows) for rows in rows_of.values()])


def mean(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def undefined(metric: str, reason: str) -> float:
    """Log why a metric has no value, and return NaN."""
    logger.warning("%s is not defined here and becomes NaN: %s", metric, reason)
    return float("nan")


def _column(adata: AnnData, key: str) -> pd.Series:
    if key not in adata.obs:
        raise KeyError(f"no column {key!r} in adata.obs, which has {list(adata.obs.columns)}")
    return adata.obs[key]
