"""One space for the genes of all panels."""

from __future__ import annotations

import numpy as np
import pytest

from stage_sc.train import _common_factors
from stage_sc.train._common_factors import PanelCovariance, common_factors

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


def test_a_round_is_the_printed_equation(truth, monkeypatch):
    panels = [panel(truth, np.arange(25)), panel(truth, np.arange(15, 40), 3)]
    start = np.random.default_rng(1).normal(scale=0.1, size=(40, 3))
    monkeypatch.setattr(_common_factors, "N_ROUNDS", 1)
    found = common_factors(panels, 40, 3, 1)
    reference = np.zeros((40, 3))
    sigma = 0.5  # where the noise starts
    for gene in range(40):
        left, right = np.zeros((3, 3)), np.zeros(3)
        for genes, covariance, n_slides in panels:
            if gene in genes:
                v = start[genes]
                inverse = np.linalg.inv(v.T @ v + sigma * np.eye(3))
                b = inverse @ v.T
                left += n_slides * (sigma * inverse + b @ covariance @ b.T) / sigma
                right += n_slides * b @ covariance[:, genes == gene][:, 0] / sigma
        reference[gene] = np.linalg.solve(left, right)
    np.testing.assert_allclose(found @ found.T, reference @ reference.T, rtol=1e-3, atol=1e-6)  # up to a turn


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
