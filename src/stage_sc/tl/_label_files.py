"""Label many slides in files, one after the other or on a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import dask.config
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from anndata.io import read_elem
from dask.base import compute, get_scheduler
from dask.delayed import delayed

from stage_sc._checks import check_bool, check_name, check_positive, check_scale
from stage_sc._compute import one_thread, resolve_device
from stage_sc._evidence import slide_column
from stage_sc._files import (
    existing,
    folder_to_write,
    is_intact,
    read_table,
    remove_parts,
    stamp,
    temporary_folder,
    write_h5ad,
)
from stage_sc._messages import naming
from stage_sc._result import check_key, read_result, write_labels
from stage_sc.embed import embed_slides
from stage_sc.graph import build_graph, find_platform
from stage_sc.model import resolve_model, save_checkpoint
from stage_sc.niches import Partition, assign_labels, find_partition
from stage_sc.nn import Stage
from stage_sc.slides import read_slides

logger = logging.getLogger("stage_sc.tl")

# Beginning of the name of the copy of a model.
MODEL = "model-"


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
        Folder of the results, which are named after the files and, where it is given, after `table_key`. Labels of the
        same file under the same `key_added` are replaced, all else in a result is kept. Other files are never replaced.
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
        replace each other, a file that is no result, or the result of another file. Errors name the file.
    TypeError
        If `files` is a single path, or an argument is of another type.

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
    paths, folder = existing(files), folder_to_write(out, "out")
    if n_domains is not None:
        check_positive(n_domains, "n_domains", integer=True)
    check_bool(settle, "settle")
    check_key({}, key_added)
    keys = {"spatial_key": spatial_key, "library_key": library_key, "layer": layer}
    for name, key in {**keys, "table_key": table_key}.items():
        if (key is not None and (name, key) != ("library_key", "")) or name == "spatial_key":
            check_name(key, name)
    if scale is not None:
        check_scale(scale)
    find_platform(technology)
    resolve_device(device)
    try:
        get_scheduler(scheduler=scheduler)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`scheduler` must be one of dask, got {scheduler!r}: {error}") from error
    results, cache = _result_paths(paths, folder, table_key), folder / "embeddings"
    for path, result in zip(paths, results, strict=True):
        _check_place(path, result, cache, key_added)
    network = resolve_model(model)
    cache.mkdir(parents=True, exist_ok=True)
    remove_parts(folder)
    remove_parts(cache)
    checkpoint = save_checkpoint(network, cache / f"{MODEL}{network.digest}")
    items = [EmbeddedFile(cache / result.name) for result in results]
    settings = {**keys, "table_key": table_key, "technology": technology, "scale": scale}
    run = partial(_run, scheduler)
    run(_embed_file, [(*pair, checkpoint, settings, device) for pair in zip(paths, items, strict=True)])
    with one_thread():
        partition = find_partition(network, items, settle=bool(settle), n_domains=n_domains, run=run)
    params = {"key_added": key_added, "n_domains": n_domains or 0, "settle": bool(settle)}
    params |= {name: key for name, key in keys.items() if key is not None}
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

    @property
    def slides(self) -> pd.DataFrame:
        return self.read("uns/slides")

    def read(self, key: str) -> Any:
        if not is_intact(self.path):
            raise ValueError(f"{str(self.path)!r} is damaged: repeat the call, which makes it anew.")
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
    source = {"path": str(path.resolve()), "size": size, "mtime": str(mtime), "model": checkpoint.stem}
    source |= {name: value for name, value in settings.items() if value is not None}
    if item.path.exists():
        if not is_intact(item.path):
            logger.warning("%r is damaged, or of another version: the embeddings are computed anew.", str(item.path))
        elif item.read("uns/source") == source:
            return
    with naming(str(path)):
        keys = ("spatial_key", "library_key", "layer", "table_key")
        adata = read_table(path, **{name: settings[name] for name in keys})
        build_graph(adata, **{name: settings[name] for name in ("spatial_key", "library_key", "technology", "scale")})
        network = resolve_model(checkpoint)
        with temporary_folder() as scratch, one_thread():
            names = network.vocabulary.keys()
            slides = read_slides(adata, network.config, vocabulary=names, prefix=path.stem, scratch=scratch)
            found = embed_slides(network, slides, resolve_device(device), domains=True)
    order, xy = np.argsort(found.cells), adata.obsm[settings["spatial_key"]]
    obsm = {"niche": found.niche[order], "context": found.context[order], "coordinates": xy}
    uns: dict[str, Any] = {"source": source, "flag": found.flag[order], "slides": found.slides, "kept": {}}
    columns = [settings["library_key"]]
    if "spatialdata_attrs" in adata.uns:  # the link of a table with its shapes
        attrs = uns["kept"]["spatialdata_attrs"] = adata.uns["spatialdata_attrs"]
        columns += [attrs.get("region_key"), attrs.get("instance_key")]
    columns = [column for column in dict.fromkeys(columns) if column in adata.obs]
    write_h5ad(item.path, AnnData(obs=adata.obs[columns], obsm=obsm, uns=uns))


def _label_file(
    item: EmbeddedFile, result: Path, checkpoint: Path, partition: Partition, params: dict[str, Any]
) -> None:
    """Write the labels of one file, unless they were computed from the same embeddings and partition."""
    key, network = params["key_added"], resolve_model(checkpoint)
    source = {**item.read("uns/source"), "partition": partition.digest}
    before = _read_result(result)
    if before is not None and _sources(before).get(key) == source:
        return
    with one_thread():
        labels = assign_labels(network, partition, item, resolve_device("cpu"))
    adata = AnnData(
        obs=item.read("obs"), obsm={params["spatial_key"]: item.read("obsm/coordinates")}, uns=item.read("uns/kept")
    )
    params = {"library_key": slide_column(adata), "layer": "", **params}
    if before is not None:
        if before.obs_names.equals(adata.obs_names):  # labels under other keys, and all that was added, are kept
            before.obsm[params["spatial_key"]] = adata.obsm[params["spatial_key"]]
            before.obs = before.obs.assign(**adata.obs)
            adata = before
        elif others := sorted(set(_sources(before)) - {key}):
            logger.warning("%r held labels %s of other cells, which are replaced.", str(result), ", ".join(others))
    check_key({str(result): adata}, key, "out")
    write_labels(adata, labels, network, network.digest, params)
    adata.uns[key]["source"] = source
    write_h5ad(result, adata)


def _check_place(path: Path, result: Path, cache: Path, key_added: str) -> None:
    """Raise unless the result of a file, and its embeddings, can be written without replacing anything else."""
    embedded = cache / result.name
    made_here = any(cache.glob(f"{MODEL}*"))
    if embedded.exists() and not is_intact(embedded) and not made_here:
        raise ValueError(
            f"{str(embedded)!r} exists, and was not written by `label_files`: choose another folder `out`."
        )
    known = result.is_file() and embedded.exists() and made_here
    if not result.exists() or (known and is_intact(result) is False):  # damaged: put aside by `_read_result`
        return
    try:
        with h5py.File(result, "r") as file:
            names = {name: list(file[name].keys()) for name in ("obs", "obsm")}
            uns = read_elem(file["uns"])
    except Exception as error:
        if known:
            return
        raise ValueError(
            f"{str(result)!r} exists, and is no result of `label_files` that can be read ({error}): choose another "
            "folder `out`, or remove it."
        ) from error
    adata = AnnData(obs=pd.DataFrame(columns=names["obs"], index=pd.Index([], dtype=str)), uns=uns)
    adata.obsm.update({name: np.empty((0, 1)) for name in names["obsm"]})
    sources = _sources(adata)
    if not sources:
        raise ValueError(f"{str(result)!r} exists, and is no result of `label_files`: choose another folder `out`.")
    for source in sources.values():
        other = source.get("path", str(path.resolve()))
        if other != str(path.resolve()) and Path(other).exists():
            raise ValueError(
                f"{str(result)!r} is the result of {other!r}, and would be replaced by that of {str(path)!r}: choose "
                "another folder `out`, or label both in one call."
            )
    check_key({str(result): adata}, key_added, "out")


def _read_result(path: Path) -> AnnData | None:
    """Read a result; ``None`` where there is none. A damaged one is put aside."""
    if not path.is_file():
        return None
    try:
        if is_intact(path) is False:
            raise ValueError("its checksum differs")
        return read_h5ad(path)
    except Exception as error:  # noqa: BLE001 (of h5py or anndata, of any kind)
        aside = path.with_name(f"{path.name}.damaged")
        logger.warning("%r is damaged (%s): labels are written anew, the file is now %r.", str(path), error, aside.name)
        path.replace(aside)
        return None


def _sources(adata: AnnData) -> dict[str, dict[str, Any]]:
    """Return the description of the input of each result of `label_files`, by its `key_added`."""
    results = {str(key): read_result(adata, str(key)).get("source") for key in adata.uns}
    return {key: dict(source) for key, source in results.items() if isinstance(source, Mapping) and "model" in source}


def _result_paths(paths: list[Path], folder: Path, table_key: str | None) -> list[Path]:
    """Results are named after their files and tables; of files with the same name, after their folders too."""
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}-{path.stem}" for path in paths]
    if table_key is not None:
        if Path(table_key).name != table_key:
            raise ValueError(f"`table_key` must be the name of a table, got {table_key!r}.")
        names = [
            f"{name}-{table_key}" if (path / "tables").is_dir() else name
            for name, path in zip(names, paths, strict=True)
        ]
    if len(set(names)) < len(names):
        raise ValueError(f"Several files are called {max(names, key=names.count)!r}: results would replace each other.")
    results = [folder / f"{name}.h5ad" for name in names]
    if replaced := {path.resolve() for path in paths} & {result.resolve() for result in results}:
        raise ValueError(
            f"The result of {min(replaced).name!r} would replace the file itself: `out` ({str(folder)!r}) must be "
            "another folder than that of the files."
        )
    return results
