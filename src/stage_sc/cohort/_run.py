"""Tasks of `label_files`, one for each file: embed it, label it, write the labels back."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from stage_sc._compute import one_thread, resolve_device
from stage_sc._evidence import slide_column
from stage_sc._file_tables import read_table, with_coordinates, with_elements
from stage_sc._files import (
    FULL,
    stamp,
    temporary_folder,
    write_h5ad,
)
from stage_sc._messages import collected_warnings, naming
from stage_sc._result import Columns, check_key, write_labels, written_names
from stage_sc.cohort._results import Record, read_back, read_sources, source_digest
from stage_sc.cohort._task import FileTask
from stage_sc.cohort._write_back import Change, read_outline, write_back
from stage_sc.embed import embed_slides
from stage_sc.graph import Measures, build_graph, measure_slides
from stage_sc.model import resolve_model
from stage_sc.niches import Partition, assign_labels
from stage_sc.nn import Stage
from stage_sc.slides import read_slides

logger = logging.getLogger("stage_sc.tl")


@lru_cache(maxsize=2)
def _network(checkpoint: Path) -> Stage:
    """Read a model once per process; the name of its file has the digest."""
    return resolve_model(checkpoint)


def check_file(path: Path, table_key: str | None, key_added: str) -> None:
    """Raise unless results can be written into a file without replacing anything else; unreadable ones are left."""
    place = path.resolve()
    for one in (place, place.parent):
        if not os.access(one, os.W_OK):
            raise PermissionError(
                f"`write_back`: no permission to write {str(one)!r}. Leave it away, or copy the files."
            )
    try:
        there = read_outline(path, table_key, key_added)
    except Exception:  # noqa: BLE001 (the error that tells more comes when the file is embedded)
        return
    check_key({str(path): there}, key_added, "files")


def embed_file(task: FileTask) -> Exception | None:
    """Write the embeddings of one file, unless they were computed from the same file, model and settings.

    With ``errors="skip"``, the error about a file that cannot be labelled is returned.
    """
    source = None
    try:
        if task.known_source() is not None:
            return None
        source = task.source
        with naming(str(task.path)), collected_warnings() as said:
            found = _embed(task)
    except Exception as error:
        if task.errors == "raise" or not is_about_file(error):
            raise
        return portable(error)
    found.uns |= {"source": source, "warnings": "\n".join(dict.fromkeys(said))}
    write_h5ad(task.item.path, found)
    return None


def is_about_file(error: Exception) -> bool:
    """Tell if an error is about one file, and others can go on: not about memory, a full disk or a missing package."""
    return not (isinstance(error, MemoryError | ImportError) or getattr(error, "errno", None) in FULL)


def portable(error: Exception) -> Exception:
    """Return an error of a kind that every process can read."""
    return error if type(error).__module__ == "builtins" else ValueError(f"{type(error).__name__}: {error}")


def _embed(task: FileTask) -> AnnData:
    """Embed the cells of a file that have coordinates; of its annotations, only slides and regions are kept."""
    reading, library_key = task.reading, task.reading["library_key"]
    spatial_key, table_key = str(reading["spatial_key"]), reading["table_key"]
    everything = adata = read_table(task.path, **reading, whole=True)  # type: ignore[arg-type]
    rows = np.arange(adata.n_obs)
    if spatial_key in adata.obsm:
        adata, rows = with_coordinates(everything, spatial_key)
    given = with_elements(task.path, table_key, adata, places=spatial_key not in adata.obsm)
    build_graph(given, spatial_key=spatial_key, library_key=library_key, **task.graph)
    spatial_key = adata.uns["stage_graph"]["params"]["spatial_key"]
    measures = _measure(adata, task, spatial_key)
    network = _network(task.checkpoint)
    with temporary_folder() as scratch, one_thread():
        names = network.vocabulary.keys()
        slides = read_slides(adata, network.config, vocabulary=names, prefix=task.name, scratch=scratch)
        found = embed_slides(network, slides, resolve_device(task.device), domains=True)
    order = np.argsort(found.cells)
    facts = {
        "slides": len(slides),
        "cells": everything.n_obs,
        "genes": adata.n_vars,
        "genes_used": max(len(slide.genes) for slide in slides),
        "scale": _listed(f"{one.scale:g}" for one in measures),
        "unit": _listed(one.source for one in measures),
        "layout": _listed(one.layout for one in measures),
        "spacing": round(float(np.median([one.spacing for one in measures])), 3),
        "neighbours": float(np.median([one.neighbours for one in measures])),
    }
    uns: dict[str, Any] = {"flag": found.flag[order], "slides": found.slides, "kept": {}, "rows": rows, "facts": facts}
    uns["spatial_key"] = spatial_key
    columns = [library_key]
    if "spatialdata_attrs" in adata.uns:  # the link of a table with its shapes
        attrs = uns["kept"]["spatialdata_attrs"] = adata.uns["spatialdata_attrs"]
        columns += [attrs.get("region_key"), attrs.get("instance_key")]
    obs = adata.obs[[column for column in dict.fromkeys(columns) if column in adata.obs]]
    obsm = {"niche": found.niche[order], "context": found.context[order], "coordinates": adata.obsm[spatial_key]}
    return AnnData(obs=obs, obsm=obsm, uns=uns)


def _measure(adata: AnnData, task: FileTask, spatial_key: str) -> list[Measures]:
    """Measure the slides; with ``errors="skip"``, a scale that cannot be right is an error."""
    keys = {"spatial_key": spatial_key, "library_key": task.reading["library_key"], "coordinate_system": None}
    given: dict[str, Any] = task.graph if task.errors == "skip" else {**task.graph, "scale": None}
    measures = list(measure_slides(adata, None, "", **keys, **given))  # type: ignore[arg-type]
    if problem := next((one.problem for one in measures if one.problem), ""):
        raise ValueError(problem)
    return measures


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def label_file(
    tasks: Sequence[FileTask], partition: Partition, params: dict[str, Any], into_file: bool
) -> list[Exception | None]:
    """Write the labels of one file, or of its tables one after the other, as these share metadata."""
    return [_label(task, partition, params, into_file) for task in tasks]


def _label(task: FileTask, partition: Partition, params: dict[str, Any], into_file: bool) -> Exception | None:
    """Write labels, unless they were computed from the same embeddings and partition.

    With `into_file` they are written into the file too; errors about this are raised or returned as in `embed_file`.
    """
    source = {**task.item.read("uns/source"), "partition": partition.digest}
    _write_result(task, partition, params, source)
    if into_file:
        try:
            with naming(str(task.path)):
                _write_into_file(task, params, source)
        except Exception as error:
            if task.errors == "raise" or not is_about_file(error):
                raise
            return portable(error)
    return None


def _write_result(task: FileTask, partition: Partition, params: dict[str, Any], source: dict[str, Any]) -> None:
    key, item, result, network = params["key_added"], task.item, task.result, _network(task.checkpoint)
    before = read_back(result)
    if before is not None and read_sources(before).get(key) == source:
        return
    with one_thread():
        labels = assign_labels(network, partition, item, resolve_device("cpu"))
    spatial_key = item.read("uns/spatial_key")
    adata = AnnData(obs=item.read("obs"), obsm={spatial_key: item.read("obsm/coordinates")}, uns=item.read("uns/kept"))
    params = {"library_key": slide_column(adata), "layer": "", **params, "spatial_key": spatial_key}
    if before is not None:
        if before.obs_names.equals(adata.obs_names):  # labels under other keys, and all that was added, are kept
            before.obsm[spatial_key] = adata.obsm[spatial_key]
            before.obs = before.obs.assign(**adata.obs)
            adata = before
        elif others := sorted(set(read_sources(before)) - {key}):
            logger.warning("%r held labels %s of other cells, which are replaced.", str(result), ", ".join(others))
    check_key({str(result): adata}, key, "out")
    write_labels(adata, labels, network, network.digest, params)
    adata.uns[key]["source"] = source
    write_h5ad(result, adata)


def _write_into_file(task: FileTask, params: dict[str, Any], source: dict[str, Any]) -> None:
    """Write a result into the file, unless it is there; cells without coordinates have none."""
    key, digest, state = params["key_added"], source_digest(source), task.state
    record = Record(task.item.path, task.item.read("uns/source"))
    if record.has(state, key, digest):
        return

    def check() -> None:
        if not record.knows(task.state):
            raise ValueError(
                "the file was changed while it was labelled, so its labels were not written into it: repeat the call."
            )

    def about_to_finish(changed: Path) -> None:
        if not changed.is_dir():
            check()
        record.add("-".join(map(str, stamp(changed, task.reading["table_key"]))), key, digest, after=state)

    check()
    result = read_back(task.result)
    assert result is not None  # written before
    there = read_outline(task.path, task.reading["table_key"], key)
    check_key({"": there}, key)
    write_back(task.path, task.reading["table_key"], _change(task, result, there, key), about_to_finish)


def _change(task: FileTask, result: AnnData, there: AnnData, key: str) -> Change:
    """Entries of a result for all cells of the file, and those of the result that is `there`."""
    rows, n_cells, embedding = task.item.read("uns/rows"), task.item.read("uns/facts/cells"), Columns(key).embedding
    position = np.full(n_cells, -1)
    position[rows] = np.arange(len(rows))
    obs = result.obs[written_names(result, key)].reset_index(drop=True).reindex(position)
    values = np.full((n_cells, result.obsm[embedding].shape[1]), np.nan, np.float32)
    values[rows] = result.obsm[embedding]
    before = written_names(there, key)
    removed = [*(f"obs/{name}" for name in before), *(f"uns/{name}_colors" for name in before)]
    uns = {name: value for name, value in result.uns[key].items() if name != "source"}
    obsm, place = {embedding: values}, uns["params"]["spatial_key"]
    if place not in there.obsm:  # from the shapes, where all cells have coordinates
        obsm[place] = result.obsm[place]
    return Change(obs, obsm, {key: uns}, removed)
