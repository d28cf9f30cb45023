"""What became of niches in fine-tuning, and whether a slide is like what a model has learnt."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import stage_sc as st
from stage_sc.slides._slide import read_slides_of
from stage_sc.tl import _stage_niches
from stage_sc.train._compare import trace_niches
from stage_sc.embed._gene_vectors import coexpression_correlation
from stage_sc.train._start import encode_slides


@pytest.fixture(scope="module")
def tuned(tissue, small_model):
    config = small_model.config.replace(epochs=3, warmup_epochs=0, learning_rate=1e-2)  # far enough that niches move
    return st.tl.fit(tissue, init=small_model, config=config, progress=False)


@pytest.fixture
def slide():
    adata = st.datasets.simulate_tissue(1500, rng=5)
    st.pp.build_graph(adata)
    return adata, st.tl.fit(adata, epochs=0, progress=False)


def labelled(adata, model):
    return st.tl.stage_niches(adata, model=model, settle=False, copy=True)


def embedded(model, slides):
    return torch.cat([encoded.niche for encoded in encode_slides(model, slides)])


class TestNichesBefore:
    def slides(self, adata, model):
        return read_slides_of(adata, scaling="standardize", vocabulary=model.vocabulary.keys())

    def test_table_is_the_majority_of_cells(self, tissue, small_model, tuned):
        before, after = labelled(tissue, small_model), labelled(tissue, tuned)
        tree = after.uns["stage"]["tree"]
        moved = 0
        for level in after.uns["stage"]["levels"]:
            for niche in after.obs[level].cat.categories:
                counts = before.obs[level][after.obs[level] == niche].value_counts()
                row = tree.loc[niche]
                assert counts[row["before"]] == counts.max()
                assert row["shared"] == pytest.approx(counts.max() / counts.sum())
                assert row["level"] == int(level[-1])
                moved += row["shared"] < 1
        assert moved > 0

    def test_niches_without_cells(self, tissue, small_model, tuned):
        tree = labelled(tissue, tuned).uns["stage"]["tree"]
        assert (tree["before"] == "").sum() == (tree["n_cells"] == 0).sum()
        assert (tree["shared"][tree["n_cells"] == 0] == 0).all()

    def test_a_model_from_scratch_has_no_such_table(self, tissue, small_model):
        assert (small_model.before == -1).all()
        assert list(labelled(tissue, small_model).uns["stage"]["tree"]) == ["level", "parent", "n_cells"]

    def test_nothing_learnt_nothing_moved(self, tissue, small_model):
        same, slides = copy.deepcopy(small_model), self.slides(tissue, small_model)
        trace_niches(same, small_model, embedded(same, slides), slides)
        used = same.before >= 0
        assert used.sum() > 5
        assert same.before[used].equal(torch.arange(len(used))[used])
        assert (same.shared[used] == 1).all()

    def test_in_a_checkpoint(self, tuned, tmp_path):
        again = st.model.load_checkpoint(st.model.save_checkpoint(tuned, tmp_path / "tuned"))
        assert again.before.equal(tuned.before)
        assert again.shared.equal(tuned.shared)

    def test_slides_on_disk(self, tissue, small_model, tuned, on_disk):
        stored = [on_disk(slide) for slide in self.slides(tissue, small_model)]
        again = copy.deepcopy(tuned)
        trace_niches(again, small_model, embedded(again, stored), stored)
        assert (again.before == tuned.before).float().mean() > 0.9


class TestCoherence:
    def of(self, adata, model):
        return coexpression_correlation(model, read_slides_of(adata, scaling="standardize", vocabulary=model.vocabulary.keys())[0])

    def test_by_definition(self, slide):
        adata, model = slide
        one = read_slides_of(adata, scaling="standardize", vocabulary=model.vocabulary.keys())[0]
        graph = (one.graph != 0).toarray().astype(float)
        near = graph / graph.sum(axis=1, keepdims=True)
        around = near @ near @ ((one.take(np.arange(one.n_cells)).toarray() - one.mean) / one.scale)
        vectors = model.basis[[model.vocabulary[gene] for gene in one.genes]].double().numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        pairs = np.triu_indices(len(one.genes), 1)
        expected = np.corrcoef(np.corrcoef(around.T)[pairs], (vectors @ vectors.T)[pairs])[0, 1]
        assert coexpression_correlation(model, one) == pytest.approx(expected, abs=1e-3)
        assert expected > 0.1

    def test_other_names_for_genes_are_noticed(self, slide, caplog):
        adata, model = slide
        assert self.of(adata, model) > 2 * _stage_niches.UNLIKE
        other = adata.copy()
        other.var_names = np.random.default_rng(0).permutation(adata.var_names)
        assert abs(self.of(other, model)) < _stage_niches.UNLIKE
        model.slides = ["elsewhere"]
        labelled(adata, model)
        assert "unlike" not in caplog.text
        noise = adata.copy()
        noise.X = np.random.default_rng(1).poisson(1.0, adata.shape).astype(np.float32)
        assert abs(self.of(noise, model)) < _stage_niches.UNLIKE
        labelled(noise, model)
        assert "'slide' is unlike what the model was trained on" in caplog.text

    def test_the_name_of_a_training_slide_says_nothing(self, slide, caplog):
        """Every slide without a name is called the same."""
        adata, model = slide
        assert model.slides == ["slide"]
        labelled(adata, model)
        assert "unlike" not in caplog.text
        noise = adata.copy()
        noise.X = np.random.default_rng(1).poisson(1.0, adata.shape).astype(np.float32)
        labelled(noise, model)
        assert "'slide' is unlike what the model was trained on" in caplog.text

    def test_one_gene_or_none_that_varies(self, slide):
        adata, model = slide
        assert self.of(adata[:, :1].copy(), model) == 0
        one = read_slides_of(adata, scaling="standardize", vocabulary=model.vocabulary.keys())[0]
        flat = replace(one, expression=one.expression * 0)
        assert abs(coexpression_correlation(model, flat)) < _stage_niches.UNLIKE
