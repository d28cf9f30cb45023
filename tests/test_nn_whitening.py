"""Whitening against matrix roots of scipy, and what it makes comparable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power, orth, sqrtm
from scipy.stats import ortho_group

from stage_sc.nn import whitening

DIM, RIDGE = 6, 0.01


def pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated cells far from the origin, sd from 1 to 1/4; and farther away a part of every component, and noise."""
    rng = np.random.default_rng(seed)
    near = rng.normal(size=(400, DIM)) * np.geomspace(1, 0.25, DIM) @ ortho_group(DIM, seed=seed).rvs()
    near += rng.normal(size=DIM)
    left = ortho_group(DIM, seed=seed + 1).rvs() * np.linspace(0.1, 0.9, DIM)
    return near, near @ left @ left.T + 0.05 * rng.normal(size=near.shape)


def whitened(near: np.ndarray, far: np.ndarray, persistence: float = 0.0, ridge: float = RIDGE) -> np.ndarray:
    pair = torch.from_numpy(near), torch.from_numpy(far)
    return whitening(*pair, persistence=persistence, ridge=ridge).double().numpy()


def reference(near: np.ndarray, far: np.ndarray, persistence: float, ridge: float = RIDGE) -> np.ndarray:
    c = np.cov(near.T, bias=True)
    axes = orth(c, rcond=1e-9)
    inner = axes.T @ c @ axes + ridge * np.trace(c) / len(c) * np.eye(axes.shape[1])
    w = np.linalg.inv(sqrtm(inner))
    m = w @ axes.T @ np.cov(far.T, bias=True) @ axes @ w
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
        near, far = pair()
        axes = ortho_group(DIM, seed=9).rvs()
        near = near @ axes[:, :rank] @ axes[:, :rank].T
        got, expected = whitened(near, far, persistence), reference(near, far, persistence)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(axes[:, rank:].T @ got, 0, atol=1e-6)
        np.testing.assert_allclose(got @ axes[:, rank:], 0, atol=1e-6)
        assert np.linalg.matrix_rank(got, tol=1e-4) == rank

    @pytest.mark.parametrize("n", [1, 5])
    @pytest.mark.parametrize("persistence", [0, 0.5])
    def test_nothing_varies(self, n, persistence):
        assert (whitened(np.ones((n, DIM)), np.ones((n, DIM)), persistence) == 0).all()

    def test_single_precision(self):
        near, far = (x.astype(np.float32) + np.float32(100) for x in pair())
        cells = torch.from_numpy(near.copy()), torch.from_numpy(far.copy())
        got = whitening(*cells, persistence=0.5, ridge=RIDGE)
        assert got.dtype == torch.float32
        assert (cells[0].numpy() == near).all() and (cells[1].numpy() == far).all()
        expected = reference(near.astype(float), far.astype(float), 0.5)
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


class TestInvariances:
    def test_moves_cells_least(self):
        """Of all maps that whiten: any other is this one and a rotation."""
        near, far = pair()
        w, centred = whitened(near, far, ridge=0), near - near.mean(axis=0)
        np.testing.assert_allclose(w, w.T, atol=1e-6)
        moved = np.square(centred @ w - centred).sum()
        for rotation in ortho_group(DIM, seed=0).rvs(20):
            assert np.square(centred @ w @ rotation - centred).sum() > moved + 1

    @pytest.mark.parametrize("persistence", [0, 0.5, 1])
    def test_rotation_order_origin_and_scale(self, persistence):
        """Whitened cells are the same in any unit. Cells farther away do not matter without persistence."""
        near, far = pair()
        q, order = ortho_group(DIM, seed=4).rvs(), np.random.default_rng(0).permutation(len(near))
        expected = whitened(near, far, persistence)
        np.testing.assert_allclose(whitened(near @ q, far @ q, persistence), q.T @ expected @ q, atol=1e-5)
        np.testing.assert_allclose(whitened(near[order], far[order], persistence), expected, atol=1e-6)
        np.testing.assert_allclose(whitened(near + 3, far - 5, persistence), expected, atol=1e-6)
        for factor in (1e-3, 7.0):
            got = factor * whitened(factor * near, factor * far, persistence)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        assert (whitened(near, np.full_like(far, 1e6), persistence) == expected).all() == (persistence == 0)

    @pytest.mark.parametrize("persistence", [0, 0.5, 1])
    @pytest.mark.parametrize("seed", range(3))
    def test_any_symmetric_map_keeps_distances(self, seed, persistence):
        """As of another slide of the same tissue, whose cells are those of the first after a linear map."""
        (near, far), root = pair(), np.random.default_rng(seed).normal(size=(DIM, DIM))
        both = ((near @ by, far @ by) for by in (np.eye(DIM), root + root.T))
        one, other = ((x - x.mean(axis=0)) @ whitened(x, y, persistence, 0) for x, y in both)
        np.testing.assert_allclose(other @ other.T, one @ one.T, atol=1e-3)
        assert np.abs(one @ one.T).max() > 1
