"""Domains from content and leaves: by definition, exact in number, named along a hierarchy, for any order of cells."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.tl import _domains
from stage_sc.tl._domains import Sums, cut_domains, draw, find_centres, leaf_sums, nearest


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
    """Cells that are between leaves, with contents that follow the embedding, far from the origin."""
    rng = np.random.default_rng(seed)
    h, leaves = (normalize(floats(rng.normal(size=(size, 3))), dim=1) for size in (n, n_leaves))
    return h, leaves, floats(h.numpy() @ rng.normal(size=(3, 4)) + 0.1 * rng.normal(size=(n, 4)) + [5, 0, 0, -2])


def by_hand(h: Tensor, leaves: Tensor, content: Tensor, centres: Tensor, temperature: float) -> list[int]:
    """Domain of every cell, cell by cell, with given centres."""
    x, middle = content.double().numpy(), centres.double().numpy()
    cosine = h.double().numpy() @ leaves.double().numpy().T
    domain = [int(np.argmin([np.linalg.norm(cell - one) for one in middle])) for cell in x]
    leaf, m = cosine.argmax(axis=1), len(middle)
    used = sorted(set(leaf.tolist()))
    share = {one: [np.mean([domain[i] == k for i in np.flatnonzero(leaf == one)]) for k in range(m)] for one in used}
    values = np.linalg.eigvalsh(
        sum(np.outer(x[i] - middle[domain[i]], x[i] - middle[domain[i]]) for i in range(len(x)))
    )
    variance = values.sum() / len(x) / (values.sum() ** 2 / (values**2).sum())
    result = []
    for i in range(len(x)):
        weight = {one: np.exp(cosine[i, one] / temperature) for one in used}
        total = sum(weight.values())
        score = [
            np.log(max(sum(weight[one] / total * share[one][k] for one in used), 1e-12))
            - ((x[i] - middle[k]) ** 2).sum() / (2 * variance)
            for k in range(m)
        ]
        result.append(int(np.argmax(score)))
    return result


def floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def pairs(labels: np.ndarray) -> set[tuple[int, int]]:
    """A grouping whatever the names: cells by the first of their group."""
    first = {label: np.flatnonzero(labels == label)[0] for label in np.unique(labels)}
    return {(cell, first[label]) for cell, label in enumerate(labels.tolist())}


def centres_of(h: Tensor, leaves: Tensor, content: Tensor, n: int) -> Tensor:
    used, leaf = (h @ leaves.T).argmax(dim=1).unique(return_inverse=True)
    return find_centres(draw(content, len(content)), leaf_sums(leaf, content, len(used)), n)


class TestCutDomains:
    @pytest.mark.parametrize("centres", [[0, 5], [0, 4, 9], [0, 3, 20, 24, 40]], ids=len)
    def test_separate_groups_are_found(self, centres):
        h, leaves, content, group = tissue(centres)
        domain = cut_domains(h, leaves, content, len(centres))
        assert domain.dtype == np.int64
        assert pairs(domain) == pairs(group)

    @pytest.mark.parametrize("n", [1, 2, 3, 5])
    @pytest.mark.parametrize("temperature", [0.1, 0.5])
    def test_cell_by_cell(self, n, temperature):
        changed = 0
        for seed in range(3):
            h, leaves, content = blurred(seed=seed)
            centres = centres_of(h, leaves, content, n)
            expected = by_hand(h, leaves, content, centres, temperature)
            assert set(expected) == set(range(n))
            assert cut_domains(h, leaves, content, n, temperature).tolist() == expected
            changed += int((nearest(content, centres).numpy() != expected).sum())
        assert changed > 0 or n == 1  # leaves have a say

    def test_leaves_decide_where_content_does_not(self):
        """The last cell lies between both domains, a little nearer to the first: the leaf of the second has it."""
        content = floats(np.concatenate([np.linspace(-1, 1, 10), np.linspace(9, 11, 10), [4.9]])[:, None])
        for leaf, domain in ((0, 0), (1, 1)):
            h = torch.eye(2)[[0] * 10 + [1] * 10 + [leaf]]
            found = cut_domains(h, torch.eye(2), content, 2)
            assert pairs(found) == pairs(np.array([0] * 10 + [1] * 10 + [domain]))

    def test_content_decides_where_leaves_do_not(self):
        content = floats(np.repeat([0.0, 5.0], 10)[:, None] + np.tile(np.linspace(-0.1, 0.1, 10), 2)[:, None])
        h = torch.eye(2)[[0] * 20]
        assert pairs(cut_domains(h, torch.eye(2), content, 2)) == pairs(np.repeat([0, 1], 10))

    @pytest.mark.parametrize("n", [1, 2, 7, 15, 40])
    def test_number_is_exact(self, n, caplog):
        h, leaves, content, _ = tissue([0, 5, 9])  # 15 leaves
        assert np.unique(cut_domains(h, leaves, content, n)).tolist() == list(range(n))
        for seed in range(3):
            h, leaves, content = blurred(seed=seed)
            assert np.unique(cut_domains(h, leaves, content, n)).tolist() == list(range(n))
        assert not caplog.records

    def test_a_domain_without_a_leaf_of_its_own(self):
        """One leaf, whose cells are a few of one kind among many of another: content keeps the few apart."""
        content = floats(np.concatenate([np.linspace(0, 4, 97), [7, 7.1, 7.2]])[:, None])
        domain = cut_domains(torch.eye(2)[[0] * 100], torch.eye(2), content, 2)
        assert set(domain.tolist()) == {0, 1}

    def test_more_than_cells_that_differ(self, caplog):
        h, content = torch.eye(3)[[0] * 5 + [1] * 5], torch.ones(10, 2)
        content[5:] = 2
        assert pairs(cut_domains(h, torch.eye(3), content, 4)) == pairs(np.repeat([0, 1], 5))
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("stage_sc.tl", logging.WARNING)
        assert record.getMessage() == "4 domains were asked for, but only 2 cells differ."
        assert cut_domains(h, torch.eye(3), torch.ones(10, 2), 1).tolist() == [0] * 10

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


class TestCentres:
    def test_names_follow_the_hierarchy(self):
        """0 and 1, 10 and 11, 30 and 31 are joined first: they are neighbours, wherever the cells stand."""
        values = np.array([10.0, 31, 0, 30, 11, 1])
        centres = find_centres(floats(values[:, None]), Sums(torch.ones(1), torch.ones(1, 1)), 6)[:, 0].tolist()
        assert sorted(centres) == sorted(values)
        found = [set(centres[k : k + 2]) for k in (0, 2, 4)]
        assert sorted(found, key=min) == [{0, 1}, {10, 11}, {30, 31}]
        assert found[1] != {30, 31}  # these are far from the others, which are nearer to each other

    @pytest.mark.parametrize("seed", range(4))
    def test_the_least_determinant_of_those_that_fit_best(self, seed, monkeypatch):
        monkeypatch.setattr(_domains, "STARTS", 12)
        monkeypatch.setattr(_domains, "TIED", 0.05)
        h, leaves, content = blurred(seed=seed)
        leaf = (h @ leaves.T).argmax(dim=1).unique(return_inverse=True)[1]
        n_tied = []
        for n in (2, 3, 5):
            sums = leaf_sums(leaf, content, int(leaf.max()) + 1)
            centres = find_centres(content, sums, n)
            starts = [{"n_init": 1, "random_state": number} for number in range(12)]
            starts.append({"init": _domains._start(sums, n).astype("f4"), "n_init": 1})
            fits = [KMeans(n, **start).fit(content.numpy()) for start in starts]
            tied = [fit for fit in fits if fit.inertia_ <= 1.05 * min(one.inertia_ for one in fits)]
            within = [content.double().numpy() - fit.cluster_centers_[fit.labels_] for fit in tied]
            best = tied[int(np.argmin([np.linalg.det(apart.T @ apart) for apart in within]))]
            assert sorted(centres[:, 0].tolist()) == pytest.approx(sorted(best.cluster_centers_[:, 0]), abs=1e-4)
            n_tied.append(len(tied))
        assert max(n_tied) > 1

    def test_a_worse_fit_is_not_taken(self, monkeypatch):
        h, leaves, content = blurred()
        used, leaf = (h @ leaves.T).argmax(dim=1).unique(return_inverse=True)
        sums, plain = leaf_sums(leaf, content, len(used)), _domains._kmeans
        found = []
        for worse in (True, False):

            def fit(cells, n, start, worse=worse):
                fits = plain(cells, n, start)
                for one in fits:
                    one.inertia_ += 1e6 * ((start is None) == worse)
                    one.cluster_centers_ += 0 if start is None else 100
                return fits

            monkeypatch.setattr(_domains, "_kmeans", fit)
            found.append(float(find_centres(content, sums, 3).mean()))
        assert found[0] > 90 > found[1]

    @pytest.mark.parametrize(
        ("n_cells", "expected"),
        [((100, 100, 1), [0, (100 * 2 + 5) / 101]), ((1, 1, 100), [1, 5]), ((90, 10, 50), [0.2, 5])],
    )
    def test_start_from_the_leaves(self, n_cells, expected):
        """Leaves at 0, 2 and 5 count by their cells: as points, 0 and 2 are nearest; but where 5 is a single cell,
        moving it to 2 costs less than joining two leaves of 100 cells."""
        n_cells = torch.tensor(n_cells).double()
        start = _domains._start(Sums(n_cells, n_cells[:, None] * torch.tensor([[0.0], [2], [5]])), 2)
        np.testing.assert_allclose(sorted(start[:, 0]), expected)

    @pytest.mark.parametrize("seed", range(4))
    def test_start_is_that_of_ward(self, seed):
        """Of leaves of one size, for which scipy has the linkage."""
        values = np.random.default_rng(seed).normal(size=(12, 2))
        n_cells = torch.full((12,), 7.0).double()
        for n in (2, 3, 5):
            ward = fcluster(linkage(values, "ward"), n, "maxclust")
            expected = np.stack([values[ward == label].mean(axis=0) for label in np.unique(ward)])
            start = _domains._start(Sums(n_cells, 7 * torch.from_numpy(values)), n)
            np.testing.assert_allclose(start[np.lexsort(start.T)], expected[np.lexsort(expected.T)], rtol=1e-6)

    def test_sample_stands_for_all(self):
        content = floats(np.random.default_rng(0).normal(size=(20_000, 3)))
        sample = draw(content, 20_000, 2000)
        assert len(sample) == pytest.approx(2000, abs=150)
        assert sample.mean(dim=0).abs().max() < 0.1
        assert (sample.std(dim=0) - 1).abs().max() < 0.1
        order = torch.from_numpy(np.random.default_rng(1).permutation(20_000))
        assert draw(content[order], 20_000, 2000).equal(sample)
        parts = [draw(part, 20_000, 2000) for part in content.split([5000, 3, 14_997])]
        assert len(torch.cat(parts)) <= len(sample) + 1  # of the three cells one is drawn in any case
        assert set(sample[:, 0].tolist()) <= set(torch.cat(parts)[:, 0].tolist())
        assert len(draw(content, 20_000, 30_000)) == 20_000

    def test_cells_that_are_all_the_same_are_drawn(self):
        assert len(draw(torch.ones(50, 1), 50, 10)) == 50
