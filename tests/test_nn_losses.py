"""The losses by loops (equations 4 and 10), and what must not get a gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stage_sc.nn import path_loss, reconstruction_loss, sinkhorn, swav_loss

LEVELS = (2, 5)
PARENT_OF = torch.tensor([0, 0, 1, 1, 1])
ORDER = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])


def cosines(seed: int, n_cells: int = 8, n_prototypes: int = 5) -> Tensor:
    values = np.random.default_rng(seed).uniform(-1, 1, (n_cells, n_prototypes))
    return torch.from_numpy(values.astype(np.float32))


def log_softmax(row: list[float], temperature: float) -> list[float]:
    total = math.log(sum(math.exp(value / temperature) for value in row))
    return [value / temperature - total for value in row]


class TestSwapped:
    @pytest.mark.parametrize("temperature", [0.1, 0.5])
    def test_equation_4_by_loops(self, temperature):
        one, other = cosines(0), cosines(1)
        q_i, q_j = sinkhorn(one).tolist(), sinkhorn(other).tolist()
        total = 0.0
        for cell in range(8):
            p_i, p_j = (log_softmax(scores[cell].tolist(), temperature) for scores in (one, other))
            for k in range(5):
                total += q_i[cell][k] * p_j[k] + q_j[cell][k] * p_i[k]
        assert float(swav_loss(one, other, temperature=temperature)) == pytest.approx(-total / 2 / 8, rel=1e-4)

    def test_order_of_cells(self):
        one, other = cosines(0), cosines(1)
        assert torch.allclose(swav_loss(one[ORDER], other[ORDER]), swav_loss(one, other), rtol=1e-5)
        assert not torch.allclose(swav_loss(one[ORDER], other), swav_loss(one, other), rtol=1e-2)

    def test_no_gradient_through_the_assignment(self):
        one, other = cosines(0).requires_grad_(), cosines(1).requires_grad_()
        swav_loss(one, other).backward()
        # with q held fixed, the gradient of a cross-entropy is (p - q) / temperature
        q_i, q_j = sinkhorn(one.detach()), sinkhorn(other.detach())
        for scores, q in ((one, q_j), (other, q_i)):
            expected = (torch.softmax(scores.detach() / 0.1, dim=1) * q.sum(dim=1, keepdim=True) - q) / 0.1 / 2 / 8
            np.testing.assert_allclose(scores.grad.numpy(), expected.numpy(), rtol=1e-3, atol=1e-5)

    def test_prototypes_left_out(self):
        one, other = cosines(0).requires_grad_(), cosines(1).requires_grad_()
        active = torch.tensor([True, False, True, True, False])
        loss = swav_loss(*(torch.where(active, scores, -torch.inf) for scores in (one, other)))
        loss.backward()
        assert torch.allclose(loss, swav_loss(one[:, active], other[:, active]), rtol=1e-5)
        for scores in (one, other):
            assert torch.isfinite(scores.grad).all()
            assert (scores.grad[:, ~active] == 0).all()
            assert (scores.grad[:, active] != 0).any()


class TestPath:
    @pytest.fixture
    def case(self):
        scores = [cosines(0, 8, 2), cosines(1, 8, 5), cosines(2, 8, 10)]
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
        for cell in range(8):
            for level in range(2):
                here, below = int(paths[cell, level]), int(paths[cell, level + 1])
                children = [node for node, parent in enumerate(parents[level + 1].tolist()) if parent == here]
                row = [float(scores[level + 1][cell, child]) for child in children]
                total -= log_softmax(row, 0.1)[children.index(below)]
        assert float(path_loss(scores, paths, siblings)) == pytest.approx(total / 8, rel=1e-4)

    def test_one_level_has_none(self, case):
        scores, paths, siblings, _ = case
        assert float(path_loss(scores[:1], paths[:, :1], siblings[:1])) == 0

    def test_prototypes_left_out(self, case):
        scores, paths, siblings, _ = case
        unused = torch.ones(10, dtype=torch.bool)
        unused[paths[:, 2]] = False
        assert unused.any()
        leaves = scores[2].clone().requires_grad_()
        loss = path_loss([*scores[:2], torch.where(unused, -torch.inf, leaves)], paths, siblings)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(leaves.grad).all()
        assert (leaves.grad[:, unused] == 0).all()
        assert (leaves.grad[~siblings[2]] == 0).all()
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
        predicted, context = cosines(0), cosines(1)
        error = sum((float(a) - float(b)) ** 2 for a, b in zip(predicted.flatten(), context.flatten(), strict=True))
        total = sum(float(b) ** 2 for b in context.flatten())
        assert float(reconstruction_loss(predicted, context)) == pytest.approx(error / total, rel=1e-5)

    @pytest.mark.parametrize("noise", [0.0, 1e-7])
    def test_contexts_that_do_not_vary(self, noise):
        """There is nothing to predict, and nothing to learn from it."""
        predicted = cosines(0).requires_grad_()
        loss = reconstruction_loss(predicted, noise * cosines(1))
        loss.backward()
        assert float(loss.detach()) == 0
        assert predicted.grad is not None and (predicted.grad == 0).all()
