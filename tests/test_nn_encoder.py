"""The encoder against layers of torch-geometric and a direct weighted mean."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage_sc.nn import Neighbours, Sparse, Stage, StageConfig

N, DIM, HEADS = 14, 8, 4


def graph(seed: int = 0) -> np.ndarray:
    """Symmetric weights in (0, 1] with unequal degrees; cell 0 has no neighbour."""
    rng = np.random.default_rng(seed)
    upper = np.triu(np.where(rng.random((N, N)) < 0.3, rng.uniform(0.05, 1, (N, N)), 0), 1)
    upper[0] = 0
    return (upper + upper.T).astype(np.float32)


def local(seed: int = 1) -> np.ndarray:
    weights = graph(seed)
    np.fill_diagonal(weights, 1)
    return weights


def neighbours(weights: np.ndarray, pool: np.ndarray) -> Neighbours:
    """Every cell sees itself with weight 1."""
    edges = sp.coo_matrix(weights + np.eye(len(weights), dtype=np.float32))
    ends = torch.from_numpy(np.stack([edges.col, edges.row]).astype(np.int64))
    return Neighbours(ends, torch.from_numpy(edges.data)[:, None], Sparse(sp.csr_matrix(pool)))


def embedded() -> Tensor:
    return torch.randn(N, DIM, generator=torch.Generator().manual_seed(0))


def untrained(n_layers: int) -> nn.Module:
    return Stage(StageConfig(dim=DIM, n_layers=n_layers, n_heads=HEADS, levels=(2, 4)), ["gene"], ["slide"]).encoder


def trained(n_layers: int) -> nn.Module:
    """An encoder whose parameters are all far from their start."""
    encoder, generator = untrained(n_layers), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return encoder


def pool(encoder: nn.Module, z: Tensor, weights: np.ndarray) -> Tensor:
    """Mean with weights w exp(s), then the projection."""
    score = (z @ encoder.score.weight[0] + encoder.score.bias[0]).clamp(-10, 10)
    share = torch.from_numpy(weights) * torch.exp(score)
    mean = torch.stack([sum(w * one for w, one in zip(row / row.sum(), z, strict=True)) for row in share])
    return mean @ encoder.project.weight.T + encoder.project.bias


def by_torch_geometric(encoder: nn.Module, z: Tensor, one: Neighbours, weights: np.ndarray) -> Tensor:
    for layer in encoder.layers:
        z = layer(z, one.edges, one.weights)
    return pool(encoder, z, weights)


class TestEncoder:
    @pytest.mark.parametrize(("n_layers", "factor"), [(0, 1), (1, 1), (2, 1), (0, 10), (0, 1e4)])
    @torch.no_grad()
    def test_whole_encoder(self, n_layers, factor):
        encoder, z, one = trained(n_layers), embedded(), neighbours(graph(), local())
        encoder.score.weight *= factor
        got, expected = encoder(z, one), by_torch_geometric(encoder, z, one, local())
        np.testing.assert_allclose(got.numpy(), F.normalize(expected, dim=1).numpy(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(got.norm(dim=1).numpy(), 1, rtol=1e-5)

    def compare(self, encoder: nn.Module, z: Tensor, got: Tensor, expected: Tensor) -> None:
        np.testing.assert_allclose(got.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
        weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(5))
        of = [z, *(value for name, value in encoder.named_parameters() if name != "score.bias")]  # has none
        pairs = zip(*(torch.autograd.grad((pooled * weight).sum(), of) for pooled in (got, expected)), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-4 * float(b.abs().max()))
            assert b.abs().max() > 0

    @pytest.mark.parametrize("n_layers", [1, 2])
    def test_gradients_of_every_parameter_and_of_the_cells(self, n_layers):
        encoder, z, one = trained(n_layers), embedded().requires_grad_(), neighbours(graph(), local())
        self.compare(encoder, z, encoder.pooled(z, one), by_torch_geometric(encoder, z, one, local()))

    def test_cells_that_no_layer_needs_are_left_out(self):
        """Pooled are cells 0 to 4, which see 0 to 8, which see all: the layers compute 9 and 5 cells."""
        weights, pool = graph(), local()[:3]
        weights[:5, 9:] = weights[9:, :5] = 0
        pool[:, 5:] = 0
        encoder, z, one = trained(2), embedded().requires_grad_(), neighbours(weights, pool)
        few = one._replace(pool=Sparse(sp.csr_matrix(pool[:, :5])), sizes=(9, 5))
        self.compare(encoder, z, encoder.pooled(z, few), by_torch_geometric(encoder, z, one, pool))

    @torch.no_grad()
    def test_untrained_smooths(self):
        """The mean over the cell and its neighbours, then the Gaussian mean; attention starts with noise of 0.01."""
        encoder, z = untrained(2), embedded()
        assert not torch.equal(encoder.layers[0].att_src, encoder.layers[1].att_src)
        for layer in encoder.layers:
            for part in (layer.att_src, layer.att_dst, layer.att_edge):
                assert 0 < part.abs().max() < 0.1
                part.zero_()
        near = (graph() > 0).astype(np.float32) + np.eye(N, dtype=np.float32)
        expected = np.linalg.matrix_power(near / near.sum(axis=1, keepdims=True), 2) @ z.numpy()
        expected = local() / local().sum(axis=1, keepdims=True) @ expected
        got = encoder.pooled(z, neighbours(graph(), local()))
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)

    @torch.no_grad()
    def test_order_of_cells(self):
        encoder, z, order = trained(2), embedded(), np.random.default_rng(0).permutation(N)
        expected = encoder(z, neighbours(graph(), local()))[order]
        got = encoder(z[order], neighbours(graph()[np.ix_(order, order)], local()[np.ix_(order, order)]))
        assert torch.allclose(got, expected, atol=1e-5)

    @torch.no_grad()
    def test_sees_as_many_hops_as_layers(self):
        chain = (np.eye(N, k=1) + np.eye(N, k=-1)).astype(np.float32)
        for n_layers in (0, 1, 3):
            encoder, z, one = trained(n_layers), embedded(), neighbours(chain, np.eye(N, dtype=np.float32))
            before = encoder.pooled(z, one)
            z[7] += 1
            changed = (encoder.pooled(z, one) - before).abs().sum(dim=1)
            assert np.flatnonzero(changed.numpy() > 1e-6).tolist() == list(range(7 - n_layers, 8 + n_layers))
