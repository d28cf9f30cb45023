"""Tables of cells in files, with expression left on disk: AnnData and SpatialData."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.experimental import read_elem_lazy
from anndata.io import read_elem

from stage_sc._containers import choose_tables
from stage_sc._files import existing, table_folder
from stage_sc._messages import naming

KINDS = "an .h5ad file, a zarr folder of AnnData, or a zarr folder of SpatialData"


def read_table(
    path: Path,
    *,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    layer: str | None = None,
    table_key: str | None = None,
    whole: bool = False,
) -> AnnData:
    """Read annotations, coordinates and genes of the cells with coordinates; ``X`` is a dask array, not read yet.

    `path` is an .h5ad file, a zarr folder of AnnData, or a zarr folder of SpatialData, of which `table_key` names the
    table (default: the only one). `spatial_key`, `library_key` and `layer` name coordinates, slide and counts.
    With `whole`, cells without coordinates are kept, and a table of SpatialData may have no coordinates. Errors name
    the file.
    """
    with naming(repr(str(path)), path.name), warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.OldFormatWarning)  # of categories of anndata 0.7
        group = _table(_open(path), path, table_key)
        X = read_elem_lazy(_get(group, ("layers", layer) if layer else ("X",), path))
        places = {spatial_key: group["obsm"][spatial_key]} if spatial_key in group.get("obsm", {}) else {}
        if whole and path.is_dir() and table_folder(path, table_key) != path:
            places |= {"global": group["obsm/global"]} if "global" in group.get("obsm", {}) else {}  # of CosMx
        elif not places:
            _get(group, ("obsm", spatial_key), path)
        if library_key:
            _get(group, ("obs", library_key), path)
        obsm = {key: _as_array(read_elem(stored)) for key, stored in places.items()}
        obs, var = read_elem(group["obs"]), read_elem(group["var"])  # by anndata, which knows old forms of categories
        obs.index = obs.index.astype(str)
        adata = ad.AnnData(X, obs=obs, var=var, obsm=obsm, uns=_read_uns(group))
        return adata if whole else with_coordinates(adata, spatial_key)[0]


def _as_array(stored: Any) -> np.ndarray:
    return stored.to_numpy() if isinstance(stored, pd.DataFrame) else np.asarray(stored)


def with_elements(path: Path, table_key: str | None, adata: AnnData, *, places: bool) -> Any:
    """Put a table of a SpatialData folder into a SpatialData with the attributes of the folder, with the platform.

    With `places`, shapes and labels are read too. An AnnData that is no table of SpatialData is returned as it is.
    """
    folder = table_folder(path, table_key)
    if not path.is_dir() or folder == path:
        return adata
    from spatialdata import SpatialData, read_zarr  # takes seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements that are left out
        elements = read_zarr(path, selection=("shapes", "labels")) if places else SpatialData()
        attrs = dict(zarr.open_group(path, mode="r").attrs)
        return SpatialData(shapes=elements.shapes, labels=elements.labels, tables={folder.name: adata}, attrs=attrs)


def with_coordinates(adata: AnnData, spatial_key: str) -> tuple[AnnData, np.ndarray]:
    """Return the cells with finite coordinates, and their positions among all, ``(n,)`` int64."""
    finite = np.isfinite(adata.obsm[spatial_key].astype(np.float64)).all(axis=1)
    return (adata if finite.all() else adata[finite].copy()), np.flatnonzero(finite)


def _read_uns(group: Any) -> dict[str, Any]:
    """Entries about regions and scale, without images."""
    uns: dict[str, Any] = {}
    if "spatialdata_attrs" in group.get("uns", {}):
        attrs = read_elem(group["uns/spatialdata_attrs"])
        uns["spatialdata_attrs"] = {key: np.asarray(value).tolist() for key, value in attrs.items()}
    spatial: Any = group["uns/spatial"] if "spatial" in group.get("uns", {}) else {}
    if hasattr(spatial, "items"):
        uns["spatial"] = {
            name: {key: read_elem(library[key]) for key in ("scalefactors", "metadata") if key in library}
            for name, library in spatial.items()
            if hasattr(library, "items")
        }
    return uns


def tables_of(path: Path, table_key: str | Sequence[str] | None) -> list[str | None]:
    """Names of the tables of a SpatialData folder that hold slides; ``[None]`` for the only table, or another file.

    `table_key` names tables; by default all that annotate elements of their own.
    """
    if not (path / "tables").is_dir():
        return [table_key] if isinstance(table_key, str) else [None]
    outlines = {}
    with naming(repr(str(path)), path.name):
        group = _open(path)["tables"]
        for key in sorted(group.keys()):
            outlines[key] = AnnData(uns=_read_uns(group[key]))
        if table_key is None and len(outlines) < 2:
            return [None]
        return list(choose_tables(outlines, path.name, table_key))


@contextmanager
def open_table(path: Path, table_key: str | None = None) -> Iterator[Any]:
    """Open the AnnData of a file or folder as a group of h5py or zarr, to read from."""
    root = _open(path)
    try:
        yield _table(root, path, table_key)
    finally:
        if path.is_file():
            root.close()


def _open(path: Path) -> Any:
    existing([path])
    try:
        return h5py.File(path, "r") if path.is_file() else zarr.open_group(path, mode="r")
    except (OSError, ValueError, RuntimeError, KeyError, zarr.errors.GroupNotFoundError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}). Expected is {KINDS}.") from error


def _table(group: Any, path: Path, table_key: str | None) -> Any:
    """Find the AnnData of a file: all of it, or a table of SpatialData."""
    if "tables" in group:
        tables = sorted(group["tables"].keys())
        if table_key is None and len(tables) != 1:
            raise ValueError(f"{str(path)!r} has the tables {', '.join(tables)}: pass `table_key`.")
        return _get(group, ("tables", table_key or tables[0]), path)
    if "mod" in group:
        modalities = sorted(group["mod"].keys()) or ["rna"]
        raise ValueError(
            f"{str(path)!r} is a MuData file with the modalities {', '.join(map(repr, modalities))}. Write the one "
            f"with counts and coordinates to a file of its own: `mudata.read({str(path)!r}).mod[{modalities[0]!r}]"
            '.write_h5ad("slide.h5ad")`.'
        )
    if "var" not in group or "obs" not in group:
        raise ValueError(f"{str(path)!r} holds no table of cells. Expected is {KINDS}.")
    if not all(hasattr(group[name], "keys") for name in ("obs", "var")):
        raise ValueError(
            f"{str(path)!r} has the layout of anndata before 0.7. Write it anew: `adata = anndata.read_h5ad("
            f"{str(path)!r})`, then `adata.write_h5ad(path)`."
        )
    return group


def _get(group: Any, keys: tuple[str, ...], path: Path) -> Any:
    """Element below a group; the error lists those that exist."""
    for key in keys:
        if key not in group:
            present = ", ".join(map(repr, sorted(group.keys()))) or "nothing"
            raise KeyError(f"{str(path)!r} has no {'/'.join(keys)!r}; at {key!r} there is {present}.")
        group = group[key]
    return group
