"""Windows of a slide on disk: batches drawn from them are those of the whole slide, to the bit."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

import stage_sc as st
from stage_sc.embed import ContextCache
from stage_sc.graph import ring
from stage_sc.model import Stage, StageConfig
from stage_sc.nn import Batch
from stage_sc.slides import (
    Slide,
    _window,
    boxes_of,
    chunk_cells,
    load_window,
    make_batch,
    n_chunks,
    read_slides,
    sample,
    sample_partners,
    slide_panel,
)

N = 420
HOPS = StageConfig().context_hops


def in_space(slide: Slide, put_in_order) -> Slide:
    """Cells that follow each other lie together, as on disk."""
    return put_in_order(slide, cKDTree(slide.xy, leafsize=32).indices)


@pytest.fixture(scope="module")
def cases(put_in_order) -> dict[str, Slide]:
    adata = st.datasets.simulate_tissue(N, rng=8)
    xy = adata.obsm["spatial"] * [4.0, 1.0]
    xy[20] = xy[21]
    xy[22:24] = xy.max(axis=0) + [[300, 0], [0, 900]]
    found = {}
    for name, arguments in {
        "radius": {},
        "wide ring": {"local": 10.0, "view": 300.0},
        "hops": {"mode": "hops", "local": 2, "view": 3},
        "far hops": {"mode": "hops", "local": 1, "view": 6},
        "one hop": {"mode": "hops", "local": 1, "view": 1},
    }.items():
        adata.obsm["spatial"] = xy
        st.pp.build_graph(adata, scale=1.0, **arguments)
        found[name] = in_space(read_slides(adata, StageConfig())[0], put_in_order)
    return found


CASES = ("radius", "wide ring", "hops", "far hops", "one hop")


@pytest.fixture(params=[32, 2048], ids=["chunks of 32", "one chunk"], autouse=True)
def chunk(request, monkeypatch) -> int:
    monkeypatch.setattr(_window, "CHUNK", request.param)
    return request.param


@pytest.fixture(params=CASES)
def pair(request, cases, chunk, on_disk) -> tuple[Slide, Slide]:
    """In memory and on disk."""
    return cases[request.param], on_disk(cases[request.param])


def parts(batch: Batch) -> list[np.ndarray]:
    near, panel = batch.neighbours, batch.panel
    assert panel.whitening is None
    dense = [near.edges, near.weights, panel.genes, panel.mean, panel.scale]
    matrices = [
        array
        for one in (batch.expression, near.pool)
        for array in (one.matrix.indptr, one.matrix.indices, one.matrix.data)
    ]
    return [*(tensor.numpy() for tensor in dense), *matrices]


def groups_of_centres(slide: Slide, seed: int) -> list[np.ndarray]:
    """Single cells, cells at the borders of chunks and of the tissue, far cells, random ones, all."""
    rng = np.random.default_rng(seed)
    return [
        np.array([0]),
        np.arange(31, 34),
        np.sort(np.argsort(slide.xy[:, 0])[-5:]),
        np.flatnonzero(slide.isolated),
        np.sort(rng.permutation(N)[:40]),
        np.arange(64, 128),
        np.arange(N),
    ]


class TestWindow:
    @pytest.mark.parametrize("n_layers", [0, 2])
    def test_batches_are_those_of_the_whole_slide(self, pair, n_layers):
        whole, stored = pair
        genes = list(whole.genes)
        torch.manual_seed(0)
        model = Stage(StageConfig(dim=8, n_layers=n_layers, levels=(2, 4)), genes, ["one"], version="0").eval()
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter.copy_(0.4 * torch.randn_like(parameter))
        rng = np.random.default_rng(n_layers)
        for wanted in groups_of_centres(whole, n_layers):
            window, places = load_window(stored, wanted, n_layers, HOPS)
            assert not window.stored
            back = _back(window, whole)
            np.testing.assert_array_equal(back[places], wanted)
            for size in {1, len(wanted) // 2 + 1}:
                chosen = rng.permutation(len(wanted))[:size]
                u = rng.random(size)
                here = sample_partners(window, places[chosen], u)
                there = sample_partners(whole, wanted[chosen], u)
                np.testing.assert_array_equal(back[here], there)
                for one, other in ((here, there), (places[chosen], wanted[chosen])):
                    got, want = (
                        make_batch(slide, slide_panel(slide, model.vocabulary), n_layers, centres=cells, number=3)
                        for slide, cells in ((window, one), (whole, other))
                    )
                    assert got.slide == want.slide == 3
                    for a, b in zip(parts(got), parts(want), strict=True):
                        np.testing.assert_array_equal(a, b)
                        assert a.dtype == b.dtype
            with torch.no_grad():  # of the last ones
                assert model(got).equal(model(want))

    @pytest.mark.parametrize("rings", [False, True])
    @torch.no_grad()
    def test_context_of_the_centres_is_that_of_the_whole_slide(self, pair, rings):
        whole, stored = pair
        model = Stage(StageConfig(dim=8, n_layers=0, levels=(2, 4)), whole.genes, ["one"], version="0")
        panel = slide_panel(whole, model.vocabulary)
        expected = ContextCache().of(model, whole, panel)
        for wanted in groups_of_centres(whole, 0):
            window, places = load_window(stored, wanted, 0, HOPS, rings=rings)
            assert ContextCache().of(model, window, panel)[places].equal(expected[wanted])
        assert expected.std(dim=0).min() > 1e-3

    @pytest.mark.parametrize("n_layers", [0, 1, 3])
    @pytest.mark.parametrize("hops", [1, 6])
    def test_cells_without_rings(self, pair, n_layers, hops):
        """Those that the embedding depends on, and those of the context."""
        whole, stored = pair
        graph, local = whole.graph.toarray() > 0, whole.local.toarray() > 0
        for centres in (np.array([2, 11, 99]), np.flatnonzero(whole.isolated)):
            reached, around = local[centres].any(axis=0), np.isin(np.arange(N), centres)
            for _ in range(n_layers):
                reached = graph[reached].any(axis=0)
            for _ in range(hops):
                around = graph[around].any(axis=0)
            window, _ = load_window(stored, centres, n_layers, hops, rings=False)
            np.testing.assert_array_equal(_back(window, whole), np.flatnonzero(reached | around))

    def test_something_is_left_out(self, cases, chunk, on_disk):
        """Or the tests above would show nothing."""
        stored = on_disk(cases["radius"])
        assert (cases["radius"].graph.data[:] < 1).any()
        window, _ = load_window(stored, np.arange(20), 1, HOPS)
        assert 20 < window.n_cells < 0.7 * N

    def test_rings_are_complete(self, pair):
        whole, stored = pair
        centres = np.sort(np.random.default_rng(3).permutation(N)[:15])
        window, places = load_window(stored, centres, 0, HOPS)
        got = ring(window.xy, window.tree, window.graph, places, window.sizes)
        expected = ring(whole.xy, whole.tree, whole.graph, centres, whole.sizes)
        full = sp.csr_matrix((got.data, _back(window, whole)[got.indices], got.indptr), shape=expected.shape)
        np.testing.assert_array_equal(full.toarray(), expected.toarray())
        assert expected.nnz > 15

    def test_fields(self, cases, chunk, on_disk):
        whole = cases["radius"]
        window, _ = load_window(on_disk(whole), np.arange(100, 140), 1, HOPS)
        back = _back(window, whole)
        assert (np.diff(back) > 0).all()
        for name in ("xy", "empty", "isolated", "cells"):
            got, want = getattr(window, name), getattr(whole, name)[back]
            np.testing.assert_array_equal(got, want)
            assert got.dtype == want.dtype
        for name in ("name", "genes", "sizes", "mean", "scale"):
            assert np.all(getattr(window, name) == getattr(whole, name))
        for field in fields(window):
            assert "Stored" not in type(getattr(window, field.name)).__name__
        np.testing.assert_array_equal(window.take(np.arange(window.n_cells)).toarray(), whole.take(back).toarray())


def _back(window: Slide, whole: Slide) -> np.ndarray:
    """Cells of the whole slide that those of a window are."""
    position = np.empty(N, int)
    position[whole.cells] = np.arange(N)
    return position[window.cells]


class TestChunks:
    def test_cells(self, cases, chunk, on_disk):
        stored = on_disk(cases["radius"])
        number = n_chunks(stored)
        assert number == -(-N // chunk)
        np.testing.assert_array_equal(chunk_cells(stored, np.arange(number)), np.arange(N))
        last = chunk_cells(stored, np.array([number - 1]))
        assert last[-1] == N - 1
        assert last[0] == (number - 1) * chunk
        if number > 1:
            np.testing.assert_array_equal(chunk_cells(stored, np.array([number - 1, 0])), [*range(chunk), *last])
        assert len(chunk_cells(stored, np.array([], dtype=int))) == 0

    def test_boxes(self, cases, chunk):
        xy = cases["radius"].xy
        boxes = boxes_of(xy)
        assert boxes.shape == (-(-N // chunk), 2, 2)
        for number, (low, high) in enumerate(boxes):
            inside = xy[number * chunk : (number + 1) * chunk]
            np.testing.assert_array_equal(low, inside.min(axis=0))
            np.testing.assert_array_equal(high, inside.max(axis=0))

    def test_who_is_near(self, cases, chunk, on_disk):
        """Everybody whom a ring can hold, and hardly anybody else."""
        for name in ("radius", "wide ring"):
            slide = cases[name]
            d = cdist(slide.xy, slide.xy)
            stored = on_disk(slide)
            for centres in groups_of_centres(slide, 0):
                got = _window._in_rings(stored, centres)
                np.testing.assert_array_equal(got, np.flatnonzero((d[centres] <= slide.sizes[2]).any(axis=0)))

    @pytest.mark.parametrize("size", [1, 40, 100, 420, 10_000])
    def test_sample(self, cases, chunk, on_disk, size):
        memory = cases["radius"]
        for slide in (memory, on_disk(memory)):
            cells = sample(slide, size)
            assert (np.diff(cells) > 0).all()
            assert 1 <= len(cells) <= N
            if size > 2 * N:
                assert len(cells) == N
            assert size < 300 or len(cells) > 250
        assert len(sample(memory, size)) <= 2 * size
        assert len(sample(on_disk(memory), size)) <= max(size, chunk)
