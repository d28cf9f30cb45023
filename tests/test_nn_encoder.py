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
    return Neighbours(
        torch.from_numpy(np.stack([edges.col, edges.row]).astype(np.int64)),
        torch.from_numpy(edges.data)[:, None],
        Sparse(sp.csr_matrix(pool)),
    )


def embedded(n: int = N, seed: int = 0) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def untrained(n_layers: int) -> nn.Module:
    config = StageConfig(dim=DIM, n_layers=n_layers, n_heads=HEADS, levels=(2, 4))
    return Stage(config, ["gene"], ["slide"]).encoder


def trained(n_layers: int) -> nn.Module:
    """An encoder whose parameters are all far from their start."""
    encoder, generator = untrained(n_layers), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return encoder


def pool(encoder: nn.Module, z: Tensor, weights: np.ndarray) -> Tensor:
    """Mean with weights w exp(s), then the projection."""
    rows = []
    for row in weights:
        share = torch.zeros(len(z))
        for j in np.flatnonzero(row):
            score = encoder.score.weight[0] @ z[j] + encoder.score.bias[0]
            share[j] = float(row[j]) * torch.exp(score.clamp(-10, 10))
        rows.append((share[:, None] * z).sum(dim=0) / share.sum())
    return torch.stack(rows) @ encoder.project.weight.T + encoder.project.bias


class TestForward:
    @pytest.mark.parametrize("n_layers", [0, 1, 2])
    @torch.no_grad()
    def test_whole_encoder(self, n_layers):
        encoder, z = trained(n_layers), embedded()
        one = neighbours(graph(), local())
        got = encoder(z, one)
        for layer in encoder.layers:
            z = layer(z, one.edges, one.weights)
        pooled = pool(encoder, z, local())
        expected = pooled / pooled.norm(dim=1, keepdim=True)
        np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-3, atol=1e-5)

    @torch.no_grad()
    def test_extreme_scores_are_kept_finite(self):
        encoder = trained(0)
        encoder.score.weight *= 1e4
        got = encoder(embedded(), neighbours(graph(), local()))
        assert torch.isfinite(got).all()
        pooled = pool(encoder, embedded(), local())
        np.testing.assert_allclose(got.numpy(), F.normalize(pooled, dim=1).numpy(), rtol=1e-3, atol=1e-5)


def by_torch_geometric(encoder: nn.Module, z: Tensor, one: Neighbours) -> Tensor:
    for layer in encoder.layers:
        z = layer(z, one.edges, one.weights)
    return encoder.pool(one.pool @ encoder.gated(z))


class TestGradients:
    """Of every parameter and of the cells, as torch-geometric's layers have them."""

    def gradients(self, pooled: Tensor, encoder: nn.Module, z: Tensor) -> list[Tensor]:
        wanted = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(5))
        parameters = [value for name, value in encoder.named_parameters() if name != "score.bias"]  # has none
        return list(torch.autograd.grad((pooled * wanted).sum(), [z, *parameters]))

    @pytest.mark.parametrize("n_layers", [1, 2])
    def test_as_of_torch_geometric(self, n_layers):
        encoder, z, one = trained(n_layers), embedded().requires_grad_(), neighbours(graph(), local())
        got = self.gradients(encoder.pooled(z, one), encoder, z)
        expected = self.gradients(by_torch_geometric(encoder, z, one), encoder, z)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-4 * float(b.abs().max()))
            assert b.abs().max() > 0

    def test_cells_that_no_layer_needs_are_left_out(self):
        """Pooled are cells 0 to 4, which see 0 to 8, which see all: the layers compute 9 and 5 cells."""
        weights, pool = graph(), local()[:3]
        weights[:5, 9:] = weights[9:, :5] = 0
        pool[:, 5:] = 0
        encoder, z = trained(2), embedded().requires_grad_()
        one = neighbours(weights, pool)
        few = one._replace(pool=Sparse(sp.csr_matrix(pool[:, :5])), sizes=(9, 5))
        got, expected = encoder.pooled(z, few), by_torch_geometric(encoder, z, one)
        np.testing.assert_allclose(got.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
        for a, b in zip(self.gradients(got, encoder, z), self.gradients(expected, encoder, z), strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-4 * float(b.abs().max()))


class TestUntrained:
    @torch.no_grad()
    def test_smooths(self):
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


class TestBehaviour:
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
            encoder, z = trained(n_layers), embedded()
            before = encoder.pooled(z, neighbours(chain, np.eye(N, dtype=np.float32)))
            z[7] += 1
            changed = (encoder.pooled(z, neighbours(chain, np.eye(N, dtype=np.float32))) - before).abs().sum(dim=1)
            assert np.flatnonzero(changed.numpy() > 1e-6).tolist() == list(range(7 - n_layers, 8 + n_layers))
