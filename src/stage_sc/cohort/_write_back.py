"""Results into an AnnData on disk, of which nothing else changes and nothing is lost when the process is killed."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem, write_elem
from zarr.storage import LocalStore, WrapperStore

from stage_sc._file_tables import open_table
from stage_sc._files import part_of, remove_parts, table_folder, writing
from stage_sc._messages import naming

# Names of the metadata of a group with the attributes, and with the metadata of everything below, by format of zarr.
ATTRIBUTES = {2: ".zattrs", 3: "zarr.json"}
CONSOLIDATED = {2: ".zmetadata", 3: "zarr.json"}


class Change(NamedTuple):
    """Entries of an AnnData that are written, and those that are removed before."""

    obs: pd.DataFrame
    """``(n_cells, k)`` new columns, of all cells of the file."""
    obsm: dict[str, np.ndarray]
    uns: dict[str, Any]
    removed: list[str]
    """Paths such as ``"obs/stage_l1"``; absent ones are no error."""

    @property
    def written(self) -> list[str]:
        """Paths of the new entries; those of ``uns``, which tell that the others are results, come first."""
        parts: dict[str, Iterable[str]] = {"uns": self.uns, "obs": self.obs, "obsm": self.obsm}
        return [f"{part}/{name}" for part, names in parts.items() for name in names]

    def columns(self, before: Iterable[str]) -> list[str]:
        """Names of all columns of obs afterwards, given those `before`."""
        gone = {path.removeprefix("obs/") for path in [*self.removed, *self.written] if path.startswith("obs/")}
        return [*(name for name in before if name not in gone), *self.obs]

    def value(self, path: str) -> Any:
        """Return the new entry at a path."""
        part, name = path.split("/", 1)
        if part != "obs":
            return getattr(self, part)[name]
        column = self.obs[name]
        return column.array if isinstance(column.dtype, pd.CategoricalDtype) else column.to_numpy()


def read_outline(path: Path, table_key: str | None, key_added: str) -> AnnData:
    """Names of the columns of obs and of the entries of obsm in a file, and ``uns[key_added]``; no cells."""
    with open_table(path, table_key) as group:
        uns = {key_added: read_elem(group[f"uns/{key_added}"])} if key_added in group.get("uns", {}) else {}
        columns = _texts(group["obs"].attrs["column-order"])
        adata = AnnData(obs=pd.DataFrame(columns=columns, index=pd.Index([], dtype=str)), uns=uns)
        adata.obsm.update({name: np.empty((0, 1)) for name in group.get("obsm", {})})
        return adata


def write_back(path: Path, table_key: str | None, change: Change, about_to_finish: Callable[[Path], None]) -> None:
    """Write a change into an .h5ad file or a zarr folder of AnnData or SpatialData.

    A file is copied, changed and moved to its place. In a folder every new element is written beside it and moved; it
    is listed when it is whole, and the elements that it replaces are taken from the lists before. So at any moment the
    file can be read, with the result of before, none, or the new one. `about_to_finish` is called with the file that
    is about to take the place of `path`, or with the changed folder; nothing is replaced if it raises for a file.
    """
    path = path.resolve()
    remove_parts(path.parent, path.name)
    part = part_of(path)
    with naming(str(path)), writing(part):
        try:
            if path.is_dir():
                part.mkdir()
                _change_folder(path, table_folder(path, table_key), change, part)
                about_to_finish(path)
            else:
                shutil.copy2(path, part)
                _change_file(part, change)
                about_to_finish(part)
                part.replace(path)
        finally:
            shutil.rmtree(part, ignore_errors=True) if path.is_dir() else part.unlink(missing_ok=True)


def _change_file(path: Path, change: Change) -> None:
    """Change an .h5ad file in place."""
    sizes = [change.obs.memory_usage(deep=True).sum(), *(values.nbytes for values in change.obsm.values())]
    _reserve(path, 2 * int(sum(sizes)) + 2**20)
    with h5py.File(path, "r+") as file:
        if file["obs"].attrs.get("encoding-version") != "0.2.0":  # of anndata 0.7, which knows other categories
            obs = read_elem(file["obs"])
            del file["obs"]
            write_elem(file, "obs", obs)
        columns = change.columns(_texts(file["obs"].attrs["column-order"]))
        for name in dict.fromkeys([*change.removed, *change.written]):
            if name in file:
                del file[name]
        for name in change.written:
            part, entry = name.split("/", 1)
            write_elem(_group(file, part), entry, change.value(name))
        file["obs"].attrs["column-order"] = columns
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _reserve(path: Path, n_bytes: int) -> None:
    """Raise an OSError unless a file can grow: HDF5 does not survive a full disk."""
    size = path.stat().st_size
    with path.open("ab") as file:
        for _ in range(-(-n_bytes // 2**20)):
            file.write(bytes(2**20))
        file.flush()
        os.fsync(file.fileno())
        file.truncate(size)


def _group(parent: Any, name: str) -> Any:
    """Group of a name, made as an empty mapping of anndata where there is none."""
    if name not in parent:
        write_elem(parent, name, {})
    return parent[name]


def _texts(values: Iterable[Any]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _change_folder(root: Path, table: Path, change: Change, part: Path) -> None:
    """Change a table in a zarr folder, with files that are written to the folder `part` and moved."""
    kind = 3 if (table / "zarr.json").exists() else 2
    attributes = table / "obs" / ATTRIBUTES[kind]
    before = _read(attributes)
    values: dict[str, Any] = before["attributes"] if kind == 3 else before
    if values.get("encoding-version") != "0.2.0":
        raise ValueError(
            "the columns of obs have the layout of anndata before 0.8: read and write the folder once with anndata."
        )
    listed = values["column-order"]
    metadata = [
        (folder / CONSOLIDATED[kind], table.relative_to(folder).as_posix())
        for folder in (table, *table.parents)
        if folder.is_relative_to(root) and _is_consolidated(folder / CONSOLIDATED[kind])
    ]
    new = part / "new"
    _stage(new, change, kind)
    replaced = [name for name in dict.fromkeys([*change.removed, *change.written]) if (table / name).exists()]
    if replaced:
        order = [name for name in listed if f"obs/{name}" not in replaced]
        for file, prefix in metadata:
            content = _read(file)
            _forget(content, "" if prefix == "." else f"{prefix}/", replaced, order)
            _write(file, content, part)
        values["column-order"] = order
        _write(attributes, before, part)
        for name in replaced:
            _move(table / name, part / "old" / name)
    for name in ("uns", "obsm"):
        if not (table / name).exists():
            _move(new / name, table / name)
    for name in change.written:
        if (new / name).exists():
            _move(new / name, table / name)
    values["column-order"] = change.columns(listed)
    _write(attributes, before, part)
    for file, _ in metadata:
        _consolidate(file, kind, part)


def _stage(folder: Path, change: Change, kind: Any) -> None:
    """Write the new entries into a folder of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of formats that are the user's
        group = zarr.open_group(folder, mode="w", zarr_format=kind)
        for name in ("uns", "obs", "obsm"):
            write_elem(group, name, {})
        for name in change.written:
            part, entry = name.split("/", 1)
            write_elem(group[part], entry, change.value(name))
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as written:
                os.fsync(written.fileno())


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write(file: Path, content: dict[str, Any] | bytes, part: Path) -> None:
    """Write a file of metadata beside the folder, and move it to its place."""
    new = part / "metadata"
    with new.open("wb") as written:
        written.write(content if isinstance(content, bytes) else json.dumps(content, indent=2).encode())
        written.flush()
        os.fsync(written.fileno())
    new.replace(file)


def _is_consolidated(file: Path) -> bool:
    return file.exists() and (file.name == CONSOLIDATED[2] or bool(_read(file).get("consolidated_metadata")))


def _forget(content: dict[str, Any], prefix: str, names: list[str], columns: list[str]) -> None:
    """Take elements of a table from the metadata of everything below a group, and list the other columns of obs."""
    inline = "consolidated_metadata" in content
    entries: dict[str, Any] = content["consolidated_metadata"]["metadata"] if inline else content["metadata"]
    for key in list(entries):
        if any(f"{key}/".startswith(f"{prefix}{name}/") for name in names):
            del entries[key]
    if inline:
        entries[f"{prefix}obs"]["attributes"]["column-order"] = columns
    else:
        entries[f"{prefix}obs/.zattrs"]["column-order"] = columns


def _consolidate(file: Path, kind: Any, part: Path) -> None:
    """Read the metadata of everything below a group anew, and replace the file that holds it as a whole."""
    store = _Recorder(LocalStore(file.parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr 3 calls the metadata that are there a novelty
        zarr.consolidate_metadata(store, zarr_format=kind)
    _write(file, store.written[file.name], part)


class _Recorder(WrapperStore[LocalStore]):
    """A store that keeps what is written to it in memory."""

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self.written: dict[str, bytes] = {}

    async def set(self, key: str, value: Any) -> None:
        self.written[key] = value.to_bytes()
