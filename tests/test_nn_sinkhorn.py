"""Balanced assignment against POT and against plain loops: equations 3 and 8."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

from stage_sc.nn import sinkhorn

# Two parents of two and three children; the third parent has two children and no cell.
PARENT_OF = torch.tensor([0, 0, 1, 1, 1, 2, 2])
CELLS_OF = torch.tensor([0] * 8 + [1] * 3)


def cosines(n_cells: int = 12, n_prototypes: int = 5, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).uniform(-1, 1, (n_cells, n_prototypes))
    return torch.from_numpy(values.astype(np.float32))


def naive(scores: np.ndarray, epsilon: float, n_iterations: int, mass: np.ndarray) -> np.ndarray:
    """Exponentials, then columns and rows scaled in turn, entry by entry."""
    n, k = scores.shape
    q = np.exp(scores.astype(np.float64) / epsilon)
    for _ in range(n_iterations):
        for column in range(k):
            total = q[:, column].sum()
            if total > 0:
                q[:, column] *= n * mass[column] / total
        for row in range(n):
            q[row] /= q[row].sum()
    return q


class TestBalanced:
    @pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.5])
    def test_equals_pot(self, epsilon):
        scores = cosines()
        q = sinkhorn(scores, epsilon, 2000).numpy()
        n, k = scores.shape
        plan = ot.sinkhorn(
            np.full(n, 1 / n),
            np.full(k, 1 / k),
            -scores.numpy().astype(np.float64),
            epsilon,
            method="sinkhorn_log",
            numItermax=20_000,
            stopThr=1e-12,
        )
        np.testing.assert_allclose(q, n * plan, atol=2e-4)
        np.testing.assert_allclose(q.sum(axis=1), 1, atol=1e-4)
        np.testing.assert_allclose(q.sum(axis=0), n / k, atol=2e-3)

    @pytest.mark.parametrize("n_iterations", [1, 2, 3])
    def test_equals_the_printed_iteration(self, n_iterations):
        scores = cosines()
        expected = naive(scores.numpy(), 0.05, n_iterations, np.full(5, 0.2))
        np.testing.assert_allclose(sinkhorn(scores, 0.05, n_iterations).numpy(), expected, rtol=1e-4, atol=1e-7)
        assert torch.equal(sinkhorn(scores), sinkhorn(scores, 0.05, 3))  # the paper's

    @pytest.mark.parametrize("size", [1e-8, 1.0, 1e3, 1e6])
    def test_finite_for_small_epsilon_and_any_scores(self, size):
        q = sinkhorn(size * cosines(), 1e-3)
        assert torch.isfinite(q).all()
        assert (q >= 0).all()
        # float32 keeps log q to a relative 6e-8 of the greatest score over epsilon
        assert torch.allclose(q.sum(dim=1), torch.ones(12), atol=max(1e-5, 3e-7 * size / 1e-3))


class TestInvariances:
    def test_shift_of_everything_of_rows_and_of_columns(self):
        # A constant per column (or for all) cancels in the first normalisation; one per row only at convergence.
        scores = cosines()
        columns = torch.tensor([[0.5, -0.5, 0.1, 0.0, 2.0]])
        assert torch.allclose(sinkhorn(scores + 3), sinkhorn(scores), atol=1e-4)
        assert torch.allclose(sinkhorn(scores + columns), sinkhorn(scores), atol=1e-4)
        rows = torch.linspace(-1, 1, 12)[:, None]
        assert torch.allclose(sinkhorn(scores + rows, 0.5, 500), sinkhorn(scores, 0.5, 500), atol=1e-4)

    def test_order_of_cells_and_prototypes(self):
        scores = cosines()
        cells, prototypes = torch.tensor([3, 1, 7, 11, 0, 2, 9, 6, 10, 5, 4, 8]), torch.tensor([3, 0, 4, 1, 2])
        expected = sinkhorn(scores)
        assert torch.allclose(sinkhorn(scores[cells]), expected[cells], atol=1e-6)
        assert torch.allclose(sinkhorn(scores[:, prototypes]), expected[:, prototypes], atol=1e-6)

    def test_scores_are_not_changed(self):
        scores = cosines()
        before = scores.clone()
        sinkhorn(scores)
        assert torch.equal(scores, before)


class TestMasked:
    def test_columns_left_out(self):
        scores = cosines()
        scores[:, [1, 3]] = -torch.inf
        q = sinkhorn(scores)
        assert (q[:, [1, 3]] == 0).all()
        assert torch.allclose(q[:, [0, 2, 4]], sinkhorn(scores[:, [0, 2, 4]]), atol=1e-6)
        assert torch.allclose(sinkhorn(scores, 0.05, 500).sum(dim=0)[[0, 2, 4]], torch.tensor(4.0), atol=0.01)

    def test_cells_of_several_slides_with_their_own_columns(self):
        scores = cosines(20, 6)
        scores[:8, [0, 1]] = -torch.inf
        scores[8:, [4, 5]] = -torch.inf
        scores[0, :5] = -torch.inf  # a cell with one choice
        expected = naive(scores.numpy(), 0.05, 3, np.full(6, 1 / 6))
        got = sinkhorn(scores)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-7)
        assert got[0].tolist() == [0, 0, 0, 0, 0, 1]
        np.testing.assert_allclose(sinkhorn(scores, 0.05, 2000).sum(dim=0).numpy(), 20 / 6, rtol=0.01)


class TestChildren:
    @pytest.fixture
    def among(self):
        scores = cosines(11, 7)
        return torch.where(PARENT_OF[None] == CELLS_OF[:, None], scores, -torch.inf)

    def test_only_children_and_equal_shares(self, among):
        q = sinkhorn(among, 0.05, 1000)
        assert (q[PARENT_OF[None] != CELLS_OF[:, None]] == 0).all()
        np.testing.assert_allclose(q.sum(dim=1).numpy(), 1, rtol=1e-4)
        np.testing.assert_allclose(q.sum(dim=0).numpy(), [4, 4, 1, 1, 1, 0, 0], atol=0.02)

    def test_every_parent_is_a_problem_of_its_own(self, among):
        q = sinkhorn(among, 0.05, 3)
        for parent in (0, 1):
            cells, children = CELLS_OF == parent, PARENT_OF == parent
            alone = sinkhorn(among[cells][:, children], 0.05, 3)
            assert torch.allclose(q[cells][:, children], alone, atol=1e-6)
