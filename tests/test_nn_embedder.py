"""Embedded cells against equations 16 and 17 on dense matrices; views of a panel; sparse products with gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from stage_sc.nn import Panel, Sparse, Stage, StageConfig, View, clean_view, draw_view, embed_cells

SCALINGS = ("none", "center", "standardize")
PUBLISHED = {"panel_fraction": 0.8, "noise_rate": 8.0, "noise_scale": 0.05}
GENES = np.array([3, 11, 0, 7, 5, 2, 8])


def counts(n_cells: int = 9, n_genes: int = 7) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = np.where(rng.random((n_cells, n_genes)) < 0.6, rng.exponential(size=(n_cells, n_genes)), 0)
    x[3] = 0  # a cell without counts
    return x.astype(np.float32)


def make_panel(x: np.ndarray, scaling: str, genes: np.ndarray | None = None, whitening: Tensor | None = None) -> Panel:
    genes = np.arange(x.shape[1]) if genes is None else genes
    mean = np.zeros(x.shape[1]) if scaling == "none" else x.mean(axis=0)
    scale = x.std(axis=0) if scaling == "standardize" else np.ones(x.shape[1])
    return Panel(torch.from_numpy(genes), torch.from_numpy(mean).float(), torch.from_numpy(scale).float(), whitening)


def drawn(n_genes: int, seed: int = 0, **changes: float) -> View:
    return draw_view(n_genes, np.random.default_rng(seed), **{**PUBLISHED, **changes})


def embedded(x: np.ndarray, panel: Panel, view: View, vectors: Tensor) -> Tensor:
    return embed_cells(Sparse(sp.csr_matrix(x)), panel, view, vectors)


def dense(x: np.ndarray, panel: Panel, view: View, vectors: Tensor) -> Tensor:
    """Equations 16 and 17 on a dense matrix, in double precision; whitened at last."""
    value = (torch.from_numpy(x).double() - panel.mean) / panel.scale * view.gain + view.offset
    kept = vectors.double()[view.kept]
    result = value[:, view.kept] @ kept / kept.square().sum().sqrt()
    return result if panel.whitening is None else result @ panel.whitening.double()


@pytest.fixture
def vectors() -> Tensor:
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[False, True], ids=["not whitened", "whitened"])
def whitening(request) -> Tensor | None:
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(7)) if request.param else None  # not symmetric


class TestEquations:
    @pytest.mark.parametrize("scaling", SCALINGS)
    @pytest.mark.parametrize("augmented", [False, True])
    def test_dense_reference_and_its_gradient(self, vectors, whitening, scaling, augmented):
        x, weight = counts(), torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
        panel = make_panel(x, scaling, whitening=whitening)
        view = drawn(7, 5, panel_fraction=0.6, noise_scale=0.3) if augmented else clean_view(7)
        got, expected = (function(x, panel, view, vectors.requires_grad_()) for function in (embedded, dense))
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.detach(), expected.detach(), rtol=1e-4, atol=1e-5)
        grad, wanted = (torch.autograd.grad((result * weight).sum(), vectors)[0] for result in (got, expected))
        np.testing.assert_allclose(grad, wanted, rtol=1e-3, atol=1e-4)
        assert grad.abs().max() > 0.1
        assert (grad[~view.kept] == 0).all()

    def test_a_view_of_a_panel_is_the_smaller_panel(self, vectors):
        x, kept = counts(), np.array([0, 2, 5])
        view = clean_view(7)._replace(kept=torch.zeros(7, dtype=torch.bool).index_fill(0, torch.from_numpy(kept), True))
        got = embedded(x, make_panel(x, "center"), view, vectors)
        expected = embedded(x[:, kept], make_panel(x[:, kept], "center"), clean_view(3), vectors[kept])
        assert torch.allclose(got, expected, atol=1e-6)

    def test_genes_without_vector_do_not_break_the_norm(self):
        got = embedded(counts(), make_panel(counts(), "none"), clean_view(7), torch.zeros(7, 4))
        assert torch.equal(got, torch.zeros(9, 4))

    @pytest.mark.parametrize("scaling", SCALINGS)
    def test_rows_of_the_panel_in_any_order_and_genes_of_other_panels_learn_nothing(self, scaling):
        model = Stage(StageConfig(dim=4, levels=(2, 4)), [f"g{number}" for number in range(12)], ["one"])
        x, vectors = counts(), model.embedder.vectors
        for order in (np.arange(7), np.random.default_rng(2).permutation(7)):
            got = model.embed(Sparse(sp.csr_matrix(x[:, order])), make_panel(x[:, order], scaling, GENES[order]))
            expected = dense(x, make_panel(x, scaling), clean_view(7), vectors[GENES])
            np.testing.assert_allclose(got.detach(), expected.detach(), atol=1e-5)
            (grad,) = torch.autograd.grad(got.square().sum(), vectors)
            assert sorted(np.flatnonzero(grad.abs().sum(dim=1))) == sorted(GENES)


class TestViews:
    @pytest.mark.parametrize("n_genes", [1, 2, 7, 33])
    @pytest.mark.parametrize("fraction", [0.1, 0.8, 1.0])
    def test_number_of_genes(self, n_genes, fraction):
        view = drawn(n_genes, panel_fraction=fraction)
        assert view.kept.dtype == torch.bool
        assert int(view.kept.sum()) == max(1, math.floor(fraction * n_genes))

    def test_every_gene_is_as_likely(self):
        rng = np.random.default_rng(0)
        share = np.mean([draw_view(20, rng, **PUBLISHED).kept.numpy() for _ in range(2000)], axis=0)
        np.testing.assert_allclose(share, 0.8, atol=0.04)  # four standard errors

    @pytest.mark.parametrize(("rate", "scale"), [(2.0, 0.05), (8.0, 0.2)])
    def test_offset_is_exponential_with_that_rate_and_gain_normal_around_one(self, rate, scale):
        view = drawn(100_000, noise_rate=rate, noise_scale=scale)
        gain, offset = view.gain, view.offset
        assert offset.dtype == gain.dtype == torch.float32
        assert offset.min() >= 0
        assert offset.mean() == pytest.approx(1 / rate, rel=0.02)
        assert offset.median() == pytest.approx(math.log(2) / rate, rel=0.02)
        assert gain.mean() == pytest.approx(1, abs=0.01 * scale + 1e-3)
        assert gain.std() == pytest.approx(scale, rel=0.02)
        assert ((gain - 1).abs() < scale).float().mean() == pytest.approx(0.6827, abs=0.01)
        gain = drawn(10_000, noise_scale=5.0).gain  # never changes the sign
        assert (float(gain.min()), float(gain.max())) == (0, 2)

    def test_chance_is_that_of_the_generator_alone(self):
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        rng = np.random.default_rng(3)
        first, following = (draw_view(50, rng, **PUBLISHED) for _ in range(2))
        for one, same, next_ in zip(first, drawn(50, 3), following, strict=True):
            assert torch.equal(one, same)
            assert not torch.equal(one, next_)
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert (np.random.get_state()[1] == numpy_state).all()


def test_panel_on_another_device(whitening):
    axes = None if whitening is None else torch.eye(3)
    panel = Panel(torch.arange(3), torch.zeros(3), torch.ones(3), whitening, axes)
    devices = [None if tensor is None else tensor.device.type for tensor in panel.to("meta")]
    assert devices == [*["meta"] * 3, *[None if whitening is None else "meta"] * 2]
    assert panel.genes.device.type == "cpu"


class TestSparse:
    @pytest.mark.parametrize("shape", [(9, 7), (7, 9), (1, 5), (5, 1)])
    def test_product_and_gradient(self, shape):
        matrix = counts(10, 10)[: shape[0], : shape[1]]
        right = torch.randn(shape[1], 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        weight = torch.randn(shape[0], 3, generator=torch.Generator().manual_seed(1))
        product = Sparse(sp.csr_matrix(matrix)) @ right
        np.testing.assert_allclose(product.detach(), matrix @ right.detach().numpy(), rtol=1e-5, atol=1e-6)
        (grad,) = torch.autograd.grad((product * weight).sum(), right)
        np.testing.assert_allclose(grad, matrix.T @ weight.numpy(), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("index", [np.int32, np.int64])
    def test_index_types_and_no_copy(self, index):
        matrix = sp.csr_matrix(counts())
        matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
        sparse = Sparse(matrix)
        np.testing.assert_allclose((sparse @ torch.eye(7)).numpy(), counts())
        assert sparse.shape == counts().shape
        assert sparse.forward.values().data_ptr() == matrix.data.ctypes.data
        assert sparse.to("cpu") is sparse

    def test_unsorted_and_empty(self):
        matrix = sp.csr_matrix((np.array([1.0, 2.0], np.float32), np.array([2, 0]), np.array([0, 2, 2])), shape=(2, 3))
        np.testing.assert_array_equal((Sparse(matrix) @ torch.eye(3)).numpy(), [[2, 0, 1], [0, 0, 0]])
        assert torch.equal(Sparse(sp.csr_matrix((2, 3), dtype=np.float32)) @ torch.eye(3), torch.zeros(2, 3))
