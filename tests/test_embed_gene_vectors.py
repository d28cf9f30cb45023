"""Initial gene vectors: principal axes of coexpression around cells, and factors that all panels share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from stage_sc.embed import _common_factors, _gene_vectors, coexpression_vectors
from stage_sc.embed._common_factors import PanelCovariance, common_factors
from stage_sc.nn import StageConfig
from stage_sc.slides import Slide, read_slides

NOISE = 5.0


def with_expression(slide: Slide, x: np.ndarray, genes: list[str], scale: np.ndarray) -> Slide:
    mean = x.mean(axis=0).astype(np.float32)
    return replace(slide, expression=sp.csr_matrix(x, dtype=np.float32), rows=None, genes=genes, mean=mean, scale=scale)


def dense(slide: Slide) -> np.ndarray:
    return slide.take(np.arange(slide.n_cells)).toarray().astype(float)


def means(slide: Slide) -> np.ndarray:
    """Dense operator: the mean over neighbours and the cell itself."""
    near = ((slide.graph.toarray() + np.eye(slide.n_cells)) > 0).astype(float)
    return near / near.sum(axis=1, keepdims=True)


def dense_covariance(slide: Slide, step: int = 1) -> np.ndarray:
    """Of the mean over two hops, after scaling, of every `step`-th cell; traces as large as the number of genes."""
    around = (means(slide) @ means(slide) @ dense(slide))[::step]
    scaled = (around - around.mean(axis=0)) / slide.scale
    covariance = scaled.T @ scaled
    return covariance * len(covariance) / np.trace(covariance)


def assert_vectors(vectors: np.ndarray, covariance: np.ndarray) -> None:
    """Principal axes over the fourth root of their variance, up to sign."""
    dim = vectors.shape[1]
    values, axes = (part[..., ::-1] for part in np.linalg.eigh(covariance))
    gaps, values = np.abs(np.diff(values[: dim + 1])) / values[:dim], values[:dim]
    for column in range(dim):
        if gaps[column] > 1e-3 and (column == 0 or gaps[column - 1] > 1e-3):  # others can be any mixture
            expected = axes[:, column] * values[column] ** -0.25
            assert abs(vectors[:, column] @ expected) == pytest.approx(expected @ expected, rel=2e-3), column
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=0), values**-0.25, rtol=1e-3)


def cut(parts: list[Slide], *columns: np.ndarray) -> list[Slide]:
    """Slides with some of the genes."""
    return [
        with_expression(slide, dense(slide)[:, here], [slide.genes[gene] for gene in here], slide.scale[here])
        for slide, here in zip([*parts, *parts], columns, strict=False)
    ]


@pytest.fixture(scope="module")
def parts(slides) -> list[Slide]:
    """Two slides with the same genes."""
    common = set.intersection(*(set(part.genes) for part in read_slides(slides, StageConfig())))
    return read_slides(slides[:, slides.var_names.str.casefold().isin(common)].copy(), StageConfig())


class TestVectors:
    def test_one_slide(self, parts):
        vectors = coexpression_vectors(parts[:1], parts[0].genes, 12)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(parts[0].genes), 12)
        assert_vectors(vectors, dense_covariance(parts[0]))
        assert (vectors.sum(axis=0) > 0).all()

    def test_slides_have_the_same_weight(self, parts):
        louder = with_expression(parts[1], 7 * dense(parts[1]), parts[1].genes, parts[1].scale)
        mean = (dense_covariance(parts[0]) + dense_covariance(parts[1])) / 2
        assert_vectors(coexpression_vectors([parts[0], louder], parts[0].genes, 8), mean)

    def test_two_panels_are_merged(self, parts, monkeypatch):
        monkeypatch.setattr(_gene_vectors, "N_FACTORS", 6)
        genes = parts[0].genes
        columns = [np.arange(100), np.arange(60, len(genes) - 2)]
        slides, vocabulary = cut(parts, *columns), ["a gene of neither", *genes]
        vectors = coexpression_vectors(slides, vocabulary, 10, 3)
        both = zip(columns, slides, strict=True)
        panels = [PanelCovariance(here + 1, dense_covariance(slide), 1) for here, slide in both]
        expected = common_factors(panels, len(vocabulary), 6, 3)
        np.testing.assert_allclose(vectors[:, :6], expected, rtol=1e-2, atol=1e-3)
        assert (vectors[:, 6:] == 0).all()
        assert (vectors[[0, -2, -1]] == 0).all()
        assert np.abs(vectors[1:-2]).max(axis=1).min() > 1e-4

    def test_panels_that_nearly_agree_are_one(self, parts):
        """A gene without counts on a slide, others that only one of two has: means over the slides that have both."""
        genes = parts[0].genes
        columns = [np.delete(np.arange(len(genes)), 3), np.arange(len(genes) - 4)]
        slides = cut(parts, *columns)
        total, there = np.zeros((2, len(genes), len(genes)))
        for slide, here in zip(slides, columns, strict=True):
            total[np.ix_(here, here)] += dense_covariance(slide)
            there[np.ix_(here, here)] += 1
        assert (there == 0).any() and (there == 1).any()
        vectors = coexpression_vectors(slides, genes, 8)
        assert_vectors(vectors, total / np.maximum(there, 1))
        assert (vectors == coexpression_vectors(slides, genes, 8, 5)).all()  # nothing by chance
        assert (coexpression_vectors(slides[::-1], genes, 8) == vectors).all()

    def test_panels_that_share_few_genes_are_reported(self, parts, caplog):
        genes, n = parts[0].genes, len(parts[0].genes)
        linked = [np.arange(60), np.arange(n - 60, n), np.arange(n)]  # by the third
        coexpression_vectors(cut(parts, *linked), genes, 8)
        coexpression_vectors(cut(parts, np.arange(20), np.arange(10, n)), genes, 8)  # half of a small panel
        assert not caplog.records
        slides = cut(parts, np.arange(90), np.arange(51, n))  # 39 in common
        coexpression_vectors(slides, genes, 8)
        (record,) = caplog.records
        for told in ("2 groups", "39 genes", *(repr(slide.name) for slide in slides)):
            assert told in record.getMessage()

    def test_zero_beyond_the_rank(self, parts):
        (few,) = cut(parts, np.arange(5))
        vectors = coexpression_vectors([few], few.genes, 16)
        assert (vectors[:, 5:] == 0).all()
        assert (np.abs(vectors[:, :5]).max(axis=0) > 0).all()
        genes = [f"{gene}{number}" for number in range(4) for gene in few.genes]
        copies = with_expression(few, np.tile(dense(few), 4), genes, np.tile(few.scale, 4))  # each of five four times
        vectors = coexpression_vectors([copies], copies.genes, 16)
        assert (vectors[:, 5:] == 0).all()
        np.testing.assert_allclose(vectors[:5], vectors[15:], atol=1e-3)

    def test_many_genes(self, parts):
        """More than are decomposed at once: fewer cells than genes, so that the Gram matrix tells the answer."""
        rng, n = np.random.default_rng(0), parts[0].n_cells
        pattern = rng.gamma(2.0, size=(n, 6)) * [9, 7, 5.5, 4, 3, 2]
        x = pattern @ rng.normal(size=(6, 4100))
        slide = with_expression(parts[0], x, [f"g{number:04}" for number in range(4100)], np.ones(4100, np.float32))
        vectors, again = (coexpression_vectors([slide], slide.genes, 8) for _ in range(2))
        assert (vectors == again).all()
        around = means(slide) @ means(slide) @ x
        _, singular, right = np.linalg.svd(around - around.mean(axis=0), full_matrices=False)
        expected = right[:6].T * (singular[:6] ** 2 / (singular**2).sum() * 4100) ** -0.25
        cosine = (vectors[:, :6] * expected).sum(axis=0) / (expected**2).sum(axis=0)
        np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-3)
        assert (vectors[:, 6:] == 0).all()

    def test_large_slides_are_thinned(self, parts, monkeypatch):
        monkeypatch.setattr(_gene_vectors, "MAX_CELLS", 70)
        vectors = coexpression_vectors(parts[:1], parts[0].genes, 6)
        assert_vectors(vectors, dense_covariance(parts[0], 2))  # 200 // 70


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


def by_hand(panels: list[PanelCovariance], start: np.ndarray, n_rounds: int, floor: float) -> np.ndarray:
    """The printed equations, gene by gene."""
    vectors, sigmas, identity = start, [0.5] * len(panels), np.eye(start.shape[1])
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
    found, reference = common_factors(panels, 40, 3, 1), by_hand(panels, start, n_rounds, floor)
    np.testing.assert_allclose(found @ found.T, reference @ reference.T, rtol=1e-3, atol=1e-5)  # up to a turn


def test_genes_of_no_panel_and_columns(truth):
    panels = [panel(truth, np.arange(20)), panel(truth, np.arange(10, 30))]
    vectors = common_factors(panels, 40, 3)
    assert (vectors[30:] == 0).all()
    assert (np.abs(vectors[:30]).max(axis=1) > 0).all()
    assert (vectors == common_factors(panels, 40, 3)).all()
    total = sum(vectors[genes].T @ vectors[genes] / len(genes) for genes, _, _ in panels)
    np.testing.assert_allclose(total, np.diag(total.diagonal()), atol=1e-8)  # principal axes, with signs
    assert (np.diff(total.diagonal()) < 0).all()
    assert (vectors.sum(axis=0) > 0).all()
