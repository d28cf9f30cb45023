"""Label many slides in files, one after the other or on a cluster."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.config
from dask.base import compute, get_scheduler
from dask.delayed import delayed

from stage_sc._checks import check_bool, check_name, check_positive, check_scale, read_names
from stage_sc._compute import one_thread, resolve_device
from stage_sc._files import existing, folder_to_write, remove_parts
from stage_sc._input import check_errors
from stage_sc._result import check_key
from stage_sc.cohort import (
    MODEL,
    SUMMARY,
    EmbeddedFile,
    FileTask,
    check_file,
    check_place,
    embed_file,
    label_file,
    list_inputs,
    result_paths,
    write_summary,
)
from stage_sc.graph import find_platform
from stage_sc.model import resolve_model, save_checkpoint
from stage_sc.niches import find_partition
from stage_sc.nn import Stage

if TYPE_CHECKING:
    from stage_sc._input import Errors

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
    table_key: str | Sequence[str] | None = None,
    technology: str | None = None,
    scale: float | None = None,
    key_added: str = "stage",
    write_back: bool = False,
    errors: Errors = "skip",
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
        Folder of the results, which are named after the files and, where there are several or
        `table_key` is given, after their tables. Labels of the
        same file under the same `key_added` are replaced, all else in a result is kept. Other files are never replaced.
    model
        Path of a checkpoint, a model from `fit`, or an address ``hf://…``. ``None``: the bundled model.
    n_domains
        Number of domains over all files together. ``None``: niches only.
    settle
        Move the prototypes of the tree to the cells of all files before niches are assigned, as in `stage_niches`. The
        tree settles, and domains are found, on all files together: when the call is repeated with other files, all
        results are written anew, and labels may change. With ``settle=False`` and without domains they do not.
    spatial_key
        Entry of ``obsm`` with the coordinates. Where a table of SpatialData has none, they are the centroids of the
        shapes or labels that it annotates, as in `stage_sc.pp.build_graph`.
    library_key
        Column of ``obs`` with the slide (whole section) of every cell. ``None``: the regions of a SpatialData table
        that has several, else one slide per file. ``""``: one slide per file in any case.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``.
    table_key
        Table of SpatialData folders, or several. ``None``: the only one, or all that annotate elements of their own,
        each of which has a result of its own.
    technology
        Name of the platform, e.g. ``"xenium"``, as in `stage_sc.pp.build_graph`. ``None``: from the coordinates.
    scale
        µm per unit of the coordinates, for all files. ``None``: inferred for each slide.
    key_added
        Prefix of the names of all results.
    write_back
        Write the results into the files too, as `stage_niches` writes them into an object: columns of ``obs``,
        ``obsm["X_stage"]`` and ``uns["stage"]``, missing for cells without coordinates. All else in a file stays as it
        is, and no moment of an interruption leaves a file that cannot be read: an ``.h5ad`` file is copied, changed and
        moved to its place, which needs free space for a copy of the largest file (for each worker); in a zarr folder,
        element after element is moved to its place, and consolidated metadata follow.
    errors
        ``"skip"``: a file that cannot be labelled (empty, damaged, two cells, genes of another species, a wrong unit
        …) is left out with a warning, and labels are those of a call without it. ``"raise"``: the first such file is an
        error. Where all files are left out, the error about the first is raised. Files that do not exist, and results
        that would replace something else, are errors in any case, before any work.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``, as in `stage_niches`.
    scheduler
        Scheduler of dask, e.g. ``"processes"`` or a client. ``None``: the current client, or none.

    Returns
    -------
    One ``.h5ad`` file for every file that was not left out, in their order: an AnnData without expression, with the
    names of the cells in the file, their coordinates, and all results of `stage_niches`.

    Also written is ``out/summary.csv``, with one row for every file: ``file``, ``result``, ``problem`` (empty, or why
    the file was left out), ``warnings`` (all that were logged about it), numbers of ``slides``, ``cells``, cells that
    are labelled (``labelled``), ``empty`` or ``isolated``, ``genes`` and those of the model that have counts
    (``genes_used``), ``scale`` (µm per unit), ``unit`` (its origin), ``layout``, ``spacing`` and
    ``neighbours`` as in `stage_sc.pp.summarize`.

    Raises
    ------
    FileNotFoundError, ImportError, KeyError, OSError, ValueError
        If no file can be read, or with ``errors="raise"`` one cannot; if files or the model are refused by
        `build_graph` or `stage_niches`; or if results would replace each other, a file that is no result, the result of
        another file, or, with `write_back`, entries that stage_sc did not write. Errors name the file.
    PermissionError
        With `write_back`, if a file or its folder cannot be written.
    TypeError
        If `files` is a single path, or an argument is of another type.

    Notes
    -----
    The cost for each file is that of `stage_niches` with `n_domains`, and memory is that of the largest slide, for each
    worker. Embeddings are kept in ``out/embeddings``, 260 bytes per cell, with a copy of the model: a later call with
    another `n_domains`, `settle` or `key_added` computes labels only. A file that has changed, other than by
    `write_back`, is embedded anew. The tree settles on about 20,000 cells of all files; domains are found from about
    10,000.

    The command ``stage-sc label FILES --out FOLDER`` does the same.

    Examples
    --------
    >>> import anndata as ad, stage_sc as st
    >>> for number in range(2):
    ...     st.datasets.simulate_tissue(500, rng=number).write_h5ad(f"slide{number}.h5ad")
    >>> results = st.tl.label_files(["slide0.h5ad", "slide1.h5ad"], "labelled", n_domains=4, write_back=True)
    >>> ad.read_h5ad(results[0]).obs["stage_domain"].cat.categories.tolist()
    ['D1', 'D2', 'D3', 'D4']
    >>> "stage_domain" in ad.read_h5ad("slide0.h5ad").obs
    True
    """
    paths, folder = existing(files), folder_to_write(out, "out")
    reading = {"spatial_key": spatial_key, "library_key": library_key, "layer": layer}
    graph = {"technology": technology, "scale": scale}
    _check_options(reading, graph, n_domains, scheduler)
    if table_key is not None and not read_names(table_key, "table_key"):
        raise ValueError("`table_key` is an empty list: leave it out for all tables of cells.")
    check_bool(settle, "settle")
    check_bool(write_back, "write_back")
    check_errors(errors)
    check_key({}, key_added)
    resolve_device(device)
    skip = errors == "skip" and len(paths) > 1
    inputs = list_inputs(paths, table_key, skip=skip)
    results, cache = result_paths(inputs, folder), folder / "embeddings"
    for (path, key), result in zip(inputs, results, strict=True):
        check_place(path, result, cache, key_added)
        if write_back:
            check_file(path, key, key_added)
    network = resolve_model(model)
    cache.mkdir(parents=True, exist_ok=True)
    remove_parts(folder)
    remove_parts(cache)
    checkpoint = save_checkpoint(network, cache / f"{MODEL}{network.digest}")
    errors = errors if len(inputs) > 1 else "raise"
    number = Counter(path for path, _ in inputs)
    tasks = [
        FileTask(
            path,
            EmbeddedFile(cache / result.name),
            result,
            checkpoint,
            {**reading, "table_key": key},
            graph,
            device,
            errors,
            path.stem if number[path] == 1 else f"{path.stem}/{key}",
        )
        for (path, key), result in zip(inputs, results, strict=True)
    ]
    run = partial(_run, scheduler)
    problems = dict(zip(results, run(embed_file, [(task,) for task in tasks]), strict=True))
    good = _without(tasks, problems, folder)
    with one_thread():
        items = [task.item for task in good]
        partition = find_partition(network, items, settle=bool(settle), n_domains=n_domains, run=run)
    params = {"key_added": key_added, "n_domains": n_domains or 0, "settle": bool(settle)}
    params |= {name: key for name, key in (("library_key", library_key), ("layer", layer)) if key is not None}
    by_file: dict[Path, list[FileTask]] = {}
    for task in good:
        by_file.setdefault(task.path, []).append(task)
    found = run(label_file, [(some, partition, params, bool(write_back)) for some in by_file.values()])
    for some, these in zip(by_file.values(), found, strict=True):
        problems |= {task.result: error for task, error in zip(some, these, strict=True)}
    return [task.result for task in _without(tasks, problems, folder, warn=True)]


def _check_options(reading: dict[str, Any], graph: dict[str, Any], n_domains: int | None, scheduler: Any) -> None:
    """Raise unless the options can be meant."""
    if n_domains is not None:
        check_positive(n_domains, "n_domains", integer=True)
    for name, key in reading.items():
        if (key is not None and (name, key) != ("library_key", "")) or name == "spatial_key":
            check_name(key, name)
    if graph["scale"] is not None:
        check_scale(graph["scale"])
    find_platform(graph["technology"])
    try:
        get_scheduler(scheduler=scheduler)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`scheduler` must be one of dask, got {scheduler!r}: {error}") from error


def _without(
    tasks: Sequence[FileTask], problems: dict[Path, Exception | None], folder: Path, *, warn: bool = False
) -> list[FileTask]:
    """Write the summary, and return the tasks without a problem; an error where none is left."""
    write_summary(folder, [task.summary(problems[task.result]) for task in tasks])
    bad = [task for task in tasks if problems[task.result] is not None]
    if first := len(bad) == len(tasks) and problems[tasks[0].result]:
        raise first
    if bad and warn:
        lines = [f"\n  {task.path}: {task.explain(error)}" for task in bad if (error := problems[task.result])]
        numbers = (len(bad), len(tasks))
        logger.warning("%d of %d files were left out, see %r:%s", *numbers, str(folder / SUMMARY), "".join(lines))
    return [task for task in tasks if problems[task.result] is None]


def _run(scheduler: Any, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call a function with the arguments of every task, by dask where a scheduler is given or set."""
    if scheduler is None and dask.config.get("scheduler", None) is None:
        return list(starmap(function, tasks))
    return list(compute(*(delayed(function, pure=False)(*task) for task in tasks), scheduler=scheduler))
