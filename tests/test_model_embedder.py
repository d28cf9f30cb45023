"""The gene embedder against equation 17 written out, and its gradient against plain autograd."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from stage_sc.nn._augment import Panel, View, clean_view, draw_view
from stage_sc.nn._embedder import GeneEmbedder, embed_cells
from stage_sc.nn._sparse import Sparse

SCALINGS = ("none", "center", "standardize")


def counts(n_cells: int = 9, n_genes: int = 7, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((n_cells, n_genes)) < 0.6, rng.exponential(size=(n_cells, n_genes)), 0)
    x[3] = 0  # a cell without counts
    return x.astype(np.float32)


def make_panel(x: np.ndarray, scaling: str, genes: np.ndarray | None = None) -> Panel:
    genes = np.arange(x.shape[1]) if genes is None else genes
    mean = np.zeros(x.shape[1]) if scaling == "none" else x.mean(axis=0)
    scale = x.std(axis=0) if scaling == "standardize" else np.ones(x.shape[1])
    return Panel(torch.from_numpy(genes), torch.from_numpy(mean).float(), torch.from_numpy(scale).float())


def some_view(n_genes: int) -> View:
    return draw_view(n_genes, np.random.default_rng(5), panel_fraction=0.6, noise_rate=8, noise_scale=0.3)


def dense(x: Tensor, panel: Panel, view: View, vectors: Tensor) -> Tensor:
    """Equation 17 on a dense matrix of scaled and augmented expression."""
    value = (x - panel.mean) / panel.scale * view.gain + view.offset
    kept = view.kept
    squares = vectors[kept] ** 2
    return value[:, kept] @ vectors[kept] / squares.sum().sqrt()


@pytest.fixture
def vectors():
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


class TestEquation17:
    def test_by_loops(self, vectors):
        x, v = counts(), vectors.double().numpy()
        got = embed_cells(Sparse(sp.csr_matrix(x)), make_panel(x, "none"), clean_view(7), vectors)
        norm = np.sqrt(sum(np.linalg.norm(v[gene]) ** 2 for gene in range(7)))
        for cell in range(len(x)):
            expected = sum(float(x[cell, gene]) * v[gene] for gene in range(7)) / norm
            np.testing.assert_allclose(got[cell].numpy(), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("scaling", SCALINGS)
    @pytest.mark.parametrize("augmented", [False, True])
    def test_dense_reference(self, vectors, scaling, augmented):
        x = counts()
        panel, view = make_panel(x, scaling), some_view(7) if augmented else clean_view(7)
        got = embed_cells(Sparse(sp.csr_matrix(x)), panel, view, vectors)
        expected = dense(torch.from_numpy(x), panel, view, vectors)
        np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)
        assert got.dtype == torch.float32

    def test_a_view_of_a_panel_is_the_smaller_panel(self, vectors):
        x = counts()
        kept = np.array([0, 2, 5])
        view = clean_view(7)._replace(kept=torch.zeros(7, dtype=torch.bool).index_fill(0, torch.from_numpy(kept), True))
        got = embed_cells(Sparse(sp.csr_matrix(x)), make_panel(x, "center"), view, vectors)
        small = x[:, kept]
        expected = embed_cells(Sparse(sp.csr_matrix(small)), make_panel(small, "center"), clean_view(3), vectors[kept])
        assert torch.allclose(got, expected, atol=1e-6)

    def test_centred_cells_have_mean_zero(self, vectors):
        x = counts()
        got = embed_cells(Sparse(sp.csr_matrix(x)), make_panel(x, "standardize"), clean_view(7), vectors)
        np.testing.assert_allclose(got.mean(dim=0).numpy(), 0, atol=1e-6)

    def test_genes_without_vector_do_not_break_the_norm(self):
        got = embed_cells(
            Sparse(sp.csr_matrix(counts())), make_panel(counts(), "none"), clean_view(7), torch.zeros(7, 4)
        )
        assert torch.equal(got, torch.zeros(9, 4))


class TestWhitening:
    """Of the panel: whitened cells, whatever else is done to the genes."""

    @pytest.fixture
    def whitening(self):
        return torch.randn(4, 4, generator=torch.Generator().manual_seed(7))  # not symmetric

    @pytest.mark.parametrize("scaling", SCALINGS)
    @pytest.mark.parametrize("augmented", [False, True])
    def test_is_applied_to_embedded_cells(self, vectors, whitening, scaling, augmented):
        x = counts()
        panel, view = make_panel(x, scaling), some_view(7) if augmented else clean_view(7)
        got = embed_cells(Sparse(sp.csr_matrix(x)), panel._replace(whitening=whitening), view, vectors)
        expected = dense(torch.from_numpy(x), panel, view, vectors) @ whitening
        np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)

    def test_gradient(self, vectors, whitening):
        x, found = counts(), []
        panel, view = make_panel(x, "center"), some_view(7)
        weight = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
        for embed in (
            lambda v: embed_cells(Sparse(sp.csr_matrix(x)), panel._replace(whitening=whitening), view, v),
            lambda v: dense(torch.from_numpy(x), panel, view, v) @ whitening,
        ):
            leaf = vectors.clone().requires_grad_()
            (embed(leaf) * weight).sum().backward()
            found.append(leaf.grad.numpy())
        np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)
        assert np.abs(found[1]).max() > 0.1


class TestPanels:
    @pytest.mark.parametrize("scaling", SCALINGS)
    def test_genes_in_any_order(self, scaling):
        torch.manual_seed(0)
        embedder = GeneEmbedder(12, 4)
        x, genes = counts(), np.array([3, 11, 0, 7, 5, 2, 8])
        order = np.random.default_rng(2).permutation(7)
        with torch.no_grad():
            one = embedder(Sparse(sp.csr_matrix(x)), make_panel(x, scaling, genes), clean_view(7))
            shuffled = x[:, order]
            panel = make_panel(shuffled, scaling, genes[order])
            other = embedder(Sparse(sp.csr_matrix(shuffled)), panel, clean_view(7))
        assert torch.allclose(one, other, atol=1e-5)

    def test_a_panel_takes_its_rows_of_the_vocabulary(self):
        torch.manual_seed(0)
        embedder, x, genes = GeneEmbedder(12, 4), counts(), np.array([3, 11, 0, 7, 5, 2, 8])
        panel = make_panel(x, "none", genes)
        got = embedder(Sparse(sp.csr_matrix(x)), panel, clean_view(7))
        expected = dense(torch.from_numpy(x), panel, clean_view(7), embedder.vectors[genes])
        assert torch.allclose(got, expected, atol=1e-5)

    @pytest.mark.parametrize("n_genes", [40, 400, 2000])
    def test_length_does_not_depend_on_the_size_of_the_panel(self, n_genes):
        # independent genes of variance 1: the mean squared length is 1
        rng = np.random.default_rng(n_genes)
        x = rng.standard_normal((2000, n_genes)).astype(np.float32)
        vectors = torch.from_numpy(rng.standard_normal((n_genes, 4)).astype(np.float32))
        got = embed_cells(Sparse(sp.csr_matrix(x)), make_panel(x, "none"), clean_view(n_genes), vectors)
        assert float(got.square().sum(dim=1).mean()) == pytest.approx(1, rel=0.15)

    def test_length_of_the_vectors_does_not_matter(self, vectors):
        x = counts()
        one, other = (
            embed_cells(Sparse(sp.csr_matrix(x)), make_panel(x, "center"), some_view(7), factor * vectors)
            for factor in (1, 100)
        )
        assert torch.allclose(one, other, atol=1e-5)


class TestGradient:
    @pytest.mark.parametrize("scaling", SCALINGS)
    def test_equals_autograd_of_the_dense_form(self, vectors, scaling):
        x = counts()
        panel, view = make_panel(x, scaling), some_view(7)
        weight = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
        sparse_vectors = vectors.clone().requires_grad_()
        (embed_cells(Sparse(sp.csr_matrix(x)), panel, view, sparse_vectors) * weight).sum().backward()
        dense_vectors = vectors.double().requires_grad_()
        double = Panel(panel.genes, panel.mean.double(), panel.scale.double())
        (dense(torch.from_numpy(x).double(), double, view, dense_vectors) * weight).sum().backward()
        np.testing.assert_allclose(sparse_vectors.grad.numpy(), dense_vectors.grad.numpy(), rtol=1e-3, atol=1e-4)
        assert (sparse_vectors.grad[~view.kept] == 0).all()  # genes that the view does not see learn nothing

    def test_embedder_gradient_reaches_the_panels_genes_alone(self):
        embedder, x, genes = GeneEmbedder(12, 4), counts(), np.array([3, 11, 0, 7, 5, 2, 8])
        embedder(Sparse(sp.csr_matrix(x)), make_panel(x, "none", genes), clean_view(7)).square().sum().backward()
        touched = embedder.vectors.grad.abs().sum(dim=1) > 0
        assert sorted(np.flatnonzero(touched.numpy())) == sorted(genes)


class TestSparse:
    @pytest.mark.parametrize("shape", [(9, 7), (7, 9), (1, 5), (5, 1)])
    def test_product_and_gradient(self, shape):
        matrix = counts(10, 10)[: shape[0], : shape[1]]
        right = torch.randn(shape[1], 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        weight = torch.randn(shape[0], 3, generator=torch.Generator().manual_seed(1))
        product = Sparse(sp.csr_matrix(matrix)) @ right
        np.testing.assert_allclose(product.detach().numpy(), matrix @ right.detach().numpy(), rtol=1e-5, atol=1e-6)
        (product * weight).sum().backward()
        np.testing.assert_allclose(right.grad.numpy(), matrix.T @ weight.numpy(), rtol=1e-5, atol=1e-6)

    def test_two_products_in_one_graph(self):
        matrix = counts(7, 7)
        sparse = Sparse(sp.csr_matrix(matrix))
        right = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (sparse @ (sparse @ right)).sum().backward()
        np.testing.assert_allclose(right.grad.numpy(), (matrix @ matrix).T @ np.ones((7, 3)), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("index", [np.int32, np.int64])
    def test_index_types_and_no_copy(self, index):
        dense = counts()
        matrix = sp.csr_matrix(dense)
        matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
        sparse = Sparse(matrix)
        np.testing.assert_allclose((sparse @ torch.eye(7)).numpy(), dense)
        assert sparse.shape == dense.shape
        assert sparse.forward.values().data_ptr() == matrix.data.ctypes.data

    def test_transpose_only_where_a_gradient_is_wanted(self):
        sparse = Sparse(sp.csr_matrix(counts()))
        assert sparse.to("cpu") is sparse
        sparse @ torch.eye(7)
        assert sparse._backward is None
        np.testing.assert_array_equal(sparse.backward.to_dense().numpy(), counts().T)
        assert sparse.to("cpu").backward is sparse.backward

    def test_unsorted_and_empty(self):
        matrix = sp.csr_matrix((np.array([1.0, 2.0], np.float32), np.array([2, 0]), np.array([0, 2, 2])), shape=(2, 3))
        np.testing.assert_array_equal((Sparse(matrix) @ torch.eye(3)).numpy(), [[2, 0, 1], [0, 0, 0]])
        assert torch.equal(Sparse(sp.csr_matrix((2, 3), dtype=np.float32)) @ torch.eye(3), torch.zeros(2, 3))
