"""Label many slides in files, one after the other or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import dask.config
import h5py
import numpy as np
from anndata import AnnData
from anndata.io import read_elem
from dask.base import compute
from dask.delayed import delayed

from stage_sc._checks import check_positive
from stage_sc._compute import one_thread, resolve_device
from stage_sc._files import existing, read_table, stamp, write_whole
from stage_sc._result import check_key, write_labels
from stage_sc.embed import embed_slides
from stage_sc.graph import build_graph
from stage_sc.model import resolve_model, save_checkpoint
from stage_sc.niches import Partition, assign_labels, find_partition
from stage_sc.nn import Stage
from stage_sc.slides import read_slides, scratch_folder


def label_files(
    files: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    model: Stage | str | os.PathLike[str] | None = None,
    n_domains: int | None = None,
    settle: bool = True,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    layer: str | None = None,
    table_key: str | None = None,
    technology: str | None = None,
    scale: float | None = None,
    key_added: str = "stage",
    device: str = "auto",
    scheduler: Any = None,
) -> list[Path]:
    """Label slides in files that need not fit into memory together: `build_graph` and `stage_niches` for each of them.

    Every file is a dask task: files are labelled one after the other or, where there is a ``dask.distributed.Client``,
    on its workers, which must see the same files. Files that are done are skipped, so the same call continues after an
    interruption, or with more files. The task of a worker that dies is given to another.

    Parameters
    ----------
    files
        ``.h5ad`` files, zarr folders of AnnData or of SpatialData. Expression is read in blocks. Cells without
        coordinates are left out.
    out
        Folder of the results, which are named after the files. A result of the same file with other settings is
        replaced: use another folder for another `table_key` or `key_added`.
    model, n_domains, settle
        As in `stage_niches`. The tree settles, and domains are found, on all files together: when the call is repeated
        with other files, all results are written anew, and labels may change. With ``settle=False`` and without domains
        they do not.
    spatial_key, library_key, layer
        As in `stage_sc.pp.build_graph` and `stage_niches`.
    table_key
        Table of SpatialData folders. ``None``: the only one.
    technology, scale
        As in `stage_sc.pp.build_graph`.
    key_added, device
        As in `stage_niches`.
    scheduler
        Scheduler of dask, e.g. ``"processes"`` or a client. ``None``: the current client, or none.

    Returns
    -------
    One ``.h5ad`` file for every file, in their order: an AnnData without expression, with the names of the cells in the
    file, their coordinates, and all results of `stage_niches`.

    Raises
    ------
    FileNotFoundError, ImportError, KeyError, OSError, ValueError
        If a file cannot be read, if it or the model is refused by `build_graph` or `stage_niches`, or if results would
        replace each other or a file.

    Notes
    -----
    The cost for each file is that of `stage_niches` with `n_domains`. Embeddings are kept in ``out/embeddings``, 260
    bytes per cell, with a copy of the model: a later call with another `n_domains`, `settle` or `key_added` computes
    labels only. The tree settles on about 20,000 cells of all files; domains are found from about 10,000.

    Examples
    --------
    >>> import anndata as ad, stage_sc as st
    >>> for number in range(2):
    ...     st.datasets.simulate_tissue(500, rng=number).write_h5ad(f"slide{number}.h5ad")
    >>> results = st.tl.label_files(["slide0.h5ad", "slide1.h5ad"], "labelled", n_domains=4)
    >>> ad.read_h5ad(results[0]).obs["stage_domain"].cat.categories.tolist()
    ['D1', 'D2', 'D3', 'D4']
    """
    paths = existing(files)
    if n_domains is not None:
        check_positive(n_domains, "n_domains", integer=True)
    check_key([], key_added)
    resolve_device(device)
    results, network, cache = _result_paths(paths, Path(out)), resolve_model(model), Path(out) / "embeddings"
    cache.mkdir(parents=True, exist_ok=True)
    checkpoint = save_checkpoint(network, cache / f"model-{network.digest}")
    items = [EmbeddedFile(cache / result.name) for result in results]
    keys = {"spatial_key": spatial_key, "library_key": library_key, "layer": layer}
    settings = {**keys, "table_key": table_key, "technology": technology, "scale": scale}
    run = partial(_run, scheduler)
    run(_embed_file, [(*pair, checkpoint, settings, device) for pair in zip(paths, items, strict=True)])
    partition = find_partition(network, items, settle=settle, n_domains=n_domains, run=run)
    params = {"key_added": key_added, "n_domains": n_domains or 0, "settle": settle}
    params |= {name: key or "" for name, key in keys.items()}
    run(_label_file, [(*pair, checkpoint, partition, params) for pair in zip(items, results, strict=True)])
    return results


@dataclass(frozen=True)
class EmbeddedFile:
    """Embeddings of the cells of a file, kept in another file (see `stage_sc.embed.Embeddings`); every access reads."""

    path: Path

    @property
    def flag(self) -> np.ndarray:
        return self.read("uns/flag")

    @property
    def cells(self) -> np.ndarray:
        return np.arange(len(self.flag))

    @property
    def niche(self) -> np.ndarray:
        return self.read("obsm/niche")

    @property
    def context(self) -> np.ndarray:
        return self.read("obsm/context")

    def read(self, key: str) -> Any:
        with h5py.File(self.path, "r") as file:
            return read_elem(file[key])


def _run(scheduler: Any, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call a function with the arguments of every task, by dask where a scheduler is given or set."""
    if scheduler is None and dask.config.get("scheduler", None) is None:
        return list(starmap(function, tasks))
    return list(compute(*(delayed(function, pure=False)(*task) for task in tasks), scheduler=scheduler))


def _embed_file(path: Path, item: EmbeddedFile, checkpoint: Path, settings: dict[str, Any], device: str) -> None:
    """Write the embeddings of one file, unless they were computed from the same file, model and settings."""
    size, mtime = stamp(path)
    source = {"file": path.name, "size": size, "mtime": str(mtime), "model": checkpoint.stem}
    source |= {name: value or "" for name, value in settings.items()}
    if _read_source(item.path, "uns/source") == source:
        return
    adata = read_table(path, **{name: settings[name] for name in ("spatial_key", "library_key", "layer", "table_key")})
    build_graph(adata, **{name: settings[name] for name in ("spatial_key", "library_key", "technology", "scale")})
    network = resolve_model(checkpoint)
    with scratch_folder(adata) as scratch, one_thread():
        slides = read_slides(adata, network.config, vocabulary=network.vocabulary.keys(), scratch=scratch)
        found = embed_slides(network, slides, resolve_device(device), domains=True)
    order, xy = np.argsort(found.cells), adata.obsm[settings["spatial_key"]]
    obsm = {"niche": found.niche[order], "context": found.context[order], "coordinates": xy}
    embedded = AnnData(obs=adata.obs, obsm=obsm, uns={"source": source, "flag": found.flag[order]})
    write_whole(item.path, embedded.write_h5ad)


def _label_file(
    item: EmbeddedFile, result: Path, checkpoint: Path, partition: Partition, params: dict[str, Any]
) -> None:
    """Write the labels of one file, unless they were computed from the same embeddings and partition."""
    key, network = params["key_added"], resolve_model(checkpoint)
    source = {**item.read("uns/source"), "partition": partition.digest}
    if _read_source(result, f"uns/{key}/source") == source:
        return
    with one_thread():
        labels = assign_labels(network, partition, item, resolve_device("cpu"))
    adata = AnnData(obs=item.read("obs"), obsm={params["spatial_key"]: item.read("obsm/coordinates")})
    write_labels(adata, labels, network, network.digest, params)
    adata.uns[key]["source"] = source
    write_whole(result, adata.write_h5ad)


def _read_source(path: Path, key: str) -> dict[str, Any] | None:
    """Read the description of the input of a file; ``None`` where there is none."""
    if not path.is_file():
        return None
    with h5py.File(path, "r") as file:
        return dict(read_elem(file[key])) if key in file else None


def _result_paths(paths: list[Path], folder: Path) -> list[Path]:
    """Results are named after their files; of files with the same name, after their folders too."""
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}-{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"Several files are called {max(names, key=names.count)!r}: results would replace each other.")
    results = [folder / f"{name}.h5ad" for name in names]
    if replaced := {path.resolve() for path in paths} & {result.resolve() for result in results}:
        raise ValueError(
            f"The result of {min(replaced).name!r} would replace the file itself: `out` ({str(folder)!r}) must be "
            "another folder than that of the files."
        )
    return results
