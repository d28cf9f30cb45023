"""One way in: any container of slides as named AnnData objects, and the columns read from these.

Objects are named in `_tables.py`; to support another container, extend `_containers.py`, which opens one.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._containers import check_anndata, open_container
from stage_sc._coordinates import check_array_indices, suggest_coordinates
from stage_sc._evidence import slide_column, warn_overlap
from stage_sc._matrix import read_pairs
from stage_sc._messages import element_name, naming
from stage_sc._tables import Attempts, Data, Errors, Tables, check_errors, entries_of, read_tables, slide_name

__all__ = [
    "Attempts",
    "Data",
    "Errors",
    "SlideCodes",
    "Tables",
    "about",
    "check_anndata",
    "check_columns",
    "check_errors",
    "entries_of",
    "join_tables",
    "open_container",
    "planar_coordinates",
    "read_coordinates",
    "read_labels",
    "read_slide_codes",
    "read_tables",
    "slide_name",
    "warn_if_overlapping",
]

logger = logging.getLogger("stage_sc")


class SlideCodes(NamedTuple):
    """Slide of every cell."""

    names: list[str]
    """Sorted names of the slides in use; ``[""]`` for a single slide without a key."""
    codes: np.ndarray
    """``(n_cells,)`` intp, position in `names`."""

    def rows(self) -> dict[str, np.ndarray]:
        """Row numbers of the cells of each slide, by its name."""
        return {name: np.flatnonzero(self.codes == code) for code, name in enumerate(self.names)}


def read_slide_codes(adata: AnnData, library_key: str | None = None) -> SlideCodes:
    """Read the slide of every cell from a column of ``adata.obs`` (categorical, strings or integers).

    ``None``: the slides of the stored graph or the regions of a SpatialData table, else one slide. ``""``: one slide.
    Names are sorted, so that the order of categories does not matter.
    """
    library_key = slide_column(adata) if library_key is None else library_key
    if not isinstance(library_key, str):
        raise TypeError(f"`library_key` must be the name of one column of obs, got {library_key!r}.")
    if library_key == "":
        return SlideCodes([""], np.zeros(adata.n_obs, dtype=np.intp))
    if library_key not in adata.obs:
        present = ", ".join(map(repr, adata.obs.columns)) or "nothing"
        raise KeyError(f"`library_key`: `adata.obs[{library_key!r}]` does not exist, obs holds {present}.")
    column = _one_column(adata, library_key)
    missing = int(column.isna().sum())
    if missing:
        raise ValueError(
            f"{missing} of {adata.n_obs} cells have no slide: missing values in `adata.obs[{library_key!r}]`. "
            f"Fill them, or drop the cells: `adata = adata[adata.obs[{library_key!r}].notna()].copy()`."
        )
    codes, names = pd.factorize(column.astype(str).to_numpy(dtype=object), sort=True)
    return SlideCodes([str(name) for name in names], codes.astype(np.intp))


def read_coordinates(adata: AnnData, spatial_key: str = "spatial", *, finite: bool = True) -> np.ndarray:
    """Copy the coordinates of all cells, ``(n_cells, 2 or 3)`` float64 in the unit of the data.

    ``adata.obsm[spatial_key]`` is an array or a data frame. NaN and infinite values are refused unless
    ``finite=False``.
    """
    if not isinstance(spatial_key, str) or not spatial_key:
        raise TypeError(f"`spatial_key` must be the name of one entry of obsm, got {spatial_key!r}.")
    if spatial_key not in adata.obsm:
        present = ", ".join(map(repr, adata.obsm)) or "nothing"
        raise KeyError(
            f"No coordinates: `adata.obsm[{spatial_key!r}]` does not exist, obsm holds {present}. "
            f"{suggest_coordinates(adata.obs, spatial_key)}"
            "Pass `spatial_key`, or store the coordinates as an (n_cells, 2) array."
        )
    try:
        xy = _as_numbers(adata.obsm[spatial_key])
    except (TypeError, ValueError) as error:
        raise TypeError(f"`adata.obsm[{spatial_key!r}]` must hold numbers: {error}.") from error
    if xy.ndim != 2 or xy.shape[1] not in (2, 3):
        raise ValueError(f"`adata.obsm[{spatial_key!r}]` must have shape (n_cells, 2), got {xy.shape}.")
    bad = int((~np.isfinite(xy).all(axis=1)).sum()) if finite else 0
    if bad:
        raise ValueError(
            f"{bad} of {len(xy)} cells have NaN or infinite coordinates in `adata.obsm[{spatial_key!r}]`. "
            "Remove them with `st.pp.filter_cells(adata)`."
        )
    return xy


def _as_numbers(stored: Any) -> np.ndarray:
    """Copy an array, a data frame or a sparse matrix of real numbers as float64; masked and missing ones become NaN."""
    if isinstance(stored, pd.DataFrame):
        for name, dtype in stored.dtypes.items():
            if dtype.kind != "O" and (not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype)):
                raise TypeError(f"column {name!r} is of type {dtype}")
        kind = object if any(dtype.kind == "O" for dtype in stored.dtypes) else np.float64
        stored = stored.to_numpy(dtype=kind, na_value=np.nan)
    stored = stored.toarray() if hasattr(stored, "toarray") else stored
    stored = stored.compute(scheduler="synchronous") if hasattr(stored, "compute") else stored
    values = np.ma.asanyarray(stored) if np.ma.isMaskedArray(stored) else np.asarray(stored)
    if values.dtype.kind == "O" and any(not isinstance(value, Real) for value in values.ravel()):
        raise TypeError("it holds other objects than numbers")
    if values.dtype.kind not in "iufO":
        raise TypeError(f"it is of type {values.dtype}")
    values = values.astype(np.float64)
    return values.filled(np.nan) if np.ma.isMaskedArray(values) else np.array(values)


def planar_coordinates(
    adata: AnnData, spatial_key: str, library_key: str | None, *, prefix: str = ""
) -> tuple[np.ndarray, SlideCodes]:
    """Read coordinates, ``(n_cells, 2)`` float64 as stored, and slides; refuse slides that cannot be triangulated.

    These have fewer than 4 cells, all cells on one line, or a varying third coordinate; one that is constant on each
    slide is dropped. `prefix` is the name of the object, put before the names of its slides in messages.
    """
    xy = read_coordinates(adata, spatial_key)
    slides = read_slide_codes(adata, library_key)
    if adata.n_obs == 0:
        raise ValueError(f"{about(prefix)}`adata` has no cells.")
    for name, rows in slides.rows().items():
        plane, depth, where = xy[rows, :2], xy[rows, 2:], about(slide_name(prefix, name))
        if len(plane) < 4:
            raise ValueError(
                f"{where}{len(plane)} cells are too few for a neighbourhood graph, which needs at least 4."
            )
        if depth.size and np.ptp(depth) > 0:
            raise ValueError(
                f"{where}the third coordinate in `adata.obsm[{spatial_key!r}]` varies from {depth.min():g} to "
                f"{depth.max():g}. Graphs are built in the plane: name the sections with `library_key`, or keep two "
                f'columns: `adata.obsm["xy"] = adata.obsm[{spatial_key!r}][:, :2]` and `spatial_key="xy"`.'
            )
        check_array_indices(adata.obs, rows, plane, spatial_key, where)
        extent = np.linalg.svd(plane - plane.mean(axis=0), compute_uv=False)
        rounding = 4 * np.finfo(float).eps * np.abs(plane).max() * np.sqrt(len(plane))
        if extent[1] <= max(1e-9 * extent[0], rounding):
            place = "on one line" if np.ptp(plane, axis=0).any() else "at the same place"
            raise ValueError(
                f"{where}all {len(plane)} cells lie {place} (`adata.obsm[{spatial_key!r}]`), but a graph needs "
                "coordinates in a plane. Are these the coordinates of the cells?"
            )
    if xy.shape[1] == 3:
        logger.info("The third coordinate is constant on each slide and was left out.")
    return np.ascontiguousarray(xy[:, :2]), slides


def warn_if_overlapping(adata: AnnData, spatial_key: str, library_key: str | None, name: str = "") -> None:
    """Warn if pieces of tissue lie on one place within a slide of the object `name`, as no graph tells."""
    slides, xy = read_slide_codes(adata, library_key), read_coordinates(adata, spatial_key)
    warn_overlap(adata, np.ascontiguousarray(xy[:, :2]), slides.rows(), spatial_key, about(name))


def read_labels(adata: AnnData, key: str, *, integers: bool = True, argument: str = "key") -> pd.Categorical:
    """Read categories, strings, bools or (unless ``integers=False``) integers of ``adata.obs[key]`` as categories.

    `argument` is the name of the argument with the key, for error messages.
    """
    if not isinstance(key, Hashable):
        raise TypeError(f"`{argument}`: a column of adata.obs is needed, got {key!r} ({type(key).__name__})")
    if key not in adata.obs:
        raise KeyError(f"`{argument}`: no column {key!r} in adata.obs, which has {list(adata.obs.columns)}")
    column = _one_column(adata, key)
    if isinstance(column.dtype, pd.CategoricalDtype):
        return pd.Categorical(column)
    objects = column.dropna() if column.dtype.kind == "O" else ()
    if column.dtype.kind in "Mmc" or not all(map(_is_label, objects)):
        raise TypeError(f"adata.obs[{key!r}] holds {column.dtype}, not labels: give a column of strings or integers")
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if numeric and not integers:
        raise TypeError(
            f"adata.obs[{key!r}] holds numbers ({column.dtype}), but categories are needed: use .astype('category'), "
            "or squidpy.pl.spatial_scatter(adata, color=..., shape=None) to draw values"
        )
    if numeric and (column.dropna() != column.dropna().round()).any():
        raise TypeError(
            f"adata.obs[{key!r}] holds continuous numbers ({column.dtype}), not labels: give a column of "
            "categories, strings or integers"
        )
    return pd.Categorical(column.astype(object))


def _is_label(value: Any) -> bool:
    """Test for a string, a bool or a whole number."""
    return isinstance(value, str | np.bool_) or (isinstance(value, Real) and float(value).is_integer())


def check_columns(adata: AnnData, name: str = "adata") -> None:
    """Raise a ValueError if two columns of obs or var have one name: anndata cannot subset or join such objects."""
    for part, table in {"obs": adata.obs, "var": adata.var}.items():
        if repeated := list(table.columns[table.columns.duplicated()]):
            raise ValueError(f"`{name}.{part}` has several columns {repeated[0]!r}: drop or rename all but one.")


def _one_column(adata: AnnData, key: Hashable) -> pd.Series:
    """Return a column of ``adata.obs``; a ValueError if several have the name."""
    column = adata.obs[key]
    if isinstance(column, pd.DataFrame):
        raise ValueError(f"`adata.obs` has {column.shape[1]} columns {key!r}: drop or rename all but one.")
    return column


def join_tables(
    tables: Tables, library_key: str | None, *, obsm: Sequence[str] = (), obsp: Sequence[str] = ()
) -> AnnData:
    """Join the annotations of the objects of a container, without expression; slides are in ``obs["slide"]``.

    A single object is returned as it is. `library_key` names the slides of objects with several; the entries `obsm` and
    `obsp` are joined.
    """
    if tables.is_one_object:
        return tables.by_name[""]
    parts, xy = {}, {}
    for name, part in tables.by_name.items():
        check_columns(part, f"data[{name!r}]")
        with naming(element_name("data", name), repr(name)):
            xy[name] = {key: read_coordinates(part, key) for key in obsm}
            pairs = {key: read_pairs(part, key) for key in obsp}
        slides = read_slide_codes(part, library_key)
        names = np.array([slide_name(name, slide) for slide in slides.names], dtype=object)
        parts[name] = AnnData(
            obs=part.obs.assign(slide=pd.Categorical(names[slides.codes], categories=names)),
            obsm=xy[name],
            obsp=pairs,
        )
    for key in obsm:
        widths = {name: values[key].shape[1] for name, values in xy.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"`obsm[{key!r}]` of the objects must have one number of columns, got {widths}.")
    return ad.concat(parts, join="outer", index_unique="/", pairwise=True)


def about(slide: str) -> str:
    """Beginning of a message about one slide."""
    return f"Slide {slide!r}: " if slide else ""
