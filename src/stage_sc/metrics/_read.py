"""Labels, slides, coordinates and graphs as the metrics need them, and values that are not defined."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stage_sc._input import join_tables, read_coordinates, read_labels, read_slide_codes, read_tables

logger = logging.getLogger("stage_sc.metrics")

MISSING = -1
"""Code of a cell that has no label."""


def read(
    data: Any, library_key: str | None, *, obsm: Sequence[str] = (), obsp: Sequence[str] = (), at_once: bool = False
) -> tuple[AnnData, dict[str, np.ndarray]]:
    """Join the objects of a container, and find the rows of each slide by its name.

    All cells are under "" for a single object without `library_key`. Several objects are slides of their own, unless
    `library_key` is ``None`` and the metric compares all cells `at_once`.
    """
    tables = read_tables(data)
    adata = join_tables(tables, library_key, obsm=obsm, obsp=obsp)
    if library_key is None and at_once:
        return adata, {"": np.arange(adata.n_obs)}
    key = library_key if adata is data else "slide"
    return adata, read_slide_codes(adata, key).rows()


def label_codes(adata: AnnData, key: str) -> np.ndarray:
    """`obs[key]` as integer codes, int64 (n,); `MISSING` where a cell has no label."""
    codes = pd.factorize(read_labels(adata, key))[0].astype(np.int64)
    if (codes == MISSING).all():
        raise ValueError(f"adata.obs[{key!r}] has no label for any of the {adata.n_obs} cells")
    return codes


def coordinates(adata: AnnData, spatial_key: str) -> np.ndarray:
    """`obsm[spatial_key]`, float64 (n, 2) or (n, 3); refused if all cells are at one place."""
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


def mean_over_slides(metric: Callable[[np.ndarray], float], rows_of: dict[str, np.ndarray]) -> float:
    """Mean of `metric(rows)` over the slides with equal weights; slides where it is NaN are left out."""
    return mean([metric(rows) for rows in rows_of.values()])


def mean(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def undefined(metric: str, reason: str) -> float:
    """Log why a metric has no value, and return NaN."""
    logger.warning("%s is not defined here and becomes NaN: %s", metric, reason)
    return float("nan")
