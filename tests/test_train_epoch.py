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

from stage_sc.data import _epoch, _window
from stage_sc.slides._batch import make_batch, slide_panel
from stage_sc.train._epoch import epoch_batches, n_batches
from stage_sc.slides._slide import Slide
from stage_sc.model import StageConfig
from stage_sc.nn._augment import Panel

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

    def load(slide: Slide, centres: np.ndarray, n_layers: int) -> tuple[QuickWindow, np.ndarray]:
        assert slide.stored
        assert n_layers == 1
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
    genes = ["a", "b"]
    return Slide(
        f"slide{number}",
        genes,
        np.zeros(2, np.float32),
        np.ones(2, np.float32),
        np.arange(n),
        sp.csr_matrix(rng.random((n, 2)), dtype=np.float32),
        None,
        graph,
        graph.copy(),
        xy,
        ("radius", 3.0, 6.0, 3.0),
        np.zeros(n, bool),
        np.zeros(n, bool),
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


@pytest.mark.parametrize("per_batch", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
class TestCells:
    def test_every_one_once(self, pool, kind, per_batch):
        slides = kinds(pool, kind)
        for seed in ((0,), (3, 1), (3, 2)):
            found = counted(whole(slides, config(slides_per_batch=per_batch), seed))
            assert set(found.values()) == {1}
            assert set(found) == {Row(number, cell) for number, n in enumerate(SIZES) for cell in range(n)}

    @pytest.mark.parametrize("limit", [3, 40, 100, 149, 150, 332, 1000])
    def test_cells_per_slide(self, pool, kind, per_batch, limit):
        slides, chosen = kinds(pool, kind), config(slides_per_batch=per_batch, cells_per_slide=limit)
        for seed in ((0, 1), (0, 2)):
            found = whole(slides, chosen, seed)
            assert per_slide(found) == {number: min(n, limit) for number, n in enumerate(SIZES)}
            assert max(counted(found).values()) == 1

    @pytest.mark.parametrize("limit", [1, 30, 200, 519, 10_000])
    def test_cells_per_epoch(self, pool, kind, per_batch, limit):
        slides, chosen = kinds(pool, kind), config(slides_per_batch=per_batch, cells_per_epoch=limit)
        for seed in ((0, 1), (0, 2)):
            found = whole(slides, chosen, seed)
            n = sum(len(rows) for rows in found)
            part = 20 // per_batch
            assert n == sum(SIZES) if limit > sum(SIZES) + 4 * part else 0.5 * min(limit, 500) <= n < limit + part
            assert max(counted(found).values()) == 1

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

    def test_number_of_batches(self, pool, kind, per_batch):
        slides = kinds(pool, kind)
        for arguments in ({}, {"cells_per_slide": 33}, {"cells_per_epoch": 77}, {"batch_size": 7}):
            chosen = config(slides_per_batch=per_batch, **arguments)
            numbers = {len(whole(slides, chosen, (seed,))) for seed in range(6)}
            assert numbers == {n_batches(slides, chosen)}
            assert n_batches(slides, chosen) == n_batches(kinds(pool, "memory"), chosen)

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


@pytest.mark.parametrize("per_batch", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
class TestSkip:
    def test_gives_the_tail(self, pool, kind, per_batch):
        slides = kinds(pool, kind)
        for arguments in ({}, {"cells_per_slide": 60}, {"cells_per_epoch": 200}):
            chosen = config(slides_per_batch=per_batch, **arguments)
            expected = whole(slides, chosen)
            for skip in (0, 1, 5, len(expected) - 1, len(expected), len(expected) + 3):
                assert whole(slides, chosen, skip=skip) == expected[skip:]

    def test_reads_nothing_before(self, pool, kind, per_batch, loads):
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


@pytest.fixture
def loads(quick_windows, monkeypatch) -> list[tuple[str, bytes]]:
    """What is read."""
    calls: list[tuple[str, bytes]] = []
    plain = _epoch.load_window

    def spy(slide, centres, n_layers, **arguments):
        calls.append((slide.name, centres.tobytes()))
        return plain(slide, centres, n_layers, **arguments)

    monkeypatch.setattr(_epoch, "load_window", spy)
    return calls


@pytest.mark.parametrize("per_batch", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 7])
def test_ranks_together_are_one_process(pool, kind, per_batch, n_ranks):
    slides = kinds(pool, kind)
    for arguments in ({}, {"cells_per_slide": 47}):
        chosen = config(slides_per_batch=per_batch, **arguments)
        for skip in (0, 4):
            expected = whole(slides, chosen, skip=skip)
            ranks = [
                rows_of(epoch_batches(slides, chosen, (0, 1), skip=skip, rank=rank, n_ranks=n_ranks))
                for rank in range(n_ranks)
            ]
            assert {len(found) for found in ranks} == {len(expected)}
            for rows, *each in zip(expected, *ranks, strict=True):
                for row, *found in zip(rows, *each, strict=True):
                    assert [other for other in found if other is not None] == [row]


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_share_the_work(pool, n_ranks):
    """Evenly, and a part goes to one process where they can be dealt so."""
    slides = kinds(pool, "stored")
    for per_batch in (1, n_ranks):
        chosen = config(slides_per_batch=per_batch, batch_size=20 * per_batch)
        for rank in range(n_ranks):
            for batch in epoch_batches(slides, chosen, (0,), rank=rank, n_ranks=n_ranks):
                mine = sum(len(part.centres) for part in batch.parts)
                assert mine <= -(-batch.size // n_ranks) + 20 * (per_batch > 1)
                assert per_batch == 1 or batch.size < 40 or len(batch.parts) == 1 or len(batch.parts) > n_ranks - 1


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
            got = make_batch(part.slide, _panel(part.slide), 1, centres=part.centres)
            want = make_batch(pool[part.number][0], _panel(part.slide), 1, centres=cells)
            for one, other in ((got.expression, want.expression), (got.neighbours.pool, want.neighbours.pool)):
                np.testing.assert_array_equal(one.matrix.toarray(), other.matrix.toarray())


def _panel(slide: Slide) -> Panel:
    return slide_panel(slide, {"a": 0, "b": 1})


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


class TestAnything:
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(some.data())
    def test_any_choice(self, pool, data):
        slides = [data.draw(some.sampled_from(pair)) for pair in pool if data.draw(some.booleans())]
        assume(slides)
        chosen = config(
            batch_size=data.draw(some.integers(1, 80)),
            slides_per_batch=data.draw(some.integers(1, 5)),
            cells_per_slide=data.draw(some.none() | some.integers(1, 400)),
            cells_per_epoch=data.draw(some.none() | some.integers(1, 500)),
        )
        seed, n_ranks = (data.draw(some.integers(0, 9)),), data.draw(some.integers(1, 4))
        found = whole(slides, chosen, seed)
        assert len(found) == n_batches(slides, chosen)
        assert min(len(rows) for rows in found) > 0
        assert max(counted(found).values()) == 1
        if chosen.batch_size >= chosen.slides_per_batch:
            assert max(len(rows) for rows in found) <= chosen.batch_size
        share = chosen.cells_per_slide or 10**6
        if chosen.cells_per_epoch is None:
            expected = {number: min(slide.n_cells, share) for number, slide in enumerate(slides)}
            assert per_slide(found) == expected
        skip = data.draw(some.integers(0, len(found)))
        assert whole(slides, chosen, seed, skip=skip) == found[skip:]
        ranks = [rows_of(epoch_batches(slides, chosen, seed, rank=r, n_ranks=n_ranks)) for r in range(n_ranks)]
        for rows, *each in zip(found, *ranks, strict=True):
            for row, *others in zip(rows, *each, strict=True):
                assert [other for other in others if other is not None] == [row]
