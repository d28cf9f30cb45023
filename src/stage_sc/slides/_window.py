"""Windows: parts of a slide on disk that are held in memory while batches are drawn from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from stage_sc.graph import SLACK
from stage_sc.slides._batch import receptive_field, within_hops
from stage_sc.slides._slide import Slide
from stage_sc.slides._stored import select_columns

# Cells of a chunk, which are consecutive on disk and close in the tissue.
CHUNK = 2048


def n_chunks(slide: Slide) -> int:
    """Count the chunks of a slide."""
    return -(-slide.n_cells // CHUNK)


def chunk_cells(slide: Slide, chunks: np.ndarray) -> np.ndarray:
    """Sorted cells of some chunks."""
    cells = (np.sort(chunks)[:, None] * CHUNK + np.arange(CHUNK)).ravel()
    return cells[cells < slide.n_cells]


def sample(slide: Slide, size: int) -> np.ndarray:
    """About `size` sorted cells, evenly spaced over the slide: single cells in memory, whole chunks on disk."""
    if not slide.stored:
        return np.arange(0, slide.n_cells, max(1, slide.n_cells // size))
    number = max(1, min(n_chunks(slide), size // CHUNK))
    return chunk_cells(slide, np.linspace(0, n_chunks(slide) - 1, number).astype(int))


def load_window(
    slide: Slide, centres: np.ndarray, n_layers: int, context_hops: int, *, rings: bool = True
) -> tuple[Slide, np.ndarray]:
    """Read the sorted `centres` of a slide on disk with all cells that their batches need.

    The window includes the receptive field of `n_layers` layers, `context_hops` hops and, with `rings`, the receptive
    field of the partners in training.

    Returns
    -------
    A slide in memory with its cells in the same order, and the positions of the centres in it. Batches of these centres
    equal those of the whole slide.
    """
    cells = receptive_field(slide, centres, n_layers, context_hops)
    if rings:
        cells = np.union1d(cells, receptive_field(slide, _in_rings(slide, centres), n_layers))
    window = replace(
        slide,
        cells=slide.cells[cells],
        expression=slide.take(cells),
        rows=None,
        graph=select_columns(slide.graph[cells], cells),
        local=select_columns(slide.local[cells], cells),
        xy=slide.xy[cells],
        empty=slide.empty[cells],
        isolated=slide.isolated[cells],
        identity=slide.identity[cells],
    )
    return window, np.searchsorted(cells, centres)


def boxes_of(xy: np.ndarray) -> np.ndarray:
    """Bounding box of every chunk, ``(n_chunks, 2, 2)`` float64: lowest and highest coordinates."""
    starts = np.arange(0, len(xy), CHUNK)
    return np.stack([np.minimum.reduceat(xy, starts), np.maximum.reduceat(xy, starts)], axis=1)


def _in_rings(slide: Slide, centres: np.ndarray) -> np.ndarray:
    """Sorted cells that include the view rings of all centres."""
    mode, _, view, _ = slide.sizes
    if mode == "hops":
        return within_hops(slide, centres, int(view))[-1]
    reach = view * SLACK
    low, high = slide.boxes[np.unique(centres // CHUNK)].transpose(1, 0, 2)
    below, above = slide.boxes[:, None, 0] <= high + reach, slide.boxes[:, None, 1] >= low - reach
    cells = chunk_cells(slide, np.flatnonzero((below & above).all(axis=2).any(axis=1)))
    distance, _ = cKDTree(slide.xy[centres]).query(slide.xy[cells], distance_upper_bound=reach * SLACK)
    return cells[np.isfinite(distance)]
