"""Contexts by the axes of a slide against dense algebra, and slides that are unlike those of the training."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.linalg import fractional_matrix_power, orthogonal_procrustes, sqrtm

import stage_sc as st
from stage_sc.embed._slide_context import principal_axes, slide_context
from stage_sc.embed._unlike import UNLIKE, coexpression_correlation
from stage_sc.model import Stage, StageConfig
from stage_sc.slides import Slide, read_slides

N, DIM, RIDGE = 400, 8, 0.01


@pytest.fixture(scope="module")
def slide() -> Slide:
    adata = st.datasets.simulate_tissue(N, rng=6)
    st.pp.build_graph(adata)
    return read_slides(adata, StageConfig())[0]


def scaled(slide: Slide) -> np.ndarray:
    return (slide.take(np.arange(slide.n_cells)).toarray() - slide.mean) / slide.scale


def mean_over(slide: Slide, hops: int) -> np.ndarray:
    near = (slide.graph.toarray() > 0).astype(float)
    return np.linalg.matrix_power(near / near.sum(axis=1, keepdims=True), hops)


def covariance(x: np.ndarray) -> np.ndarray:
    return np.cov(x.T, bias=True)


def whitened(slide: Slide, vectors: np.ndarray, persistence: float) -> np.ndarray:
    """Contexts, from dense algebra."""
    cells = scaled(slide) @ vectors / np.linalg.norm(vectors)
    near, far = covariance(mean_over(slide, 1) @ cells), covariance(mean_over(slide, 6) @ cells)
    root = np.linalg.inv(sqrtm(near + RIDGE * np.trace(near) / len(near) * np.eye(len(near))))
    return mean_over(slide, 6) @ cells @ root @ fractional_matrix_power(root @ far @ root, persistence)


def context(slide: Slide, seed: int = 0, persistence: float = 0.5) -> torch.Tensor:
    """Of gene vectors by chance."""
    vectors = np.random.default_rng(seed).normal(size=(len(slide.genes), DIM))
    return torch.from_numpy(whitened(slide, vectors, persistence)).float()


def axes_of(around: np.ndarray) -> np.ndarray:
    return np.linalg.svd(around - around.mean(axis=0))[2][:DIM].T


def config(persistence: float = 0.5) -> StageConfig:
    return StageConfig(persistence=persistence)


class TestAxes:
    @pytest.mark.parametrize("n_cells", [N, N // 3])
    def test_principal_axes_of_two_hops(self, slide, n_cells):
        chosen = np.linspace(0, N - 1, n_cells).astype(int)
        axes, expected = (
            principal_axes(slide, DIM, n_cells).numpy(),
            axes_of((mean_over(slide, 2) @ scaled(slide))[chosen]),
        )
        assert axes.dtype == np.float32
        np.testing.assert_allclose(axes.T @ axes, np.eye(DIM), atol=1e-5)
        np.testing.assert_allclose(axes @ axes.T, expected @ expected.T, atol=1e-3)

    def test_fewer_genes_than_axes(self, slide):
        x = slide.take(np.arange(N))[:, :5]
        few = replace(slide, expression=x, rows=None, genes=slide.genes[:5], mean=slide.mean[:5], scale=slide.scale[:5])
        axes = principal_axes(few, DIM, N).numpy()
        assert axes.shape == (5, DIM)
        np.testing.assert_allclose(axes @ axes.T, np.eye(5), atol=1e-5)

    def test_many_genes(self):
        """Of which the exact components come at a price."""
        adata = st.datasets.simulate_tissue(300, rng=2)
        rng = np.random.default_rng(0)
        many = ad.AnnData(sp.csr_matrix(rng.poisson(adata.X.toarray() @ rng.gamma(0.3, 0.2, (adata.n_vars, 1500)))))
        many.obsm["spatial"] = adata.obsm["spatial"]
        st.pp.build_graph(many)
        (slide,) = read_slides(many, StageConfig())
        around = mean_over(slide, 2) @ scaled(slide)
        axes, expected = principal_axes(slide, DIM, N).numpy(), axes_of(around)
        around -= around.mean(axis=0)
        assert np.square(around @ axes).sum() > 0.999 * np.square(around @ expected).sum()

    def test_no_counts(self, slide):
        empty = replace(slide, expression=0 * slide.expression, mean=0 * slide.mean)
        x = context(slide)
        got = slide_context(empty, x, config())
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, x.mean(dim=0).expand_as(x))


class TestSlideContext:
    @pytest.mark.parametrize("persistence", [0.0, 0.5])
    def test_equation(self, slide, persistence):
        x = context(slide, persistence=persistence)
        own = whitened(slide, axes_of(mean_over(slide, 2) @ scaled(slide)), persistence)
        own -= own.mean(axis=0)
        turn, _ = orthogonal_procrustes(own, x.double().numpy() - x.double().numpy().mean(axis=0))
        expected = x.double().numpy().mean(axis=0) + own @ turn
        got = slide_context(slide, x, config(persistence))
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), expected, atol=2e-3)
        assert (got - x).abs().max() > 0.1

    def test_fewer_directions_than_numbers(self, slide):
        """Of a model whose vectors span three directions, wherever these lie: only these are turned."""
        span = np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0][:, :3]
        x = context(slide)[:, :3] @ torch.from_numpy(span.T).float()
        own = whitened(slide, axes_of(mean_over(slide, 2) @ scaled(slide)), 0.5)
        own -= own.mean(axis=0)
        left, _, right = np.linalg.svd(own.T @ (x.double().numpy() - x.double().numpy().mean(axis=0)))
        expected = x.double().numpy().mean(axis=0) + own @ left[:, :3] @ right[:3]
        got = slide_context(slide, x, config()).numpy()
        np.testing.assert_allclose(got, expected, atol=2e-3)
        np.testing.assert_allclose(got @ span @ span.T, got, atol=1e-4)


@pytest.fixture(scope="module")
def trained() -> tuple[ad.AnnData, Stage]:
    adata = st.datasets.simulate_tissue(1000, rng=5)
    st.pp.build_graph(adata)
    return adata, st.tl.fit(adata, epochs=0, progress=False)


class TestUnlike:
    def read(self, adata: ad.AnnData, model: Stage) -> Slide:
        return read_slides(adata, model.config, vocabulary=model.vocabulary.keys())[0]

    def of(self, adata: ad.AnnData, model: Stage) -> float:
        return coexpression_correlation(model, self.read(adata, model))

    def test_by_definition(self, trained):
        adata, model = trained
        one = self.read(adata, model)
        around = mean_over(one, 2) @ scaled(one)
        vectors = model.initial_vectors[[model.vocabulary[gene] for gene in one.genes]].double().numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        pairs = np.triu_indices(len(one.genes), 1)
        expected = np.corrcoef(np.corrcoef(around.T)[pairs], (vectors @ vectors.T)[pairs])[0, 1]
        assert coexpression_correlation(model, one) == pytest.approx(expected, abs=1e-3)
        assert expected > 0.1

    def test_other_names_for_genes_are_noticed(self, trained, caplog):
        """Whatever the name of the slide: those without a name are all called the same."""
        adata, model = trained
        assert self.of(adata, model) > 2 * UNLIKE
        other, noise = adata.copy(), adata.copy()
        other.var_names = np.random.default_rng(0).permutation(adata.var_names)
        noise.X = np.random.default_rng(1).poisson(1.0, adata.shape).astype(np.float32)
        for strange in (other, noise):
            assert abs(self.of(strange, model)) < UNLIKE
        for slides in (["elsewhere"], ["slide"]):
            model.slides = slides
            caplog.clear()
            st.tl.stage_niches(adata, model=model, copy=True)
            assert not caplog.records
            st.tl.stage_niches(noise, model=model, copy=True)
            assert "'slide' is unlike" in caplog.text

    def test_one_gene_or_none_that_varies(self, trained):
        adata, model = trained
        assert self.of(adata[:, :1].copy(), model) == 0
        one = self.read(adata, model)
        flat = replace(one, expression=one.expression * 0)
        assert abs(coexpression_correlation(model, flat)) < UNLIKE
