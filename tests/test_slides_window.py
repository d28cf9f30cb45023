"""Windows of a slide on disk: batches drawn from them are those of the whole slide, to the bit."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

import stage_sc as st
from stage_sc.embed import ContextCache
from stage_sc.model import Stage, StageConfig
from stage_sc.nn import Batch
from stage_sc.slides import (
    Slide,
    _window,
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
HOPS = 4


ARGUMENTS = {
    "radius": {},
    "wide ring": {"local": 10.0, "view": 300.0},
    "hops": {"mode": "hops", "local": 2, "view": 3},
    "far hops": {"mode": "hops", "local": 1, "view": 6},
    "one hop": {"mode": "hops", "local": 1, "view": 1},
}


@pytest.fixture(scope="module")
def cases(put_in_order) -> dict[str, Slide]:
    """Cells that follow each other lie together, as on disk."""
    adata, found = st.datasets.simulate_tissue(N, rng=8), {}
    xy = adata.obsm["spatial"] * [4.0, 1.0]
    xy[20] = xy[21]
    xy[22:24] = xy.max(axis=0) + [[300, 0], [0, 900]]
    adata.obsm["spatial"] = xy
    for name, arguments in ARGUMENTS.items():
        st.pp.build_graph(adata, scale=1.0, **arguments)
        (slide,) = read_slides(adata, StageConfig())
        found[name] = put_in_order(slide, cKDTree(slide.xy, leafsize=32).indices)
    return found


@pytest.fixture(params=[32, 2048], ids=["chunks of 32", "one chunk"], autouse=True)
def chunk(request, monkeypatch) -> int:
    monkeypatch.setattr(_window, "CHUNK", request.param)
    return request.param


@pytest.fixture(params=ARGUMENTS)
def pair(request, cases, chunk, on_disk) -> tuple[Slide, Slide]:
    """In memory and on disk."""
    return cases[request.param], on_disk(cases[request.param])


def parts(batch: Batch) -> list[np.ndarray]:
    near, panel = batch.neighbours, batch.panel
    assert panel.whitening is None
    dense = [near.edges, near.weights, panel.genes, panel.mean, panel.scale]
    sparse = [one.matrix for one in (batch.expression, near.pool)]
    return [*(part.numpy() for part in dense), *(x for one in sparse for x in (one.indptr, one.indices, one.data))]


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

    def test_fields(self, cases, chunk, on_disk):
        whole = cases["radius"]
        window, _ = load_window(on_disk(whole), np.arange(100, 140), 1, HOPS)
        back, everything = _back(window, whole), np.arange(window.n_cells)
        assert (np.diff(back) > 0).all()
        for name in ("xy", "empty", "isolated", "cells"):
            got, want = getattr(window, name), getattr(whole, name)[back]
            np.testing.assert_array_equal(got, want)
            assert got.dtype == want.dtype
        for name in ("name", "genes", "sizes", "mean", "scale"):
            assert np.all(getattr(window, name) == getattr(whole, name))
        assert not any("Stored" in type(getattr(window, field.name)).__name__ for field in fields(window))
        assert (window.take(everything) != whole.take(back)).nnz == 0


def _back(window: Slide, whole: Slide) -> np.ndarray:
    """Cells of the whole slide that those of a window are."""
    return np.argsort(whole.cells)[window.cells]


class TestChunks:
    def test_cells(self, cases, chunk, on_disk):
        stored, number = on_disk(cases["radius"]), -(-N // chunk)
        assert n_chunks(stored) == number
        np.testing.assert_array_equal(chunk_cells(stored, np.arange(number)), np.arange(N))
        some = [number - 1, 0] if number > 1 else [0]
        expected = np.concatenate([np.arange(N)[k * chunk : (k + 1) * chunk] for k in sorted(some)])
        np.testing.assert_array_equal(chunk_cells(stored, np.array(some)), expected)
        assert len(chunk_cells(stored, np.array([], dtype=int))) == 0

    def test_cells_in_rings(self, cases, chunk, on_disk):
        """Those that a ring can hold, and no others."""
        for slide in (cases["radius"], cases["wide ring"]):
            d, stored = cdist(slide.xy, slide.xy), on_disk(slide)
            for centres in groups_of_centres(slide, 0):
                expected = np.flatnonzero((d[centres] <= slide.sizes[2]).any(axis=0))
                np.testing.assert_array_equal(_window._in_rings(stored, centres), expected)

    @pytest.mark.parametrize("size", [1, 40, 100, 420, 10_000])
    def test_sample(self, cases, chunk, on_disk, size):
        memory = cases["radius"]
        for slide, most in ((memory, 2 * size), (on_disk(memory), max(size, chunk))):
            cells = sample(slide, size)
            assert (np.diff(cells) > 0).all()
            assert 1 <= len(cells) <= min(N, most)
            assert len(cells) == N or size <= 2 * N
            assert len(cells) > 250 or size < 300
