"""Balanced assignment against POT and by loops (equations 3 and 8), losses by loops (equations 4 and 10)."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch

from stage_sc.nn import path_loss, reconstruction_loss, sinkhorn, swav_loss

# Two parents of two and three children; the third parent has two children and no cell.
FAMILY = torch.tensor([0, 0, 1, 1, 1, 2, 2])
CELLS_OF = torch.tensor([0] * 8 + [1] * 3)
PARENT_OF = torch.tensor([0, 0, 1, 1, 1])


def cosines(n_cells: int = 12, n_prototypes: int = 5, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).uniform(-1, 1, (n_cells, n_prototypes))
    return torch.from_numpy(values.astype(np.float32))


def naive(scores: torch.Tensor, n_iterations: int = 3) -> np.ndarray:
    """Exponentials, then columns and rows scaled in turn."""
    q = np.exp(scores.double().numpy() / 0.05)
    for _ in range(n_iterations):
        for column in q.T:
            column *= len(q) / q.shape[1] / column.sum()
        for row in q:
            row /= row.sum()
    return q


class TestBalanced:
    @pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.5])
    def test_equals_pot(self, epsilon):
        scores = cosines()
        q = sinkhorn(scores, epsilon, 2000).numpy()
        n, k = scores.shape
        how = {"method": "sinkhorn_log", "numItermax": 20_000, "stopThr": 1e-12}
        plan = ot.sinkhorn(np.full(n, 1 / n), np.full(k, 1 / k), -scores.double().numpy(), epsilon, **how)
        np.testing.assert_allclose(q, n * plan, atol=2e-4)
        np.testing.assert_allclose(q.sum(axis=1), 1, atol=1e-4)
        np.testing.assert_allclose(q.sum(axis=0), n / k, atol=2e-3)

    @pytest.mark.parametrize("n_iterations", [1, 2, 3])
    def test_equals_the_printed_iteration(self, n_iterations):
        scores = cosines()
        got, expected = sinkhorn(scores, 0.05, n_iterations), naive(scores, n_iterations)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-7)
        assert torch.equal(sinkhorn(scores), sinkhorn(scores, 0.05, 3))  # the paper's

    @pytest.mark.parametrize("size", [1e-8, 1.0, 1e3, 1e6])
    def test_finite_for_small_epsilon_and_any_scores(self, size):
        q = sinkhorn(size * cosines(), 1e-3)
        assert torch.isfinite(q).all()
        assert (q >= 0).all()
        # float32 keeps log q to a relative 6e-8 of the greatest score over epsilon
        assert torch.allclose(q.sum(dim=1), torch.ones(12), atol=max(1e-5, 3e-7 * size / 1e-3))

    def test_shift_of_everything_of_rows_and_of_columns(self):
        # A constant per column (or for all) cancels in the first normalisation; one per row only at convergence.
        scores, columns = cosines(), torch.tensor([[0.5, -0.5, 0.1, 0.0, 2.0]])
        for shift in (3, columns):
            assert torch.allclose(sinkhorn(scores + shift), sinkhorn(scores), atol=1e-4)
        rows = torch.linspace(-1, 1, 12)[:, None]
        assert torch.allclose(sinkhorn(scores + rows, 0.5, 500), sinkhorn(scores, 0.5, 500), atol=1e-4)

    def test_order_of_cells_and_prototypes(self):
        scores = cosines()
        cells, prototypes, expected = torch.arange(12).flip(0), torch.tensor([3, 0, 4, 1, 2]), sinkhorn(scores)
        assert torch.allclose(sinkhorn(scores[cells]), expected[cells], atol=1e-6)
        assert torch.allclose(sinkhorn(scores[:, prototypes]), expected[:, prototypes], atol=1e-6)

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
        got = sinkhorn(scores)
        np.testing.assert_allclose(got.numpy(), naive(scores), rtol=1e-4, atol=1e-7)
        assert got[0].tolist() == [0, 0, 0, 0, 0, 1]
        np.testing.assert_allclose(sinkhorn(scores, 0.05, 2000).sum(dim=0).numpy(), 20 / 6, rtol=0.01)

    def test_children_of_every_parent_are_a_problem_of_their_own(self):
        among = torch.where(FAMILY[None] == CELLS_OF[:, None], cosines(11, 7), -torch.inf)
        q = sinkhorn(among, 0.05, 1000)
        assert (q[FAMILY[None] != CELLS_OF[:, None]] == 0).all()
        np.testing.assert_allclose(q.sum(dim=1).numpy(), 1, rtol=1e-4)
        np.testing.assert_allclose(q.sum(dim=0).numpy(), [4, 4, 1, 1, 1, 0, 0], atol=0.02)
        q = sinkhorn(among, 0.05, 3)
        for parent in (0, 1):
            cells, children = CELLS_OF == parent, FAMILY == parent
            alone = sinkhorn(among[cells][:, children], 0.05, 3)
            assert torch.allclose(q[cells][:, children], alone, atol=1e-6)


def log_softmax(row: list[float], temperature: float) -> list[float]:
    total = math.log(sum(math.exp(value / temperature) for value in row))
    return [value / temperature - total for value in row]


class TestSwapped:
    @pytest.fixture
    def pair(self):
        return cosines(8, 5, 0).requires_grad_(), cosines(8, 5, 1).requires_grad_()

    @pytest.mark.parametrize("temperature", [0.1, 0.5])
    def test_equation_4_by_loops(self, pair, temperature):
        one, other = (scores.detach() for scores in pair)
        total = 0.0
        for scores, q in ((one, sinkhorn(other)), (other, sinkhorn(one))):
            for row, weights in zip(scores.tolist(), q.tolist(), strict=True):
                total += np.dot(weights, log_softmax(row, temperature))
        assert float(swav_loss(one, other, temperature=temperature)) == pytest.approx(-total / 2 / 8, rel=1e-4)

    def test_no_gradient_through_the_assignment(self, pair):
        one, other = pair
        swav_loss(one, other).backward()
        # with q held fixed, the gradient of a cross-entropy is (p - q) / temperature
        q_i, q_j = sinkhorn(one.detach()), sinkhorn(other.detach())
        for scores, q in ((one, q_j), (other, q_i)):
            expected = (torch.softmax(scores.detach() / 0.1, dim=1) * q.sum(dim=1, keepdim=True) - q) / 0.1 / 2 / 8
            np.testing.assert_allclose(scores.grad.numpy(), expected.numpy(), rtol=1e-3, atol=1e-5)

    def test_prototypes_left_out(self, pair):
        active = torch.tensor([True, False, True, True, False])
        loss = swav_loss(*(torch.where(active, scores, -torch.inf) for scores in pair))
        loss.backward()
        assert torch.allclose(loss, swav_loss(*(scores[:, active] for scores in pair)), rtol=1e-5)
        for scores in pair:
            assert torch.isfinite(scores.grad).all()
            assert (scores.grad[:, ~active] == 0).all()
            assert (scores.grad[:, active] != 0).any()


class TestPath:
    @pytest.fixture
    def case(self):
        scores = [cosines(8, 2, 0), cosines(8, 5, 1), cosines(8, 10, 2)]
        parents = [None, PARENT_OF, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])]
        leaf = torch.tensor([0, 1, 4, 9, 6, 7, 3, 2])
        middle = parents[2][leaf]
        paths = torch.stack([PARENT_OF[middle], middle, leaf], dim=1)
        siblings = [torch.ones(8, 2, dtype=torch.bool)]
        siblings += [parents[level][None] == paths[:, level - 1, None] for level in (1, 2)]
        return scores, paths, siblings, parents

    def test_equation_10_by_loops(self, case):
        scores, paths, siblings, parents = case
        total = 0.0
        for cell, path in enumerate(paths.tolist()):
            for level in (1, 2):
                children = [node for node, parent in enumerate(parents[level].tolist()) if parent == path[level - 1]]
                row = [float(scores[level][cell, child]) for child in children]
                total -= log_softmax(row, 0.1)[children.index(path[level])]
        assert float(path_loss(scores, paths, siblings)) == pytest.approx(total / 8, rel=1e-4)
        assert float(path_loss(scores[:1], paths[:, :1], siblings[:1])) == 0

    def test_prototypes_left_out(self, case):
        scores, paths, siblings, _ = case
        unused = torch.ones(10, dtype=torch.bool)
        unused[paths[:, 2]] = False
        assert unused.any()
        leaves = scores[2].clone().requires_grad_()
        loss = path_loss([*scores[:2], torch.where(unused, -torch.inf, leaves)], paths, siblings)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(leaves.grad).all()
        assert (leaves.grad[:, unused] == 0).all() and (leaves.grad[~siblings[2]] == 0).all()
        assert (leaves.grad != 0).any()

    def test_gradient_is_that_of_a_softmax_among_siblings(self, case):
        scores, paths, siblings, _ = case
        middle = scores[1].clone().requires_grad_()
        path_loss([scores[0], middle, scores[2]], paths, siblings).backward()
        chance = torch.softmax(torch.where(siblings[1], scores[1] / 0.1, -torch.inf), dim=1)
        chosen = torch.zeros_like(chance).scatter(1, paths[:, 1:2], 1.0)
        np.testing.assert_allclose(middle.grad.numpy(), ((chance - chosen) / 0.1 / 8).numpy(), rtol=1e-4, atol=1e-6)


class TestReconstruction:
    def test_by_loops(self):
        predicted, context = cosines(8, 5, 0), cosines(8, 5, 1)
        expected = ((predicted.numpy() - context.numpy()) ** 2).sum() / (context.numpy() ** 2).sum()
        assert float(reconstruction_loss(predicted, context)) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("noise", [0.0, 1e-7])
    def test_contexts_that_do_not_vary(self, noise):
        predicted = cosines(8, 5, 0).requires_grad_()
        loss = reconstruction_loss(predicted, noise * cosines(8, 5, 1))
        loss.backward()
        assert float(loss.detach()) == 0
        assert predicted.grad is not None and (predicted.grad == 0).all()
