"""Slides in files: the table of cells, with expression left on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.experimental import read_elem_lazy
from anndata.io import read_elem

KINDS = "an .h5ad file, a zarr folder of AnnData, or a zarr folder of SpatialData"


def read_table(
    path: Path,
    *,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    layer: str | None = None,
    table_key: str | None = None,
) -> AnnData:
    """Read names, coordinates, slides and genes of the cells with coordinates; ``X`` is a dask array, not read yet.

    `path` is an .h5ad file, a zarr folder of AnnData, or a zarr folder of SpatialData, of which `table_key` names the
    table (default: the only one). `spatial_key`, `library_key` and `layer` name coordinates, slide and counts; nothing
    else is read.
    """
    group = _table(_open(path), path, table_key)
    X = read_elem_lazy(_get(group, ("layers", layer) if layer else ("X",), path))
    xy = read_elem(_get(group, ("obsm", spatial_key), path))
    xy = xy.to_numpy() if isinstance(xy, pd.DataFrame) else np.asarray(xy)
    index = str(group["obs"].attrs["_index"])
    obs = pd.DataFrame(index=pd.Index(np.asarray(read_elem(group["obs"][index]))).astype(str))
    if library_key is not None:
        obs[library_key] = pd.Series(read_elem(_get(group, ("obs", library_key), path)), index=obs.index)
    adata = ad.AnnData(X, obs=obs, var=read_elem(group["var"]), obsm={spatial_key: xy})
    finite = np.isfinite(xy.astype(np.float64)).all(axis=1)
    return adata if finite.all() else adata[finite].copy()


def existing(files: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return at least one path, and raise if one does not exist."""
    paths = [Path(file) for file in files]
    if not paths:
        raise ValueError("`files` is empty.")
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
    return paths


def _open(path: Path) -> Any:
    existing([path])
    try:
        return h5py.File(path, "r") if path.is_file() else zarr.open_group(path, mode="r")
    except (OSError, ValueError, zarr.errors.GroupNotFoundError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}). Expected is {KINDS}.") from error


def _table(group: Any, path: Path, table_key: str | None) -> Any:
    """Find the AnnData of a file: all of it, or a table of SpatialData."""
    if "tables" in group:
        tables = sorted(group["tables"].keys())
        if table_key is None and len(tables) != 1:
            raise ValueError(f"{str(path)!r} has the tables {', '.join(tables)}: pass `table_key`.")
        return _get(group, ("tables", table_key or tables[0]), path)
    if "var" not in group or "obs" not in group:
        raise ValueError(f"{str(path)!r} holds no table of cells. Expected is {KINDS}.")
    return group


def _get(group: Any, keys: tuple[str, ...], path: Path) -> Any:
    """Element below a group; the error lists those that exist."""
    for key in keys:
        if key not in group:
            present = ", ".join(map(repr, sorted(group.keys()))) or "nothing"
            raise KeyError(f"{str(path)!r} has no {'/'.join(keys)!r}; at {key!r} there is {present}.")
        group = group[key]
    return group


def stamp(path: Path) -> tuple[int, int]:
    """Size of a file, or of all files in a folder, and time of the last change in ns."""
    stats = [one.stat() for one in (path.rglob("*") if path.is_dir() else [path]) if one.is_file()]
    return sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file in a temporary folder beside its place and move it there, so that no reader sees a part of it."""
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        part = Path(folder) / path.name
        write(part)
        part.replace(path)
