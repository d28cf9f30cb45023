"""The tree: Ward linkage against scipy, siblings, probabilities, sampled paths and assignment by enumeration."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as hierarchy
from torch import Tensor

from stage_sc.nn import PrototypeTree, leaf_order, sinkhorn, weighted_ward

DIM = 6
SHAPES = [(4,), (1, 4), (2, 5), (3, 7, 16), (2, 4, 9, 20)]


def directions(n: int, seed: int = 0) -> Tensor:
    points = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return F.normalize(torch.from_numpy(points), dim=1)


def grown(levels: tuple[int, ...], seed: int = 0, n_cells: int = 200, linkage: str = "context") -> PrototypeTree:
    tree, rng = PrototypeTree(levels, DIM), np.random.default_rng(seed)
    leaf = torch.from_numpy(rng.integers(0, levels[-1], n_cells))
    context = torch.from_numpy(rng.standard_normal((n_cells, DIM)).astype(np.float32))
    tree.grow(directions(levels[-1], seed), leaf, context, linkage)
    return tree


def draws(n_cells: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((n_cells, 3), dtype=np.float32))


def children(tree: PrototypeTree, node: int) -> list[int]:
    return [child for child, parent in enumerate(tree.parent.tolist()) if parent == node]


def all_paths(tree: PrototypeTree) -> list[list[int]]:
    """Every way from the root level to a leaf, as node numbers."""
    paths = [[leaf] for leaf in range(tree.n_nodes - tree.levels[-1], tree.n_nodes)]
    for _ in tree.levels[1:]:
        paths = [[int(tree.parent[path[0]]), *path] for path in paths]
    return paths


def merged_sets(merges: np.ndarray) -> list[frozenset[int]]:
    members = {point: frozenset([point]) for point in range(len(merges) + 1)}
    for left, right in merges.astype(int).tolist():
        members[len(members)] = members[left] | members[right]
    return [members[len(merges) + 1 + step] for step in range(len(merges))]


class TestWard:
    @pytest.mark.parametrize("seed", range(6))
    def test_equals_scipy_on_replicated_points(self, seed):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(3, 16))
        points, weights = rng.standard_normal((n, 3)) + 5, rng.integers(1, 7, n)
        before = points.copy(), weights.copy()
        merges = weighted_ward(points, weights)
        assert (points == before[0]).all() and (weights == before[1]).all()
        owner = np.repeat(np.arange(n), weights)
        joined = hierarchy(points[owner], "ward")[:, :2]
        theirs = [frozenset(owner[list(members)].tolist()) for members in merged_sets(joined)]
        assert merged_sets(merges) == [members for members in theirs if len(members) > 1][-(n - 1) :]

    def test_leaf_order_keeps_clusters_together(self):
        merges = weighted_ward(np.random.default_rng(1).standard_normal((20, 3)), np.ones(20))
        place = np.argsort(leaf_order(merges))
        assert len(place) == 20
        for members in merged_sets(merges):
            assert np.ptp(place[list(members)]) == len(members) - 1


@some.composite
def grouping(draw: some.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    n = draw(some.integers(2, 20))
    rng = np.random.default_rng(draw(some.integers(0, 10_000)))
    points = rng.standard_normal((n, 3)).astype(np.float32)
    kind = draw(some.sampled_from(["spread", "outliers", "duplicates", "all the same", "on a line"]))
    if kind == "outliers":
        points[: n // 2] *= 100.0 ** np.arange(n // 2)[:, None] % 1e6
    elif kind in ("duplicates", "all the same"):
        points = points[rng.integers(0, max(1, n // 3) if kind == "duplicates" else 1, n)]
    elif kind == "on a line":
        points = np.outer(2.0 ** np.arange(n), [1, 0, 0]).astype(np.float32)
    return points, rng.integers(1, draw(some.sampled_from([2, 5000])), n), draw(some.integers(1, n // 2))


def grouped(points: np.ndarray, weights: np.ndarray, n_groups: int, linkage: str = "context") -> list[int]:
    """Parents of leaves with these numbers of cells, whose contexts or prototypes are these points."""
    n, dim = points.shape
    tree, leaf = PrototypeTree((n_groups, n), dim), torch.from_numpy(np.repeat(np.arange(n), weights))
    points, other = (torch.from_numpy(x.astype(np.float32)) for x in (points, np.ones((n, dim))))
    leaves, context = (points, other) if linkage == "cosine" else (other, points)
    tree.grow(leaves, leaf, context[leaf], linkage)
    return tree.parent[n_groups:].tolist()


class TestSiblings:
    @given(grouping())
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_every_group_has_two(self, case):
        sizes = np.bincount(grouped(*case))
        assert len(sizes) == case[2]
        assert sizes.min() >= 2

    @pytest.mark.parametrize("linkage", ["context", "cosine"])
    def test_is_the_plain_cut_where_no_point_is_alone(self, linkage):
        """Of directions or contexts; numbered by the first point of each group."""
        rng = np.random.default_rng(0)
        points = np.repeat(10 * rng.standard_normal((4, 3)), 5, axis=0) + 0.1 * rng.standard_normal((20, 3))
        points, weights = points[rng.permutation(20)], rng.integers(1, 6, 20)
        if linkage == "cosine":
            points /= np.linalg.norm(points, axis=1, keepdims=True)
        owner = np.repeat(np.arange(20), weights)
        cut = fcluster(hierarchy(points[owner], "ward"), 4, "maxclust")[np.searchsorted(owner, np.arange(20))]
        _, first, codes = np.unique(cut, return_index=True, return_inverse=True)
        assert grouped(points, weights, 4, linkage) == np.argsort(np.argsort(first))[codes].tolist()

    def test_an_outlier_joins_the_group_that_it_costs_least_to_join(self):
        points = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [30.0]])
        assert grouped(points, np.ones(7, int), 2) == [0, 0, 0, 1, 1, 1, 1]
        weights = np.array([1, 1, 1, 1000, 1000, 1000, 50])  # joining a light group is cheap, even from further away
        assert grouped(points, weights, 2) == [0, 0, 0, 1, 1, 1, 0]
        # an even split where no cut will do
        assert np.bincount(grouped(np.zeros((6, 2)), np.ones(6, int), 3)).tolist() == [2, 2, 2]


class TestGrow:
    @given(some.sampled_from(SHAPES), some.integers(0, 500), some.integers(1, 80), some.booleans())
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_shape(self, levels, seed, n_cells, by_context):
        """With few cells most leaves are empty."""
        tree = grown(levels, seed, n_cells, "context" if by_context else "cosine")
        ends = np.cumsum([0, *levels]).tolist()
        assert tree.n_nodes == sum(levels) == len(tree.parent)
        assert [(tree.nodes(level).start, tree.nodes(level).stop) for level in range(len(levels))] == [*pairwise(ends)]
        assert (tree.parent[: levels[0]] == -1).all()
        for level in range(1, len(levels)):
            upper, parents = tree.nodes(level - 1), tree.parent[tree.nodes(level)]
            assert parents.unique().tolist() == list(range(upper.start, upper.stop))
            assert torch.bincount(parents)[upper].min() >= 2
            assert torch.equal(tree.local_parent(level), parents - upper.start)
        assert torch.allclose(tree.prototypes.norm(dim=1), torch.ones(tree.n_nodes), atol=1e-5)
        assert torch.isfinite(tree.prototypes).all()

    def test_parents_are_the_weighted_mean_direction(self):
        tree, leaf = PrototypeTree((2, 4), DIM), torch.tensor([0] * 9 + [1] + [2] * 3 + [3] * 2)
        tree.grow(3 * directions(4), leaf, directions(15, 1), "cosine")
        assert torch.allclose(tree.prototypes[2:], directions(4), atol=1e-6)
        for node in (0, 1):
            mean = sum(int((leaf == child - 2).sum()) * directions(4)[child - 2] for child in children(tree, node))
            assert torch.allclose(tree.prototypes[node], F.normalize(mean, dim=0), atol=1e-5)

    def test_growing_again_in_another_order_of_the_cells(self):
        tree, fresh = grown((3, 7, 16), seed=1), PrototypeTree((3, 7, 16), DIM)
        rng = np.random.default_rng(0)
        leaf, context = torch.from_numpy(rng.integers(0, 16, 300)), directions(300)
        for one, order in ((tree, np.arange(300)), (fresh, rng.permutation(300))):
            one.grow(directions(16, 2), leaf[order], context[order], "context")
        assert torch.equal(tree.parent, fresh.parent)
        assert torch.allclose(tree.prototypes, fresh.prototypes, atol=1e-5)


class TestScores:
    @torch.no_grad()
    def test_cosines_by_level(self):
        tree, h = grown((3, 7, 16)), directions(5, 9)
        tree.prototypes.mul_(torch.linspace(0.5, 1.5, 26)[:, None])  # gradient steps do not keep the length
        scores = tree.scores(h)
        assert [tuple(level.shape) for level in scores] == [(5, 3), (5, 7), (5, 16)]
        expected = h @ (tree.prototypes / tree.prototypes.norm(dim=1)[:, None]).T
        torch.testing.assert_close(torch.cat(scores, dim=1), expected, rtol=0, atol=1e-5)

    def test_prototypes_left_out(self):
        tree, active = grown((2, 5)), torch.tensor([True, False, True, True, False, True, True])
        flat = torch.cat(tree.scores(directions(4, 9), active), dim=1)
        assert torch.isinf(flat[:, ~active]).all()
        assert torch.isfinite(flat[:, active]).all()
        flat[:, active].sum().backward()
        assert torch.isfinite(tree.prototypes.grad).all()


class TestSampling:
    @torch.no_grad()
    def test_plan_below_a_node_is_that_of_its_cells_and_children(self):
        tree, h = grown((2, 5)), directions(12, 9)
        scores, upper = tree.scores(h), torch.tensor([0] * 7 + [1] * 5)
        plan = tree.plans(scores, upper, 1, 0.05, 3)
        for parent in (0, 1):
            among = [child - 2 for child in children(tree, parent)]
            expected = sinkhorn(scores[1][upper == parent][:, among], 0.05, 3)
            assert torch.allclose(plan[upper == parent][:, among], expected, atol=1e-5)

    @pytest.mark.parametrize("epsilon", [0.05, 0.5])
    @torch.no_grad()
    def test_draws_are_looked_up_in_the_sums_of_the_plan(self, epsilon):
        """Level by level, cell by cell: the first child up to which the plan has more than the drawn share."""
        tree, u = grown((2, 5, 11)), draws(64)
        scores = tree.scores(directions(64, 9))
        paths, upper = tree.sample_paths(scores, u, epsilon=epsilon), torch.zeros(64, dtype=torch.int64)
        for level in range(3):
            plan = tree.plans(scores, upper, level, epsilon, 3).double().numpy()
            below = plan.cumsum(axis=1) <= u[:, [level]].double().numpy() * plan.sum(axis=1, keepdims=True)
            assert paths[:, level].tolist() == below.sum(axis=1).tolist()
            upper = paths[:, level]

    @pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-24], ids=["least", "middle", "greatest"])
    def test_extreme_draws_take_no_node_without_mass(self, draw):
        tree, active = grown((2, 5, 11)), torch.ones(18, dtype=torch.bool)
        active[[7, 17]] = False  # the first and the last leaf
        paths = tree.sample_paths(tree.scores(directions(500, 9), active), torch.full((500, 3), draw), epsilon=0.01)
        assert active[paths[:, 2] + 7].all()
        valid = all_paths(tree)
        assert all([a, b + 2, c + 7] in valid for a, b, c in paths.tolist())

    def test_rows_of_several_slides(self):
        """Cells among the prototypes of their own slides, all of them in balance."""
        tree, top = grown((3, 7, 16)), torch.arange(26)
        roots = torch.arange(80) % 2  # of two slides that lack a root each, with all that is below
        for _ in range(2):
            top = torch.where(tree.parent[top] < 0, top, tree.parent[top])
        scores = tree.scores(directions(80, 9), top != roots[:, None])
        paths = tree.sample_paths(scores, draws(80))
        assert (paths[:, 0] != roots).all()
        assert set(paths[:, 0].tolist()) == {0, 1, 2}
        plan = tree.plans([level.detach() for level in scores], roots, 0, 0.05, 500)
        np.testing.assert_allclose(plan.sum(dim=0).numpy(), 80 / 3, rtol=0.02)


class TestAssign:
    @pytest.mark.parametrize("levels", SHAPES)
    @pytest.mark.parametrize("how", ["path", "top-down"])
    @torch.no_grad()
    def test_by_enumeration(self, levels, how):
        tree, h, temperature = grown(levels), directions(40, 9), 0.3
        nodes, confidence = tree.assign(h, how=how, temperature=temperature)
        assert nodes.shape == (40, len(levels))
        cosine = torch.cat(tree.scores(h), dim=1).double().numpy()
        p, paths = np.exp(cosine / temperature), all_paths(tree)
        p /= np.stack([p[:, children(tree, parent)].sum(axis=1) for parent in tree.parent.tolist()], axis=1)
        assert len(paths) == levels[-1]
        for cell in range(40):
            if how == "path":
                best = max(paths, key=lambda path: cosine[cell, path].sum())
            else:  # the greatest cosine at the first level decides, then that at the second …
                best = max(paths, key=lambda path: tuple(cosine[cell, path]))
            assert nodes[cell].tolist() == best
            assert float(confidence[cell]) == pytest.approx(np.exp(np.log(p[cell, best]).mean()), rel=1e-3)
