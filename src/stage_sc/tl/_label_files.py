"""Label many slides in files, one after the other or on a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import dask.config
import h5py
import numpy as np
import pandas as pd
import torch
from anndata.io import read_elem
from dask.base import compute
from dask.delayed import delayed

from stage_sc._checks import check_positive
from stage_sc._compute import one_thread, resolve_device
from stage_sc.data._draw import draw, in_order
from stage_sc.data._expression import scratch_folder
from stage_sc.data._files import existing, read_table, stamp
from stage_sc.data._slide import read_data
from stage_sc.model._checkpoint import model_digest, save_checkpoint
from stage_sc.model._stage import Stage
from stage_sc.model._tree import PrototypeTree
from stage_sc.pp._graph import build_graph
from stage_sc.tl._domains import SAMPLE as OF_DOMAINS
from stage_sc.tl._domains import Domains, find_domains
from stage_sc.tl._results import FLAGS, add_domains, has_niches, write_labels
from stage_sc.tl._stage_niches import Surroundings, give_niches, look_around, settled_tree
from stage_sc.train._settle import SAMPLE as OF_NICHES
from stage_sc.weights import resolve_model

logger = logging.getLogger("stage_sc.tl")


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
    What `stage_niches` with `n_domains` costs for each file, and its warning about slides unlike those of training. The
    content around every cell, which domains are cut by, is kept in ``out/content``, 128 bytes per cell, beside a copy
    of the model: a later call with another `n_domains` only clusters. Domains are found on some 10,000 cells of all
    files, the tree settles on some 20,000, and then each cell goes to the nearest. Until then, the results of a call
    with `settle` hold the niches of the tree as it is.

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
    resolve_device(device)
    folder = Path(out)
    results = _result_paths(paths, folder)
    network = resolve_model(model)
    (folder / "content").mkdir(parents=True, exist_ok=True)
    checkpoint = save_checkpoint(network, folder / "content" / f"model-{model_digest(network)}")
    reading = {"spatial_key": spatial_key, "library_key": library_key, "layer": layer, "table_key": table_key}
    settings = {**reading, "technology": technology, "scale": scale, "key_added": key_added, "device": device}
    _run(
        _label_file,
        [(path, result, checkpoint, settings) for path, result in zip(paths, results, strict=True)],
        scheduler,
    )
    n_cells = sum(len(np.load(_content_path(result), mmap_mode="r")) for result in results)
    tree, domains = network.tree, None
    if settle:
        tree = settled_tree(network, _sample(partial(_niche, key=key_added), results, n_cells, OF_NICHES, scheduler))
    if n_domains is not None:
        domains = find_domains(_sample(_content, results, n_cells, OF_DOMAINS, scheduler), n_domains)
    params = {"settle": settle, "n_domains": n_domains or 0}
    _run(_relabel, [(result, key_added, checkpoint, tree, domains, params) for result in results], scheduler)
    return results


def _sample(
    read: Callable[[Path], torch.Tensor], results: list[Path], n_cells: int, size: int, scheduler: Any
) -> torch.Tensor:
    """Read what belongs to about `size` cells of all results, one at least."""
    parts = _run(_draw, [(read, result, n_cells, size) for result in results], scheduler)
    sample = in_order(torch.cat(parts))
    return sample if len(sample) else read(results[0])[:1]


def _run(function: Callable[..., Any], tasks: list[tuple[Any, ...]], scheduler: Any) -> list[Any]:
    """Compute all tasks; results come in their order."""
    if scheduler is None and dask.config.get("scheduler", None) is None:  # nor is there a client
        return [function(*task) for task in tasks]
    return list(compute(*(delayed(function, pure=False)(*task) for task in tasks), scheduler=scheduler))


def _label_file(path: Path, result: Path, checkpoint: Path, settings: dict[str, Any]) -> None:
    """Label one file, unless it is labelled."""
    key, (size, mtime) = settings["key_added"], stamp(path)
    keys = {name: settings[name] or "" for name in ("spatial_key", "library_key", "layer", "table_key", "technology")}
    source = {"file": path.name, "size": size, "mtime": str(mtime), "model": checkpoint.stem}
    source |= keys | {"scale": float(settings["scale"] or 0)}
    if result.is_file() and _content_path(result).is_file() and _source(result, key) == source:
        return
    library_key, layer = settings["library_key"], settings["layer"]
    adata = read_table(path, **{name: settings[name] for name in ("spatial_key", "library_key", "layer", "table_key")})
    graph = {name: settings[name] for name in ("spatial_key", "library_key", "technology", "scale")}
    build_graph(adata, **graph)
    network = resolve_model(checkpoint)
    with scratch_folder(adata) as scratch, one_thread():
        slides = read_data(adata, scaling=network.config.scaling, vocabulary=network.vocabulary, scratch=scratch)
        device = resolve_device(settings["device"])
        found = look_around(network, slides, device, domains=True)
        labels = give_niches(network, network.tree, found, device)
    params = {"key_added": key, "spatial_key": settings["spatial_key"], "library_key": library_key or ""}
    write_labels(adata, labels, network, {**params, "layer": layer or "", "n_domains": 0, "settle": False})
    adata.uns[key]["source"] = source
    kept = {name: adata.obsm[name] for name in (settings["spatial_key"], f"X_{key}")}
    content = np.empty_like(found.content)
    content[found.cells] = found.content
    _write(_content_path(result), lambda part: np.save(part, content))
    light = ad.AnnData(obs=adata.obs, obsm=kept, uns={key: adata.uns[key]})
    _write(result, light.write_h5ad)


def _draw(read: Callable[[Path], torch.Tensor], result: Path, n_cells: int, size: int) -> torch.Tensor:
    return draw(read(result), n_cells, size)


def _relabel(
    result: Path, key: str, checkpoint: Path, tree: PrototypeTree, domains: Domains | None, params: dict[str, Any]
) -> None:
    """Write the niches of a tree, and domains if there are any, into a result, unless it has them."""
    adata, content = ad.read_h5ad(result), _content(result)
    network, before = resolve_model(checkpoint), adata.uns[key]
    flag = pd.Categorical(adata.obs[f"{key}_flag"], categories=FLAGS).codes
    found = Surroundings(np.arange(adata.n_obs), adata.obsm[f"X_{key}"], content.numpy(), flag)
    with one_thread():
        labels = give_niches(network, tree, found, torch.device("cpu"))
        domain = np.empty(0) if domains is None else domains.nearest(content).numpy()
    if domains is None and before["params"].get("settle") == params["settle"] and has_niches(adata, key, labels):
        return
    write_labels(adata, labels, network, {**before["params"], **params})
    adata.uns[key]["source"] = before["source"]
    if domains is not None:
        add_domains(adata, domain, key, len(domains.centres))
    _write(result, adata.write_h5ad)


def _content(result: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(_content_path(result)))


def _niche(result: Path, key: str) -> torch.Tensor:
    with h5py.File(result, "r") as file:
        return torch.from_numpy(read_elem(file[f"obsm/X_{key}"]))


def _source(result: Path, key: str) -> Any:
    """Read what a result was made from."""
    with h5py.File(result, "r") as file:
        element = file.get(f"uns/{key}/source")
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


def _content_path(result: Path) -> Path:
    return result.parent / "content" / f"{result.stem}.npy"


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place, then put it there: nobody ever sees half of it."""
    part = path.with_name(f"{os.getpid()}-{path.name}")
    write(part)
    part.replace(path)
