"""Views of a panel: equation 16 cell by cell, the size of the subset, and chance that stays its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from stage_sc.nn._augment import Panel, View, clean_view, draw_view
from stage_sc.nn._embedder import embed_cells
from stage_sc.nn._sparse import Sparse

PUBLISHED = {"panel_fraction": 0.8, "noise_rate": 8.0, "noise_scale": 0.05}


def drawn(n_genes: int, seed: int = 0, **changes: float) -> View:
    return draw_view(n_genes, np.random.default_rng(seed), **{**PUBLISHED, **changes})


class TestPanelSubset:
    @pytest.mark.parametrize("n_genes", [1, 2, 7, 10, 33, 500])
    @pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8, 1.0])
    def test_size(self, n_genes, fraction):
        view = drawn(n_genes, panel_fraction=fraction)
        assert view.kept.dtype == torch.bool
        assert int(view.kept.sum()) == max(1, math.floor(fraction * n_genes))

    def test_every_gene_is_as_likely(self):
        rng = np.random.default_rng(0)
        share = np.mean([draw_view(20, rng, **PUBLISHED).kept.numpy() for _ in range(2000)], axis=0)
        np.testing.assert_allclose(share, 0.8, atol=0.04)  # four standard errors


class TestNoise:
    @pytest.mark.parametrize("rate", [2.0, 8.0])
    def test_offset_is_exponential_with_mean_one_over_the_rate(self, rate):
        offset = drawn(100_000, noise_rate=rate).offset.double().numpy()
        assert offset.min() >= 0
        assert offset.mean() == pytest.approx(1 / rate, rel=0.02)
        assert np.median(offset) == pytest.approx(math.log(2) / rate, rel=0.02)

    @pytest.mark.parametrize("scale", [0.05, 0.2])
    def test_gain_is_normal_around_one(self, scale):
        gain = drawn(100_000, noise_scale=scale).gain.double().numpy()
        assert gain.mean() == pytest.approx(1, abs=0.01 * scale + 1e-3)
        assert gain.std() == pytest.approx(scale, rel=0.02)
        assert np.mean(np.abs(gain - 1) < scale) == pytest.approx(0.6827, abs=0.01)

    def test_gain_never_changes_the_sign(self):
        gain = drawn(10_000, noise_scale=5.0).gain
        assert float(gain.min()) == 0
        assert float(gain.max()) == 2


class TestEquation16:
    def test_cell_by_cell(self):
        rng = np.random.default_rng(1)
        x = np.where(rng.random((6, 10)) < 0.5, rng.exponential(size=(6, 10)), 0).astype(np.float32)
        mean, scale = rng.random(10).astype(np.float32), rng.uniform(0.5, 2, 10).astype(np.float32)
        vectors = rng.standard_normal((10, 3)).astype(np.float32)
        panel = Panel(torch.arange(10), torch.from_numpy(mean), torch.from_numpy(scale))
        view = drawn(10, noise_scale=0.3)
        got = embed_cells(Sparse(sp.csr_matrix(x)), panel, view, torch.from_numpy(vectors))
        kept = np.flatnonzero(view.kept.numpy())
        norm = math.sqrt(sum(float(value) ** 2 for gene in kept for value in vectors[gene]))
        for cell in range(6):
            expected = np.zeros(3)
            for gene in kept:
                scaled = (float(x[cell, gene]) - float(mean[gene])) / float(scale[gene])
                noisy = float(view.offset[gene]) + scaled * float(view.gain[gene])
                expected += noisy * vectors[gene]
            np.testing.assert_allclose(got[cell].numpy(), expected / norm, rtol=1e-4, atol=1e-5)

    def test_clean_view_changes_nothing(self):
        view = clean_view(4)
        assert view.kept.all()
        assert torch.equal(view.gain, torch.ones(4))
        assert torch.equal(view.offset, torch.zeros(4))


class TestChance:
    def test_same_seed_same_view(self):
        for one, other in zip(drawn(50, seed=3), drawn(50, seed=3), strict=True):
            assert torch.equal(one, other)

    def test_successive_views_differ(self):
        rng = np.random.default_rng(0)
        for one, other in zip(draw_view(50, rng, **PUBLISHED), draw_view(50, rng, **PUBLISHED), strict=True):
            assert not torch.equal(one, other)

    def test_global_generators_are_left_alone(self):
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        drawn(50)
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert (np.random.get_state()[1] == numpy_state).all()

    def test_numbers_are_float32(self):
        view = drawn(5)
        assert view.gain.dtype == view.offset.dtype == torch.float32


@pytest.mark.parametrize("whitening", [None, torch.eye(4)], ids=["not whitened", "whitened"])
def test_panel_on_another_device(whitening):
    panel = Panel(torch.arange(3), torch.zeros(3), torch.ones(3), whitening)
    moved = panel.to("meta")
    tensors = [tensor for tensor in moved if tensor is not None]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len(tensors) == (3 if whitening is None else 4)
    assert (moved.whitening is None) == (whitening is None)
    assert panel.genes.device.type == "cpu"
