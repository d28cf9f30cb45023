"""The batches of an epoch, the same whether slides are in memory or on disk and for any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stage_sc.data._slide import Slide
from stage_sc.data._window import CHUNK, load_window, n_chunks
from stage_sc.model._config import StageConfig

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
    n_parts = sum(_n_parts(slide, config) for slide in slides)
    most = _most_parts(config)
    return math.ceil((n_parts if most is None else min(n_parts, most)) / config.slides_per_batch)


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
    rng = np.random.default_rng(tuple(seed))
    windows: list[_Window] = []
    parts: list[tuple[int, np.ndarray]] = []  # those of all windows of a group are mixed
    for group in _plan(slides, config, rng):
        mixed = [(len(windows) + w, cells) for w, window in enumerate(group) for cells in window.shares]
        parts += [mixed[position] for position in rng.permutation(len(mixed))]
        windows += group
    parts = parts[: _most_parts(config)]
    last_use = {w: position for position, (w, _) in enumerate(parts)}
    held: dict[int, tuple[Slide, np.ndarray]] = {}
    for start in range(skip * config.slides_per_batch, len(parts), config.slides_per_batch):
        batch = parts[start : start + config.slides_per_batch]
        ends = np.cumsum([0, *(len(cells) for _, cells in batch)]).tolist()
        mine = []
        for position, (w, cells) in enumerate(batch):
            share = _share(position, len(batch), len(cells), rank, n_ranks)
            if share.stop > share.start:
                if w not in held:
                    held[w] = _load(slides[windows[w].number], windows[w], config.n_layers)
                slide, places = held[w]
                centres = places[np.searchsorted(windows[w].centres, cells[share])]
                rows = slice(ends[position] + share.start, ends[position] + share.stop)
                mine.append(Part(windows[w].number, slide, centres, rows))
        yield GlobalBatch(ends[-1], mine)
        for w in [w for w in held if last_use[w] < start + config.slides_per_batch]:
            del held[w]


def _share(position: int, n_parts: int, size: int, rank: int, n_ranks: int) -> slice:
    """Which centres of a part of a batch a process computes."""
    if n_parts % n_ranks == 0:
        return slice(0, size if position % n_ranks == rank else 0)
    return slice(size * rank // n_ranks, size * (rank + 1) // n_ranks)


def _plan(slides: Sequence[Slide], config: StageConfig, rng: np.random.Generator) -> list[list[_Window]]:
    """Which cells of which slides are drawn, in groups of windows that are held in memory together."""
    whole, windows = [], []
    for number, slide in enumerate(slides):
        wanted, n_parts = _n_wanted(slide, config), _n_parts(slide, config)
        if slide.stored:
            windows += _windows(number, slide, wanted, n_parts, rng)
        else:
            cells = rng.permutation(slide.n_cells)[:wanted]
            whole.append(_Window(number, np.sort(cells), np.array_split(cells, n_parts)))
    windows = [windows[position] for position in rng.permutation(len(windows))]
    groups = [windows[start : start + WINDOWS] for start in range(0, len(windows), WINDOWS)] or [[]]
    for window in whole:  # which are part of every group
        first = int(rng.integers(len(groups)))
        for k, group in enumerate(groups):
            group.append(window._replace(shares=window.shares[(first + k) % len(groups) :: len(groups)]))
    return groups


def _windows(number: int, slide: Slide, wanted: int, n_parts: int, rng: np.random.Generator) -> list[_Window]:
    """Windows of a slide on disk: each of a few chunks from anywhere, and all of them with parts of equal size."""
    n_windows = min(n_parts, math.ceil(wanted / (CHUNKS_PER_WINDOW * CHUNK)))
    order = (rng.permutation(n_chunks(slide))[:, None] * CHUNK + np.arange(CHUNK)).ravel()
    order = order[order < slide.n_cells]
    ends = wanted * np.arange(n_parts + 1) // n_parts
    parts = n_parts * np.arange(n_windows + 1) // n_windows  # first of every window
    windows = []
    for first, last in zip(parts, parts[1:], strict=False):
        size = ends[last] - ends[first]
        near = order[slide.n_cells * ends[first] // wanted : slide.n_cells * ends[last] // wanted]
        cells = rng.permutation(near[: max(size, CHUNKS_PER_WINDOW * CHUNK)])[:size]
        windows.append(_Window(number, np.sort(cells), np.split(cells, ends[first + 1 : last] - ends[first])))
    return windows


def _n_wanted(slide: Slide, config: StageConfig) -> int:
    return min(slide.n_cells, config.cells_per_slide or slide.n_cells)


def _n_parts(slide: Slide, config: StageConfig) -> int:
    return math.ceil(_n_wanted(slide, config) / max(1, config.batch_size // config.slides_per_batch))


def _most_parts(config: StageConfig) -> int | None:
    """Parts that an epoch has at most."""
    if config.cells_per_epoch is None:
        return None
    return math.ceil(config.cells_per_epoch / max(1, config.batch_size // config.slides_per_batch))


def _load(slide: Slide, window: _Window, n_layers: int) -> tuple[Slide, np.ndarray]:
    """Slide in memory to draw from, and where the window's cells are in it."""
    return load_window(slide, window.centres, n_layers) if slide.stored else (slide, window.centres)
