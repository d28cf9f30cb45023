"""Whitening against matrix roots of scipy, and what it makes comparable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power, orth, sqrtm
from scipy.stats import ortho_group

from stage_sc.nn import whitening

DIM, RIDGE = 6, 0.01


def cells(n: int = 400, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Correlated, with variances from 1 to 1/16, and far from the origin."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)) * np.geomspace(1, 0.25, dim) @ ortho_group(dim, seed=seed).rvs() + rng.normal(
        size=dim
    )


def pair(n: int = 400, seed: int = 0, dim: int = DIM) -> tuple[np.ndarray, np.ndarray]:
    """Cells, and what is left of them farther away: a part of every component, each of another size, and noise."""
    near = cells(n, seed, dim)
    rng = np.random.default_rng(seed + 100)
    left = ortho_group(dim, seed=seed + 1).rvs() * np.linspace(0.1, 0.9, dim)
    return near, near @ left @ left.T + 0.05 * rng.normal(size=near.shape)


def whitened(near: np.ndarray, far: np.ndarray, persistence: float = 0.0, ridge: float = RIDGE) -> np.ndarray:
    pair = torch.from_numpy(near), torch.from_numpy(far)
    return whitening(*pair, persistence=persistence, ridge=ridge).double().numpy()


def covariance(x: np.ndarray) -> np.ndarray:
    return np.cov(x.T, bias=True)


def reference(near: np.ndarray, far: np.ndarray, persistence: float, ridge: float = RIDGE) -> np.ndarray:
    """As written down, in the space in which `near` varies."""
    c = covariance(near)
    axes = orth(c, rcond=1e-9)
    inner = axes.T @ c @ axes + ridge * np.trace(c) / len(c) * np.eye(axes.shape[1])
    w = np.linalg.inv(sqrtm(inner))
    m = w @ axes.T @ covariance(far) @ axes @ w
    return np.real(axes @ w @ fractional_matrix_power(m, persistence) @ axes.T)


class TestEquations:
    @pytest.mark.parametrize("persistence", [0, 0.25, 0.5, 1, 2])
    @pytest.mark.parametrize("ridge", [0.01, 0.3])
    def test_matrix_roots(self, persistence, ridge):
        near, far = pair(seed=1)
        got, expected = whitened(near, far, persistence, ridge), reference(near, far, persistence, ridge)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())

    @pytest.mark.parametrize("persistence", [0, 0.5])
    @pytest.mark.parametrize("rank", [1, 3, 5])
    def test_fewer_directions_than_components(self, persistence, rank):
        """As of few genes: what is not varied in is mapped to nothing, whatever is seen farther away."""
        near, far = pair()
        axes = ortho_group(DIM, seed=9).rvs()
        near = near @ axes[:, :rank] @ axes[:, :rank].T
        got, expected = whitened(near, far, persistence), reference(near, far, persistence)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(axes[:, rank:].T @ got, 0, atol=1e-6)
        np.testing.assert_allclose(got @ axes[:, rank:], 0, atol=1e-6)
        assert np.linalg.matrix_rank(got, tol=1e-4) == rank

    @pytest.mark.parametrize("n", [1, 5])
    def test_nothing_varies(self, n):
        for persistence in (0, 0.5):
            assert (whitened(np.ones((n, DIM)), np.ones((n, DIM)), persistence) == 0).all()

    def test_single_precision(self):
        """Of cells that are far from the origin, as sums of many genes are."""
        near, far = (x.astype(np.float32) + np.float32(100) for x in pair())
        got = whitening(torch.from_numpy(near), torch.from_numpy(far), persistence=0.5, ridge=RIDGE)
        assert got.dtype == torch.float32
        assert got.shape == (DIM, DIM)
        expected = reference(near.astype(float), far.astype(float), 0.5)
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    def test_cells_are_left_alone(self):
        near, far = (torch.from_numpy(x) for x in pair())
        before = near.clone(), far.clone()
        whitening(near, far, persistence=0.5, ridge=RIDGE)
        assert near.equal(before[0])
        assert far.equal(before[1])


class TestWhitened:
    def test_moves_cells_least(self):
        """Of all maps that whiten: any other is this one and a rotation."""
        near, far = pair()
        w, centred = whitened(near, far, ridge=0), near - near.mean(axis=0)
        np.testing.assert_allclose(w, w.T, atol=1e-6)
        moved = np.square(centred @ w - centred).sum()
        for rotation in ortho_group(DIM, seed=0).rvs(20):
            assert np.square(centred @ w @ rotation - centred).sum() > moved + 1


class TestPersistence:
    def test_what_is_far_does_not_matter_without(self):
        near, far = pair()
        np.testing.assert_array_equal(whitened(near, far), whitened(near, np.full_like(far, 1e6)))
        assert not np.allclose(whitened(near, far, 0.5), whitened(near, near, 0.5), atol=0.1)


class TestInvariances:
    @pytest.mark.parametrize("persistence", [0, 0.5])
    def test_rotation(self, persistence):
        near, far = pair()
        q = ortho_group(DIM, seed=4).rvs()
        expected = q.T @ whitened(near, far, persistence) @ q
        np.testing.assert_allclose(whitened(near @ q, far @ q, persistence), expected, atol=1e-5)

    @pytest.mark.parametrize("persistence", [0, 0.5])
    def test_order_and_origin(self, persistence):
        near, far = pair()
        order, expected = np.random.default_rng(0).permutation(len(near)), whitened(near, far, persistence)
        np.testing.assert_allclose(whitened(near[order], far[order], persistence), expected, atol=1e-6)
        np.testing.assert_allclose(whitened(near + 3, far - 5, persistence), expected, atol=1e-6)

    @pytest.mark.parametrize("persistence", [0, 0.5, 1])
    @pytest.mark.parametrize("factor", [1e-3, 7.0])
    def test_scale(self, persistence, factor):
        """Whitened cells are the same in any unit."""
        near, far = pair()
        got, expected = whitened(factor * near, factor * far, persistence), whitened(near, far, persistence)
        np.testing.assert_allclose(factor * got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


class TestOtherPlatform:
    """Another slide of the same tissue, whose cells are those of the first after a linear map."""

    def both(self, by: np.ndarray, persistence: float) -> tuple[np.ndarray, np.ndarray]:
        near, far = pair()
        one, other = whitened(near, far, persistence, 0), whitened(near @ by, far @ by, persistence, 0)
        return near @ one, near @ by @ other

    @pytest.mark.parametrize("persistence", [0, 0.5, 1])
    @pytest.mark.parametrize("seed", range(3))
    def test_any_symmetric_map_keeps_distances(self, seed, persistence):
        root = np.random.default_rng(seed).normal(size=(DIM, DIM))
        one, other = self.both(root + root.T, persistence)
        one, other = (x - x.mean(axis=0) for x in (one, other))
        np.testing.assert_allclose(other @ other.T, one @ one.T, atol=1e-3)
        assert np.abs(one @ one.T).max() > 1
