"""Directions that vary in space beyond chance, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power, sqrtm

from stage_sc.nn import Directions, covariance, spatial_directions

DIM, N = 6, 400


def cells(seed: int = 0, strength: tuple[float, ...] = (3.0, 2.0)) -> tuple[np.ndarray, np.ndarray]:
    """Cells on a line, of which the first directions are smooth, and an orthogonal mix of their components."""
    rng = np.random.default_rng(seed)
    x, place = rng.normal(size=(N, DIM)), np.linspace(0, 4 * np.pi, N)
    for column, factor in enumerate(strength):
        x[:, column] += factor * np.sin((column + 1) * place)
    return x * np.geomspace(1, 5, DIM), np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]


def mean_over(x: np.ndarray, hops: int) -> np.ndarray:
    for _ in range(hops):
        x = (np.roll(x, 1, axis=0) + x + np.roll(x, -1, axis=0)) / 3
    return x


def found(x: np.ndarray, power: float = 1.0, margin: float = 1.3, seed: int = 0) -> Directions:
    rng = np.random.default_rng(seed)
    null = [mean_over(x[rng.permutation(N)], 2) for _ in range(5)]
    first, *rest = (covariance(torch.from_numpy(one)) for one in (x, mean_over(x, 2), mean_over(x, 4), *null))
    return spatial_directions(first, rest[0], rest[2:], rest[1], margin=margin, power=power)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("strength", [(3.0,), (3.0, 2.0), (3.0, 2.0, 1.5)])
def test_equations(power, strength):
    x, mix = cells(strength=strength)
    x = x @ mix
    got = found(x, power)
    whole, near, far = (np.cov(one.T, bias=True) for one in (x, mean_over(x, 2), mean_over(x, 4)))
    root = np.linalg.inv(sqrtm(whole))
    values, axes = np.linalg.eigh(root @ near @ root)
    axes = axes[:, values > got.floor]
    assert got.number == axes.shape[1] == len(strength)
    spread = axes.T @ root @ far @ root @ axes
    expected = root @ axes @ fractional_matrix_power(spread, (power - 1) / 2) @ axes.T
    np.testing.assert_allclose(got.map, expected, atol=1e-5)
    np.testing.assert_allclose(got.cells, whole, atol=1e-5)
    contexts = np.cov((mean_over(x, 4) @ got.map.numpy()).T, bias=True)
    held = np.sort(np.linalg.eigvalsh(contexts))[::-1]
    wanted = np.sort(np.linalg.eigvalsh(spread))[::-1] ** power
    np.testing.assert_allclose(held[: len(wanted)], wanted, rtol=1e-3)
    assert held[len(wanted) :].max() < 1e-8


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_cells_have_none(seed):
    x, _ = cells(seed)
    shuffled = found(np.random.default_rng(seed).permutation(x), seed=seed + 100)
    assert shuffled.number == 0 and not shuffled.map.any()
    assert 0.1 < shuffled.floor < 0.6
    assert found(x, seed=seed).number >= 2


def test_margin():
    x, _ = cells(strength=(0.8,))
    assert found(x, margin=1.0).number >= 1 and found(x, margin=10.0).number == 0


def test_any_unit_rotation_and_origin():
    """Cells mapped to their directions are the same in any unit and along any axes, up to the same rotation."""
    x, q = cells()
    one = x @ found(x).map.numpy()
    for other in (x @ q, 30 * x, x + 5):
        mapped = other @ found(other).map.numpy()
        np.testing.assert_allclose(np.cov(mapped.T).trace(), np.cov(one.T).trace(), rtol=1e-3)
        distance = [np.linalg.norm(y[:50, None] - y[None, :50], axis=2) for y in (one, mapped)]
        np.testing.assert_allclose(*distance, atol=2e-3)


def test_components_without_variance():
    x, _ = cells()
    x[:, -2:] = 1.0
    got = found(x)
    assert got.number == 2 and not got.map[-2:].any() and got.map.isfinite().all()
    assert found(np.ones_like(x)).number == 0
