"""Batches: centres get the embedding that the whole slide gives them, partners come from the view ring, and cells stand
in an order that does not depend on how they came."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import stage_sc as st
from stage_sc.data._batch import draw_partners, make_batch, slide_panel, to_device
from stage_sc.data._canonical import canonical_order
from stage_sc.data._slide import Slide, read_data
from stage_sc.model import Stage, StageConfig
from stage_sc.model._augment import draw_view

LONELY = [4, 40]  # cells far from all others


@pytest.fixture(scope="module")
def slide() -> Slide:
    adata = st.datasets.simulate_tissue(300, rng=5)
    for position, cell in enumerate(LONELY):
        adata.obsm["spatial"][cell] = adata.obsm["spatial"].max(axis=0) + 400 * (position + 1)
    st.pp.build_graph(adata)
    return read_data(adata, scaling="standardize")[0]


@pytest.fixture(scope="module")
def vocabulary(slide) -> dict[str, int]:
    genes = ["another", *reversed(slide.genes), "and another"]
    return {gene: number for number, gene in enumerate(genes)}


def network(vocabulary: dict[str, int], n_layers: int) -> Stage:
    """Far from its start, where attention is nearly uniform and hardly anything could go wrong."""
    torch.manual_seed(0)
    model = Stage(StageConfig(dim=8, n_layers=n_layers, levels=(2, 4)), list(vocabulary), ["one"], version="0.0.1")
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    return model.eval()


class TestBatch:
    @pytest.mark.parametrize("n_layers", [0, 1, 2, 4])
    @torch.no_grad()
    def test_embeddings_are_those_of_the_whole_slide(self, slide, vocabulary, n_layers):
        model, panel = network(vocabulary, n_layers), slide_panel(slide, vocabulary)
        whole = model(make_batch(slide, panel, n_layers))
        assert whole.shape == (300, 8)
        rng = np.random.default_rng(n_layers)
        lonely = np.flatnonzero(slide.isolated)
        assert len(lonely) == 2
        for centres in (rng.permutation(300)[:40], lonely, np.array([7]), np.array([3, 3, 250, 3])):
            part = model(make_batch(slide, panel, n_layers, centres=centres))
            np.testing.assert_allclose(part.numpy(), whole[centres].numpy(), atol=2e-6)

    @torch.no_grad()
    def test_augmented_embeddings_too(self, slide, vocabulary):
        model, panel = network(vocabulary, 2), slide_panel(slide, vocabulary)
        rng = np.random.default_rng(0)
        view = draw_view(len(slide.genes), rng, panel_fraction=0.8, noise_rate=8, noise_scale=0.05)
        centres = rng.permutation(300)[:40]
        part, whole = (
            model(make_batch(slide, panel, 2, centres=centres), view),
            model(make_batch(slide, panel, 2), view),
        )
        np.testing.assert_allclose(part.numpy(), whole[centres].numpy(), atol=2e-6)

    def test_gradients_too(self, slide, vocabulary):
        centres, grads = np.random.default_rng(1).permutation(300)[:30], []
        weight = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
        for whole in (False, True):
            model, panel = network(vocabulary, 2), slide_panel(slide, vocabulary)
            batch = make_batch(slide, panel, 2, centres=None if whole else centres)
            h = model(batch)
            ((h[centres] if whole else h) * weight).sum().backward()
            grads.append(model.embedder.vectors.grad)
        assert grads[0].abs().max() > 1e-3
        np.testing.assert_allclose(grads[0].numpy(), grads[1].numpy(), atol=1e-5)

    @torch.no_grad()
    def test_one_hop_fewer_would_not_do(self, slide, vocabulary):
        model, panel = network(vocabulary, 2), slide_panel(slide, vocabulary)
        centres = np.random.default_rng(0).permutation(300)[:20]
        short, whole = model(make_batch(slide, panel, 1, centres=centres)), model(make_batch(slide, panel, 2))
        assert (short - whole[centres]).abs().max() > 1e-3

    @pytest.mark.parametrize("n_layers", [0, 1, 3])
    def test_holds_the_cells_within_reach_and_no_others(self, slide, vocabulary, n_layers):
        centres = np.array([11, 2, 99])
        batch = make_batch(slide, slide_panel(slide, vocabulary), n_layers, centres=centres, number=5)
        assert batch.slide == 5
        reached = set(slide.local[centres].indices.tolist())
        for _ in range(n_layers):
            reached |= {other for cell in reached for other in slide.graph[[cell]].indices.tolist()}
        cells = sorted(reached)
        assert len(cells) < 300
        np.testing.assert_array_equal(batch.expression.forward.to_dense().numpy(), slide.expression[cells].toarray())
        graph = torch.zeros(len(cells), len(cells))
        seen, sees = batch.neighbours.edges  # from, to
        graph[sees, seen] = batch.neighbours.weights[:, 0]
        np.testing.assert_array_equal(graph.numpy(), slide.graph[cells][:, cells].toarray())
        np.testing.assert_array_equal(
            batch.neighbours.pool.forward.to_dense().numpy(), slide.local[centres][:, cells].toarray()
        )

    def test_panel(self, slide, vocabulary):
        panel = slide_panel(slide, vocabulary)
        names = list(vocabulary)
        assert [names[gene] for gene in panel.genes] == slide.genes
        np.testing.assert_array_equal(panel.mean.numpy(), slide.mean)
        np.testing.assert_array_equal(panel.scale.numpy(), slide.scale)

    def test_to_device(self, slide, vocabulary):
        batch = to_device(make_batch(slide, slide_panel(slide, vocabulary), 1, centres=np.arange(5), number=2), "cpu")
        assert batch.slide == 2
        with torch.no_grad():
            assert network(vocabulary, 1)(batch).shape == (5, 8)


class TestPartners:
    def test_come_from_the_ring(self, slide):
        rng = np.random.default_rng(0)
        for _ in range(20):
            centres = rng.permutation(300)[:100]
            partners = draw_partners(slide, centres, rng)
            filled = np.diff(slide.view.indptr)[centres] > 0
            assert (partners[~filled] == centres[~filled]).all()
            assert (np.asarray(slide.view[centres[filled], partners[filled]]).ravel() > 0).all()
            assert (partners[filled] != centres[filled]).all()

    def test_as_often_as_their_weights_say(self, slide):
        centres = np.array([3, 120])
        draws = draw_partners(slide, np.repeat(centres, 20_000), np.random.default_rng(0)).reshape(2, -1)
        for centre, drawn in zip(centres, draws, strict=True):
            weights = slide.view[[centre]].toarray()[0]
            share = np.bincount(drawn, minlength=300) / 20_000
            expected = weights / weights.sum()
            assert (weights > 0).sum() > 5
            np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(expected.max() / 20_000))

    def test_unequal_weights_and_rows_without_ring_in_between(self, slide):
        view = sp.csr_matrix(np.array([[0, 9, 1, 0], [0, 0, 0, 0], [1e-4, 0, 0, 1], [0, 0, 0, 0]], np.float32))
        small = slide._replace(view=view)
        centres = np.tile([3, 0, 1, 2, 1], 4000)
        partners = draw_partners(small, centres, np.random.default_rng(0))
        assert (partners[centres == 1] == 1).all()
        assert (partners[centres == 3] == 3).all()
        assert np.mean(partners[centres == 0] == 1) == pytest.approx(0.9, abs=0.02)
        assert set(partners[centres == 0]) == {1, 2}
        assert np.mean(partners[centres == 2] == 3) > 0.99

    def test_nobody_has_a_ring(self, slide):
        empty = slide._replace(view=sp.csr_matrix((300, 300), dtype=np.float32))
        centres = np.arange(0, 300, 7)
        assert (draw_partners(empty, centres, np.random.default_rng(0)) == centres).all()

    def test_centres_are_not_changed_and_chance_is_seeded(self, slide):
        centres = np.arange(100)
        one, same, other = (draw_partners(slide, centres, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert (centres == np.arange(100)).all()
        assert (one == same).all()
        assert (one != other).any()


class TestCanonicalOrder:
    @pytest.fixture
    def case(self, slide):
        return slide.expression, slide.genes, slide.graph

    def test_is_the_identity_on_what_is_in_order(self, case):
        assert (canonical_order(*case) == np.arange(case[0].shape[0])).all()

    def test_any_order(self, case):
        expression, genes, weights = case
        rng = np.random.default_rng(0)
        cells, columns = rng.permutation(expression.shape[0]), rng.permutation(len(genes))
        shuffled = sp.csr_matrix(expression[cells][:, columns])
        order = canonical_order(shuffled, [genes[column] for column in columns], weights[cells][:, cells])
        assert (cells[order] == np.arange(expression.shape[0])).all()

    def test_cells_without_counts_are_told_apart_by_their_neighbours(self):
        # a path of 7 cells, one of which is expressed: up to three hops away all differ
        expression = sp.csr_matrix(np.eye(7, 1, dtype=np.float32))
        weights = sp.csr_matrix(np.eye(7, k=1) + np.eye(7, k=-1), dtype=np.float32)
        expected = canonical_order(expression, ["g"], weights)
        cells = np.array([3, 6, 0, 5, 2, 4, 1])
        order = canonical_order(expression[cells], ["g"], weights[cells][:, cells])
        assert (cells[order] == expected).all()

    def test_what_cannot_be_told_apart_keeps_its_order(self):
        kind = np.random.default_rng(0).integers(2, size=(400, 1))
        order = canonical_order(
            sp.csr_matrix(kind, dtype=np.float32), ["g"], sp.csr_matrix((400, 400), dtype=np.float32)
        )
        for value in (0, 1):
            same = order[kind[order, 0] == value]
            assert (np.diff(same) > 0).all()
            assert np.ptp(np.flatnonzero(kind[order, 0] == value)) == len(same) - 1  # and stands together

    def test_names_and_values_count(self, case):
        expression, genes, weights = case
        same = canonical_order(expression, genes, weights)
        assert (canonical_order(expression, genes[::-1], weights) != same).any()
        assert (canonical_order(2 * expression, genes, weights) != same).any()
        assert (canonical_order(expression, genes, 0.5 * weights) != same).any()
