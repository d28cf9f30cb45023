"""Stacks of aligned serial sections: the height of every cell, and the sections of every stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

# Least number of cells of a section on average; with fewer the heights are those of single cells.
CELLS_PER_SECTION = 4


def add_heights(adata: AnnData, xy: np.ndarray, spatial_key: str, z_key: str) -> np.ndarray:
    """Coordinates with heights as third column, ``(n_cells, 3)`` float64.

    Heights are the column `z_key` of obs, in µm, or the third column of `xy`, in its unit, for `z_key` equal to
    `spatial_key`.
    """
    if not isinstance(z_key, str) or not z_key:
        raise TypeError(f"`z_key` must be the name of one column of obs, or `spatial_key`, got {z_key!r}.")
    if z_key in adata.obs:
        column = adata.obs[z_key]
        if isinstance(column, pd.DataFrame):
            raise ValueError(f"`adata.obs` has {column.shape[1]} columns {z_key!r}: drop or rename all but one.")
        if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
            raise TypeError(
                f"`z_key`: `adata.obs[{z_key!r}]` must hold heights in µm, got {column.dtype}. For numbered sections: "
                f"`adata.obs['z'] = number * distance`, and `z_key='z'`."
            )
        heights = column.to_numpy(dtype=np.float64, na_value=np.nan)
    elif z_key != spatial_key:
        present = ", ".join(map(repr, adata.obs.columns)) or "nothing"
        raise KeyError(f"`z_key`: `adata.obs[{z_key!r}]` does not exist, obs holds {present}.")
    elif xy.shape[1] == 3:
        heights = xy[:, 2]
    else:
        raise ValueError(
            f"`z_key={z_key!r}`: `adata.obsm[{spatial_key!r}]` has two columns, and no third with heights."
        )
    if bad := int((~np.isfinite(heights)).sum()):
        raise ValueError(f"{bad} of {len(heights)} cells have no height: NaN or infinite values by `z_key={z_key!r}`.")
    return np.column_stack([xy[:, :2], heights])


def split_stacks(xyz: np.ndarray, rows: Mapping[str, np.ndarray], z_key: str) -> dict[str, np.ndarray]:
    """Cells of every section of every slide, by ``"slide z=height"``.

    A ValueError if heights are those of single cells.
    """
    found: dict[str, np.ndarray] = {}
    for name, cells in rows.items():
        heights, section = np.unique(xyz[cells, 2], return_inverse=True)
        if len(heights) > max(1, len(cells) / CELLS_PER_SECTION):
            raise ValueError(
                f"`z_key={z_key!r}`: {len(cells)} cells have {len(heights)} different heights, but a stack is made of "
                "flat sections with one height each. Round the heights to those of the sections."
            )
        order = np.argsort(section, kind="stable")
        parts = np.split(cells[order], np.cumsum(np.bincount(section))[:-1])
        names = (f"{name} z={height:.12g}".strip() for height in heights)
        found |= dict(zip(names, parts, strict=True))
    return found


def check_stacks(xyz: np.ndarray, rows: Mapping[str, np.ndarray], z_key: str, where: str) -> None:
    """Raise a ValueError if no slide has two heights: sections are taken as slides, and nothing would be joined."""
    if all(np.ptp(xyz[cells, 2]) == 0 for cells in rows.values()):
        raise ValueError(
            f"{where}`z_key={z_key!r}`: all cells of a slide have one height, so that there are no sections to join. "
            "With `z_key` a slide is a whole stack: pass `library_key=''` for a single stack, or the column of obs "
            "that names the stacks; join sections in several objects first, `anndata.concat(sections, join='outer')`."
        )


def largest_section(xyz: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Cells of the section with most of some `cells`; all of them for coordinates without heights."""
    if xyz.shape[1] == 2:
        return cells
    heights, section = np.unique(xyz[cells, 2], return_inverse=True)
    return cells[section == np.bincount(section, minlength=len(heights)).argmax()]


def in_micrometres(xyz: np.ndarray, scale: float | np.ndarray, params: Mapping[str, Any]) -> np.ndarray:
    """Coordinates in µm with `scale` µm per unit; heights from a column of obs, by the `params` of a graph, are µm."""
    scaled = xyz * np.reshape(scale, (-1, 1))
    if xyz.shape[1] == 3 and params.get("z_key") != params["spatial_key"]:
        scaled[:, 2] = xyz[:, 2]
    return scaled


def known_sections(
    adata: AnnData, xy: np.ndarray, rows: Mapping[str, np.ndarray], spatial_key: str
) -> Mapping[str, np.ndarray]:
    """Cells of every section of every slide if the graph of `adata` is that of stacks, else `rows`."""
    state = adata.uns.get("stage_graph")
    params = state.get("params") if isinstance(state, Mapping) else None
    z_key = params.get("z_key") if isinstance(params, Mapping) else None
    if not isinstance(z_key, str) or not (z_key in adata.obs or (z_key == spatial_key and xy.shape[1] == 3)):
        return rows
    return split_stacks(add_heights(adata, xy, spatial_key, z_key), rows, z_key)
