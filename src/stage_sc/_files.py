"""Paths that are given, and files that are written whole."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

import h5py
from anndata import AnnData
from anndata.io import write_elem

from stage_sc._messages import naming

# Suffix of files and folders that are being written.
PART = ".part"
# Seconds after which a part is left over, if its process cannot be asked.
OLD = 86_400.0
# Numbers of errors about a disk, a quota or a file that is full.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Last bytes of a sealed file: this, and the SHA-256 of all bytes before it.
SEAL = b"\nstage_sc sha256 "
SEAL_LENGTH = len(SEAL) + 64


def existing(files: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return at least one path, and raise if one does not exist."""
    if isinstance(files, str | bytes | os.PathLike | Mapping) or not isinstance(files, Iterable):
        shown = repr(files) if isinstance(files, str | os.PathLike) else f"a {type(files).__name__}"
        raise TypeError(f"`files` must be a list of paths, got {shown}. For one file, pass a list of one: `[path]`.")
    paths = [as_path(file, "files") for file in files]
    if not paths:
        raise ValueError("`files` is empty.")
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
    return paths


def as_path(value: Any, name: str) -> Path:
    """Return a path given as text or path; the error for other types says the `name` of the argument."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise TypeError(f"`{name}` must be a path, got {value!r} ({type(value).__name__}).")
    return Path(value)


def file_to_write(value: Any, name: str) -> Path:
    """Return the path of a file; an error that says the `name` of the argument unless it can be written."""
    path = as_path(value, name)
    if path.is_dir():
        raise IsADirectoryError(f"`{name}` must name a file, but {str(path)!r} is a folder.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write `{name}` to: make it.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"`{name}` cannot be written: no permission for the folder {str(path.parent)!r}.")
    return path


def folder_to_write(value: Any, name: str) -> Path:
    """Return the path of a folder, which need not exist; the error for a file says the `name` of the argument."""
    path = as_path(value, name)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"`{name}` must name a folder, but {str(place)!r} is a file.")
    return path


def table_folder(path: Path, table_key: str | None) -> Path:
    """Folder with the AnnData of a zarr folder: the folder itself, or that of a table of SpatialData."""
    tables = path / "tables"
    if not tables.is_dir():
        return path
    present = [one.name for one in tables.iterdir() if one.is_dir() and not one.name.startswith(".")]
    return tables / (table_key or min(present, default="table"))


def stamp(path: Path, table_key: str | None = None) -> tuple[int, int]:
    """Size of a file, or of all files in a folder, and time of the last change in ns.

    Of SpatialData, images, other tables than `table_key` and the metadata of the whole are left out.
    """
    if not path.is_dir():
        stats = [path.stat()]
    elif (table := table_folder(path, table_key)) == path:
        stats = [one.stat() for one in path.rglob("*") if one.is_file()]
    else:
        parts = [one for one in path.iterdir() if one.is_dir() and one.name not in ("images", "tables")]
        stats = [one.stat() for part in (*parts, table) for one in part.rglob("*") if one.is_file()]
    return sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)


def part_of(path: Path) -> Path:
    """Name beside `path` for a file or folder that is being written by this process."""
    return path.with_name(f".{path.name[:40]}.{_host()}-{os.getpid()}-{uuid4().hex[:8]}{PART}")


def remove_parts(folder: Path, name: str | None = None) -> None:
    """Remove parts (of all files, or of the file `name`) that a killed process has left in a folder."""
    start = "*" if name is None else glob.escape(name[:40])
    for part in folder.glob(f".{start}.*-*-*{PART}"):
        found = re.fullmatch(r".*\.(?P<host>[^.]+)-(?P<pid>\d+)-[0-9a-f]{8}\.part", part.name)
        if found and _is_left_over(part, found["host"], int(found["pid"])):
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name a file or folder in the error about a full disk, which names none."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Temporary folder, removed at the end, and by a later call if this process is killed."""
    name = Path(gettempdir()) / "stage_sc"
    remove_parts(name.parent, name.name)
    folder = part_of(name)
    try:
        folder.mkdir(mode=0o700)
        with writing(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _is_left_over(part: Path, host: str, pid: int) -> bool:
    if host == _host() and os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
    try:
        return time.time() - part.stat().st_mtime > OLD
    except FileNotFoundError:  # finished meanwhile
        return False


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that no reader sees a part of it, now or after a crash."""
    remove_parts(path.parent, path.name)
    part = part_of(path)
    try:
        with naming(str(path)), part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_h5ad(path: Path, adata: AnnData) -> None:
    """Write a sealed .h5ad file, composed in memory: HDF5 does not survive a full disk."""
    adata.strings_to_categoricals()
    with h5py.File(uuid4().hex, "w", driver="core", backing_store=False) as file:
        write_elem(file, "/", adata)
        file.flush()
        content = file.id.get_file_image()
    write_whole(path, seal(content))


def seal(content: bytes) -> bytes:
    """Append a checksum, which readers of HDF5 and of zip archives ignore."""
    return content + SEAL + hashlib.sha256(content).hexdigest().encode()


def is_intact(path: Path) -> bool | None:
    """Compare a file with its seal; ``None`` without one. Unchanged files are read once per process."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - SEAL_LENGTH, 0))
        end = file.read()
    if not end.startswith(SEAL):
        return None
    return known_digest(path, SEAL_LENGTH).encode() == end[len(SEAL) :]


def known_digest(path: Path, without: int = 0) -> str:
    """SHA-256 of a file (but its last bytes), computed once per process unless size or time of change differ."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns, without)


@lru_cache(maxsize=65_536)
def _digest(path: Path, size: int, mtime: int, without: int) -> str:
    return digest(path, size - without)


def digest(path: Path, size: int | None = None) -> str:
    """SHA-256 of the first `size` bytes of a file."""
    found, left = hashlib.sha256(), path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 2**22))):
            found.update(block)
            left -= len(block)
    return found.hexdigest()
