"""Label many slides in files, one after the other or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import dask.config
import h5py
import numpy as np
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

    Every file is a task for dask. Without further ado they run one after the other; with a ``dask.distributed.Client``
    they run on its workers, which need to see the same files. A result is written at once and as a whole, and files
    that have one are left as they are: after an interruption, or with more files, the same call goes on. A task whose
    worker dies is given to another.

    Parameters
    ----------
    files
        ``.h5ad`` files, zarr folders of AnnData or of SpatialData. Expression is read in blocks. Cells without
        coordinates are left out.
    out
        Folder of the results.
    model, n_domains, settle
        As in `stage_niches`, a model on the Hugging Face hub included. The tree settles, and domains are cut, over all
        files together: when the call is repeated with other files, the labels of all results are written anew and may
        change. With ``settle=False``, and without domains, they do not.
    spatial_key, library_key
        As in `stage_sc.pp.build_graph`.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``.
    table_key
        Table of SpatialData folders. ``None``: the only one.
    technology, scale
        As in `stage_sc.pp.build_graph`.
    key_added, device
        As in `stage_niches`.
    scheduler
        As dask takes it, e.g. ``"processes"`` or a client. ``None``: the client that there is, or one after the other.

    Returns
    -------
    One ``.h5ad`` file for every file, in their order: an AnnData without expression, with the coordinates and all that
    `stage_niches` writes. Its cells have the names of the file's.

    Raises
    ------
    FileNotFoundError, KeyError, ValueError
        If a file cannot be read, or is refused by `build_graph` or `stage_niches`, if there is no such model, or if
        results would replace each other or a file.
    ImportError, OSError
        If `model` is on the hub, as in `stage_niches`.

    Notes
    -----
    For each file, the cost of `stage_niches` with `n_domains`, and its warning about slides unlike those of training.
    Embeddings are kept in ``out/embeddings``, 260 bytes per cell, with a copy of the model: a later call with another
    `n_domains`, `settle` or `key_added` computes labels only. The tree settles on about 20,000 cells of all files, and
    domains are found on about 10,000.

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
    folder = Path(out)
    results = _result_paths(paths, folder)
    network = resolve_model(model)
    cache = folder / "embeddings"
    cache.mkdir(parents=True, exist_ok=True)
    checkpoint = save_checkpoint(network, cache / f"model-{network.digest}")
    reading = {"spatial_key": spatial_key, "library_key": library_key, "layer": layer, "table_key": table_key}
    settings = {**reading, "technology": technology, "scale": scale}

    def run(function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        if scheduler is None and dask.config.get("scheduler", None) is None:  # nor is there a client
            return [function(*task) for task in tasks]
        return list(compute(*(delayed(function, pure=False)(*task) for task in tasks), scheduler=scheduler))

    embedded = [EmbeddedFile(cache / result.name) for result in results]
    run(_embed_file, [(path, item, checkpoint, settings, device) for path, item in zip(paths, embedded, strict=True)])
    partition = find_partition(network, embedded, settle=settle, n_domains=n_domains, run=run)
    params = {
        "key_added": key_added,
        **{name: settings[name] or "" for name in ("spatial_key", "library_key", "layer")},
    }
    params |= {"n_domains": n_domains or 0, "settle": settle}
    run(_label_file, [(*pair, checkpoint, partition, params) for pair in zip(embedded, results, strict=True)])
    return results


@dataclass(frozen=True)
class EmbeddedFile:
    """Embeddings of the cells of a file, in a file of their own; every access reads them."""

    path: Path

    @property
    def flag(self) -> np.ndarray:
        """``(n,)`` int8, position in `stage_sc._result.FLAGS`."""
        return self._read("obs/flag")

    @property
    def cells(self) -> np.ndarray:
        """``(n,)`` positions: the cells are in the order of the file."""
        return np.arange(len(self.flag))

    @property
    def niche(self) -> np.ndarray:
        """``(n, dim)`` float32 niche embeddings."""
        return self._read("obsm/niche")

    @property
    def context(self) -> np.ndarray:
        """``(n, dim)`` float32 contexts."""
        return self._read("obsm/context")

    @property
    def source(self) -> dict[str, Any] | None:
        """File, model and settings that the embeddings were computed from; ``None`` where there are none."""
        return _source(self.path, "uns/source")

    def _read(self, key: str) -> Any:
        with h5py.File(self.path, "r") as file:
            return read_elem(file[key])


def _embed_file(path: Path, item: EmbeddedFile, checkpoint: Path, settings: dict[str, Any], device: str) -> None:
    """Embed one file, unless it is embedded."""
    size, mtime = stamp(path)
    source = {"file": path.name, "size": size, "mtime": str(mtime), "model": checkpoint.stem}
    source |= {name: value or "" for name, value in settings.items() if name != "scale"}
    source |= {"scale": float(settings["scale"] or 0)}
    if item.source == source:
        return
    adata = read_table(path, **{name: settings[name] for name in ("spatial_key", "library_key", "layer", "table_key")})
    build_graph(adata, **{name: settings[name] for name in ("spatial_key", "library_key", "technology", "scale")})
    network = resolve_model(checkpoint)
    with scratch_folder(adata) as scratch, one_thread():
        slides = read_slides(adata, network.config, vocabulary=network.vocabulary.keys(), scratch=scratch)
        found = embed_slides(network, slides, resolve_device(device), domains=True)
    back = np.argsort(found.cells)
    light = ad.AnnData(
        obs=adata.obs.assign(flag=found.flag[back]),
        obsm={
            "niche": found.niche[back],
            "context": found.context[back],
            "coordinates": adata.obsm[settings["spatial_key"]],
        },
        uns={"source": source},
    )
    write_whole(item.path, light.write_h5ad)


def _label_file(
    item: EmbeddedFile, result: Path, checkpoint: Path, partition: Partition, params: dict[str, Any]
) -> None:
    """Write the labels of one file, unless they are there."""
    key, network = params["key_added"], resolve_model(checkpoint)
    source = {**(item.source or {}), "partition": partition.digest}
    if _source(result, f"uns/{key}/source") == source:
        return
    embedded = ad.read_h5ad(item.path)
    with one_thread():
        labels = assign_labels(network, partition, item, resolve_device("cpu"))
    adata = ad.AnnData(
        obs=embedded.obs.drop(columns="flag"), obsm={params["spatial_key"]: embedded.obsm["coordinates"]}
    )
    write_labels(adata, labels, network, network.digest, params)
    adata.uns[key]["source"] = source
    write_whole(result, adata.write_h5ad)


def _source(path: Path, key: str) -> dict[str, Any] | None:
    """Read what a file was made from; ``None`` where there is none."""
    if not path.is_file():
        return None
    with h5py.File(path, "r") as file:
        element = file.get(key)
        found = None if element is None else read_elem(element)
    return found and {name: value.item() if hasattr(value, "item") else value for name, value in found.items()}


def _result_paths(paths: list[Path], folder: Path) -> list[Path]:
    """Name results as the files, and where two files have one name, with the name of their folder before it."""
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
