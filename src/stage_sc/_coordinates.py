"""Coordinates and units by the columns of obs and the metadata in uns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

# Names of columns of obs with coordinates, and µm per unit.
COORDINATE_COLUMNS = {
    ("x_centroid", "y_centroid"): 1.0,  # Xenium
    ("center_x", "center_y"): 1.0,  # MERSCOPE
    ("CenterX_global_px", "CenterY_global_px"): 0.12028,  # CosMx
}
ARRAY_COLUMNS = ("array_row", "array_col")


def words_in(name: str) -> set[str]:
    """Words of a name in lower case; digits are left out."""
    return {word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", str(name))}


def obs_coordinates(obs: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of numeric columns of obs that may be coordinates x and y by their names, the likeliest first."""
    numeric = {str(name) for name in obs.columns if _is_numeric(obs[name])}
    pairs = set()
    for x in numeric:
        for old, new in (("x", "y"), ("X", "Y"), ("col", "row"), ("Col", "Row"), ("1", "2"), ("0", "1"), ("_2", "_1")):
            for match in re.finditer(old, x):
                y = x[: match.start()] + new + x[match.end() :]
                spatial = re.search(r"spatial|coord|cent|pos|loc|sdim|pixel|px|global|^x|x$|^X|col", x, re.IGNORECASE)
                if y in numeric and spatial and (old not in ("1", "0") or words_in(x) & {"spatial", "coord", "sdim"}):
                    pairs.add((x, y))

    def rank(pair: tuple[str, str]) -> tuple[bool, ...]:
        name = pair[0].casefold()
        return (
            bool(re.search("umap|tsne|pca|pc_|count|gene", name)),
            pair not in COORDINATE_COLUMNS,
            "array" in name,
            "local" in name,
            "global" not in name,
        )

    ranked = sorted(pairs, key=lambda pair: (*rank(pair), len(pair[0]), pair))
    return [pair for pair in ranked if not rank(pair)[0]]


def _is_numeric(values: Any) -> bool:
    return (
        isinstance(values, pd.Series)
        and pd.api.types.is_numeric_dtype(values)
        and not pd.api.types.is_bool_dtype(values)
        and not pd.api.types.is_complex_dtype(values)
    )


def stack_columns(pair: tuple[str, str]) -> str:
    return f"adata.obs[[{pair[0]!r}, {pair[1]!r}]].to_numpy()"


def suggest_coordinates(obs: pd.DataFrame, spatial_key: str) -> str:
    """Sentence with the columns of obs that may be coordinates, and the line that stores them; "" without any."""
    pairs = obs_coordinates(obs)
    if not pairs:
        return ""
    others = "".join(f"; also {x!r} and {y!r}" for x, y in pairs[1:3])
    return (
        f"The columns {pairs[0][0]!r} and {pairs[0][1]!r} of obs may be these: "
        f"`adata.obsm[{spatial_key!r}] = {stack_columns(pairs[0])}`{others}. "
    )


def known_scale(obs: pd.DataFrame, rows: np.ndarray, xy: np.ndarray) -> float | None:
    """µm per unit from columns of obs with coordinates of known unit; `xy` are these scaled, rotated and shifted."""
    for pair, unit in COORDINATE_COLUMNS.items():
        if any(name not in obs or not _is_numeric(obs[name]) for name in pair):
            continue
        known = obs[list(pair)].iloc[rows].to_numpy(dtype=np.float64, na_value=np.nan)
        if not np.isfinite(known).all() or len(xy) < 4:
            continue
        a, b = xy - xy.mean(axis=0), known - known.mean(axis=0)
        norm = np.linalg.norm(a)
        factor = float(np.linalg.norm(b) / norm) if norm else 0.0
        left, _, right = np.linalg.svd(a.T @ b)  # the rotation or reflection that brings both together
        if factor and np.abs(a * factor @ (left @ right) - b).max() <= 1e-3 * np.abs(b).max():
            return float(f"{factor * unit:.6g}")
    return None


def image_scale(uns: Mapping[str, Any], name: str) -> float | None:
    """µm per pixel of the image of a slide in ``uns["spatial"]``; ``None`` if it is not there, or differs."""
    libraries = uns.get("spatial")
    if not isinstance(libraries, Mapping):
        return None
    chosen = [libraries[name]] if name in libraries else list(libraries.values())
    found = set()
    for library in chosen:
        factors = library.get("scalefactors") if isinstance(library, Mapping) else None
        value = factors.get("microns_per_pixel") if isinstance(factors, Mapping) else None
        if isinstance(value, int | float | np.number) and 0 < float(value) < np.inf:
            found.add(float(value))
    return found.pop() if len(found) == 1 else None


def check_array_indices(obs: pd.DataFrame, rows: np.ndarray, xy: np.ndarray, spatial_key: str, where: str) -> None:
    """Refuse spots placed by their row and column in a hexagonal array, which distorts the distances between them.

    Rows and columns are whole numbers, of which the sum is even for all spots, or odd for all.
    """
    if len(xy) < 16 or not (xy == np.round(xy)).all() or np.abs(xy).max() > 2**52:
        return
    steps = (xy - xy.min(axis=0)).astype(np.int64)
    unit = int(np.gcd.reduce(np.gcd.reduce(steps, axis=0)))
    if unit < 1 or np.ptp(steps.sum(axis=1) // unit % 2):
        return
    distance = cKDTree(steps / unit).query(steps[:2000] / unit, 2)[0][:, 1]
    if np.mean(np.abs(distance - np.sqrt(2)) < 1e-6) < 0.5:
        return
    row, column = (0, 1) if np.ptp(steps[:, 0]) < np.ptp(steps[:, 1]) else (1, 0)  # 78 rows, 128 columns
    if all(name in obs and _is_numeric(obs[name]) for name in ARRAY_COLUMNS):
        row, column = (0, 1) if np.array_equal(xy[:, 0], obs[ARRAY_COLUMNS[0]].iloc[rows]) else (1, 0)
    stored = f"adata.obsm[{spatial_key!r}]"
    factor = "" if unit == 1 else f" / {unit}"
    raise ValueError(
        f"{where}`{stored}` holds array indices, not coordinates: whole numbers whose sum is even for all {len(xy)} "
        "spots or odd for all, as rows and columns of Visium (nearest spots are 1.41 units apart, the next 2). In µm "
        f"(column {row} taken as the row, 100 µm between spots): `{stored} = np.c_[{stored}[:, {column}]{factor} * 50, "
        f"{stored}[:, {row}]{factor} * 86.6]`; or use the pixels of the positions file."
    )
