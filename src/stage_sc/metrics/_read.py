"""What the metrics read from an AnnData, with errors that say what to do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from stage_sc._checks import read_coordinates, read_slides

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stage_sc.metrics")

MISSING = -1
"""Code of a cell that has no label."""


def labels(adata: AnnData, key: str) -> np.ndarray:
    """`obs[key]` as integer codes, int64 (n,); `MISSING` where a cell has no label."""
    if key not in adata.obs:
        raise KeyError(f"no column {key!r} in adata.obs, which has {list(adata.obs.columns)}")
    column = adata.obs[key]
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


def slides(adata: AnnData, library_key: str | None) -> dict[str, np.ndarray]:
    """Row numbers of each slide by its name, sorted; all cells under "" without `library_key`."""
    names, codes = read_slides(adata, library_key)
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}


def coordinates(adata: AnnData, spatial_key: str) -> np.ndarray:
    """`obsm[spatial_key]`, float64 (n, 2) or (n, 3)."""
    xy = read_coordinates(adata, spatial_key)
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


def mean_over_slides(figure: Callable[[np.ndarray], float], rows_of: dict[str, np.ndarray]) -> float:
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
