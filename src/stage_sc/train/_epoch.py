"""The batches of an epoch, the same whether slides are in memory or on disk and for any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from stage_sc.nn import StageConfig
from stage_sc.slides import CHUNK, Slide, chunk_cells, load_window, n_chunks

# Centres of a slide on disk come from so many chunks at a time, spread over the slide, and batches are mixed over so
# many of these windows: both are held in memory.
CHUNKS_PER_WINDOW, WINDOWS = 8, 8


class Part(NamedTuple):
    """Centres of one slide in a batch."""

    number: int
    """Of the slide."""
    slide: Slide
    """In memory, with everything that the centres depend on: a whole slide, or a window of one."""
    centres: np.ndarray
    """``(b,)`` cells of `slide`."""
    rows: slice
    """Which rows of the global batch these centres are."""


class GlobalBatch(NamedTuple):
    """What all processes together compute in one step."""

    size: int
    """Centres of all processes."""
    parts: list[Part]
    """Those of this process."""


class _Window(NamedTuple):
    number: int
    """Of the slide."""
    centres: np.ndarray
    """Sorted cells of the slide."""
    shares: list[np.ndarray]
    """The same cells as they are dealt."""


def n_batches(slides: Sequence[Slide], config: StageConfig) -> int:
    """Return the number of batches of an epoch, the same for every epoch."""
    return math.ceil(_n_left(slides, config, 0) / config.slides_per_batch)


def epoch_batches(
    slides: Sequence[Slide],
    config: StageConfig,
    seed: Sequence[int],
    *,
    skip: int = 0,
    rank: int = 0,
    n_ranks: int = 1,
) -> Iterator[GlobalBatch]:
    """Deal the cells of an epoch into batches.

    Of every slide `cells_per_slide` cells are taken, anew for every epoch, and cut into parts of equal size; parts are
    put together to batches at random. Slides in memory are drawn from as a whole. Of a slide on disk, groups of chunks
    are drawn, which are read when the first batch needs them and dropped after the last.

    Parameters
    ----------
    slides, config
        Training data, and how it is dealt: `batch_size`, `slides_per_batch`, `cells_per_slide`.
    seed
        Of this epoch. The batches depend on it alone, not on the number of processes.
    skip
        Leave out so many batches; nothing is read for them.
    rank, n_ranks
        Number of this process and of all. Parts are dealt to processes where they can be dealt evenly; else every part
        is cut.
    """
    held: dict[int, tuple[Slide, np.ndarray]] = {}
    parts = islice(_parts(slides, config, tuple(seed), skip * config.slides_per_batch), _n_left(slides, config, skip))
    while batch := list(islice(parts, config.slides_per_batch)):
        ends = np.cumsum([0, *(len(cells) for _, cells, _ in batch)]).tolist()
        mine = []
        for position, (window, cells, _) in enumerate(batch):
            share = _share(position, len(batch), len(cells), rank, n_ranks)
            if share.stop > share.start:
                if id(window) not in held:
                    held[id(window)] = _load(slides[window.number], window, config)
                slide, places = held[id(window)]
                centres = places[np.searchsorted(window.centres, cells[share])]
                rows = slice(ends[position] + share.start, ends[position] + share.stop)
                mine.append(Part(window.number, slide, centres, rows))
        yield GlobalBatch(ends[-1], mine)
        for window, _, last in batch:
            if last:
                held.pop(id(window), None)


def _share(position: int, n_parts: int, size: int, rank: int, n_ranks: int) -> slice:
    """Which centres of a part of a batch a process computes."""
    if n_parts % n_ranks == 0:
        return slice(0, size if position % n_ranks == rank else 0)
    return slice(size * rank // n_ranks, size * (rank + 1) // n_ranks)


def _parts(
    slides: Sequence[Slide], config: StageConfig, seed: tuple[int, ...], skip: int
) -> Iterator[tuple[_Window, np.ndarray, bool]]:
    """Parts of an epoch from the `skip`-th on: the window, the cells, and whether they are the last of the window.

    Windows are put into groups at random, and the parts of a group are mixed. What is drawn for a group depends on its
    number alone, so that one that is skipped costs nothing, and only one at a time is in memory.
    """
    rng = np.random.default_rng(seed)
    whole, windows = [], []
    for number, slide in enumerate(slides):
        if slide.stored:
            windows += [(number, k) for k in range(_n_windows(slide, config))]
        else:
            cells = rng.permutation(slide.n_cells)[: _n_wanted(slide, config)]
            whole.append(_Window(number, np.sort(cells), np.array_split(cells, _n_parts(slide, config))))
    windows = [windows[position] for position in rng.permutation(len(windows))]
    groups = [windows[start : start + WINDOWS] for start in range(0, len(windows), WINDOWS)] or [[]]
    first = rng.integers(len(groups), size=len(whole))  # slides in memory are part of every group
    for k, group in enumerate(groups):
        shares = [
            window.shares[(start + k) % len(groups) :: len(groups)] for start, window in zip(first, whole, strict=True)
        ]
        bounds = [_bounds(slides[number], config, w) for number, w in group]
        count = sum(map(len, shares)) + sum(last - first for first, last in bounds)
        if skip >= count:
            skip -= count
            continue
        rng = np.random.default_rng((*seed, k))
        drawn = [_window(number, slides[number], config, w, seed, rng) for number, w in group]
        dealt = [(window, part) for window, some in zip(whole, shares, strict=True) for part in some]
        dealt += [(window, part) for window in drawn for part in window.shares]
        dealt = [dealt[position] for position in rng.permutation(count)]
        last_use = {id(window): position for position, (window, _) in enumerate(dealt)}
        for position in range(skip, count):
            window, cells = dealt[position]
            yield window, cells, last_use[id(window)] == position
        skip = 0


def _window(
    number: int, slide: Slide, config: StageConfig, k: int, seed: tuple[int, ...], rng: np.random.Generator
) -> _Window:
    """Draw the k-th window of a slide on disk: a few chunks from anywhere, which no other window of the epoch has."""
    wanted, n_parts = _n_wanted(slide, config), _n_parts(slide, config)
    first, last = _bounds(slide, config, k)
    ends = wanted * np.arange(first, last + 1) // n_parts
    size = int(ends[-1] - ends[0])
    chunks = np.random.default_rng((*seed, number, 0)).permutation(n_chunks(slide))
    below = np.cumsum([0, *np.minimum(CHUNK, slide.n_cells - chunks * CHUNK)])  # cells before each of them
    start, stop = (slide.n_cells * int(end) // wanted for end in (ends[0], ends[-1]))
    held = slice(np.searchsorted(below, start, side="right") - 1, np.searchsorted(below, stop))
    cells = np.concatenate([chunk_cells(slide, chunk[None]) for chunk in chunks[held]])
    near = cells[start - below[held.start] :][: stop - start]
    cells = rng.permutation(near[: max(size, CHUNKS_PER_WINDOW * CHUNK)])[:size]
    return _Window(number, np.sort(cells), np.split(cells, ends[1:-1] - ends[0]))


def _n_windows(slide: Slide, config: StageConfig) -> int:
    return min(_n_parts(slide, config), math.ceil(_n_wanted(slide, config) / (CHUNKS_PER_WINDOW * CHUNK)))


def _bounds(slide: Slide, config: StageConfig, k: int) -> tuple[int, int]:
    """Return the first part of a window and the first of the next: parts of a slide have equal sizes."""
    n_parts, n_windows = _n_parts(slide, config), _n_windows(slide, config)
    return n_parts * k // n_windows, n_parts * (k + 1) // n_windows


def _n_wanted(slide: Slide, config: StageConfig) -> int:
    return min(slide.n_cells, config.cells_per_slide or slide.n_cells)


def _n_parts(slide: Slide, config: StageConfig) -> int:
    return math.ceil(_n_wanted(slide, config) / max(1, config.batch_size // config.slides_per_batch))


def _n_left(slides: Sequence[Slide], config: StageConfig, skip: int) -> int:
    """Count the parts of an epoch after the first `skip` batches."""
    n_parts = sum(_n_parts(slide, config) for slide in slides)
    if config.cells_per_epoch is not None:
        n_parts = min(n_parts, math.ceil(config.cells_per_epoch / max(1, config.batch_size // config.slides_per_batch)))
    return max(0, n_parts - skip * config.slides_per_batch)


def _load(slide: Slide, window: _Window, config: StageConfig) -> tuple[Slide, np.ndarray]:
    """Slide in memory to draw from, and the positions of the window's cells in it."""
    if not slide.stored:
        return slide, window.centres
    return load_window(slide, window.centres, config.n_layers, config.context_hops)
