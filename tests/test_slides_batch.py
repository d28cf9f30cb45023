"""Batches: centres get the embedding that the whole slide gives them, and partners come from the view ring."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import stage_sc as st
from stage_sc.graph import ring
from stage_sc.model import Stage, StageConfig
from stage_sc.nn import Panel, draw_view
from stage_sc.slides import Slide, make_batch, read_slides, sample_partners, slide_panel, to_device

LONELY = [4, 40]  # cells far from all others


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    adata = st.datasets.simulate_tissue(300, rng=5)
    for position, cell in enumerate(LONELY):
        adata.obsm["spatial"][cell] = adata.obsm["spatial"].max(axis=0) + 400 * (position + 1)
    st.pp.build_graph(adata)
    return adata


@pytest.fixture(scope="module")
def slide(adata) -> Slide:
    return read_slides(adata, StageConfig())[0]


@pytest.fixture(scope="module")
def in_hops(adata) -> Slide:
    """The same cells, with neighbourhoods counted in steps."""
    other = adata.copy()
    st.pp.build_graph(other, mode="hops", local=1, view=3)
    return read_slides(other, StageConfig())[0]


def rings(slide: Slide) -> sp.csr_matrix:
    return ring(slide.xy, slide.tree, slide.graph, np.arange(slide.n_cells), slide.sizes)


@pytest.fixture(scope="module")
def vocabulary(slide) -> dict[str, int]:
    genes = ["another", *reversed(slide.genes), "and another"]
    return {gene: number for number, gene in enumerate(genes)}


def panels(slide: Slide, vocabulary: dict[str, int]) -> tuple[Panel, Panel]:
    """As the slide gives it, and with some whitening."""
    plain = slide_panel(slide, vocabulary)
    whitening = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    return plain, plain._replace(whitening=whitening @ whitening.T / 8)


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
    def test_embeddings_are_those_of_the_whole_slide(self, slide, in_hops, vocabulary, n_layers):
        """Of plain, whitened and augmented expression."""
        model, rng = network(vocabulary, n_layers), np.random.default_rng(n_layers)
        view = draw_view(len(slide.genes), rng, panel_fraction=0.8, noise_rate=8, noise_scale=0.05)
        lonely = np.flatnonzero(slide.isolated)
        assert len(lonely) == 2
        for one in (slide, in_hops):
            (plain, whitened), found = panels(one, vocabulary), []
            for panel, *augmented in ((plain,), (whitened,), (plain, view)):
                found.append(whole := model(make_batch(one, panel, n_layers), *augmented))
                for centres in (rng.permutation(300)[:40], lonely, np.array([7]), np.array([3, 3, 250, 3])):
                    part = model(make_batch(one, panel, n_layers, centres=centres), *augmented)
                    np.testing.assert_allclose(part.numpy(), whole[centres].numpy(), atol=2e-6)
            assert min((found[0] - other).abs().max() for other in found[1:]) > 0.1

    @pytest.mark.parametrize("n_layers", [0, 1, 3])
    def test_holds_the_cells_within_reach_and_no_others(self, slide, vocabulary, n_layers):
        centres = np.array([11, 2, 99])
        batch = make_batch(slide, slide_panel(slide, vocabulary), n_layers, centres=centres, number=5)
        assert batch.slide == 5
        reached = set(slide.local[centres].indices.tolist())
        sizes, cells = [len(reached)], sorted(reached)
        for _ in range(n_layers):
            reached |= {other for cell in reached for other in slide.graph[[cell]].indices.tolist()}
            cells += sorted(reached - set(cells))
            sizes.append(len(reached))
        cells = np.array(cells)  # those of the last layers first
        assert len(cells) < 300
        assert batch.neighbours.sizes == tuple(sizes[:-1][::-1])
        np.testing.assert_array_equal(batch.expression.forward.to_dense().numpy(), slide.take(cells).toarray())
        graph, n_rows = torch.zeros(len(cells), len(cells)), sizes[n_layers - 1] if n_layers else 0
        seen, sees = batch.neighbours.edges  # from, to
        graph[sees, seen] = batch.neighbours.weights[:, 0]
        np.testing.assert_array_equal(graph[:n_rows].numpy(), slide.graph[cells[:n_rows]][:, cells].toarray())
        assert (graph[n_rows:] == 0).all()  # no layer computes those
        np.testing.assert_array_equal(
            batch.neighbours.pool.forward.to_dense().numpy(), slide.local[centres][:, cells[: sizes[0]]].toarray()
        )

    def test_panel(self, slide, vocabulary):
        panel = slide_panel(slide, vocabulary)
        assert [list(vocabulary)[gene] for gene in panel.genes] == slide.genes
        np.testing.assert_array_equal(panel.mean.numpy(), slide.mean)
        np.testing.assert_array_equal(panel.scale.numpy(), slide.scale)
        assert panel.whitening is None

    def test_to_device(self, slide, vocabulary):
        batch = to_device(make_batch(slide, slide_panel(slide, vocabulary), 1, centres=np.arange(5), number=2), "meta")
        assert batch.slide == 2
        assert {part.device.type for part in (batch.panel.genes, batch.neighbours.edges)} == {"meta"}


class TestPartners:
    def test_as_often_as_their_weights_say(self, slide, in_hops):
        """With chance spread evenly over [0, 1), fractions are the weights; a cell without ring is its own partner."""
        u, n = (np.arange(20_000) + 0.5) / 20_000, 20_000
        for one in (slide, in_hops):
            view, centres = rings(one), np.array([3, 120, 7, 250, 61, 299, *np.flatnonzero(one.isolated)])
            draws = sample_partners(one, np.repeat(centres, n), np.tile(u, len(centres))).reshape(-1, n)
            for centre, drawn in zip(centres, draws, strict=True):
                weights = view[[centre]].toarray()[0].astype(float)
                if one.isolated[centre]:
                    weights[centre] = 1
                assert (weights > 0).sum() > 4 or one.isolated[centre]
                fractions = np.bincount(drawn, minlength=300) / n
                np.testing.assert_allclose(fractions, weights / weights.sum(), atol=1.5 / n)

    def test_do_not_depend_on_the_other_centres(self, slide):
        rng = np.random.default_rng(0)
        centres, u = rng.permutation(300), rng.random(300)
        before, together = centres.copy(), sample_partners(slide, centres, u)
        for some in (slice(0, 100), slice(100, 101), slice(101, 300), slice(0, 0)):
            assert (sample_partners(slide, centres[some], u[some]) == together[some]).all()
        assert (centres == before).all()
        assert (sample_partners(slide, centres, rng.random(300)) != together).any()

    @pytest.fixture
    def line(self, slide) -> Slide:
        """Four cells on a line, the third without ring."""
        xy = np.array([[0.0, 0], [20, 0], [5000, 0], [60, 0]])
        alone = sp.identity(4, np.float32, format="csr")
        return replace(slide, xy=xy, graph=alone, local=alone, sizes=("radius", 10.0, 100.0, 30.0))

    def test_the_ends_of_chance(self, line):
        centres = np.array([0, 1, 2, 3])
        assert sample_partners(line, centres, np.zeros(4)).tolist() == [1, 0, 2, 0]
        assert sample_partners(line, centres, np.full(4, np.nextafter(1, 0))).tolist() == [3, 3, 2, 1]

    def test_a_ring_of_far_cells_beside_near_ones(self, line):
        """Whose weights are lost in a sum with those of others."""
        xy = np.array([[0.0, 0], [11, 0], [5000, 0], [5090, 0], [5000, 90.0]])
        far, centres = replace(line, xy=xy, sizes=(*line.sizes[:3], 9)), np.tile([0, 2], 5000)
        partners = sample_partners(far, centres, (np.arange(10_000) + 0.5) / 10_000)
        assert (partners[centres == 0] == 1).all()
        for cell in (3, 4):
            assert np.mean(partners[centres == 2] == cell) == pytest.approx(0.5, abs=1e-3)
