"""Labels, slides, coordinates and graphs as the metrics need them, and undefined values."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_name
from stage_sc._input import (
    about,
    join_tables,
    read_coordinates,
    read_labels,
    read_slide_codes,
    read_tables,
    warn_if_overlapping,
)

logger = logging.getLogger("stage_sc.metrics")

MISSING = -1  # code of a cell without a label


def read(
    data: Any,
    library_key: str | None,
    table_key: str | Sequence[str] | None = None,
    *,
    obsm: Sequence[str] = (),
    obsp: Sequence[str] = (),
    at_once: bool = False,
) -> tuple[AnnData, dict[str, np.ndarray]]:
    """Join the objects of a container, and find the rows of each slide by its name, "" for a single one.

    Several objects are several slides, unless there is no `library_key` and the metric compares all cells `at_once`.
    """
    tables = read_tables(data, table_key=table_key)
    for name, keys in {"spatial_key": obsm, "connectivities_key": obsp}.items():
        for key in keys:
            check_name(key, name)
    for name, part in tables.by_name.items():
        for key in obsm:
            warn_if_overlapping(part, key, library_key, name)
        for key in obsp:
            if key not in part.obsp:
                run = "run st.pp.build_graph(adata) or set `connectivities_key`"
                raise KeyError(f"{about(name)}no graph in adata.obsp[{key!r}], only {list(part.obsp)}: {run}")
    adata = join_tables(tables, library_key, obsm=obsm, obsp=obsp)
    if library_key is None and at_once:
        return adata, {"": np.arange(adata.n_obs)}
    return adata, read_slide_codes(adata, library_key if tables.is_one_object else "slide").rows()


def label_codes(adata: AnnData, key: str, argument: str = "key") -> np.ndarray:
    """`obs[key]` as integer codes, int64 (n,); `MISSING` for cells without a label."""
    codes = pd.factorize(read_labels(adata, key, argument=argument))[0].astype(np.int64)
    if (codes == MISSING).all():
        raise ValueError(f"adata.obs[{key!r}] has no label for any of the {adata.n_obs} cells")
    return codes


def coordinates(adata: AnnData, spatial_key: str) -> np.ndarray:
    """`obsm[spatial_key]`, float64 (n, 2) or (n, 3); a ValueError if all cells are at the same place."""
    xy = read_coordinates(adata, spatial_key)
    if len(xy) > 1 and (xy == xy[0]).all():
        raise ValueError(f"adata.obsm[{spatial_key!r}] is {xy[0].tolist()} for all {len(xy)} cells: set `spatial_key`")
    return xy


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def undefined(metric: str, reason: str) -> float:
    """Log the reason why a metric has no value, and return NaN."""
    logger.warning("%s is not defined here and becomes NaN: %s", metric, reason)
    return float("nan")
