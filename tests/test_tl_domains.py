"""Domains from leaves: by definition, exact in number, named along the hierarchy, the same for any order of cells."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.tl import _domains
from stage_sc.tl._domains import _join, cut_domains


def tissue(centres: list[float], leaves_each: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Embeddings, leaves, contents and true groups: contents lie around `centres` on a line; each group has several
    leaves, each leaf 5 to 40 cells that are near it alone."""
    rng = np.random.default_rng(seed)
    n_leaves = leaves_each * len(centres)
    group = rng.permutation(np.repeat(np.arange(len(centres)), leaves_each))
    middle = np.stack([np.array(centres)[group], 0 * group, 0 * group], axis=1) + rng.normal(0, 0.1, (n_leaves, 3))
    leaf = rng.permutation(np.repeat(np.arange(n_leaves), rng.integers(5, 40, n_leaves)))
    content = middle[leaf] + rng.normal(0, 0.3, (len(leaf), 3))
    h = np.eye(n_leaves)[leaf] + rng.normal(0, 0.05, (len(leaf), n_leaves))
    return normalize(floats(h), dim=1), torch.eye(n_leaves), floats(content), group[leaf]


def blurred(n: int = 200, n_leaves: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Cells that are between leaves, with contents that follow the embedding."""
    rng = np.random.default_rng(seed)
    h, leaves = (normalize(floats(rng.normal(size=(size, 3))), dim=1) for size in (n, n_leaves))
    return h, leaves, floats(h.numpy() @ rng.normal(size=(3, 4)) + 0.1 * rng.normal(size=(n, 4)))


def floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


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


class TestCutDomains:
    @pytest.mark.parametrize("centres", [[0, 5], [0, 4, 9], [0, 3, 20, 24, 40]], ids=len)
    def test_separate_groups_are_found(self, centres):
        h, leaves, content, group = tissue(centres)
        domain = cut_domains(h, leaves, content, len(centres))
        assert domain.dtype == np.int64
        assert pairs(domain) == pairs(group)

    @pytest.mark.parametrize("n", [2, 3, 5])
    @pytest.mark.parametrize("temperature", [0.1, 0.5])
    def test_by_loops(self, n, temperature):
        """Probabilities, contents of leaves and votes, cell by cell; joining is tested below."""
        h, leaves, content = blurred()
        used = sorted({int(np.argmax(leaves.numpy() @ cell)) for cell in h.numpy()})
        p = np.array([[np.exp(cell @ leaves[leaf].numpy() / temperature) for leaf in used] for cell in h.numpy()])
        p /= p.sum(axis=1, keepdims=True)
        mean = np.array([sum(w * x for w, x in zip(column, content.numpy(), strict=True)) for column in p.T])
        group = _join(mean / p.sum(axis=0)[:, None], p.sum(axis=0), n)
        votes = [[row[group == label].sum() for label in range(n)] for row in p]
        domain = cut_domains(h, leaves, content, n, temperature)
        assert domain.tolist() == np.argmax(votes, axis=1).tolist()
        nearest = group[p.argmax(axis=1)]
        assert (domain != nearest).any()  # the cell's own leaf may be outvoted
        assert (domain == nearest).mean() > 0.7

    def test_number_is_exact(self, caplog):
        h, leaves, content, _ = tissue([0, 5, 9])
        for n in range(1, 16):
            assert np.unique(cut_domains(h, leaves, content, n)).tolist() == list(range(n))
        h, leaves, content = blurred()
        for n in range(1, 10):
            assert np.unique(cut_domains(h, leaves, content, n, temperature=0.4)).tolist() == list(range(n))
        assert not caplog.records

    def test_a_domain_that_is_outvoted_everywhere(self):
        """The middle one of three leaves is nearest to half of the cells, but the outer two, which contain the same,
        are more probable together."""
        angle = np.repeat([-0.3, 0.0, 0.3], [10, 20, 10])
        h = floats(np.stack([np.cos(angle), np.sin(angle)], axis=1))
        leaves = floats([[np.cos(a), np.sin(a)] for a in (-0.1, 0.0, 0.1)])
        content = floats((angle == 0)[:, None])
        domain = cut_domains(h, leaves, content, 2)
        assert pairs(domain) == pairs(angle == 0)

    @pytest.mark.parametrize("n", [16, 100])
    def test_more_than_leaves(self, n, caplog):
        h, leaves, content, _ = tissue([0, 5, 9])
        domain = cut_domains(h, leaves, content, n)
        assert np.unique(domain).tolist() == list(range(15))
        assert pairs(domain) == pairs((h @ leaves.T).argmax(dim=1).numpy())
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("stage_sc.tl", logging.WARNING)
        assert f"{n} domains were asked for" in record.getMessage()
        assert "15 leaves" in record.getMessage()

    def test_one_leaf(self, caplog):
        h, leaves, content = torch.eye(3)[:1].repeat(5, 1), torch.eye(3), torch.ones(5, 2)
        assert cut_domains(h, leaves, content, 1).tolist() == [0] * 5
        assert not caplog.records
        assert cut_domains(h, leaves, content, 2).tolist() == [0] * 5
        assert "1 leaves" in caplog.text

    def test_leaves_without_cells_do_not_matter(self):
        h, leaves, content = blurred()
        h[:, 0] = h[:, 0].abs()
        far = normalize(floats([[-1, 0.1, 0], [-1, 0, 0.2], [-1, 0, 0]]), dim=1)
        used = (h @ leaves.T).argmax(dim=1).unique()
        leaves = leaves[used]
        expected = cut_domains(h, leaves, content, 3)
        assert (cut_domains(h, torch.cat([far[:1], leaves, far[1:]]), content, 3) == expected).all()

    @pytest.mark.parametrize("n", [2, 3, 5, 8])
    def test_order_of_cells(self, n):
        for h, leaves, content in (tissue([0, 2, 3, 5], seed=3)[:3], blurred()):
            expected = cut_domains(h, leaves, content, n)
            assert (cut_domains(h, leaves, content, n) == expected).all()
            for seed in range(3):
                order = np.random.default_rng(seed).permutation(len(h))
                assert (cut_domains(h[order], leaves, content[order], n) == expected[order]).all()

    def test_in_blocks(self, monkeypatch):
        h, leaves, content = blurred()
        expected = cut_domains(h, leaves, content, 4)
        monkeypatch.setattr(_domains, "BLOCK", 7)
        assert (cut_domains(h, leaves, content, 4) == expected).all()


class TestJoin:
    def test_names_follow_the_hierarchy(self):
        """0 and 1, 10 and 11, 30 and 31 are joined first: their numbers are neighbours, wherever they stand."""
        values = np.array([10.0, 31, 0, 30, 11, 1])
        number = _join(values[:, None], np.ones(6), 6)
        assert sorted(number) == list(range(6))
        for one, other in ((0, 4), (1, 3), (2, 5)):
            assert abs(number[one] - number[other]) == 1
            assert number[one] // 2 == number[other] // 2
        assert number[1] // 2 != 1  # 30 and 31 do not come between the others, which are nearer to each other

    @pytest.mark.parametrize("seed", range(8))
    def test_no_worse_than_ward_and_no_leaf_better_elsewhere(self, seed):
        values = np.random.default_rng(seed).normal(size=(12, 2))
        weights = np.full(12, 10.0)  # of one size, for which scipy has Ward's linkage
        for n in (2, 3, 4):
            group = _join(values, weights, n)
            assert np.unique(group).tolist() == list(range(n))
            ward = fcluster(linkage(values, "ward"), n, "maxclust")
            assert spread(values, weights, group) <= spread(values, weights, ward) * (1 + 1e-6)
            middle = np.stack([values[group == label].mean(axis=0) for label in range(n)])
            nearest = np.square(values[:, None] - middle).sum(axis=2).argmin(axis=1)
            assert (nearest == group).all()

    @pytest.mark.parametrize(
        ("weights", "expected"), [((100, 100, 1), [0, 1, 1]), ((1, 1, 100), [0, 0, 1]), ((50, 50, 50), [0, 0, 1])]
    )
    def test_leaves_count_by_their_cells(self, weights, expected):
        """Leaves at 0, 2 and 5. As points, 0 and 2 are nearest; but where 5 is a single cell, moving it to 2 costs less
        than joining two leaves of 100 cells."""
        group = _join(np.array([[0.0], [2.0], [5.0]]), np.array(weights, float), 2)
        assert pairs(group) == pairs(np.array(expected))

    @pytest.mark.filterwarnings("ignore:Number of distinct clusters")
    def test_leaves_that_contain_the_same(self):
        assert np.unique(_join(np.ones((6, 3)), np.full(6, 4.0), 3)).tolist() == [0, 1, 2]

    def test_one(self):
        assert _join(np.ones((1, 3)), np.ones(1), 1).tolist() == [0]
        assert _join(np.array([[0.0], [1.0], [5.0]]), np.ones(3), 1).tolist() == [0, 0, 0]
        assert sorted(_join(np.array([[0.0], [1.0], [5.0]]), np.ones(3), 3)) == [0, 1, 2]
