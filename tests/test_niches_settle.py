"""Settling of the tree on other cells, and nodes of a fine-tuned tree in the tree that it started from."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import stage_sc as st
from stage_sc.niches import settle_tree
from stage_sc.slides import read_slides
from stage_sc.train import encode_slides, trace_niches


@pytest.fixture(scope="module")
def away(small_model) -> torch.Tensor:
    """Embeddings of 2,000 cells: bundles around places that lie between the leaves."""
    leaves = normalize(small_model.tree.prototypes[small_model.tree.nodes(-1)].detach(), dim=1).numpy()
    rng = np.random.default_rng(0)
    places = leaves[:5] + leaves[5:10]
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    cells = places[rng.integers(5, size=2000)] + rng.normal(scale=0.1, size=(2000, leaves.shape[1]))
    return normalize(torch.from_numpy(cells.astype(np.float32)), dim=1)


def settle(model, h, config=None):
    model = copy.deepcopy(model)
    settle_tree(model.tree, h, config or model.config)
    return model


def paths_of(model, h):
    return model.tree.assign(h, how=model.config.assignment)[0]


@pytest.fixture
def settled(small_model, away):
    return settle(small_model, away)


class TestSettleTree:
    @pytest.mark.parametrize("weight", [0.04, 0.3])
    def test_by_definition(self, small_model, away, weight):
        """Nodes without cells stay, the others come nearer to their cells."""
        settled = settle(small_model, away, small_model.config.replace(prior_weight=weight))
        start = normalize(small_model.tree.prototypes.detach(), dim=1).double().numpy()
        paths, h = paths_of(settled, away).numpy(), away.double().numpy()
        after = settled.state_dict().items()
        assert [name for name, x in after if not x.equal(small_model.state_dict()[name])] == ["tree.prototypes"]
        for node in range(settled.tree.n_nodes):
            expected = weight * len(h) * start[node] + h[(paths == node).any(axis=1)].sum(axis=0)
            expected /= np.linalg.norm(expected)
            np.testing.assert_allclose(settled.tree.prototypes[node].detach(), expected, atol=1e-5)

    def test_there_are_no_more_niches_than_before(self, small_model, settled, away):
        used = [len(paths_of(model, away)[:, -1].unique()) for model in (small_model, settled)]
        assert 5 <= used[1] < used[0]

    def test_number_and_order_of_cells_do_not_matter(self, small_model, settled, away):
        more = settle(small_model, away.repeat(3, 1)[torch.randperm(6000, generator=torch.Generator().manual_seed(0))])
        torch.testing.assert_close(more.tree.prototypes, settled.tree.prototypes, rtol=0, atol=1e-5)

    def test_cells_of_the_tree_stay(self, small_model):
        """Cells at the leaves do not move them."""
        leaves = normalize(small_model.tree.prototypes[small_model.tree.nodes(-1)].detach(), dim=1)
        paths = paths_of(small_model, leaves)
        kept = paths[:, -1] == torch.arange(*small_model.tree.offsets[-2:])
        model = settle(small_model, leaves[kept].repeat_interleave(50, dim=0))
        moved = model.tree.prototypes[paths[kept, -1]]
        assert (moved * leaves[kept]).sum(dim=1).min() > 0.99

    def test_in_a_fine_tuning_but_not_from_scratch(self, slides, small_model, small_config, caplog):
        with caplog.at_level("INFO"):
            st.tl.fit(slides, config=small_config, epochs=0, progress=False)
            assert "leaves are in use" not in caplog.text
            model = st.tl.fit(slides, init=small_model, epochs=0, progress=False)
        assert "leaves are in use" in caplog.text
        expected = settle(small_model, embedded(small_model, read(slides, small_model)))
        torch.testing.assert_close(model.tree.prototypes, expected.tree.prototypes, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def tuned(tissue, small_model):
    config = small_model.config.replace(epochs=3, warmup_epochs=0, learning_rate=1e-2)  # far enough that niches move
    return st.tl.fit(tissue, init=small_model, config=config, progress=False)


def labelled(adata, model):
    return st.tl.stage_niches(adata, model=model, settle=False, copy=True)


def read(adata, model):
    return read_slides(adata, model.config, vocabulary=model.vocabulary.keys())


def embedded(model, slides):
    return torch.cat([encoded.niche for encoded in encode_slides(model, slides)])


class TestTrace:
    def test_table_is_the_majority_of_cells(self, tissue, small_model, tuned):
        """A model from scratch has no such table."""
        before, after = labelled(tissue, small_model), labelled(tissue, tuned)
        tree = after.uns["stage"]["tree"]
        moved = 0
        for level in after.uns["stage"]["levels"]:
            for niche in after.obs[level].cat.categories:
                counts = before.obs[level][after.obs[level] == niche].value_counts()
                row = tree.loc[niche]
                assert counts[row["init_node"]] == counts.max()
                assert row["init_share"] == pytest.approx(counts.max() / counts.sum())
                assert row["level"] == int(level[-1])
                moved += row["init_share"] < 1
        assert moved > 0
        assert list(before.uns["stage"]["tree"]) == ["level", "parent", "n_cells"]
        assert (small_model.init_node == -1).all()
        empty = tree["n_cells"] == 0
        assert ((tree["init_node"] == "") == empty).all()
        assert (tree["init_share"][empty] == 0).all()

    def test_nothing_learnt_nothing_moved(self, tissue, small_model):
        same, slides = copy.deepcopy(small_model), read(tissue, small_model)
        trace_niches(same, small_model, embedded(same, slides), slides)
        used = same.init_node >= 0
        assert used.sum() > 5
        assert same.init_node[used].equal(torch.arange(len(used))[used])
        assert (same.init_share[used] == 1).all()

    def test_slides_on_disk(self, tissue, small_model, tuned, on_disk):
        stored = [on_disk(slide) for slide in read(tissue, small_model)]
        again = copy.deepcopy(tuned)
        trace_niches(again, small_model, embedded(again, stored), stored)
        assert (again.init_node == tuned.init_node).float().mean() > 0.9
