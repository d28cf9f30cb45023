"""Domains from leaves: groups that are there are found, numbers are exact, names follow the hierarchy."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage

from stage_sc.tl import _domains
from stage_sc.tl._domains import cut_domains


def cells(centres: list[float], leaves_each: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leaf, content and true group of cells: groups around `centres` on a line, of several leaves with gaps in their
    numbers, each of 5 to 40 cells."""
    rng = np.random.default_rng(seed)
    n_leaves = leaves_each * len(centres)
    numbers = rng.permutation(3 * n_leaves)[:n_leaves]
    group = np.repeat(np.arange(len(centres)), leaves_each)
    middle = np.stack([np.array(centres)[group], 0 * group, 0 * group], axis=1) + rng.normal(0, 0.1, (n_leaves, 3))
    which = np.repeat(np.arange(n_leaves), rng.integers(5, 40, n_leaves))
    rng.shuffle(which)
    content = middle[which] + rng.normal(0, 0.3, (len(which), 3))
    return numbers[which], content.astype(np.float32), group[which]


def pairs(labels: np.ndarray) -> set[tuple[int, int]]:
    """A grouping whatever the names: cells by the first of their group."""
    first = {label: np.flatnonzero(labels == label)[0] for label in np.unique(labels)}
    return {(cell, first[label]) for cell, label in enumerate(labels.tolist())}


def spread(values: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> float:
    """Weighted sum of squares within groups, by loops."""
    total = 0.0
    for label in np.unique(labels):
        here = labels == label
        middle = np.average(values[here], axis=0, weights=weights[here])
        total += float((weights[here, None] * (values[here] - middle) ** 2).sum())
    return total


def cut_leaves(leaf: np.ndarray, content: np.ndarray, n: int) -> np.ndarray:
    """Domains of cells that stand on their leaf, with all others at a right angle: who is where is beyond doubt."""
    leaves = torch.eye(int(leaf.max()) + 1)
    h = leaves[torch.from_numpy(leaf)]
    return cut_domains(h, leaves, torch.from_numpy(np.asarray(content, np.float32)), n, temperature=0.01)


@pytest.mark.parametrize("centres", [[0, 5], [0, 4, 9], [0, 3, 20, 24, 40]], ids=len)
def test_separate_groups_are_found(centres):
    leaf, content, group = cells(centres)
    domain = cut_leaves(leaf, content, len(centres))
    assert domain.dtype == np.int64
    assert pairs(domain) == pairs(group)


def test_cells_of_a_leaf_stay_together_and_numbers_are_exact(caplog):
    leaf, content, _ = cells([0, 5, 9])
    for n in range(1, len(np.unique(leaf)) + 1):
        domain = cut_leaves(leaf, content, n)
        assert np.unique(domain).tolist() == list(range(n))
        for number in np.unique(leaf):
            assert len(np.unique(domain[leaf == number])) == 1
    assert not caplog.records


@pytest.mark.parametrize("n", [16, 100])
def test_more_than_leaves(n, caplog):
    leaf, content, _ = cells([0, 5, 9])
    domain = cut_leaves(leaf, content, n)
    assert np.unique(domain).tolist() == list(range(15))
    assert pairs(domain) == pairs(leaf)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("stage_sc.tl", logging.WARNING)
    assert f"{n} domains were asked for" in record.getMessage()
    assert "15 leaves" in record.getMessage()


def test_one_leaf(caplog):
    assert cut_leaves(np.full(5, 3), np.ones((5, 2)), 1).tolist() == [0] * 5
    assert not caplog.records
    assert cut_leaves(np.full(5, 3), np.ones((5, 2)), 2).tolist() == [0] * 5
    assert "1 leaves" in caplog.text


def test_names_follow_the_hierarchy():
    """0 and 1, 10 and 11, 30 and 31 are joined first: their numbers are neighbours, wherever they stand."""
    leaf, content, group = cells([10, 31, 0, 30, 11, 1])
    domain = cut_leaves(leaf, content, 6)
    number = [int(domain[group == name][0]) for name in range(6)]
    for one, other in ((0, 4), (1, 3), (2, 5)):
        assert abs(number[one] - number[other]) == 1
        assert number[one] // 2 == number[other] // 2
    assert number[1] // 2 != 1  # 30 and 31 do not come between the others, which are nearer to each other


@pytest.mark.parametrize("n", [2, 3, 5, 11])
def test_independent_of_the_order_of_cells(n):
    leaf, content, _ = cells([0, 2, 3, 5], seed=3)
    expected = cut_leaves(leaf, content, n)
    assert (cut_leaves(leaf, content, n) == expected).all()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(leaf))
        assert (cut_leaves(leaf[order], content[order], n) == expected[order]).all()


@pytest.mark.parametrize("seed", range(8))
def test_no_worse_than_ward_and_no_leaf_better_elsewhere(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(12, 2))
    leaf = np.repeat(np.arange(12), 10)  # leaves of one size, for which scipy has Ward's linkage
    weights = np.full(12, 10.0)
    for n in (2, 3, 4):
        domain = cut_leaves(leaf, values[leaf], n)[::10]
        ward = fcluster(linkage(values, "ward"), n, "maxclust")
        found = spread(values, weights, domain)
        assert found <= spread(values, weights, ward) * (1 + 1e-6)
        middle = np.stack([values[domain == label].mean(axis=0) for label in range(n)])
        nearest = np.square(values[:, None] - middle).sum(axis=2).argmin(axis=1)
        assert (nearest == domain).all()


def test_leaves_count_by_their_cells():
    """Leaves at 0, 2 and 5. As points, 0 and 2 are nearest; but where 5 is a single cell, moving it to 2 costs less
    than joining two leaves of 100 cells."""
    values = np.array([[0.0], [2.0], [5.0]])
    for sizes, expected in (((100, 100, 1), [0, 1, 1]), ((1, 1, 100), [0, 0, 1]), ((50, 50, 50), [0, 0, 1])):
        leaf = np.repeat([0, 1, 2], sizes)
        domain = cut_leaves(leaf, values[leaf], 2)[np.unique(leaf, return_index=True)[1]]
        assert pairs(domain) == pairs(np.array(expected))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_leaves_that_contain_the_same():
    leaf = np.repeat(np.arange(6), 4)
    domain = cut_leaves(leaf, np.ones((24, 3), np.float32), 3)
    assert np.unique(domain).tolist() == [0, 1, 2]
    assert len(pairs(domain)) == 24


class TestDoubt:
    """Cells between leaves."""

    @pytest.fixture
    def case(self):
        rng = np.random.default_rng(0)
        leaves = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(9, 4))).float(), dim=1)
        h = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(200, 4))).float(), dim=1)
        return h, leaves, torch.from_numpy(rng.normal(size=(200, 3))).float()

    def test_by_loops(self, case):
        h, leaves, content = (tensor.double().numpy() for tensor in case)
        for n in (2, 4):
            p = np.exp(h @ leaves.T / 0.1)
            p /= p.sum(axis=1, keepdims=True)
            mean = np.stack([(p[:, [k]] * content).sum(axis=0) / p[:, k].sum() for k in range(9)])
            group = _domains._join(mean, p.sum(axis=0), n)
            votes = np.stack([p[:, group == domain].sum(axis=1) for domain in range(n)], axis=1)
            assert (cut_domains(*case, n) == votes.argmax(axis=1)).all()

    def test_blocks_make_no_difference(self, case, monkeypatch):
        expected = cut_domains(*case, 3)
        monkeypatch.setattr(_domains, "BLOCK", 7)
        assert (cut_domains(*case, 3) == expected).all()

    def test_two_leaves_outvote_the_nearest(self):
        """Leaves a and b contain the same, c something else. A cell a little nearer to c than to a and b is with them."""
        angle = torch.tensor([0.0, 0.1, 1.0])  # a, b, c
        leaves = torch.stack([angle.cos(), angle.sin()], dim=1)
        between = torch.tensor([0.56])
        h = torch.cat([leaves.repeat(20, 1), torch.stack([between.cos(), between.sin()], dim=1)])
        content = torch.tensor([[0.0], [0.0], [9.0]]).repeat(20, 1)
        content = torch.cat([content, torch.tensor([[4.0]])])
        assert int((h[-1] @ leaves.T).argmax()) == 2
        domain = cut_domains(h, leaves, content, 2, temperature=0.5)
        assert domain[-1] == domain[0] == domain[1] != domain[2]
