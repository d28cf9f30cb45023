"""Many slides on disk, prepared once and streamed in training."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from tqdm.auto import tqdm

from stage_sc._files import existing, read_table, stamp
from stage_sc.graph import build_graph, permute
from stage_sc.nn import StageConfig
from stage_sc.slides import CHUNK, MatrixWriter, Slide, StoredArray, StoredMatrix, boxes_of, gene_scaling, read_slides

logger = logging.getLogger("stage_sc.data")

FORMAT = "stage_sc store 1"
# Header in the folder of every file, written last.
CONTENTS = "file.json"
# Suffix of incomplete folders.
PART = ".part"
# Rows per write.
BLOCK = 65_536
# Files of a slide: dtype and width.
ARRAYS = {"xy": ("<f8", 2), "cells": ("<i8", None), "empty": ("|b1", None), "isolated": ("|b1", None)}
SMALL = {"mean": "<f4", "deviation": "<f4", "boxes": "<f8"}
# Stored without limit of the sd; the configuration is applied when slides are read.
RAW = StageConfig(min_sd=0.0)


class Store:
    """Slides on disk, read batch by batch.

    Parameters
    ----------
    path
        Folder of `build_store`.

    Raises
    ------
    FileNotFoundError
        If there is no store.
    ValueError
        If the store has another format, or files of another size than were written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.folders: list[Path] = []
        self.headers: list[dict[str, Any]] = []
        for file in sorted(file for file in self.path.glob(f"*/{CONTENTS}") if file.parent.suffix != PART):
            content = json.loads(file.read_text())
            if content.get("format") != FORMAT:
                raise ValueError(f"{str(file)!r} has the format {content.get('format')!r}, expected {FORMAT!r}.")
            for number, header in enumerate(content["slides"]):
                folder = file.parent / str(number)
                for name, (size, _) in header["files"].items():
                    written = folder / name
                    if not written.is_file() or written.stat().st_size != size:
                        raise ValueError(f"{str(written)!r} is damaged: not {size} bytes. Build the store again.")
                self.folders.append(folder)
                self.headers.append(header)
        if not self.folders:
            raise FileNotFoundError(f"There are no slides in {str(path)!r}. Run `st.data.build_store(files, path)`.")

    @property
    def n_cells(self) -> int:
        """Cells of all slides."""
        return sum(header["n_cells"] for header in self.headers)

    def __repr__(self) -> str:
        genes = len({gene for header in self.headers for gene in header["genes"]})
        return f"Store: {self.n_cells} cells, {len(self.headers)} slides, {genes} genes"

    def verify(self) -> None:
        """Compare the checksum of every file, and raise a ValueError if one differs."""
        for folder, header in zip(self.folders, self.headers, strict=True):
            for name, (_, digest) in header["files"].items():
                if _digest(folder / name) != digest:
                    raise ValueError(f"{str(folder / name)!r} is damaged: its checksum differs. Build the store again.")

    def slides(self, config: StageConfig | None = None, *, vocabulary: Collection[str] | None = None) -> list[Slide]:
        """Open all slides; expression is read when it is needed.

        Parameters
        ----------
        config
            Configuration of the model, which sets the scaling of the genes. ``None``: the defaults.
        vocabulary
            Tokens of the model; other genes and slides without any of them are left out. ``None``: all genes.
        """
        slides, config = [], config or StageConfig()
        for folder, header in zip(self.folders, self.headers, strict=True):
            known = np.array([vocabulary is None or gene in vocabulary for gene in header["genes"]])
            if not known.any():
                logger.warning("The model knows no gene of slide %s, which is left out.", header["name"])
                continue
            slides.append(_read_slide(folder, header, config, np.flatnonzero(known)))
        if not slides:
            raise ValueError(f"The model knows no gene of any slide in {str(self.path)!r}.")
        return slides


def build_store(
    files: Iterable[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    layer: str | None = None,
    table_key: str | None = None,
    technology: str | None = None,
    scale: float | None = None,
    progress: bool = True,
) -> Store:
    """Prepare slides for training on data that does not fit into memory.

    For every slide the graph is built and expression is log-normalised; cells are written in spatial order, with
    neighbours close on disk. Files that are in the store already are skipped: repeat the call after an interruption or
    with more files.

    Parameters
    ----------
    files
        ``.h5ad`` files, zarr folders of AnnData or SpatialData, each with one or several slides.
    path
        Folder of the store.
    spatial_key
        Entry of ``obsm`` with the coordinates. Cells without coordinates are left out.
    library_key
        Column of ``obs`` with the slide of every cell. ``None``: one slide per file.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``.
    table_key
        Table of SpatialData folders. ``None``: the only one.
    technology, scale
        As in `stage_sc.pp.build_graph`.
    progress
        Show a progress bar.

    Returns
    -------
    The store, for `stage_sc.tl.fit`.

    Raises
    ------
    FileNotFoundError, KeyError, ValueError
        If a file cannot be read, or is refused by `stage_sc.pp.build_graph`. The files before it stay in the store.

    Notes
    -----
    About 30 s for a million cells with 50 counts each. Disk: 8 bytes per count and 250 per cell, and 8 bytes per count
    of one file for temporary files. Memory: the graph of the largest slide, 1.5 GB for half a million cells.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> adata.write_h5ad("slide.h5ad")
    >>> store = st.data.build_store(["slide.h5ad"], "corpus", progress=False)
    >>> model = st.tl.fit(store, epochs=2, progress=False)
    """
    paths, out = existing(files), Path(path)
    out.mkdir(parents=True, exist_ok=True)
    reading = {"spatial_key": spatial_key, "layer": layer, "table_key": table_key}
    graph = {"technology": technology, "scale": scale}
    for file in tqdm(paths, disable=not progress, unit="file", desc="store"):
        where = str(file.resolve())
        source = json.dumps([where, *stamp(file), library_key, reading, graph])
        folder = out / f"{file.stem}-{hashlib.sha256(where.encode()).hexdigest()[:12]}"
        if (folder / CONTENTS).is_file() and json.loads((folder / CONTENTS).read_text())["source"] == source:
            continue
        part = folder.with_name(f"{folder.name}{PART}")
        shutil.rmtree(part, ignore_errors=True)  # of an interrupted call
        part.mkdir()
        try:
            headers = _write_file(file, part, library_key, reading, graph)
            (part / CONTENTS).write_text(json.dumps({"format": FORMAT, "source": source, "slides": headers}))
            shutil.rmtree(folder, ignore_errors=True)  # of the file as it was before
            part.replace(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return Store(out)


def _write_file(
    file: Path, folder: Path, library_key: str | None, reading: dict[str, Any], graph: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write all slides of a file, and return their headers."""
    adata = read_table(file, library_key=library_key, **reading)
    build_graph(adata, spatial_key=reading["spatial_key"], library_key=library_key, **graph)
    with TemporaryDirectory(prefix="stage_sc-") as scratch:
        slides = read_slides(adata, RAW, prefix=f"{file.parent.name}/{file.stem}", scratch=Path(scratch))
        return [_write_slide(slide, folder / str(number)) for number, slide in enumerate(slides)]


def _write_slide(slide: Slide, folder: Path) -> dict[str, Any]:
    """Write a slide in spatial order, and return its header."""
    folder.mkdir()
    order = cKDTree(slide.xy[:], leafsize=CHUNK).indices
    starts, expression = range(0, slide.n_cells, BLOCK), MatrixWriter(folder / "expression", len(slide.genes))
    for start in starts:
        expression.append(slide.take(order[start : start + BLOCK]))
    for name in ("graph", "local"):
        matrix, writer = permute(getattr(slide, name), order), MatrixWriter(folder / name, slide.n_cells)
        for start in starts:
            writer.append(matrix[start : start + BLOCK])
    xy = slide.xy[:][order]
    arrays = {"xy": xy, "cells": slide.cells[order], "empty": slide.empty[order], "isolated": slide.isolated[order]}
    arrays |= {"mean": slide.mean, "deviation": slide.scale, "boxes": boxes_of(xy)}
    for name, values in arrays.items():
        np.asarray(values, SMALL.get(name) or ARRAYS[name][0]).tofile(folder / name)
    header = {"name": slide.name, "n_cells": slide.n_cells, "genes": slide.genes, "sizes": list(slide.sizes)}
    return header | {"files": {file.name: [file.stat().st_size, _digest(file)] for file in sorted(folder.iterdir())}}


def _read_slide(folder: Path, header: dict[str, Any], config: StageConfig, known: np.ndarray) -> Slide:
    n, genes = header["n_cells"], header["genes"]
    mean, deviation, boxes = (np.fromfile(folder / name, dtype) for name, dtype in SMALL.items())
    mean, scale = gene_scaling(mean[known], deviation[known], config)
    return Slide(
        name=header["name"],
        genes=[genes[position] for position in known],
        mean=mean,
        scale=scale,
        expression=StoredMatrix(folder / "expression", len(genes), None if len(known) == len(genes) else known),
        rows=None,
        graph=StoredMatrix(folder / "graph", n),
        local=StoredMatrix(folder / "local", n),
        sizes=tuple(header["sizes"]),
        boxes=boxes.reshape(-1, 2, 2),
        **{name: StoredArray(folder / name, *kind) for name, kind in ARRAYS.items()},
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
