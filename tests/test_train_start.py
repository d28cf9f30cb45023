"""Start of training: leaves, decoder, constant component, slides on disk, configuration for small data."""

from __future__ import annotations

import logging
from itertools import pairwise

import anndata as ad
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

import stage_sc as st
from stage_sc.embed import calibrate, coexpression_vectors, encode_slide
from stage_sc.model import Stage, StageConfig
from stage_sc.slides import Slide, _window, read_slides, sample
from stage_sc.train import _start, adapt_config, encode_slides
from stage_sc.train._start import calibrate_slides, cluster_leaves


@pytest.fixture(scope="module")
def large(put_in_order) -> tuple[Slide, Stage]:
    """Two thousand cells, in space as on disk, and a model that has just begun."""
    adata = st.datasets.simulate_tissue(2000, rng=3)
    st.pp.build_graph(adata)
    (slide,) = read_slides(adata, StageConfig())
    slide = put_in_order(slide, cKDTree(slide.xy, leafsize=32).indices)
    model = Stage(StageConfig(dim=8, n_layers=1, levels=(2, 4)), slide.genes, ["one"])
    model.set_vectors(torch.from_numpy(coexpression_vectors([slide], slide.genes, 8)))
    return slide, model


class TestStart:
    def test_leaves(self, monkeypatch):
        rng = np.random.default_rng(0)
        middle = rng.normal(size=(5, 8))
        h = torch.from_numpy((middle[rng.integers(0, 5, 400)] + 0.1 * rng.normal(size=(400, 8))).astype(np.float32))
        h = torch.nn.functional.normalize(h, dim=1)
        leaves, leaf = cluster_leaves(h, 5, np.random.default_rng(0))
        assert leaves.dtype == torch.float32
        np.testing.assert_allclose(leaves.norm(dim=1).numpy(), 1, atol=1e-6)
        assert (leaf == (h @ leaves.T).argmax(dim=1)).all()
        assert sorted(leaf.unique().tolist()) == [0, 1, 2, 3, 4]
        for number in range(5):
            mean = torch.nn.functional.normalize(h[leaf == number].mean(dim=0), dim=0)
            torch.testing.assert_close(leaves[number], mean, atol=1e-4, rtol=0)
        monkeypatch.setattr(_start, "KMEANS_CELLS", 100)  # found on a sample
        again, leaf = cluster_leaves(h, 5, np.random.default_rng(0))
        assert not again.equal(leaves)
        assert (leaf == (h @ again.T).argmax(dim=1)).all() and len(leaf) == 400
        assert leaf.equal(cluster_leaves(h, 5, np.random.default_rng(0))[1])

    def test_decoder_is_fitted(self, parts, new_model):
        model = new_model()
        encoded = [encode_slide(model, slide) for slide in parts]
        h, context = (np.concatenate([getattr(part, name) for part in encoded]) for name in ("h", "context"))
        with torch.no_grad():
            predicted = model.decoder(torch.from_numpy(h)).numpy()
        inputs = np.c_[h, np.ones(len(h))].astype(float)
        best = inputs @ np.linalg.lstsq(inputs, context.astype(float))[0]
        left, least = (((guess - context) ** 2).sum() / (context**2).sum() for guess in (predicted, best))
        assert least <= left < least + 0.02
        assert left < 0.9

    def test_constant_component(self, parts, new_model):
        """The last component is a constant as large as the root mean square of the others together."""
        lifted, flat = new_model(), new_model(constant_component=0.0)
        assert (lifted.embedder.vectors[:, -1] == 0).all()
        assert (lifted.initial_vectors[:, -1] == 0).all()
        assert (flat.initial_vectors[:, -1] != 0).any()
        h = np.concatenate([encode_slide(lifted, slide).h for slide in parts]).astype(float)
        square = (1 - h[:, -1] ** 2) / h[:, -1] ** 2  # of the others, in units of the constant
        assert square.mean() == pytest.approx(1, rel=0.5)
        assert (h[:, -1] > 0).all()


class TestCalibrateSlides:
    def test_in_memory_exact(self, parts, new_model):
        model = new_model()
        panels = calibrate_slides(model, parts)
        for slide, panel in zip(parts, panels, strict=True):
            assert panel.whitening.equal(calibrate(model, slide).whitening)
            assert panel.mean.numpy().tolist() == slide.mean.tolist()
        assert (panels[0].whitening - panels[1].whitening).abs().max() > 0.05 * panels[0].whitening.abs().max()

    def test_from_a_sample_of_a_slide_on_disk(self, large, on_disk, monkeypatch):
        slide, model = large
        monkeypatch.setattr(_window, "CHUNK", 50)
        whole, stored, distance = calibrate(model, slide).whitening, on_disk(slide), {}
        for size in (300, 1000, 10**6):
            monkeypatch.setattr(_start, "MAX_CELLS", size)
            (panel,) = calibrate_slides(model, [stored])
            distance[size] = float((panel.whitening - whole).norm() / whole.norm())
            (alone,) = encode_slides(model, [stored])
            assert len(alone.h) == min(size, 2000)
        assert distance[10**6] < 1e-4
        assert distance[10**6] < distance[1000] < 0.15
        assert distance[1000] < distance[300] < 0.5

    def test_cells_of_the_sample_count_with_their_surroundings(self, large, on_disk, monkeypatch):
        slide, model = large
        monkeypatch.setattr(_window, "CHUNK", 50)
        monkeypatch.setattr(_start, "MAX_CELLS", 300)
        stored = on_disk(slide)
        both = encode_slides(model, [stored, slide, stored])  # those on disk share the cells that are read
        assert [len(encoded.h) for encoded in both] == [150, 2000, 150]
        cells = torch.from_numpy(sample(stored, 300))
        (panel,), (encoded,) = calibrate_slides(model, [stored]), encode_slides(model, [stored])
        expected = calibrate(model, slide, cells)
        torch.testing.assert_close(panel.whitening, expected.whitening, rtol=0, atol=1e-3)
        whole = encode_slide(model, slide, expected)
        for name in ("h", "context", "niche"):
            torch.testing.assert_close(getattr(encoded, name), getattr(whole, name)[cells], rtol=0, atol=1e-4)


class TestAdapt:
    def test_large_data_as_published(self, caplog):
        with caplog.at_level(logging.INFO):
            assert adapt_config(StageConfig(), [1_000_000]) == StageConfig()
        assert not caplog.records

    @pytest.mark.parametrize("n_cells", [4, 79, 300, 3190, 5119, 60_000])
    def test_small_data(self, n_cells, caplog):
        with caplog.at_level(logging.INFO):
            config = adapt_config(StageConfig(), [n_cells])
        assert config.levels[-1] == max(4, min(512, n_cells // 50))
        assert config.replace(epochs=60, warmup_epochs=33, learning_rate=1e-4, levels=(8, 64, 512)) == StageConfig()
        assert len(config.levels) == 3 or config.levels[-1] < 8
        assert all(lower >= 2 * upper for upper, lower in pairwise(config.levels))
        assert config.epochs < StageConfig().epochs
        assert config.warmup_epochs < config.epochs
        (record,) = caplog.records
        for name in ("epochs", "warmup_epochs", "learning_rate", *(["levels"] if config.levels[-1] < 512 else [])):
            assert f"{name}={getattr(config, name)}" in record.getMessage()
        assert f"{n_cells} training cells" in record.getMessage()

    def test_slides_share_their_leaves_and_tuning_keeps_the_tree(self):
        for n_cells, n_leaves in (([1050, 1050, 1090], 21), ([3000] * 4, 60), ([3000] * 20, 120), ([5000] * 60, 512)):
            assert adapt_config(StageConfig(), n_cells).levels[-1] == n_leaves
        config = adapt_config(StageConfig(), [100], tuning=True)
        assert config.levels == StageConfig().levels
        assert (config.epochs, config.warmup_epochs) == (10, 0)


def test_starts_with_four_cells():
    adata = ad.AnnData(np.random.default_rng(0).poisson(3.0, (4, 6)).astype(np.float32))
    adata.var_names, adata.obsm["spatial"] = list("abcdef"), np.array([[0.0, 0], [10, 0], [0, 10], [12, 11]])
    st.pp.build_graph(adata)
    model = st.tl.fit(adata, config=StageConfig(dim=4, levels=(2, 4), epochs=0), progress=False)
    assert sorted(model.tree.parent.tolist()) == [-1, -1, 0, 0, 1, 1]
    assert model.tree.prototypes.isfinite().all()
