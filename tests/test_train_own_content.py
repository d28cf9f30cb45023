"""Content as a slide itself shows it: against dense algebra, and in the directions of the model."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.linalg import fractional_matrix_power, orthogonal_procrustes, sqrtm
from scipy.stats import ortho_group

import stage_sc as st
from stage_sc.slides._slide import Slide, read_slides_of
from stage_sc.nn._whitening import RIDGE
from stage_sc.train import _prior
from stage_sc.embed._slide_context import slide_context
from stage_sc.embed._gene_vectors import principal_axes

N, DIM = 400, 8


@pytest.fixture(scope="module")
def slide() -> Slide:
    adata = st.datasets.simulate_tissue(N, rng=6)
    st.pp.build_graph(adata)
    return read_slides_of(adata, scaling="standardize")[0]


def scaled(slide: Slide) -> np.ndarray:
    return (slide.take(np.arange(slide.n_cells)).toarray() - slide.mean) / slide.scale


def mean_over(slide: Slide, hops: int) -> np.ndarray:
    near = (slide.graph.toarray() > 0).astype(float)
    return np.linalg.matrix_power(near / near.sum(axis=1, keepdims=True), hops)


def covariance(x: np.ndarray) -> np.ndarray:
    return np.cov(x.T, bias=True)


def whitened(slide: Slide, vectors: np.ndarray, persistence: float) -> np.ndarray:
    """Content, from dense algebra."""
    cells = scaled(slide) @ vectors / np.linalg.norm(vectors)
    near, far = covariance(mean_over(slide, 1) @ cells), covariance(mean_over(slide, 6) @ cells)
    root = np.linalg.inv(sqrtm(near + RIDGE * np.trace(near) / len(near) * np.eye(len(near))))
    return mean_over(slide, 6) @ cells @ root @ fractional_matrix_power(root @ far @ root, persistence)


def content(slide: Slide, seed: int = 0, persistence: float = 0.5) -> torch.Tensor:
    """Of gene vectors by chance."""
    vectors = np.random.default_rng(seed).normal(size=(len(slide.genes), DIM))
    return torch.from_numpy(whitened(slide, vectors, persistence)).float()


def principal_axes(slide: Slide) -> np.ndarray:
    around = mean_over(slide, 2) @ scaled(slide)
    return np.linalg.svd(around - around.mean(axis=0))[2][:DIM].T


def few_genes(slide: Slide, n: int) -> Slide:
    x = slide.take(np.arange(slide.n_cells))[:, :n]
    return replace(slide, expression=x, rows=None, genes=slide.genes[:n], mean=slide.mean[:n], scale=slide.scale[:n])


class TestOwnAxes:
    def test_principal_axes_of_two_hops(self, slide):
        axes = principal_axes(slide, DIM).numpy()
        assert axes.dtype == np.float32
        np.testing.assert_allclose(axes.T @ axes, np.eye(DIM), atol=1e-5)
        expected = principal_axes(slide)
        np.testing.assert_allclose(axes @ axes.T, expected @ expected.T, atol=1e-3)

    def test_on_some_cells(self, slide, monkeypatch):
        monkeypatch.setattr(_prior, "AXES_CELLS", N // 3)
        chosen = np.linspace(0, N - 1, N // 3).astype(int)
        around = (mean_over(slide, 2) @ scaled(slide))[chosen]
        expected = np.linalg.svd(around - around.mean(axis=0))[2][:DIM].T
        axes = principal_axes(slide, DIM).numpy()
        np.testing.assert_allclose(axes @ axes.T, expected @ expected.T, atol=1e-3)

    def test_fewer_genes_than_axes(self, slide):
        axes = principal_axes(few_genes(slide, 5), DIM).numpy()
        assert axes.shape == (5, DIM)
        np.testing.assert_allclose(axes @ axes.T, np.eye(5), atol=1e-5)

    def test_many_genes(self):
        """Of which the exact components come at a price."""
        adata = st.datasets.simulate_tissue(300, rng=2)
        rng = np.random.default_rng(0)
        many = ad.AnnData(sp.csr_matrix(rng.poisson(adata.X.toarray() @ rng.gamma(0.3, 0.2, (adata.n_vars, 1500)))))
        many.obsm["spatial"] = adata.obsm["spatial"]
        st.pp.build_graph(many)
        (slide,) = read_slides_of(many, scaling="standardize")
        axes, expected = principal_axes(slide, DIM).numpy(), principal_axes(slide)
        around = mean_over(slide, 2) @ scaled(slide)
        around -= around.mean(axis=0)
        assert np.square(around @ axes).sum() > 0.999 * np.square(around @ expected).sum()

    def test_no_counts(self, slide):
        empty = replace(slide, expression=0 * slide.expression, mean=0 * slide.mean)
        x = content(slide)
        got = slide_context(empty, x, 0.5)
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, x.mean(dim=0).expand_as(x))


class TestOwnContent:
    @pytest.mark.parametrize("persistence", [0.0, 0.5])
    def test_equation(self, slide, persistence):
        x = content(slide, persistence=persistence)
        own = whitened(slide, principal_axes(slide), persistence)
        own -= own.mean(axis=0)
        turn, _ = orthogonal_procrustes(own, x.double().numpy() - x.double().numpy().mean(axis=0))
        expected = x.double().numpy().mean(axis=0) + own @ turn
        got = slide_context(slide, x, persistence)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), expected, atol=2e-3)
        assert (got - x).abs().max() > 0.1

    def test_the_same_where_the_model_knows_all(self, slide):
        """Vectors that span the slide's own axes, however they are turned and stretched."""
        mixed = principal_axes(slide) @ ortho_group.rvs(DIM, random_state=0) @ np.diag(np.linspace(0.5, 2, DIM))
        x = torch.from_numpy(whitened(slide, mixed, 0.5)).float()
        error = (slide_context(slide, x, 0.5) - x).norm() / x.norm()
        assert error < 0.02  # of the ridge, which is none in stretched directions

    def test_directions_keep_their_meaning(self, slide):
        """The mean over the slide stays, and no direction is mixed with another."""
        x = content(slide)
        got = slide_context(slide, x, 0.5)
        torch.testing.assert_close(got.mean(dim=0), x.mean(dim=0), rtol=0, atol=1e-5)
        cross = (got - got.mean(dim=0)).T @ (x - x.mean(dim=0))
        torch.testing.assert_close(cross, cross.T, rtol=0, atol=1e-3 * float(cross.abs().max()))
        assert torch.linalg.eigvalsh(cross).min() > 0

    def test_turned_with_the_content(self, slide):
        x, turn = content(slide), torch.from_numpy(ortho_group.rvs(DIM, random_state=1)).float()
        torch.testing.assert_close(
            slide_context(slide, x @ turn, 0.5), slide_context(slide, x, 0.5) @ turn, atol=1e-4, rtol=0
        )

    def test_a_component_that_is_always_zero_stays_so(self, slide):
        x = content(slide)
        x[:, -1] = 0
        got = slide_context(slide, x, 0.5)
        assert got[:, -1].abs().max() < 1e-5
        assert (got - x).abs().max() > 0.1

    def test_fewer_directions_than_numbers(self, slide):
        """Of a model whose vectors span three directions, wherever these lie: only these are turned."""
        span = np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0][:, :3]
        x = content(slide)[:, :3] @ torch.from_numpy(span.T).float()
        own = whitened(slide, principal_axes(slide), 0.5)
        own -= own.mean(axis=0)
        left, _, right = np.linalg.svd(own.T @ (x.double().numpy() - x.double().numpy().mean(axis=0)))
        expected = x.double().numpy().mean(axis=0) + own @ left[:, :3] @ right[:3]
        got = slide_context(slide, x, 0.5).numpy()
        np.testing.assert_allclose(got, expected, atol=2e-3)
        np.testing.assert_allclose(got @ span @ span.T, got, atol=1e-4)
