"""Batches of an epoch, the same for slides in memory and on disk and for any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from stage_sc.embed import window_hops
from stage_sc.nn import StageConfig
from stage_sc.slides import CHUNK, Slide, chunk_cells, load_window, n_chunks

# A window of a slide on disk has centres from this number of chunks, spread over the slide; batches are mixed over this
# number of windows, which are held in memory.
CHUNKS_PER_WINDOW, WINDOWS = 8, 8


class Part(NamedTuple):
    """Centres of one slide in a batch."""

    number: int
    """Number of the slide."""
    slide: Slide
    """A slide in memory, or a window of one on disk with the receptive field of the centres."""
    centres: np.ndarray
    """``(b,)`` cells of `slide`."""
    rows: slice
    """Rows of the global batch."""


class GlobalBatch(NamedTuple):
    """Batch of one step, shared by all processes."""

    size: int
    """Number of centres of all processes."""
    parts: list[Part]
    """Parts of this process."""


class _Window(NamedTuple):
    number: int
    """Number of the slide."""
    centres: np.ndarray
    """Sorted cells of the slide."""
    parts: list[np.ndarray]
    """The same cells, cut into parts of batches."""


def n_batches(slides: Sequence[Slide], config: StageConfig) -> int:
    """Return the number of batches of an epoch, the same for every epoch."""
    return math.ceil(_n_left(slides, config, 0) / config.slides_per_batch)


def epoch_batches(
    slides: Sequence[Slide], config: StageConfig, seed: Sequence[int], *, skip: int = 0, rank: int = 0, n_ranks: int = 1
) -> Iterator[GlobalBatch]:
    """Divide the cells of an epoch into batches.

    `cells_per_slide` cells of every slide, drawn anew in every epoch, are cut into parts of equal size, and random
    parts put together to batches. From a slide on disk, groups of chunks are drawn, read for their first batch and
    dropped after the last. The batches depend on the `seed` of the epoch alone, not on the number of processes. Nothing
    is read for the first `skip` batches, which are left out. Each process gets equal numbers of parts of a batch; if
    that is not possible, every part is cut.
    """
    held: dict[int, tuple[Slide, np.ndarray]] = {}
    parts = islice(_parts(slides, config, tuple(seed), skip * config.slides_per_batch), _n_left(slides, config, skip))
    while batch := list(islice(parts, config.slides_per_batch)):
        ends = np.cumsum([0, *(len(cells) for _, cells, _ in batch)]).tolist()
        own = []
        for position, (window, cells, _) in enumerate(batch):
            start, stop = len(cells) * rank // n_ranks, len(cells) * (rank + 1) // n_ranks
            if len(batch) % n_ranks == 0:
                start, stop = 0, len(cells) if position % n_ranks == rank else 0
            if stop > start:
                if id(window) not in held:
                    slide, centres = slides[window.number], window.centres
                    hops = window_hops(slide, config)
                    loaded = load_window(slide, centres, config.n_layers, hops) if slide.stored else None
                    held[id(window)] = loaded or (slide, centres)
                slide, positions = held[id(window)]
                centres = positions[np.searchsorted(window.centres, cells[start:stop])]
                own.append(Part(window.number, slide, centres, slice(ends[position] + start, ends[position] + stop)))
        yield GlobalBatch(ends[-1], own)
        for window, _, last in batch:
            if last:
                held.pop(id(window), None)


def _parts(
    slides: Sequence[Slide], config: StageConfig, seed: tuple[int, ...], skip: int
) -> Iterator[tuple[_Window, np.ndarray, bool]]:
    """Parts of an epoch after the first `skip`: the window, the cells, and True for the last part of the window.

    Windows are put into random groups, and the parts of a group are mixed. Random numbers of a group depend on its
    number alone: skipped groups cost nothing, and one at a time is in memory.
    """
    rng = np.random.default_rng(seed)
    in_memory, on_disk = [], []
    for number, slide in enumerate(slides):
        if slide.stored:
            on_disk += [(number, k) for k in range(_n_windows(slide, config))]
        else:
            cells = rng.permutation(slide.n_cells)[: _n_drawn(slide, config)]
            in_memory.append(_Window(number, np.sort(cells), np.array_split(cells, _n_parts(slide, config))))
    on_disk = [on_disk[position] for position in rng.permutation(len(on_disk))]
    groups = [on_disk[start : start + WINDOWS] for start in range(0, len(on_disk), WINDOWS)] or [[]]
    offsets = rng.integers(len(groups), size=len(in_memory))  # slides in memory are part of every group
    for k, group in enumerate(groups):
        parts = [
            (window, cells)
            for offset, window in zip(offsets, in_memory, strict=True)
            for cells in window.parts[(offset + k) % len(groups) :: len(groups)]
        ]
        bounds = [_bounds(slides[number], config, w) for number, w in group]
        count = len(parts) + sum(stop - start for start, stop in bounds)
        if skip >= count:
            skip -= count
            continue
        rng = np.random.default_rng((*seed, k))
        for number, w in group:
            window = _draw_window(number, slides[number], config, w, seed, rng)
            parts += [(window, cells) for cells in window.parts]
        parts = [parts[position] for position in rng.permutation(count)]
        last_use = {id(window): position for position, (window, _) in enumerate(parts)}
        for position in range(skip, count):
            window, cells = parts[position]
            yield window, cells, last_use[id(window)] == position
        skip = 0


def _draw_window(
    number: int, slide: Slide, config: StageConfig, k: int, seed: tuple[int, ...], rng: np.random.Generator
) -> _Window:
    """Draw the k-th window of a slide on disk: a few random chunks, disjoint from other windows of the epoch."""
    n_drawn, n_parts = _n_drawn(slide, config), _n_parts(slide, config)
    first, last = _bounds(slide, config, k)
    ends = n_drawn * np.arange(first, last + 1) // n_parts
    size = int(ends[-1] - ends[0])
    chunks = np.random.default_rng((*seed, number, 0)).permutation(n_chunks(slide))
    before = np.cumsum([0, *np.minimum(CHUNK, slide.n_cells - chunks * CHUNK)])  # cells before each chunk
    start, stop = (slide.n_cells * int(end) // n_drawn for end in (ends[0], ends[-1]))
    used = slice(np.searchsorted(before, start, side="right") - 1, np.searchsorted(before, stop))
    cells = np.concatenate([chunk_cells(slide, chunk[None]) for chunk in chunks[used]])
    cells = cells[start - before[used.start] :][: stop - start]
    cells = rng.permutation(cells[: max(size, CHUNKS_PER_WINDOW * CHUNK)])[:size]
    return _Window(number, np.sort(cells), np.split(cells, ends[1:-1] - ends[0]))


def _n_windows(slide: Slide, config: StageConfig) -> int:
    return min(_n_parts(slide, config), math.ceil(_n_drawn(slide, config) / (CHUNKS_PER_WINDOW * CHUNK)))


def _bounds(slide: Slide, config: StageConfig, k: int) -> tuple[int, int]:
    """First part of the k-th window and of the next one."""
    n_parts, n_windows = _n_parts(slide, config), _n_windows(slide, config)
    return n_parts * k // n_windows, n_parts * (k + 1) // n_windows


def _n_drawn(slide: Slide, config: StageConfig) -> int:
    return min(slide.n_cells, config.cells_per_slide or slide.n_cells)


def _n_parts(slide: Slide, config: StageConfig) -> int:
    return math.ceil(_n_drawn(slide, config) / max(1, config.batch_size // config.slides_per_batch))


def _n_left(slides: Sequence[Slide], config: StageConfig, skip: int) -> int:
    """Return the number of parts of an epoch after the first `skip` batches."""
    n_parts = sum(_n_parts(slide, config) for slide in slides)
    if config.cells_per_epoch is not None:
        n_parts = min(n_parts, math.ceil(config.cells_per_epoch / max(1, config.batch_size // config.slides_per_batch)))
    return max(0, n_parts - skip * config.slides_per_batch)
