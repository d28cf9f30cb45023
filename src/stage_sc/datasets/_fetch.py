"""Real sections: a folder of copies, the cache, or files of public repositories, in this order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pooch
from anndata import AnnData

from stage_sc._files import is_intact, write_h5ad

COPIES, CACHE = "STAGE_SC_DATA", "STAGE_SC_CACHE"


class File(NamedTuple):
    """File of a public repository, at a pinned revision."""

    url: str
    name: str  # in the cache
    sha256: str | None  # None for archives that are made anew for each download


class Section(NamedTuple):
    """Real section: its files, and the function that makes an AnnData of them."""

    dataset: str
    sample: str
    files: tuple[File, ...]
    convert: Callable[..., AnnData]
    content: str | None  # digest of names and counts
    uns: dict[str, Any]

    @property
    def path(self) -> str:
        """Name of the section in a folder of copies and in the cache."""
        return f"{self.dataset}/{self.sample}.h5ad"


def load(section: Section) -> AnnData:
    """Read a section from the folder of copies or the cache, or download it."""
    copy, cached = _copy(section), cache_folder() / section.path
    if copy is not None:
        adata = ad.read_h5ad(copy)
        if not _is(section, adata):
            raise OSError(f"{copy} is not section {section.path} as this version of stage_sc knows it; remove it.")
    elif cached.is_file() and is_intact(cached) and _is(section, adata := ad.read_h5ad(cached)):
        pass
    else:
        adata = _download(section)
        write_h5ad(cached, adata)
    adata.uns.update(section.uns)
    return adata


def cache_folder() -> Path:
    """Folder of downloaded sections: ``STAGE_SC_CACHE``, or the place of the operating system for caches."""
    return Path(os.environ.get(CACHE) or pooch.os_cache("stage_sc"))


def _copy(section: Section) -> Path | None:
    if not os.environ.get(COPIES):
        return None
    folder = Path(os.environ[COPIES])
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}, which the environment variable {COPIES} names.")
    paths = (folder / sub / section.path for sub in ("", "dev", "corpus"))
    return next((path for path in paths if path.is_file()), None)


def _download(section: Section) -> AnnData:
    folder = cache_folder() / section.dataset
    paths = [_retrieve(file, section, folder) for file in section.files]
    try:
        adata = section.convert(*paths)
    except Exception as error:  # a broken file fails in ways of its format
        raise _unknown(section, paths, f"cannot be read ({type(error).__name__}: {error})") from error
    if not _is(section, adata):
        raise _unknown(section, paths, "differ from those that this version of stage_sc knows")
    return adata


def _retrieve(file: File, section: Section, folder: Path) -> Path:
    """Download a file unless it is in the cache, with a progress bar."""
    way_out = (
        f"Download it elsewhere, save it as {folder / file.name} and call again; or set the environment variable "
        f"{COPIES} to a folder with a copy of the section, {section.path}."
    )
    try:
        found = pooch.retrieve(file.url, file.sha256, file.name, folder, progressbar=True)
    except ValueError as error:  # of another digest; pooch removes such a file
        raise OSError(
            f"The download of {file.url} is broken or changed: its SHA-256 is not {file.sha256}. Try again. {way_out}"
        ) from error
    except OSError as error:  # no network, no such page, or no space
        reason = shorten(f"{type(error).__name__}: {error}", 150)
        raise OSError(f"Cannot download {file.url} ({reason}). {way_out}") from error
    return Path(found)


def _unknown(section: Section, paths: list[Path], problem: str) -> OSError:
    """Remove files that are of no use, and say so."""
    for path in paths:
        path.unlink(missing_ok=True)
    urls = ", ".join(file.url for file in section.files)
    return OSError(
        f"The files of section {section.path} from {urls} {problem}. They have been removed from {paths[0].parent}: "
        f"call again to download them. If this fails again, set the environment variable {COPIES} to a folder with a "
        f"copy of the section."
    )


def _is(section: Section, adata: AnnData) -> bool:
    return section.content in (None, content_digest(adata))


def content_digest(adata: AnnData) -> str:
    """SHA-256 of names of cells, names of genes, and counts, which does not depend on the format of a file."""
    digest = hashlib.sha256()
    for names in (adata.obs_names, adata.var_names):
        digest.update("\n".join(names).encode() + b"\n\n")
    for values, kind in ((adata.X.indptr, "<i8"), (adata.X.indices, "<i4"), (adata.X.data, "<f4")):
        digest.update(np.ascontiguousarray(values, kind).tobytes())
    return digest.hexdigest()
