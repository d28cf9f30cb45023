"""Many slides on disk, prepared once and streamed in training."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from tqdm.auto import tqdm

from stage_sc._checks import check_bool, check_name, check_scale
from stage_sc._file_tables import read_table
from stage_sc._files import (
    PART,
    as_path,
    digest,
    existing,
    folder_to_write,
    known_digest,
    part_of,
    remove_parts,
    stamp,
    temporary_folder,
    writing,
)
from stage_sc._messages import naming
from stage_sc.graph import build_graph, find_platform, permute
from stage_sc.nn import StageConfig
from stage_sc.slides import (
    CHUNK,
    MatrixWriter,
    Slide,
    StoredArray,
    StoredMatrix,
    boxes_of,
    files_of,
    gene_scaling,
    read_slides,
)

logger = logging.getLogger("stage_sc.data")

FORMAT = "stage_sc store 3"
# Header in the folder of every file, written last.
CONTENTS = "file.json"
# Rows per write.
BLOCK = 65_536
# Files of a slide: dtype and width.
ARRAYS = {"xy": ("<f8", 2), "cells": ("<i8", None), "empty": ("|b1", None), "isolated": ("|b1", None)}
ARRAYS["identity"] = ("<u8", None)
MATRICES = ("expression", "graph", "local")
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
        self.path = as_path(path, "path")
        self.folders: list[Path] = []
        self.headers: list[dict[str, Any]] = []
        for file in sorted(file for file in self.path.glob(f"*/{CONTENTS}") if file.parent.suffix != PART):
            for number, header in enumerate(_read_contents(file)["slides"]):
                folder = file.parent / str(number)
                _check_files(folder, header)
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
            _check_files(folder, header, digest)

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
            _check_files(folder, header, known_digest)
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
        Column of ``obs`` with the slide of every cell. ``None``: the regions of a SpatialData table that has several,
        else one slide per file. ``""``: one slide per file.
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
    paths, out = existing(files), folder_to_write(path, "path")
    check_bool(progress, "progress")
    for name, key in {"library_key": library_key, "layer": layer, "table_key": table_key}.items():
        if key is not None and (name, key) != ("library_key", ""):
            check_name(key, name)
    check_name(spatial_key, "spatial_key")
    if scale is not None:
        check_scale(scale)
    find_platform(technology)
    out.mkdir(parents=True, exist_ok=True)
    remove_parts(out)
    reading = {"spatial_key": spatial_key, "layer": layer, "table_key": table_key}
    graph = {"technology": technology, "scale": scale}
    for file in tqdm(paths, disable=not progress, unit="file", desc="store"):
        where = str(file.resolve())
        source = json.dumps([where, *stamp(file), library_key, reading, graph])
        folder = out / f"{file.stem}-{hashlib.sha256(where.encode()).hexdigest()[:12]}"
        if _is_built(folder, source):
            continue
        part = part_of(folder)
        part.mkdir()
        try:
            with naming(str(file)), writing(part):
                headers = _write_file(file, part, library_key, reading, graph)
                content = {"format": FORMAT, "source": source, "slides": headers, "digest": _header_digest(headers)}
                (part / CONTENTS).write_text(json.dumps(content))
            shutil.rmtree(folder, ignore_errors=True)  # of the file as it was before
            try:
                part.replace(folder)
            except OSError:
                if not _is_built(folder, source):  # by another process
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return Store(out)


def _is_built(folder: Path, source: str) -> bool:
    """Return True if a file is in the store, from the same source and undamaged."""
    if not (folder / CONTENTS).is_file():
        return False
    try:
        content = _read_contents(folder / CONTENTS)
        for number, header in enumerate(content["slides"]):
            _check_files(folder / str(number), header, known_digest)
    except (OSError, ValueError) as error:
        logger.warning("%s It is built again.", error)
        return False
    return bool(content.get("source") == source)


def _read_contents(file: Path) -> dict[str, Any]:
    """Read the header of a file in the store; a ValueError that names it if it is damaged or of another format."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"it has the format {content['format']!r}, expected {FORMAT!r}")
        if content.get("digest", digest := _header_digest(content["slides"])) != digest:
            raise ValueError("its checksum differs")
        for header in content["slides"]:
            names = {*ARRAYS, *SMALL, *(path.name for name in MATRICES for path in files_of(Path(name)))}
            if lacking := names - set(header["files"]):
                raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
            texts, sizes = [header["name"], *header["genes"]], [*header["sizes"][1:], header["edge"]]
            if not all(isinstance(text, str) for text in texts) or not np.isfinite(sizes).all() or len(sizes) != 4:
                raise ValueError("it is no header of a slide")
            if header["n_cells"] < 1 or len(set(header["genes"])) < len(header["genes"]):
                raise ValueError("it has no cells, or a gene twice")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} cannot be used: {error}. Build the store again.") from error
    return dict(content)


def _check_files(folder: Path, header: dict[str, Any], digest: Callable[[Path], str] | None = None) -> None:
    """Raise a ValueError unless all files of a slide have the size, and with `digest` the checksum, in its header."""
    for name, (size, expected) in header["files"].items():
        written = folder / name
        if not written.is_file() or written.stat().st_size != size:
            raise ValueError(f"{str(written)!r} is damaged: not {size} bytes. Build the store again.")
        if digest is not None and digest(written) != expected:
            raise ValueError(f"{str(written)!r} is damaged: its checksum differs. Build the store again.")


def _header_digest(slides: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(slides, sort_keys=True).encode()).hexdigest()


def _write_file(
    file: Path, folder: Path, library_key: str | None, reading: dict[str, Any], graph: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write all slides of a file, and return their headers."""
    adata = read_table(file, library_key=library_key, **reading)
    build_graph(adata, spatial_key=reading["spatial_key"], library_key=library_key, **graph)
    with temporary_folder() as scratch:
        slides = read_slides(adata, RAW, prefix=f"{file.parent.name}/{file.stem}", scratch=scratch)
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
    arrays |= {"identity": slide.identity[order], "mean": slide.mean, "deviation": slide.scale, "boxes": boxes_of(xy)}
    for name, values in arrays.items():
        values = np.ascontiguousarray(values, SMALL.get(name) or ARRAYS[name][0])
        (folder / name).write_bytes(values.data)
    header = {"name": slide.name, "n_cells": slide.n_cells, "genes": slide.genes}
    header |= {"sizes": list(slide.sizes), "edge": slide.edge, "intensities": slide.intensities}
    return header | {"files": {file.name: [file.stat().st_size, digest(file)] for file in sorted(folder.iterdir())}}


def _read_slide(folder: Path, header: dict[str, Any], config: StageConfig, known: np.ndarray) -> Slide:
    n, genes = header["n_cells"], header["genes"]
    mean, deviation, boxes = (np.fromfile(folder / name, dtype) for name, dtype in SMALL.items())
    arrays: dict[str, Any] = {name: StoredArray(folder / name, *kind) for name, kind in ARRAYS.items()}
    widths = dict(zip(MATRICES, (len(genes), n, n), strict=True))
    matrices: dict[str, Any] = {name: StoredMatrix(folder / name, width) for name, width in widths.items()}
    if not len(mean) == len(deviation) == len(genes) or any(len(array) != n for array in arrays.values()):
        raise ValueError(f"{str(folder)!r} is damaged: sizes differ from its header. Build the store again.")
    for matrix in matrices.values():
        matrix.check(n)
    mean, scale = gene_scaling(mean[known], deviation[known], config)
    if len(known) < len(genes):
        matrices["expression"] = StoredMatrix(folder / "expression", len(genes), known)
    return Slide(
        name=header["name"],
        genes=[genes[position] for position in known],
        mean=mean,
        scale=scale,
        rows=None,
        sizes=tuple(header["sizes"]),
        edge=float(header["edge"]),
        intensities=bool(header["intensities"]),
        boxes=boxes.reshape(-1, 2, 2),
        **matrices,
        **arrays,
    )
