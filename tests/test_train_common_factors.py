"""One space for the genes of all panels."""

from __future__ import annotations

import numpy as np
import pytest

from stage_sc.train import _common_factors
from stage_sc.embed._common_factors import PanelCovariance, common_factors

NOISE = 5.0


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Forty genes on three factors, the first the strongest."""
    return np.random.default_rng(7).normal(size=(40, 3)) * [1.2, 0.8, 0.6]


def panel(truth: np.ndarray, genes: np.ndarray, n_slides: int = 1) -> PanelCovariance:
    part = truth[genes]
    return PanelCovariance(genes, (part @ part.T + NOISE * np.eye(len(genes))).astype(np.float32), n_slides)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_genes_that_were_never_measured_together(truth, seed, monkeypatch):
    monkeypatch.setattr(_common_factors, "N_ROUNDS", 1000)
    first, second = np.arange(25), np.arange(15, 40)  # ten genes in common
    vectors = common_factors([panel(truth, first), panel(truth, second)], 40, 3, seed)
    product, expected = vectors @ vectors.T, truth @ truth.T
    apart = np.ix_(np.arange(15), np.arange(25, 40))
    assert np.corrcoef(product[apart].ravel(), expected[apart].ravel())[0, 1] > 0.999
    np.testing.assert_allclose(product, expected, atol=0.1)


def test_one_panel_gives_principal_axes(truth, monkeypatch):
    monkeypatch.setattr(_common_factors, "N_ROUNDS", 1000)
    here = panel(truth, np.arange(40))
    vectors = common_factors([here], 40, 3)
    values, axes = np.linalg.eigh(here.values.astype(float))
    values, axes = values[::-1][:3], axes[:, ::-1][:, :3]
    for column in range(3):
        expected = axes[:, column] * np.sqrt(values[column] - NOISE)
        assert abs(vectors[:, column] @ expected) / (expected @ expected) == pytest.approx(1, abs=0.01)
        assert vectors[:, column].sum() > 0


def by_hand(panels: list[PanelCovariance], start: np.ndarray, n_rounds: int, floor: float) -> np.ndarray:
    """The printed equations, gene by gene."""
    vectors, sigmas = start, [0.5] * len(panels)
    identity = np.eye(start.shape[1])
    for _ in range(n_rounds):
        left, right, following = {}, {}, []
        for (genes, covariance, n_slides), sigma in zip(panels, sigmas, strict=True):
            v = vectors[genes]
            inverse = np.linalg.inv(v.T @ v + sigma * identity)
            b = inverse @ v.T
            s = sigma * inverse + b @ covariance @ b.T
            for place, gene in enumerate(genes.tolist()):
                left[gene] = left.get(gene, 0) + n_slides * s / sigma
                right[gene] = right.get(gene, 0) + n_slides * b @ covariance[:, place] / sigma
            following.append(max(np.trace(covariance - 2 * v @ b @ covariance + v @ s @ v.T) / len(genes), floor))
        vectors, sigmas = np.stack([np.linalg.solve(left[gene], right[gene]) for gene in sorted(left)]), following
    return vectors


@pytest.mark.parametrize("floor", [0.01, 10.0])
@pytest.mark.parametrize("n_rounds", [1, 2, 4])
def test_rounds_are_the_printed_equations(truth, n_rounds, floor, monkeypatch):
    """Of two panels with a noise of their own each; a second round is the first that depends on it."""
    first, second = panel(truth, np.arange(25)), panel(truth, np.arange(15, 40), 3)
    panels = [first, second._replace(values=second.values + 2 * np.eye(25, dtype=np.float32))]
    start = np.random.default_rng(1).normal(scale=0.1, size=(40, 3))
    monkeypatch.setattr(_common_factors, "N_ROUNDS", n_rounds)
    monkeypatch.setattr(_common_factors, "MIN_NOISE", floor)
    found = common_factors(panels, 40, 3, 1)
    reference = by_hand(panels, start, n_rounds, floor)
    np.testing.assert_allclose(found @ found.T, reference @ reference.T, rtol=1e-3, atol=1e-5)  # up to a turn


def test_slides_of_a_panel_count_one_by_one(truth):
    genes, others = np.arange(25), panel(truth, np.arange(15, 40))
    twice = common_factors([panel(truth, genes), panel(truth, genes), others], 40, 3)
    np.testing.assert_allclose(common_factors([panel(truth, genes, 2), others], 40, 3), twice, atol=1e-6)


def test_genes_of_no_panel(truth):
    panels = [panel(truth, np.arange(20)), panel(truth, np.arange(10, 30))]
    vectors = common_factors(panels, 40, 3)
    assert (vectors[30:] == 0).all()
    assert (np.abs(vectors[:30]).max(axis=1) > 0).all()
    assert (vectors == common_factors(panels, 40, 3)).all()


def test_columns_are_in_order_and_upright(truth):
    panels = [panel(truth, np.arange(25)), panel(truth, np.arange(15, 40))]
    vectors = common_factors(panels, 40, 3)
    total = sum(vectors[genes].T @ vectors[genes] / len(genes) for genes, _, _ in panels)
    np.testing.assert_allclose(total, np.diag(total.diagonal()), atol=1e-8)
    assert (np.diff(total.diagonal()) < 0).all()
    assert (vectors.sum(axis=0) > 0).all()
