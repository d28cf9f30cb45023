"""Epochs: which cells come in which batch, for slides in memory and on disk, one process and several."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some
from scipy.spatial import cKDTree

from stage_sc.model import StageConfig
from stage_sc.slides import Slide, _window
from stage_sc.train import _epoch
from stage_sc.train._epoch import epoch_batches, n_batches

CHUNK, PER_WINDOW, WINDOWS = 16, 3, 2
SIZES = (150, 31, 333, 5)
Row = tuple[int, int]  # slide and cell


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """So that slides of some hundred cells have many windows."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_epoch, _window):
            patch.setattr(module, "CHUNK", CHUNK)
        patch.setattr(_epoch, "CHUNKS_PER_WINDOW", PER_WINDOW)
        patch.setattr(_epoch, "WINDOWS", WINDOWS)
        yield


@dataclass(eq=False)
class QuickWindow:
    """Numbers of the cells alone."""

    cells: np.ndarray
    stored: bool = False


@pytest.fixture(autouse=True)
def loads(monkeypatch) -> list[tuple[str, tuple[int, ...]]]:
    """Slides and centres of the windows read, which hold the numbers of the centres and of the cells before them."""
    calls = []

    def load(slide: Slide, centres: np.ndarray, n_layers: int, hops: int) -> tuple[QuickWindow, np.ndarray]:
        assert slide.stored
        assert (n_layers, hops) == (1, 4)
        assert (np.diff(centres) > 0).all()
        calls.append((slide.name, tuple(centres.tolist())))
        cells = np.union1d(centres, np.maximum(centres - 1, 0))
        return QuickWindow(cells), np.searchsorted(cells, centres)

    monkeypatch.setattr(_epoch, "load_window", load)
    return calls


def make(n: int, number: int) -> Slide:
    """Cells in a square, each joined with its three nearest; `cells` are their numbers."""
    rng = np.random.default_rng(number)
    xy = rng.uniform(0, 5 * n**0.5, (n, 2))
    xy = xy[cKDTree(xy, leafsize=CHUNK).indices]
    near = cKDTree(xy).query(xy, min(4, n))[1]
    graph = sp.csr_matrix((np.ones(near.size, np.float32), (np.repeat(np.arange(n), near.shape[1]), near.ravel())))
    graph, no = sp.csr_matrix(graph.maximum(graph.T)), np.zeros(n, bool)
    expression, ones = sp.csr_matrix(rng.random((n, 2)), dtype=np.float32), np.ones(2, np.float32)
    panel = {"genes": ["a", "b"], "mean": 0 * ones, "scale": ones, "expression": expression, "rows": None}
    place = {"xy": xy, "graph": graph, "local": graph.copy(), "sizes": ("radius", 3.0, 6.0, 3.0)}
    told = {"empty": no, "isolated": no, "edge": 10.0, "intensities": False, "identity": np.arange(n, dtype=np.uint64)}
    return Slide(name=f"slide{number}", cells=np.arange(n), **panel, **place, **told)


@pytest.fixture(scope="module")
def pool(small_chunks, on_disk) -> list[tuple[Slide, Slide]]:
    """Each in memory and on disk."""
    return [(slide, on_disk(slide)) for slide in (make(n, number) for number, n in enumerate(SIZES))]


KINDS = {"memory": [0, 0, 0, 0], "stored": [1, 1, 1, 1], "mixed": [0, 1, 1, 0], "other mix": [1, 0, 0, 1]}


def kinds(pool: list[tuple[Slide, Slide]], kind: str) -> list[Slide]:
    return [pair[on_disk] for pair, on_disk in zip(pool, KINDS[kind], strict=True)]


def config(**arguments: object) -> StageConfig:
    return StageConfig(**{"n_layers": 1, "batch_size": 20, "levels": (2, 4), **arguments})


def rows_of(batches: object) -> list[list[Row | None]]:
    """Cells in the rows of each batch; None where another process computes it."""
    found = []
    for batch in batches:
        rows: list[Row | None] = [None] * batch.size
        for part in batch.parts:
            assert not part.slide.stored
            cells = part.slide.cells[part.centres].tolist()
            assert rows[part.rows] == [None] * len(cells) != []
            rows[part.rows] = [(part.number, cell) for cell in cells]
        assert len(rows) == batch.size
        found.append(rows)
    return found


def whole(slides: list[Slide], config: StageConfig, seed: tuple[int, ...] = (0, 1), **options: int) -> list[list[Row]]:
    found = rows_of(epoch_batches(slides, config, seed, **options))
    assert all(row is not None for rows in found for row in rows)
    return found


def counted(batches: list[list[Row]]) -> Counter[Row]:
    return Counter(row for rows in batches for row in rows)


def per_slide(batches: list[list[Row]]) -> dict[int, int]:
    return dict(Counter(slide for rows in batches for slide, _ in rows))


@pytest.mark.parametrize("per_batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
class TestCells:
    def test_other_cells_in_every_epoch(self, pool, kind, per_batch):
        slides, chosen = kinds(pool, kind), config(slides_per_batch=per_batch, cells_per_slide=50)
        found = [counted(whole(slides, chosen, (7, epoch))) for epoch in range(60)]
        assert found[0] != found[1]
        drawn = sum(found, Counter())
        assert len(drawn) == sum(SIZES)  # in 60 epochs, at 50 of at most 333 cells
        for number, n in enumerate(SIZES):
            assert sum(drawn[number, cell] for cell in range(n)) == 60 * min(n, 50)

    def test_sizes(self, pool, kind, per_batch):
        """Parts of a slide are of equal size, and no batch is larger than wanted."""
        for arguments in ({}, {"cells_per_slide": 100}, {"cells_per_slide": 149}, {"batch_size": 64}):
            chosen, sizes = config(slides_per_batch=per_batch, **arguments), {}
            for batch in epoch_batches(kinds(pool, kind), chosen, (1,)):
                assert 0 < batch.size <= chosen.batch_size
                assert len(batch.parts) <= per_batch
                for part in batch.parts:
                    sizes.setdefault(part.number, []).append(len(part.centres))
            assert all(max(found) - min(found) <= 1 for found in sizes.values())

    def test_slides_and_cells_are_mixed(self, pool, kind, per_batch):
        """Batches of a slide are not in a row, and its cells do not come in their order."""
        found = whole(kinds(pool, kind), config(slides_per_batch=per_batch, batch_size=12))
        order = [rows[0][0] for rows in found]
        assert sum(a != b for a, b in zip(order, order[1:], strict=False)) > 0.15 * len(order)
        assert order != sorted(order)
        assert np.mean(np.diff([cell for rows in found for slide, cell in rows if slide == 2]) == 1) < 0.1


@pytest.mark.parametrize("per_batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_skipped_batches_are_not_read(pool, kind, per_batch, loads):
    slides, chosen = kinds(pool, kind), config(slides_per_batch=per_batch)
    batches = list(epoch_batches(slides, chosen, (2,)))
    assert (len(loads) > 3) == any(slide.stored for slide in slides)
    assert len(loads) == len(set(loads))  # each window once
    for skip in (3, 12, n_batches(slides, chosen) - 1, 10_000):
        parts = [part for batch in batches[skip:] for part in batch.parts if slides[part.number].stored]
        loads.clear()
        list(epoch_batches(slides, chosen, (2,), skip=skip))
        assert len(loads) == len({id(part.slide) for part in parts})


@pytest.mark.parametrize("per_batch", [1, 2, 3, 4])
@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_share_the_work(pool, n_ranks, per_batch):
    """Whole parts where these can be dealt evenly, else equal shares of every part."""
    slides, chosen = kinds(pool, "stored"), config(slides_per_batch=per_batch, batch_size=20 * per_batch)
    everything = list(epoch_batches(slides, chosen, (0,)))
    for rank in range(n_ranks):
        mine = epoch_batches(slides, chosen, (0,), rank=rank, n_ranks=n_ranks)
        for batch, whole in zip(mine, everything, strict=True):
            got, sizes = ([len(part.centres) for part in one.parts] for one in (batch, whole))
            if len(sizes) % n_ranks == 0:
                assert got == sizes[rank::n_ranks]
            else:
                assert len(got) >= sum(size >= n_ranks for size in sizes)
                assert sum(got) == pytest.approx(sum(sizes) / n_ranks, abs=len(sizes))


@pytest.mark.parametrize("kind", ["stored", "mixed"])
def test_windows_as_they_are_read(pool, kind, monkeypatch):
    """The cells are those of the quick windows; batches of windows are in test_slides_window."""
    slides, chosen = kinds(pool, kind), config(slides_per_batch=2)
    expected = whole(slides, chosen)
    monkeypatch.setattr(_epoch, "load_window", _window.load_window)
    assert whole(slides, chosen) == expected


class TestMemory:
    @pytest.mark.parametrize("kind", ["stored", "mixed"])
    @pytest.mark.parametrize("per_batch", [1, 2, 3])
    def test_windows_that_are_held(self, pool, kind, per_batch, loads):
        slides, alive, most = kinds(pool, kind), weakref.WeakSet(), 0
        for batch in epoch_batches(slides, config(slides_per_batch=per_batch), (4,)):
            for part in batch.parts:
                if slides[part.number].stored:
                    alive.add(part.slide)
                else:
                    assert part.slide is slides[part.number]
            del batch, part
            most = max(most, len(alive))
        assert len(loads) >= 8
        assert most <= WINDOWS + per_batch

    def test_all_cells_of_a_window_are_used_while_it_is_held(self, pool, loads):
        """Each is read once, with the cells of its parts and those that they need, and no others."""
        used, read = Counter(), Counter()
        for batch in epoch_batches(kinds(pool, "stored"), config(), (4,)):
            for part in batch.parts:
                used[part.number] += len(part.centres)
        for name, centres in loads:
            read[int(name[5:])] += len(centres)
        assert used == read == dict(enumerate(SIZES))

    @pytest.mark.parametrize("limit", [None, 100, 149, 200])
    def test_windows_are_few_chunks(self, pool, loads, limit):
        list(epoch_batches(kinds(pool, "stored"), config(cells_per_slide=limit), (4,)))
        assert max(len({cell // CHUNK for cell in centres}) for _, centres in loads) <= PER_WINDOW + 2

    def test_slides_in_memory_and_on_disk_share_the_epoch(self, pool):
        """An epoch that is cut short has cells of all of them."""
        slides, chosen = kinds(pool, "mixed"), config(cells_per_epoch=120)
        drawn = {number for seed in range(5) for number in per_slide(whole(slides, chosen, (seed,)))}
        assert 0 in drawn
        assert drawn & {1, 2}


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(some.data())
def test_any_choice(pool, data):
    slides = [data.draw(some.sampled_from(pair)) for pair in pool if data.draw(some.booleans())]
    assume(slides)
    chosen = config(
        batch_size=data.draw(some.integers(1, 80)),
        slides_per_batch=data.draw(some.integers(1, 5)),
        cells_per_slide=data.draw(some.none() | some.integers(1, 400)),
        cells_per_epoch=data.draw(some.none() | some.integers(1, 500)),
    )
    seed, n_ranks = (data.draw(some.integers(0, 9)),), data.draw(some.integers(1, 7))
    found = whole(slides, chosen, seed)
    in_memory = [pair[0] for pair in pool if any(slide in pair for slide in slides)]
    assert len(found) == n_batches(slides, chosen) == n_batches(in_memory, chosen)
    assert min(len(rows) for rows in found) > 0
    assert max(counted(found).values()) == 1
    if chosen.batch_size >= chosen.slides_per_batch:
        assert max(len(rows) for rows in found) <= chosen.batch_size
    share = chosen.cells_per_slide or 10**6
    expected = {number: min(slide.n_cells, share) for number, slide in enumerate(slides)}
    n, limit, part = sum(map(len, found)), chosen.cells_per_epoch, max(1, chosen.batch_size // chosen.slides_per_batch)
    if limit is None or limit > sum(expected.values()) + part * len(slides):
        assert per_slide(found) == expected
    else:
        assert n < limit + part * chosen.slides_per_batch
    skip = data.draw(some.integers(0, len(found)))
    assert whole(slides, chosen, seed, skip=skip) == found[skip:]
    ranks = [rows_of(epoch_batches(slides, chosen, seed, rank=r, n_ranks=n_ranks)) for r in range(n_ranks)]
    for rows, *each in zip(found, *ranks, strict=True):
        for row, *others in zip(rows, *each, strict=True):
            assert [other for other in others if other is not None] == [row]
