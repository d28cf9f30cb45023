"""Where training starts: gene vectors, leaves, the decoder, and what small data changes."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.spatial import cKDTree

import stage_sc as st
import stage_sc.embed._gene_vectors as prior
from stage_sc.data import _window
from stage_sc.embed._common_factors import PanelCovariance, common_factors
from stage_sc.embed._encode import calibrate, encode_slide
from stage_sc.embed._gene_vectors import cluster_leaves, gene_prior
from stage_sc.model import Stage, StageConfig
from stage_sc.slides._slide import Slide, read_slides_of
from stage_sc.slides._window import sample
from stage_sc.train import _start
from stage_sc.train._adapt import CELLS_PER_LEAF, adapt
from stage_sc.train._start import calibrate_slides, encode_slides, grow_tree, initialize_network


@pytest.fixture(scope="module")
def parts(slides) -> list[Slide]:
    common = [set(part.genes) for part in read_slides_of(slides, scaling="standardize")]
    use = slides.var_names.str.casefold().isin(set.intersection(*common))
    return read_slides_of(slides[:, use].copy(), scaling="standardize")


@pytest.fixture(scope="module")
def vocabulary(parts) -> dict[str, int]:
    return {gene: number for number, gene in enumerate(parts[0].genes)}


@pytest.fixture
def new_model(parts, small_config):
    """Make a model with gene vectors and a tree, not yet trained; the same each time."""

    def make(**changes: object) -> Stage:
        config = small_config.replace(**changes)
        model = Stage(config, parts[0].genes, [slide.name for slide in parts])
        model.set_vectors(torch.from_numpy(gene_prior(parts, model.genes, config.dim)))
        initialize_network(model, parts)
        grow_tree(model, parts, np.random.default_rng(0))
        return model

    return make


@pytest.fixture(scope="module")
def large(put_in_order) -> tuple[Slide, Stage]:
    """Two thousand cells, in space as on disk, and a model that has just begun."""
    adata = st.datasets.simulate_tissue(2000, rng=3)
    st.pp.build_graph(adata)
    (slide,) = read_slides_of(adata, scaling="standardize")
    slide = put_in_order(slide, cKDTree(slide.xy, leafsize=32).indices)
    model = Stage(StageConfig(dim=8, n_layers=1, levels=(2, 4)), slide.genes, ["one"])
    model.set_vectors(torch.from_numpy(gene_prior([slide], slide.genes, 8)))
    return slide, model


def with_expression(slide: Slide, x: np.ndarray, genes: list[str], scale: np.ndarray) -> Slide:
    mean = x.mean(axis=0).astype(np.float32)
    return replace(slide, expression=sp.csr_matrix(x, dtype=np.float32), rows=None, genes=genes, mean=mean, scale=scale)


def dense(slide: Slide) -> np.ndarray:
    """Expression of the cells in their order."""
    return slide.take(np.arange(slide.n_cells)).toarray().astype(float)


def means(slide: Slide) -> np.ndarray:
    """Dense operator: the mean over neighbours and the cell itself."""
    near = ((slide.graph.toarray() + np.eye(slide.n_cells)) > 0).astype(float)
    return near / near.sum(axis=1, keepdims=True)


def dense_covariance(slide: Slide) -> np.ndarray:
    """Of the mean over two hops, after scaling; traces as large as the number of genes."""
    around = means(slide) @ means(slide) @ dense(slide)
    scaled = (around - around.mean(axis=0)) / slide.scale
    covariance = scaled.T @ scaled / len(scaled)
    return covariance * len(covariance) / np.trace(covariance)


def assert_prior(vectors: np.ndarray, covariance: np.ndarray) -> None:
    """Principal axes over the fourth root of their variance, up to sign."""
    dim = vectors.shape[1]
    values, axes = np.linalg.eigh(covariance)
    values, axes = values[::-1][:dim], axes[:, ::-1][:, :dim]
    gaps = np.abs(np.diff(np.linalg.eigvalsh(covariance)[::-1][: dim + 1])) / values[: len(vectors)]
    for column in range(dim):
        if gaps[column] > 1e-3 and (column == 0 or gaps[column - 1] > 1e-3):  # others can be any mixture
            expected = axes[:, column] * values[column] ** -0.25
            cosine = vectors[:, column] @ expected / (expected @ expected)
            assert abs(cosine) == pytest.approx(1, abs=2e-3), column
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=0), values**-0.25, rtol=1e-3)


class TestGenePrior:
    def test_one_slide(self, parts):
        vectors = gene_prior(parts[:1], parts[0].genes, 12)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(parts[0].genes), 12)
        assert_prior(vectors, dense_covariance(parts[0]))
        assert (vectors.sum(axis=0) > 0).all()

    def test_slides_have_the_same_weight(self, parts):
        louder = with_expression(parts[1], 7 * dense(parts[1]), parts[1].genes, parts[1].scale)
        mean = (dense_covariance(parts[0]) + dense_covariance(parts[1])) / 2
        assert_prior(gene_prior([parts[0], louder], parts[0].genes, 8), mean)

    def test_two_panels_are_merged(self, parts):
        genes = parts[0].genes
        columns = [np.arange(100), np.arange(60, len(genes) - 2)]
        slides = [
            with_expression(slide, dense(slide)[:, here], [genes[g] for g in here], slide.scale[here])
            for slide, here in zip(parts, columns, strict=True)
        ]
        vocabulary = ["a gene of neither", *genes]
        vectors = gene_prior(slides, vocabulary, 10, 3)
        panels = [
            PanelCovariance(np.array([vocabulary.index(gene) for gene in slide.genes]), dense_covariance(slide), 1)
            for slide in slides
        ]
        np.testing.assert_allclose(vectors, common_factors(panels, len(vocabulary), 10, 3), rtol=1e-2, atol=1e-3)
        assert (vectors[[0, -2, -1]] == 0).all()
        assert np.abs(vectors[1:-2]).max(axis=1).min() > 1e-4

    def test_panels_that_nearly_agree_are_one(self, parts):
        """A gene without counts on a slide, others that only one of two has: means over the slides that have both."""
        genes = parts[0].genes
        columns = [np.delete(np.arange(len(genes)), 3), np.arange(len(genes) - 4)]
        slides = [
            with_expression(slide, dense(slide)[:, here], [genes[g] for g in here], slide.scale[here])
            for slide, here in zip(parts, columns, strict=True)
        ]
        total, there = np.zeros((2, len(genes), len(genes)))
        for slide, here in zip(slides, columns, strict=True):
            total[np.ix_(here, here)] += dense_covariance(slide)
            there[np.ix_(here, here)] += 1
        assert (there == 0).any() and (there == 1).any()
        vectors = gene_prior(slides, genes, 8)
        assert_prior(vectors, total / np.maximum(there, 1))
        assert (vectors == gene_prior(slides, genes, 8, 5)).all()  # nothing by chance
        assert (gene_prior(slides[::-1], genes, 8) == vectors).all()

    def test_panels_share_a_few_factors(self, parts, monkeypatch):
        monkeypatch.setattr(prior, "N_FACTORS", 6)
        half = len(parts[0].genes) // 2
        fewer = with_expression(parts[1], dense(parts[1])[:, :half], parts[0].genes[:half], parts[1].scale[:half])
        vectors = gene_prior([parts[0], fewer], parts[0].genes, 10)
        assert (vectors[:, 6:] == 0).all()
        assert (np.abs(vectors[:, :6]).max(axis=0) > 0).all()

    def test_panels_that_share_few_genes_are_reported(self, parts, caplog):
        genes = parts[0].genes

        def cut(columns):
            return [
                with_expression(slide, dense(slide)[:, here], [genes[g] for g in here], slide.scale[here])
                for slide, here in zip([parts[0], parts[1], parts[0]], columns, strict=False)
            ]

        n = len(genes)
        apart = [np.arange(90), np.arange(51, n)]  # 39 in common
        linked = [np.arange(60), np.arange(n - 60, n), np.arange(n)]  # by the third
        gene_prior(cut(linked), genes, 8)
        gene_prior(cut([np.arange(20), np.arange(10, n)]), genes, 8)  # half of a small panel
        assert not caplog.records
        slides = cut(apart)
        gene_prior(slides, genes, 8)
        (record,) = caplog.records
        assert "2 groups of panels that share at most 39 genes" in record.getMessage()
        assert all(repr(slide.name) in record.getMessage() for slide in slides)

    def test_zero_beyond_the_rank(self, parts):
        few = with_expression(parts[0], dense(parts[0])[:, :5], parts[0].genes[:5], parts[0].scale[:5])
        vectors = gene_prior([few], few.genes, 16)
        assert (vectors[:, 5:] == 0).all()
        assert (np.abs(vectors[:, :5]).max(axis=0) > 0).all()
        genes = [f"{gene}{number}" for number in range(4) for gene in few.genes]
        copies = with_expression(few, np.tile(dense(few), 4), genes, np.tile(few.scale, 4))  # each of five four times
        vectors = gene_prior([copies], copies.genes, 16)
        assert (vectors[:, 5:] == 0).all()
        np.testing.assert_allclose(vectors[:5], vectors[15:], atol=1e-3)

    def test_many_genes(self, parts):
        """More than are decomposed at once: fewer cells than genes, so that the Gram matrix tells the answer."""
        rng, n = np.random.default_rng(0), parts[0].n_cells
        pattern = rng.gamma(2.0, size=(n, 6)) * [9, 7, 5.5, 4, 3, 2]
        x = pattern @ rng.normal(size=(6, 4100))
        slide = with_expression(parts[0], x, [f"g{number:04}" for number in range(4100)], np.ones(4100, np.float32))
        vectors, again = (gene_prior([slide], slide.genes, 8) for _ in range(2))
        assert (vectors == again).all()
        around = means(slide) @ means(slide) @ x
        around -= around.mean(axis=0)
        left, singular, right = np.linalg.svd(around, full_matrices=False)
        values = singular**2 / (singular**2).sum() * 4100
        for column in range(6):
            expected = right[column] * values[column] ** -0.25
            assert abs(vectors[:, column] @ expected) / (expected @ expected) == pytest.approx(1, abs=1e-3)
        assert (vectors[:, 6:] == 0).all()

    def test_large_slides_are_thinned(self, parts, monkeypatch):
        monkeypatch.setattr(prior, "MAX_CELLS", 70)
        around = (means(parts[0]) @ means(parts[0]) @ dense(parts[0]))[::2]  # 200 // 70
        scaled = (around - around.mean(axis=0)) / parts[0].scale
        covariance = scaled.T @ scaled
        assert_prior(gene_prior(parts[:1], parts[0].genes, 6), covariance * len(covariance) / np.trace(covariance))


class TestKMeansLeaves:
    @pytest.fixture
    def h(self):
        rng = np.random.default_rng(0)
        middle = rng.normal(size=(5, 8))
        h = torch.from_numpy((middle[rng.integers(0, 5, 400)] + 0.1 * rng.normal(size=(400, 8))).astype(np.float32))
        return torch.nn.functional.normalize(h, dim=1)

    def test_leaves(self, h):
        leaves, leaf = cluster_leaves(h, 5, np.random.default_rng(0))
        assert leaves.dtype == torch.float32
        np.testing.assert_allclose(leaves.norm(dim=1).numpy(), 1, atol=1e-6)
        assert (leaf == (h @ leaves.T).argmax(dim=1)).all()
        assert sorted(leaf.unique().tolist()) == [0, 1, 2, 3, 4]
        for number in range(5):
            mean = torch.nn.functional.normalize(h[leaf == number].mean(dim=0), dim=0)
            torch.testing.assert_close(leaves[number], mean, atol=1e-4, rtol=0)

    def test_deterministic(self, h):
        np.random.seed(1)
        state = np.random.get_state()[1].copy()
        results = [cluster_leaves(h, 9, np.random.default_rng(3)) for _ in range(2)]
        assert results[0][0].equal(results[1][0])
        assert results[0][1].equal(results[1][1])
        assert (np.random.get_state()[1] == state).all()
        assert not cluster_leaves(h, 9, np.random.default_rng(4))[0].equal(results[0][0])

    def test_samples_many_cells(self, h, monkeypatch):
        monkeypatch.setattr(prior, "KMEANS_CELLS", 100)
        leaves, leaf = cluster_leaves(h, 5, np.random.default_rng(0))
        assert len(leaf) == 400
        assert leaf.equal(cluster_leaves(h, 5, np.random.default_rng(0))[1])


class TestStart:
    def test_decoder_is_fitted(self, parts, vocabulary, new_model):
        model = new_model()
        encoded = [encode_slide(model, slide) for slide in parts]
        h, content = (np.concatenate([getattr(part, name) for part in encoded]) for name in ("h", "content"))
        with torch.no_grad():
            predicted = model.decoder(torch.from_numpy(h)).numpy()
        inputs = np.c_[h, np.ones(len(h))].astype(float)
        best = inputs @ np.linalg.lstsq(inputs, content.astype(float))[0]
        left, least = (((guess - content) ** 2).sum() / (content**2).sum() for guess in (predicted, best))
        assert least <= left < least + 0.02
        assert left < 0.9

    def test_lift(self, parts, vocabulary, new_model):
        """The last component is a constant as large as the root mean square of the others together."""
        lifted, flat = new_model(), new_model(lift=0.0)
        assert (lifted.embedder.vectors[:, -1] == 0).all()
        assert (lifted.basis[:, -1] == 0).all()
        assert (flat.basis[:, -1] != 0).any()
        h = np.concatenate([encode_slide(lifted, slide).h for slide in parts]).astype(float)
        square = (1 - h[:, -1] ** 2) / h[:, -1] ** 2  # of the others, in units of the constant
        assert square.mean() == pytest.approx(1, rel=0.5)
        assert (h[:, -1] > 0).all()

    def test_content_is_the_whitened_mean_over_six_hops(self, parts, vocabulary, new_model):
        model, slide = new_model(), parts[0]
        got = encode_slide(model, slide)
        near, scaled = means(slide), (dense(slide) - slide.mean) / slide.scale
        vectors = model.basis.numpy().astype(float)
        cells = scaled @ vectors / np.linalg.norm(vectors)
        expected = np.linalg.matrix_power(near, 6) @ cells @ calibrate(model, slide).whitening.numpy()
        np.testing.assert_allclose(got.content.numpy(), expected, atol=1e-5)
        assert (got.content[:, -1] == 0).all()  # of the component that is lifted
        np.testing.assert_allclose(got.h.norm(dim=1).numpy(), 1, atol=1e-5)
        assert not got.h.requires_grad


class TestCalibrateSlides:
    def test_in_memory_exact(self, parts, new_model):
        model = new_model()
        panels = calibrate_slides(model, parts)
        for slide, panel in zip(parts, panels, strict=True):
            assert panel.whitening.equal(calibrate(model, slide).whitening)
            assert panel.mean.numpy().tolist() == slide.mean.tolist()
        assert (panels[0].whitening - panels[1].whitening).abs().max() > 0.05 * panels[0].whitening.abs().max()

    def test_from_a_sample_of_a_slide_on_disk(self, large, on_disk, monkeypatch):
        """Near that of the whole slide; to rounding where all cells are looked at."""
        slide, model = large
        monkeypatch.setattr(_window, "CHUNK", 50)
        whole, stored = calibrate(model, slide).whitening, on_disk(slide)
        distance = {}
        for size in (300, 1000, 10**6):
            monkeypatch.setattr(_start, "MAX_CELLS", size)
            (panel,) = calibrate_slides(model, [stored])
            distance[size] = float((panel.whitening - whole).norm() / whole.norm())
            (alone,) = encode_slides(model, [stored])
            assert len(alone.h) == min(size, 2000)
        assert distance[10**6] < 1e-4
        assert distance[10**6] < distance[1000] < 0.15
        assert distance[1000] < distance[300] < 0.3

    def test_cells_of_the_sample_count_with_their_surroundings(self, large, on_disk, monkeypatch):
        slide, model = large
        for module in (_window, _start):
            monkeypatch.setattr(module, "CHUNK" if module is _window else "MAX_CELLS", 50 if module is _window else 300)
        stored = on_disk(slide)
        cells = torch.from_numpy(sample(stored, 300))
        (panel,), (encoded,) = calibrate_slides(model, [stored]), encode_slides(model, [stored])
        expected = calibrate(model, slide, cells)
        torch.testing.assert_close(panel.whitening, expected.whitening, rtol=0, atol=1e-3)
        whole = encode_slide(model, slide, expected)
        torch.testing.assert_close(encoded.h, whole.h[cells], rtol=0, atol=1e-4)
        torch.testing.assert_close(encoded.content, whole.content[cells], rtol=0, atol=1e-4)
        torch.testing.assert_close(encoded.niche, whole.niche[cells], rtol=0, atol=1e-4)

    def test_slides_on_disk_share_the_cells_that_are_looked_at(self, large, on_disk, monkeypatch):
        slide, model = large
        monkeypatch.setattr(_window, "CHUNK", 50)
        monkeypatch.setattr(_start, "MAX_CELLS", 600)
        both = [on_disk(slide), slide, on_disk(slide)]
        assert [len(encoded.h) for encoded in encode_slides(model, both)] == [300, 2000, 300]


class TestAdapt:
    def test_large_data_as_published(self, caplog):
        with caplog.at_level(logging.INFO):
            assert adapt(StageConfig(), [1_000_000]) == StageConfig()
        assert not caplog.records

    @pytest.mark.parametrize("n_cells", [4, 10, 41, 79, 100, 300, 1000, 3190, 5119, 5120, 60_000])
    def test_small_data(self, n_cells, caplog):
        with caplog.at_level(logging.INFO):
            config = adapt(StageConfig(), [n_cells])
        assert config.levels[-1] == max(4, min(512, n_cells // CELLS_PER_LEAF))
        assert len(config.levels) == 3 or config.levels[-1] < 8
        assert all(lower >= 2 * upper for upper, lower in pairwise(config.levels))
        assert config.epochs < StageConfig().epochs
        assert config.warmup_epochs < config.epochs
        (record,) = caplog.records
        assert record.name == "stage_sc.train"
        for name in ("epochs", "warmup_epochs", "learning_rate", *(["levels"] if config.levels[-1] < 512 else [])):
            assert f"{name}={getattr(config, name)}" in record.getMessage()
        assert f"{n_cells} training cells" in record.getMessage()

    @pytest.mark.parametrize(
        ("n_cells", "n_leaves"),
        [([1050, 1050, 1090], 21), ([3000] * 4, 60), ([3000] * 20, 120), ([100_000] * 9, 512), ([5000] * 60, 512)],
    )
    def test_slides_share_their_leaves(self, n_cells, n_leaves):
        assert adapt(StageConfig(), n_cells).levels[-1] == n_leaves

    def test_only_what_is_listed_changes(self):
        config = StageConfig(dim=8, linkage="cosine", batch_size=7, levels=(2, 4))
        adapted = adapt(config, [300])
        assert adapted.replace(epochs=60, warmup_epochs=33, learning_rate=1e-4) == config

    def test_tuning_keeps_the_tree(self):
        config = adapt(StageConfig(), [100], tuning=True)
        assert config.levels == StageConfig().levels
        assert (config.epochs, config.warmup_epochs) == (10, 0)


def test_starts_with_four_cells():
    adata = ad.AnnData(
        np.random.default_rng(0).poisson(3.0, (4, 6)).astype(np.float32),
        var=pd.DataFrame(index=list("abcdef")),
        obsm={"spatial": np.array([[0.0, 0], [10, 0], [0, 10], [12, 11]])},
    )
    st.pp.build_graph(adata)
    slides = read_slides_of(adata, scaling="standardize")
    model = Stage(StageConfig(dim=4, levels=(2, 4)), slides[0].genes, ["one"])
    model.set_vectors(torch.from_numpy(gene_prior(slides, model.genes, 4)))
    initialize_network(model, slides)
    grow_tree(model, slides, np.random.default_rng(0))
    assert sorted(model.tree.parent.tolist()) == [-1, -1, 0, 0, 1, 1]
    assert model.tree.prototypes.isfinite().all()
