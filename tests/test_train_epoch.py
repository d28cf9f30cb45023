"""Epochs: which cells come in which batch, for slides in memory and on disk, one process and several."""

from __future__ import annotations

import weakref
from collections import Counter
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some
from scipy.spatial import cKDTree

from stage_sc.model import StageConfig
from stage_sc.slides import Slide, _window, make_batch, slide_panel
from stage_sc.train import _epoch
from stage_sc.train._epoch import epoch_batches, n_batches

CHUNK, PER_WINDOW, WINDOWS = 16, 3, 2
SIZES = (150, 31, 333, 5)


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """So that slides of some hundred cells have many windows."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_epoch, _window):
            patch.setattr(module, "CHUNK", CHUNK)
        patch.setattr(_epoch, "CHUNKS_PER_WINDOW", PER_WINDOW)
        patch.setattr(_epoch, "WINDOWS", WINDOWS)
        yield


class QuickWindow:
    """Numbers of the cells alone."""

    def __init__(self, cells: np.ndarray) -> None:
        self.cells, self.stored = cells, False


@pytest.fixture(autouse=True)
def quick_windows(monkeypatch):
    """Windows that hold the centres and the cells before them, and nothing but their numbers."""

    def load(slide: Slide, centres: np.ndarray, n_layers: int, hops: int) -> tuple[QuickWindow, np.ndarray]:
        assert slide.stored
        assert (n_layers, hops) == (1, 6)
        assert (np.diff(centres) > 0).all()
        cells = np.union1d(centres, np.maximum(centres - 1, 0))
        return QuickWindow(cells), np.searchsorted(cells, centres)

    monkeypatch.setattr(_epoch, "load_window", load)


def make(n: int, number: int) -> Slide:
    """Cells in a square, each joined with its three nearest; `cells` are their numbers."""
    rng = np.random.default_rng(number)
    xy = rng.uniform(0, 5 * n**0.5, (n, 2))
    xy = xy[cKDTree(xy, leafsize=CHUNK).indices]
    near = cKDTree(xy).query(xy, min(4, n))[1]
    graph = sp.csr_matrix((np.ones(near.size, np.float32), (np.repeat(np.arange(n), near.shape[1]), near.ravel())))
    graph = sp.csr_matrix(graph.maximum(graph.T))
    return Slide(
        name=f"slide{number}",
        genes=["a", "b"],
        mean=np.zeros(2, np.float32),
        scale=np.ones(2, np.float32),
        cells=np.arange(n),
        expression=sp.csr_matrix(rng.random((n, 2)), dtype=np.float32),
        rows=None,
        graph=graph,
        local=graph.copy(),
        xy=xy,
        sizes=("radius", 3.0, 6.0, 3.0),
        empty=np.zeros(n, bool),
        isolated=np.zeros(n, bool),
    )


@pytest.fixture(scope="module")
def pool(small_chunks, on_disk) -> list[tuple[Slide, Slide]]:
    """Each in memory and on disk."""
    return [(slide, on_disk(slide)) for slide in (make(n, number) for number, n in enumerate(SIZES))]


def kinds(pool: list[tuple[Slide, Slide]], kind: str) -> list[Slide]:
    stored = {"memory": [0, 0, 0, 0], "stored": [1, 1, 1, 1], "mixed": [0, 1, 1, 0], "other mix": [1, 0, 0, 1]}[kind]
    return [pair[on_disk] for pair, on_disk in zip(pool, stored, strict=True)]


KINDS = ("memory", "stored", "mixed", "other mix")


class Row(NamedTuple):
    slide: int
    cell: int


def config(**arguments: object) -> StageConfig:
    return StageConfig(**{"n_layers": 1, "batch_size": 20, "levels": (2, 4), **arguments})


def rows_of(batches: object) -> list[list[Row | None]]:
    """For every batch, who is in which row; None where another process computes it."""
    found = []
    for batch in batches:
        rows: list[Row | None] = [None] * batch.size
        for part in batch.parts:
            assert not part.slide.stored
            assert part.rows.stop - part.rows.start == len(part.centres) > 0
            cells = part.slide.cells[part.centres]
            for position, cell in zip(range(part.rows.start, part.rows.stop), cells.tolist(), strict=True):
                assert rows[position] is None
                rows[position] = Row(part.number, cell)
        found.append(rows)
    return found


def whole(
    slides: list[Slide], config: StageConfig, seed: tuple[int, ...] = (0, 1), **arguments: int
) -> list[list[Row]]:
    found = rows_of(epoch_batches(slides, config, seed, **arguments))
    assert all(row is not None for rows in found for row in rows)
    return found


def counted(batches: list[list[Row]]) -> Counter[Row]:
    return Counter(row for rows in batches for row in rows)


def per_slide(batches: list[list[Row]]) -> dict[int, int]:
    return dict(Counter(row.slide for rows in batches for row in rows))


@pytest.mark.parametrize("per_batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
class TestCells:
    def test_other_cells_in_every_epoch(self, pool, kind, per_batch):
        slides, chosen = kinds(pool, kind), config(slides_per_batch=per_batch, cells_per_slide=50)
        found = [counted(whole(slides, chosen, (7, epoch))) for epoch in range(60)]
        assert found[0] != found[1]
        drawn = sum(found, Counter())
        assert {row.slide for row in drawn} == {0, 1, 2, 3}
        for number, n in enumerate(SIZES):
            times = np.array([drawn[Row(number, cell)] for cell in range(n)])
            assert times.min() > 0  # of 60 epochs, at 50 of at most 333 cells
            assert times.sum() == 60 * min(n, 50)

    def test_sizes(self, pool, kind, per_batch):
        """Parts of a slide are of equal size, and no batch is larger than wanted."""
        slides = kinds(pool, kind)
        for arguments in ({}, {"cells_per_slide": 100}, {"cells_per_slide": 149}, {"batch_size": 64}):
            chosen = config(slides_per_batch=per_batch, **arguments)
            sizes: dict[int, list[int]] = {}
            for batch in epoch_batches(slides, chosen, (1,)):
                assert 0 < batch.size <= chosen.batch_size
                assert len(batch.parts) <= per_batch
                for part in batch.parts:
                    sizes.setdefault(part.number, []).append(len(part.centres))
            for found in sizes.values():
                assert max(found) - min(found) <= 1

    def test_seed_alone_decides(self, pool, kind, per_batch):
        slides, chosen = kinds(pool, kind), config(slides_per_batch=per_batch)
        one, same, other = (whole(slides, chosen, seed) for seed in ((1, 5), (1, 5), (1, 6)))
        assert one == same
        assert one != other

    def test_slides_and_cells_are_mixed(self, pool, kind, per_batch):
        """Batches of a slide are not in a row, and its cells do not come in their order."""
        slides = kinds(pool, kind)
        found = whole(slides, config(slides_per_batch=per_batch, batch_size=12))
        order = [rows[0].slide for rows in found]
        assert sum(a != b for a, b in zip(order, order[1:], strict=False)) > 0.15 * len(order)
        cells = [row.cell for rows in found for row in rows if row.slide == 2]
        assert np.mean(np.diff(cells) == 1) < 0.1
        assert order != sorted(order)


@pytest.fixture
def loads(quick_windows, monkeypatch) -> list[tuple[str, bytes]]:
    """What is read."""
    calls: list[tuple[str, bytes]] = []
    plain = _epoch.load_window

    def spy(slide, centres, *arguments):
        calls.append((slide.name, centres.tobytes()))
        return plain(slide, centres, *arguments)

    monkeypatch.setattr(_epoch, "load_window", spy)
    return calls


@pytest.mark.parametrize("per_batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_skipped_batches_are_not_read(pool, kind, per_batch, loads):
    slides, chosen = kinds(pool, kind), config(slides_per_batch=per_batch)
    list(epoch_batches(slides, chosen, (2,)))
    assert (len(loads) > 3) == any(slide.stored for slide in slides)
    assert len(loads) == len(set(loads))  # each window once
    for skip in (3, 12, n_batches(slides, chosen) - 1):
        needed = {
            (part.number, part.slide.cells.tobytes())
            for batch in islice(epoch_batches(slides, chosen, (2,)), skip, None)
            for part in batch.parts
            if slides[part.number].stored
        }
        loads.clear()
        list(epoch_batches(slides, chosen, (2,), skip=skip))
        assert len(loads) == len(needed)
    loads.clear()
    list(epoch_batches(slides, chosen, (2,), skip=10_000))
    assert not loads


@pytest.mark.parametrize("per_batch", [1, 2, 3, 4])
@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_share_the_work(pool, n_ranks, per_batch):
    """Whole parts where these can be dealt evenly, else equal shares of every part."""
    slides, chosen = kinds(pool, "stored"), config(slides_per_batch=per_batch, batch_size=20 * per_batch)
    everything = list(epoch_batches(slides, chosen, (0,)))
    for rank in range(n_ranks):
        mine = epoch_batches(slides, chosen, (0,), rank=rank, n_ranks=n_ranks)
        for batch, whole in zip(mine, everything, strict=True):
            number, sizes = len(whole.parts), [len(part.centres) for part in whole.parts]
            got = [len(part.centres) for part in batch.parts]
            if number % n_ranks == 0:
                assert got == sizes[rank::n_ranks]
            else:
                shares = [size / n_ranks for size in sizes if size >= n_ranks]
                assert len(got) >= len(shares)
                assert sum(got) == pytest.approx(sum(sizes) / n_ranks, abs=number)


@pytest.mark.parametrize("kind", ["stored", "mixed"])
def test_windows_as_they_are_read(pool, kind, monkeypatch):
    """The cells are those of the quick windows above, and what they need is there."""
    slides, chosen = kinds(pool, kind), config(slides_per_batch=2)
    expected = whole(slides, chosen)
    monkeypatch.setattr(_epoch, "load_window", _window.load_window)
    assert whole(slides, chosen) == expected
    for batch in epoch_batches(slides, chosen, (0, 1), skip=20):
        for part in batch.parts:
            cells = part.slide.cells[part.centres]
            panel = slide_panel(part.slide, {"a": 0, "b": 1})
            got = make_batch(part.slide, panel, 1, centres=part.centres)
            want = make_batch(pool[part.number][0], panel, 1, centres=cells)
            for one, other in ((got.expression, want.expression), (got.neighbours.pool, want.neighbours.pool)):
                np.testing.assert_array_equal(one.matrix.toarray(), other.matrix.toarray())


class TestMemory:
    def held_at_most(self, slides: list[Slide], chosen: StageConfig) -> int:
        """Windows that are in memory at a time."""
        alive: weakref.WeakSet[object] = weakref.WeakSet()
        most = 0
        for batch in epoch_batches(slides, chosen, (4,)):
            for part in batch.parts:
                if slides[part.number].stored:
                    alive.add(part.slide)
                else:
                    assert part.slide is slides[part.number]
            del batch, part
            most = max(most, len(alive))
        return most

    @pytest.mark.parametrize("kind", ["stored", "mixed"])
    @pytest.mark.parametrize("per_batch", [1, 2, 3])
    def test_windows_that_are_held(self, pool, kind, per_batch, loads):
        slides = kinds(pool, kind)
        most = self.held_at_most(slides, config(slides_per_batch=per_batch))
        assert len(loads) >= 8
        assert most <= WINDOWS + per_batch

    def test_all_cells_of_a_window_are_used_while_it_is_held(self, pool, loads):
        """Each is read once, with the cells of its parts and those that they need, and no others."""
        slides = kinds(pool, "stored")
        used: Counter[int] = Counter()
        for batch in epoch_batches(slides, config(), (4,)):
            for part in batch.parts:
                used[part.number] += len(part.centres)
        read = Counter()
        for name, centres in loads:
            read[int(name[5:])] += len(np.frombuffer(centres, dtype=np.intp))
        assert used == read == dict(enumerate(SIZES))

    def test_windows_are_few_chunks(self, pool, loads):
        slides = kinds(pool, "stored")
        for limit in (None, 100, 149, 200):
            loads.clear()
            list(epoch_batches(slides, config(cells_per_slide=limit), (4,)))
            for _, centres in loads:
                chunks = np.unique(np.frombuffer(centres, dtype=np.intp) // CHUNK)
                assert len(chunks) <= PER_WINDOW + 2

    def test_slides_in_memory_and_on_disk_share_the_epoch(self, pool):
        """An epoch that is cut short has cells of all of them."""
        slides = kinds(pool, "mixed")
        drawn = Counter()
        for seed in range(5):
            for number, n in per_slide(whole(slides, config(cells_per_epoch=120), (seed,))).items():
                drawn[number] += n
        assert drawn[0] > 0
        assert drawn[1] + drawn[2] > 0


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
