"""The files that a command trains on, and the slides that it tries the model on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import anndata as ad

from stage_sc.pp._filter import filter_cells
from stage_sc.pp._graph import build_graph

# The model is tried on so many slides, the smallest of those with so many cells at least.
MAX_SLIDES, MIN_CELLS = 5, 500


def read_files(folders: Sequence[Path], leave_out: Sequence[str], library_key: str | None) -> dict[str, ad.AnnData]:
    """Read all ``.h5ad`` files below some folders, keep the cells that have a place, and build the graphs.

    Parameters
    ----------
    folders
        They are searched with all that is below them.
    leave_out
        A file is skipped if one of these is in its path, from the name of its folder among `folders` on.
    library_key
        Column of ``obs`` that names the slides, in the files that have it.

    Returns
    -------
    Cells of every file by its name, which is that of its folder and its own.

    Raises
    ------
    FileNotFoundError
        If a folder has no file.
    ValueError
        If two files have one name, if a part that is to be left out is in no path, or if nothing is left.
    """
    places: dict[Path, str] = {}
    for folder in folders:
        base = folder.resolve().name
        found = {path: f"{base}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.h5ad")}
        if not found:
            raise FileNotFoundError(f"There is no .h5ad file below {str(folder)!r}.")
        places |= found
    for part in leave_out:
        if not any(part in place for place in places.values()):
            raise ValueError(f"`--leave-out {part}` is in no path, such as {min(places.values())!r}: nothing to skip.")
    kept = sorted(path for path, place in places.items() if not any(part in place for part in leave_out))
    if not kept:
        raise ValueError("`--leave-out` leaves no file to train on.")
    names = [f"{path.resolve().parent.name}/{path.stem}" for path in kept]
    if len(set(names)) < len(names):
        raise ValueError(f"Several files are called {max(names, key=names.count)!r}, which names their slides: rename.")
    return {name: _read_file(path, library_key) for name, path in zip(names, kept, strict=True)}


def small_slides(data: Mapping[str, ad.AnnData], library_key: str | None) -> Iterator[tuple[str, ad.AnnData]]:
    """Names and cells of a few slides of `read_files`, the smallest that have something to say."""
    sizes = []
    for name, adata in data.items():
        slides = {"": adata.n_obs}
        if library_key in adata.obs:
            slides = adata.obs[library_key].astype(str).value_counts().to_dict()
        sizes += [(n, name, slide) for slide, n in slides.items() if n >= MIN_CELLS]
    for _, name, slide in sorted(sizes)[:MAX_SLIDES]:
        if slide:
            part = data[name][(data[name].obs[library_key].astype(str) == slide).to_numpy()].copy()
            build_graph(part)
            yield f"{name}/{slide}", part
        else:
            yield name, data[name]


def _read_file(path: Path, library_key: str | None) -> ad.AnnData:
    adata = ad.read_h5ad(path)
    filter_cells(adata)
    build_graph(adata, library_key=library_key if library_key in adata.obs else None)
    return adata
