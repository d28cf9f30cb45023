"""Contexts, whitening and embeddings of slides against dense products."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power, sqrtm

import stage_sc as st
from stage_sc.embed import ContextCache, calibrate, encode_slide
from stage_sc.model import Stage, StageConfig
from stage_sc.slides import Slide, load_window, read_slides, slide_panel

N, DIM, RIDGE = 260, 8, 0.01


@pytest.fixture(scope="module")
def slide() -> Slide:
    """One cell is empty, another has no neighbour."""
    adata = st.datasets.simulate_tissue(N, rng=6)
    counts = adata.X.tolil()
    counts[7] = 0
    adata.X, adata.obsm["spatial"][9] = counts.tocsr(), [5000, 5000]
    st.pp.build_graph(adata)
    (slide,) = read_slides(adata, StageConfig())
    assert slide.isolated.sum() == slide.empty.sum() == 1
    return slide


def network(slide: Slide, seed: int = 0, genes: list[str] | None = None, **changes: object) -> Stage:
    """Far from its start: the vectors that the genes started from are others than those that they have."""
    config = StageConfig(**{"dim": DIM, "n_layers": 1, "levels": (2, 4), **changes})
    model, generator = Stage(config, genes or slide.genes, ["one"], version="0"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        model.initial_vectors.copy_(torch.randn(model.initial_vectors.shape, generator=generator))
    return model.eval()


def hop_means(model: Stage, slide: Slide) -> tuple[np.ndarray, np.ndarray]:
    """Means over one hop and over six of cells embedded with the vectors of the start."""
    mean = (slide.graph[:].toarray() > 0).astype(float)
    mean /= mean.sum(axis=1, keepdims=True)
    vectors = model.initial_vectors[[model.vocabulary[gene] for gene in slide.genes]].double().numpy()
    cells = (slide.take(np.arange(slide.n_cells)).toarray() - slide.mean) / slide.scale @ vectors
    cells /= np.linalg.norm(vectors)
    return mean @ cells, np.linalg.matrix_power(mean, 6) @ cells


def reference(near: np.ndarray, far: np.ndarray, persistence: float) -> np.ndarray:
    near, far = (np.cov(x.T, bias=True) for x in (near, far))
    w = np.linalg.inv(sqrtm(near + RIDGE * np.trace(near) / len(near) * np.eye(len(near))))
    return w @ fractional_matrix_power(w @ far @ w, persistence)


class TestCalibrate:
    @pytest.mark.parametrize("persistence", [0.0, 0.5, 1.0])
    def test_equations(self, slide, persistence):
        model = network(slide, persistence=persistence)
        expected = reference(*hop_means(model, slide), persistence)
        got = calibrate(model, slide).whitening
        assert not got.requires_grad
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    @pytest.mark.parametrize("n_layers", [0, 2])
    def test_from_a_window(self, slide, on_disk, n_layers):
        """From the same cells of a part of the slide: the same to rounding."""
        model, cells = network(slide, n_layers=n_layers), np.arange(20, 70)
        window, places = load_window(on_disk(slide), cells, n_layers, 6, rings=False)
        assert window.n_cells < N
        got, expected = (
            calibrate(model, one, torch.from_numpy(chosen)).whitening
            for one, chosen in ((window, places), (slide, cells))
        )
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        border = calibrate(model, window).whitening
        assert (border - expected).abs().max() > 1e-2

    def test_training_changes_nothing(self, slide):
        """It follows from the vectors of the start alone."""
        model = network(slide)
        before = calibrate(model, slide).whitening
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        assert calibrate(model, slide).whitening.equal(before)


class TestEncode:
    def test_another_panel(self, slide):
        """As from a sample: it is used for cells and for contexts alike. By default that of the slide."""
        model = network(slide, genes=["another", *reversed(slide.genes)])
        assert encode_slide(model, slide, calibrate(model, slide)).pooled.equal(encode_slide(model, slide).pooled)
        plain = slide_panel(slide, model.vocabulary)
        twice = encode_slide(model, slide, plain._replace(whitening=2 * torch.eye(DIM)))
        once = encode_slide(model, slide, plain)
        torch.testing.assert_close(twice.context, 2 * once.context)
        np.testing.assert_allclose(once.context, hop_means(model, slide)[1], atol=1e-5)
        assert (twice.h - once.h).abs().max() > 0.01

    @pytest.mark.parametrize("whiten", [True, False])
    def test_context_is_not_written_over(self, slide, whiten):
        """Cells take the place of what is not needed any more."""
        model = network(slide, whiten=whiten)
        context = encode_slide(model, slide).context
        assert (calibrate(model, slide).whitening is None) == (not whiten)
        far = hop_means(model, slide)[1]
        expected = far @ calibrate(model, slide).whitening.double().numpy() if whiten else far
        np.testing.assert_allclose(context, expected, atol=1e-4)

    def test_whitened_cells_enter_the_layers(self, slide):
        """Without layers and with plain means: the pooled cells, in units of what varies."""
        model = network(slide, n_layers=0)
        model.embedder.vectors.data.copy_(model.initial_vectors)
        model.encoder = Stage(model.config, ["gene"], ["one"]).encoder  # untrained
        cells = slide.take(np.arange(N)).toarray()
        vectors = model.initial_vectors.double().numpy()
        cells = (cells - slide.mean) / slide.scale @ vectors / np.linalg.norm(vectors)
        cells = cells @ reference(*hop_means(model, slide), 0.5)
        share = slide.local.toarray().astype(float)
        share /= share.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(encode_slide(model, slide).pooled, share @ cells, atol=1e-3)


class TestComparable:
    @pytest.mark.parametrize("factor", [0.1, 30.0])
    def test_cells_times_a_constant(self, slide, factor):
        louder = replace(slide, scale=slide.scale / np.float32(factor))
        for whiten in (True, False):
            model = network(slide, whiten=whiten)
            one, other = (encode_slide(model, it) for it in (slide, louder))
            for name in ("h", "context"):
                difference = (getattr(one, name) - getattr(other, name)).abs().max()
                assert difference < 1e-4 if whiten else difference > 0.05


class TestContexts:
    def test_computed_once_for_every_slide(self, slide, put_in_order):
        seen = []

        class Watched(Slide):
            def blocks(self, size: int) -> Iterator[object]:
                seen.append(self)
                return super().blocks(size)

        one, other = (
            Watched(**{field.name: getattr(it, field.name) for field in fields(it)})
            for it in (slide, put_in_order(slide, np.arange(N)[::-1]))
        )
        model, contexts = network(slide), ContextCache()
        panel = calibrate(model, slide)
        first = [contexts.of(model, it, panel) for it in (one, other)]
        again = [contexts.of(model, it, panel) for it in (one, other)]
        assert seen == [one, other]
        assert all(a is b for a, b in zip(first, again, strict=True))
        torch.testing.assert_close(first[1], first[0].flip(0), rtol=0, atol=1e-5)  # each its own
        assert first[0].equal(encode_slide(model, slide).context)
        ContextCache().of(model, one, panel)  # another training
        assert len(seen) == 3

    def test_freed_with_the_slide(self, slide):
        model, contexts = network(slide), ContextCache()
        mine = replace(slide)
        kept = weakref.ref(contexts.of(model, mine, calibrate(model, mine)))
        gc.collect()
        assert kept() is not None
        gone = weakref.ref(mine)
        del mine
        gc.collect()
        assert gone() is None
        assert kept() is None

    def test_of_windows(self, slide, on_disk):
        """With the whitening of the slide: right for the centres, whatever is missing at the border."""
        model, wanted = network(slide), np.arange(100, 140)
        panel = calibrate(model, slide)
        window, places = load_window(on_disk(slide), wanted, 1, 6)
        got, expected = (ContextCache().of(model, it, panel) for it in (window, slide))
        assert got[places].equal(expected[wanted])
        position = np.empty(N, int)
        position[slide.cells] = np.arange(N)
        others = expected[position[window.cells]]
        assert (got - others).abs().max() > 0.01
