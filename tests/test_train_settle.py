"""A tree on other cells than it was grown on: prototypes go where their cells are, and others stay."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import stage_sc as st
from stage_sc.slides._slide import read_slides_of
from stage_sc.niches._settle import PRIOR, settle_tree
from stage_sc.train._start import encode_slides


@pytest.fixture(scope="module")
def away(small_model) -> torch.Tensor:
    """Embeddings of 2,000 cells: bundles around places that lie between the leaves."""
    leaves = normalize(small_model.tree.prototypes[small_model.tree.nodes(-1)].detach(), dim=1).numpy()
    rng = np.random.default_rng(0)
    places = leaves[:5] + leaves[5:10]
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    cells = places[rng.integers(5, size=2000)] + rng.normal(scale=0.1, size=(2000, leaves.shape[1]))
    return normalize(torch.from_numpy(cells.astype(np.float32)), dim=1)


@pytest.fixture
def settled(small_model, away):
    return settle(small_model, away)


def settle(model, h):
    model = copy.deepcopy(model)
    settle_tree(model.tree, h, model.config.assignment)
    return model


def paths_of(model, h):
    return model.tree.assign(h, how=model.config.assignment)[0]


def along(model, h):
    """Mean cosine of cells with the prototypes of their paths."""
    prototypes = normalize(model.tree.prototypes.detach(), dim=1)
    return (prototypes[paths_of(model, h)] * h[:, None]).sum(dim=2).mean()


class TestSettleTree:
    def test_by_definition(self, small_model, settled, away):
        start = normalize(small_model.tree.prototypes.detach(), dim=1).double().numpy()
        paths, h = paths_of(settled, away).numpy(), away.double().numpy()
        for node in range(settled.tree.n_nodes):
            expected = PRIOR * len(h) * start[node] + h[(paths == node).any(axis=1)].sum(axis=0)
            expected /= np.linalg.norm(expected)
            np.testing.assert_allclose(settled.tree.prototypes[node].detach(), expected, atol=1e-5)

    def test_prototypes_come_nearer(self, small_model, settled, away):
        assert along(settled, away) > along(small_model, away) + 0.05

    def test_only_prototypes_change(self, small_model, settled):
        changed = {
            name for name, value in settled.state_dict().items() if not value.equal(small_model.state_dict()[name])
        }
        assert changed == {"tree.prototypes"}

    def test_there_are_no_more_niches_than_before(self, small_model, settled, away):
        used = [len(paths_of(model, away)[:, -1].unique()) for model in (small_model, settled)]
        assert 5 <= used[1] < used[0]

    def test_nodes_without_cells_stay(self, small_model, settled, away):
        unused = np.setdiff1d(np.arange(settled.tree.n_nodes), paths_of(settled, away).numpy())
        assert len(unused) > 3
        start = normalize(small_model.tree.prototypes.detach(), dim=1)
        torch.testing.assert_close(settled.tree.prototypes[unused], start[unused], rtol=0, atol=1e-6)

    def test_the_number_of_cells_does_not_matter(self, small_model, settled, away):
        """A tissue has the same niches if more of it was measured."""
        more = settle(small_model, away.repeat(3, 1))
        torch.testing.assert_close(more.tree.prototypes, settled.tree.prototypes, rtol=0, atol=1e-5)

    def test_cells_of_the_tree_stay(self, small_model):
        """Cells at the leaves do not move them."""
        leaves = normalize(small_model.tree.prototypes[small_model.tree.nodes(-1)].detach(), dim=1)
        paths = paths_of(small_model, leaves)
        kept = paths[:, -1] == torch.arange(*small_model.tree.offsets[-2:])
        model = settle(small_model, leaves[kept].repeat_interleave(50, dim=0))
        moved = model.tree.prototypes[paths[kept, -1]]
        assert (moved * leaves[kept]).sum(dim=1).min() > 0.99

    def test_order_of_cells(self, small_model, settled, away):
        model = settle(small_model, away[torch.randperm(len(away), generator=torch.Generator().manual_seed(0))])
        torch.testing.assert_close(model.tree.prototypes, settled.tree.prototypes, rtol=0, atol=1e-5)


class TestFineTuning:
    def test_without_training_the_tree_settles(self, slides, small_model, caplog):
        with caplog.at_level("INFO"):
            model = st.tl.fit(slides, init=small_model, epochs=0, progress=False)
        assert "leaves are in use" in caplog.text
        known = read_slides_of(slides, scaling="standardize", vocabulary=small_model.vocabulary.keys())
        expected = settle(small_model, torch.cat([encoded.niche for encoded in encode_slides(small_model, known)]))
        torch.testing.assert_close(model.tree.prototypes, expected.tree.prototypes, rtol=0, atol=1e-5)

    def test_from_scratch_nothing_settles(self, tissue, small_config, caplog):
        with caplog.at_level("INFO"):
            st.tl.fit(tissue, config=small_config, epochs=0, progress=False)
        assert "leaves are in use" not in caplog.text
