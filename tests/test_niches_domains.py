"""Domains from contexts: by definition, exact in number, named along a hierarchy, for any order of cells."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, pairwise_distances_argmin
from torch import Tensor
from torch.nn.functional import normalize

import stage_sc as st
from stage_sc.niches import Domains, _domains
from stage_sc.niches import find_domains as find_configured
from stage_sc.slides import sort_cells, subsample

CONFIG = st.model.StageConfig(domain_starts=12, domain_refined=5)
find_domains = partial(find_configured, config=CONFIG)


def cut_domains(context: Tensor, n: int) -> np.ndarray:
    """Domain of every cell of one call."""
    return find_domains(subsample(context, len(context), CONFIG.domain_cells), n).nearest(context).numpy()


def tissue(centres: list[float], seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Contexts that lie around `centres` on a line, 50 to 200 cells each, and true groups."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(centres)), rng.integers(50, 200, len(centres))))
    middle = np.array(centres)[group][:, None] * [1, 0, 0]
    return floats(middle + rng.normal(0, 0.3, (len(group), 3))), group


def blurred(n: int = 200, seed: int = 0) -> Tensor:
    """Contexts without groups, far from the origin, that vary in four directions in another way each."""
    rng = np.random.default_rng(seed)
    h = normalize(floats(rng.normal(size=(n, 3))), dim=1).numpy()
    return floats(h @ rng.normal(size=(3, 4)) + 0.1 * rng.normal(size=(n, 4)) + [5, 0, 0, -2])


def by_hand(context: Tensor, domains: Domains) -> list[int]:
    """Domain of every cell, cell by cell, with given domains."""
    metric = domains.metric.double().numpy()
    inverse, x = metric @ metric.T, context.double().numpy()  # of the covariance
    return [int(np.argmin([(cell - one) @ inverse @ (cell - one) for one in centres_of(domains)])) for cell in x]


def floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def pairs(labels: np.ndarray) -> set[tuple[int, int]]:
    """A grouping whatever the names: cells by the first of their group."""
    first = {label: np.flatnonzero(labels == label)[0] for label in np.unique(labels)}
    return {(cell, first[label]) for cell, label in enumerate(labels.tolist())}


class TestCutDomains:
    @pytest.mark.parametrize("n", [1, 2, 5, 40])
    def test_cell_by_cell(self, n, caplog):
        """The number is exact."""
        for context in (tissue([0, 5, 9])[0], blurred(), blurred(seed=1)):
            expected, found = by_hand(context, find_domains(sort_cells(context), n)), cut_domains(context, n)
            assert set(expected) == set(range(n))
            assert found.tolist() == expected and found.dtype == np.int64
        assert not caplog.records

    def test_more_than_cells_that_differ(self, caplog):
        context = torch.tensor([[1.0, 1.0], [2.0, 2.0]]).repeat_interleave(5, dim=0)
        assert pairs(cut_domains(context, 4)) == pairs(np.repeat([0, 1], 5))
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("stage_sc.tl", logging.WARNING)
        assert "4 domains" in record.getMessage() and "2 cells" in record.getMessage()
        assert cut_domains(context[:5], 1).tolist() == [0] * 5

    @pytest.mark.parametrize("n", [4, 7])
    def test_cells_that_differ_by_rounding(self, n, caplog):
        """Of which K-means makes three groups, whatever number it is asked for."""
        group = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 40))
        context = np.eye(3)[group] + 1e-9 * np.random.default_rng(1).normal(size=(120, 3))
        domain = cut_domains(floats(context), n)
        assert set(domain) == set(range(domain.max() + 1))
        assert all(len(set(group[domain == one])) == 1 for one in set(domain))
        assert f"{n} domains" in caplog.text

    @pytest.mark.parametrize("n", [2, 5])
    def test_order_of_cells_and_blocks(self, n, monkeypatch):
        for context in (tissue([0, 2, 3, 5], seed=3)[0], blurred()):
            expected = cut_domains(context, n)
            for seed in range(2):
                order = np.random.default_rng(seed).permutation(len(context))
                assert (cut_domains(context[order], n) == expected[order]).all()
            with monkeypatch.context() as patch:
                patch.setattr(_domains, "BLOCK", 7)
                assert (cut_domains(context, n) == expected).all()


def centres_of(domains: Domains) -> np.ndarray:
    """Centres as contexts."""
    return domains.centres.double().numpy() @ np.linalg.inv(domains.metric.double().numpy())


def stretched(seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Three groups side by side, of cells that differ more in six other directions."""
    group = np.repeat([0, 1, 2], 150)
    x = np.random.default_rng(seed).normal(size=(450, 7)) * [0.3, *[0.8] * 6]
    x[:, 0] += 1.5 * group
    return floats(x), group


def within(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Covariance around the means of groups."""
    return sum(np.cov(x[labels == label].T, bias=True) * (labels == label).mean() for label in np.unique(labels))


def to_sphere(matrix: np.ndarray) -> np.ndarray:
    """Three parts of a matrix, and one of the sphere of the same trace."""
    return 0.75 * matrix + 0.25 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


def criterion(x: np.ndarray, labels: np.ndarray) -> float:
    return float(np.linalg.det(to_sphere(within(x, labels))))


@pytest.fixture
def one_shrinkage(monkeypatch):
    monkeypatch.setattr(_domains, "SHRINKAGES", (1.0,))


@pytest.mark.usefixtures("one_shrinkage")
class TestFindDomains:
    def test_names_follow_the_hierarchy(self):
        """0 and 1, 10 and 11, 30 and 31 are joined first: they are neighbours, wherever the cells stand."""
        values = np.array([10.0, 31, 0, 30, 11, 1])
        centres = centres_of(find_domains(floats(values[:, None]), 6))[:, 0]
        np.testing.assert_allclose(sorted(centres), sorted(values), atol=1e-3)
        found = [{round(one) for one in centres[k : k + 2]} for k in (0, 2, 4)]
        assert sorted(found, key=min) == [{0, 1}, {10, 11}, {30, 31}]
        assert found[1] != {30, 31}  # these are far from the others, which are nearer to each other

    @pytest.mark.parametrize("seed", range(3))
    def test_the_shape_of_groups_is_found(self, seed):
        x, group = stretched(seed)
        domains = find_domains(x, 3)
        assert adjusted_rand_score(group, domains.nearest(x)) > 0.95
        assert adjusted_rand_score(group, KMeans(3, n_init=10, random_state=0).fit_predict(x)) < 0.94
        metric = domains.metric.double().numpy()
        expected = to_sphere(np.linalg.inv(to_sphere(within(x.double().numpy(), domains.nearest(x).numpy()))))
        np.testing.assert_allclose(metric @ metric.T, expected, atol=1e-3 * expected.max())

    def test_metric_is_that_of_the_gradient(self):
        """The criterion changes with the covariance as the metric says: d log det = tr(A dW)."""
        x, group = stretched()
        solution = _domains.Solution.of(_domains.Moments.of(x.numpy()), group, 0.25)
        step = 1e-6 * np.random.default_rng(0).normal(size=(7, 7))
        step += step.T
        change = solution._replace(within=solution.within + step).criterion() - solution.criterion()
        assert change == pytest.approx(np.trace(solution.metric() @ solution.metric().T @ step), rel=1e-3)

    @pytest.mark.parametrize("noise", [0.0, 1e-5])
    @pytest.mark.parametrize("n", [1, 5])
    def test_components_that_do_not_vary_change_nothing(self, n, noise):
        """Those that genes of several panels leave empty: in front, between and behind the others."""
        for context in (blurred(), stretched()[0]):
            alone = find_domains(context, n)
            used = torch.tensor([1, 2, 3, 5, 6, 9, 10][: context.shape[1]])
            padded = 0.25 + noise * torch.randn(len(context), 12, generator=torch.Generator().manual_seed(0))
            padded[:, used] = context
            domains = find_domains(padded, n)
            assert domains.metric.shape == (12, context.shape[1])
            self.same_partition(domains.nearest(padded), alone.nearest(context))
            metric, expected = (one @ one.T for one in (domains.metric[used].double(), alone.metric.double()))
            assert (metric - expected).abs().max() < (0.1 if noise else 1e-4) * expected.abs().max()

    @pytest.mark.parametrize("seed", range(3))
    def test_directions_are_counted_not_components(self, seed, n=3):
        """Contexts of few directions, turned onto the many components of a model, are the same contexts."""
        context, _ = stretched(seed)
        turn = torch.linalg.qr(torch.randn(24, 7, generator=torch.Generator().manual_seed(seed)))[0]
        domains = find_domains(context @ turn.T, n)
        assert domains.metric.shape == (24, 7)
        self.same_partition(domains.nearest(context @ turn.T), find_domains(context, n).nearest(context))

    def same_partition(self, one: Tensor, other: Tensor) -> None:
        assert adjusted_rand_score(one.numpy(), other.numpy()) > 0.9

    @pytest.mark.parametrize("n", [2, 3, 5])
    def test_a_fixed_point_that_is_better_than_where_it_began(self, n):
        gains, exact = [], CONFIG.replace(domain_starts=60, domain_samples=1)
        for context in (blurred(seed=seed) for seed in range(4)):
            x, domains = context.double().numpy(), find_domains(context, n, config=exact)
            labels = domains.nearest(context).numpy()
            means = np.stack([x[labels == k].mean(axis=0) for k in range(n)])
            np.testing.assert_allclose(centres_of(domains), means, atol=1e-3)
            fits = [KMeans(n, n_init=1, random_state=number).fit(context.numpy()) for number in range(12)]
            gains.append(criterion(x, labels) / min(criterion(x, fit.labels_) for fit in fits))
        assert max(gains) <= 1 + 1e-3 and (min(gains) < 1 or n == 2)

    def test_shrinkage_and_number_of_starts(self):
        """Fully shrunk, it is K-means; more starts are no worse."""
        context = blurred()
        x = context.double().numpy()
        plain = find_domains(context, 4, config=CONFIG.replace(domain_shrinkage=1.0, domain_starts=1))
        labels = plain.nearest(context).numpy()
        means = np.stack([x[labels == k].mean(axis=0) for k in range(4)])
        assert pairs(labels) == pairs(KMeans(4, init=means, n_init=1).fit_predict(x))
        found = [find_domains(context, 5, config=CONFIG.replace(domain_starts=n)).nearest(context) for n in (1, 30)]
        assert criterion(x, found[1].numpy()) <= criterion(x, found[0].numpy())

    @pytest.mark.parametrize("better", [0, 1])
    def test_the_best_start_is_taken(self, better, monkeypatch):
        """Some cut along a direction that tells nothing."""
        x, group = stretched()
        runs = [group, group[x[:, 1].argsort().argsort().numpy()]]
        monkeypatch.setattr(_domains, "MAX_ROUNDS", 0)
        monkeypatch.setattr(_domains, "_kmeans", lambda *_: [runs[better], runs[1 - better]] * 2)
        assert np.ptp(centres_of(find_domains(x, 3, config=CONFIG.replace(domain_samples=1)))[:, 0]) > 2.5

    def test_starts_that_are_the_same_go_on_once(self):
        (x, one), other = stretched(), np.arange(450) % 3
        solutions = [
            _domains.Solution.of(_domains.Moments.of(x.numpy()), labels, 0.25) for labels in (one, 2 - one, one, other)
        ]
        first, second = _domains._different(solutions)
        assert (first.domain == one).all() and (second.domain == other).all()

    def test_no_domain_is_lost_on_the_way(self):
        """From domains by chance, whose centres are all near the middle."""
        lost = 0
        for seed in range(40):
            x, rng = blurred(60, seed=seed).double().numpy(), np.random.default_rng(seed)
            start = _domains.Solution.of(_domains.Moments.of(x), rng.permutation(np.arange(60) % 12), 0.25)
            end = _domains._refine(_domains.Moments.of(x), start)
            near = [pairwise_distances_argmin(x @ one.metric(), one.centres @ one.metric()) for one in (start, end)]
            lost += len(set(near[0])) < 12
            assert (near[1] == end.domain).all() and set(end.domain) == set(range(12))
        assert lost > 0

    def test_the_partition_in_the_middle(self):
        """That which agrees best with the others, the first of equal ones."""
        one, other = np.repeat([0, 1, 2], 20), np.tile([0, 1, 2], 20)
        between = one.copy()
        between[::7] = 2
        assert _domains._medoid([other, between, one, one]) == 2
        assert _domains._medoid([other]) == 0

    def test_sample_stands_for_all(self):
        context = floats(np.random.default_rng(0).normal(size=(20_000, 3)))
        sample = subsample(context, 20_000, 2000)
        assert len(sample) == pytest.approx(2000, abs=150)
        assert sample.mean(dim=0).abs().max() < 0.1 and (sample.std(dim=0) - 1).abs().max() < 0.1
        order = torch.from_numpy(np.random.default_rng(1).permutation(20_000))
        assert subsample(context[order], 20_000, 2000).equal(sample)
        parts = [subsample(part, 20_000, 2000) for part in context.split([5000, 3, 14_997])]
        assert sort_cells(torch.cat(parts)).equal(sample)
        assert len(subsample(context, 20_000, 30_000)) == 20_000
        assert len(subsample(torch.ones(50, 1), 50, 10)) == 50  # cells that are all the same
