"""Checks of what a user hands in, shared by every public function: they read, never write, and their errors teach."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

logger = logging.getLogger("stage_sc")


class Slides(NamedTuple):
    """Which slide every cell belongs to."""

    names: list[str]
    """Sorted names of the slides in use; ``[""]`` for a single slide without a key."""
    codes: np.ndarray
    """``(n_cells,)`` intp, position in `names`."""


def check_anndata(adata: Any, *, name: str = "adata") -> AnnData:
    """Return `adata` if it is an AnnData.

    Raises
    ------
    TypeError
        For anything else; the message says how to get an AnnData from a SpatialData object or a list.
    """
    if isinstance(adata, AnnData):
        if not isinstance(adata.obs, pd.DataFrame):
            raise TypeError(
                f"`{name}.obs` is a {type(adata.obs).__name__}, which was not read from disk yet. Read all but the "
                f"expression: `AnnData({name}.X, obs={name}.obs.to_memory(), var={name}.var.to_memory(), "
                f"obsm=dict({name}.obsm))`."
            )
        return adata
    hint = "Read a file with `scanpy.read_h5ad(path)`."
    if hasattr(adata, "tables"):
        tables = ", ".join(repr(key) for key in adata.tables) or "none"
        hint = f'Pass one of its tables, e.g. `sdata.tables["table"]` (tables here: {tables}).'
    elif isinstance(adata, list | tuple | dict):
        hint = 'Join the slides first: `anndata.concat(slides, label="slide", pairwise=True)`, and pass `library_key`.'
    raise TypeError(f"`{name}` must be an AnnData object, got {type(adata).__name__}. {hint}")


def check_positive(value: Any, name: str, *, integer: bool = False) -> None:
    """Raise unless `value` is a finite number above 0 (TypeError for other types, ValueError for other values)."""
    kind = Integral if integer else Real
    if isinstance(value, bool | np.bool_) or not isinstance(value, kind):
        what = "an integer" if integer else "a number"
        raise TypeError(f"`{name}` must be {what} above 0, got {value!r} ({type(value).__name__}).")
    if not 0 < float(value) < np.inf:
        raise ValueError(f"`{name}` must be above 0 and finite, got {value!r}.")


def check_choice(value: Any, name: str, choices: Iterable[str]) -> None:
    """Raise a ValueError naming the valid `choices` unless `value` is one of them."""
    valid = list(choices)
    if value not in valid:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, valid))}, got {value!r}.")


def read_coordinates(adata: AnnData, spatial_key: str = "spatial") -> np.ndarray:
    """Read the coordinates of all cells as they are stored, checked.

    Parameters
    ----------
    adata
        Cells.
    spatial_key
        Entry of ``adata.obsm``, an array or a data frame with two columns (or three, the third for `slide_coordinates`
        to judge).

    Returns
    -------
    A fresh ``(n_cells, 2 or 3)`` float64 array, in the unit of the data.

    Raises
    ------
    KeyError
        If ``adata.obsm[spatial_key]`` does not exist.
    TypeError
        If it does not hold numbers.
    ValueError
        If it has another shape, or NaN or infinite values.
    """
    if spatial_key not in adata.obsm:
        present = ", ".join(map(repr, adata.obsm)) or "nothing"
        raise KeyError(
            f"No coordinates: `adata.obsm[{spatial_key!r}]` does not exist, obsm holds {present}. "
            "Pass `spatial_key`, or store the coordinates as an (n_cells, 2) array."
        )
    stored = adata.obsm[spatial_key]
    stored = stored.to_numpy() if isinstance(stored, pd.DataFrame) else stored
    stored = stored.toarray() if hasattr(stored, "toarray") else stored
    try:
        xy = np.array(stored, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`adata.obsm[{spatial_key!r}]` must hold numbers: {error}.") from error
    if xy.ndim != 2 or xy.shape[1] not in (2, 3):
        raise ValueError(f"`adata.obsm[{spatial_key!r}]` must have shape (n_cells, 2), got {xy.shape}.")
    bad = int((~np.isfinite(xy).all(axis=1)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(xy)} cells have NaN or infinite coordinates in `adata.obsm[{spatial_key!r}]`. "
            "Remove them with `st.pp.filter_cells(adata)`."
        )
    return xy


def read_slides(adata: AnnData, library_key: str | None = None) -> Slides:
    """Read which slide every cell belongs to.

    Parameters
    ----------
    adata
        Cells.
    library_key
        Column of ``adata.obs`` (categorical, strings or integers). ``None`` or ``""``: all cells are one slide.

    Returns
    -------
    Names (sorted, so that the order of categories does not matter) and codes.

    Raises
    ------
    KeyError
        If the column does not exist.
    ValueError
        If it has missing values.
    """
    if library_key is None or library_key == "":
        return Slides([""], np.zeros(adata.n_obs, dtype=np.intp))
    if library_key not in adata.obs:
        present = ", ".join(map(repr, adata.obs.columns)) or "nothing"
        raise KeyError(f"`library_key`: `adata.obs[{library_key!r}]` does not exist, obs holds {present}.")
    column = adata.obs[library_key]
    missing = int(column.isna().sum())
    if missing:
        raise ValueError(
            f"{missing} of {adata.n_obs} cells have no slide: missing values in `adata.obs[{library_key!r}]`. "
            f"Fill them, or drop the cells: `adata = adata[adata.obs[{library_key!r}].notna()].copy()`."
        )
    codes, names = pd.factorize(column.astype(str).to_numpy(dtype=object), sort=True)
    return Slides([str(name) for name in names], codes.astype(np.intp))


def slide_coordinates(adata: AnnData, spatial_key: str, library_key: str | None) -> tuple[np.ndarray, Slides]:
    """Read coordinates and slides, and check that every slide can be triangulated.

    Parameters
    ----------
    adata
        Cells.
    spatial_key, library_key
        See `read_coordinates` and `read_slides`. A third coordinate that is constant on each slide is dropped.

    Returns
    -------
    ``(n_cells, 2)`` float64 coordinates as stored, and the slides.

    Raises
    ------
    KeyError, TypeError
        As `read_coordinates` and `read_slides`.
    ValueError
        As these; and for a slide with fewer than 4 cells, all cells on one line, or a varying third coordinate.
    """
    xy = read_coordinates(adata, spatial_key)
    slides = read_slides(adata, library_key)
    if adata.n_obs == 0:
        raise ValueError("`adata` has no cells.")
    for code, name in enumerate(slides.names):
        here = xy[slides.codes == code]
        prefix = slide_prefix(name)
        if len(here) < 4:
            raise ValueError(
                f"{prefix}{len(here)} cells are too few for a neighbourhood graph, which needs at least 4."
            )
        if here.shape[1] == 3 and np.ptp(here[:, 2]) > 0:
            raise ValueError(
                f"{prefix}the third coordinate in `adata.obsm[{spatial_key!r}]` varies from {here[:, 2].min():g} to "
                f"{here[:, 2].max():g}. Graphs are built in the plane: name the sections with `library_key`, or keep "
                f'two columns: `adata.obsm["xy"] = adata.obsm[{spatial_key!r}][:, :2]` and `spatial_key="xy"`.'
            )
        spread = np.linalg.svd(here[:, :2] - here[:, :2].mean(axis=0), compute_uv=False)
        if spread[1] <= 1e-9 * max(spread[0], np.abs(here[:, :2]).max()):
            what = "on one line" if np.ptp(here[:, :2], axis=0).any() else "at the same place"
            raise ValueError(
                f"{prefix}all {len(here)} cells lie {what} (`adata.obsm[{spatial_key!r}]`), where no neighbourhoods "
                "exist. Are these really the coordinates of the cells?"
            )
    if xy.shape[1] == 3:
        logger.info("The third coordinate is constant on each slide and was left out.")
    return np.ascontiguousarray(xy[:, :2]), slides


def slide_prefix(slide: str) -> str:
    """Start of a log line or an error about one slide."""
    return f"Slide {slide!r}: " if slide else ""
