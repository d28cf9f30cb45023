"""Real sections with expert labels: what training and zero-shot labelling reach, and that nothing in them stops them.

Labels are compared with, never used. The sections are no part of the project: without them these tests are skipped.
"""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

import stage_sc as st

SECTIONS = ("BZ5", "BZ9", "BZ14")


def agreement(adata: ad.AnnData, key: str = "stage_domain") -> pd.Series:
    """ARI of each section."""
    return pd.Series({
        name: adjusted_rand_score(part["domain"].astype(str), part[key].astype(str))
        for name, part in adata.obs.groupby("slide", observed=True)
    })  # fmt: skip


@pytest.fixture(scope="module")
def cortex(dev_data: Path) -> ad.AnnData:
    """Three sections of one panel, in pixels, each from another mouse."""
    adata = ad.concat(
        {name: ad.read_h5ad(dev_data / "starmap_mpfc" / f"{name}.h5ad") for name in SECTIONS}, label="slide"
    )
    adata.obs_names_make_unique()
    st.pp.build_graph(adata, library_key="slide")
    return adata


@pytest.fixture(scope="module")
def trained(cortex):
    """With all three sections, as a user would: nothing is configured."""
    model = st.tl.fit(cortex, progress=False)
    return st.tl.stage_niches(cortex, model=model, n_domains=4, copy=True), model


class TestCortex:
    def test_unit_is_found(self, cortex):
        table = cortex.uns["stage_graph"]["slides"]
        spacing = table["scale"].to_numpy() * [174, 165, 153]  # median distance in pixels: BZ14, BZ5, BZ9
        assert table.index.tolist() == ["BZ14", "BZ5", "BZ9"]
        np.testing.assert_allclose(spacing, 10, rtol=0.02)
        assert table["mean_local"].between(3, 15).all()

    def test_agreement_with_the_layers(self, trained):
        adata, _ = trained
        ari = agreement(adata)
        assert adata.obs["stage_domain"].nunique() == 4
        assert ari.mean() >= 0.70, ari.to_dict()
        assert ari.min() >= 0.55, ari.to_dict()

    def test_every_section_has_every_domain(self, trained):
        adata, _ = trained
        shares = pd.crosstab(adata.obs["slide"], adata.obs["stage_domain"], normalize="index")
        assert shares.to_numpy().min() > 0.015
        assert shares.min(axis=0).sum() > 0.7

    def test_a_healthy_model(self, trained):
        adata, model = trained
        last = model.history.iloc[-1]
        assert last["cosine"] < 0.8
        assert last["used"] == model.config.levels[-1]
        assert (adata.obs["stage_flag"] == "ok").mean() > 0.99
        used = adata.obs.groupby("slide", observed=True)[adata.uns["stage"]["levels"]].nunique()
        assert model.config.levels == (3, 8, 21)
        assert (used["stage_l1"] == 3).all()
        assert (used["stage_l2"] >= 7).all()
        assert (used["stage_l3"] > 0.75 * 21).all()
        shared = [st.metrics.jsd(adata, level, library_key="slide") for level in adata.uns["stage"]["levels"]]
        assert shared[0] < 0.05, shared
        assert shared[1] < 0.15, shared
        assert shared[2] < 0.5, shared

    def test_a_section_that_the_model_has_not_seen(self, cortex, trained):
        """Each section in turn, labelled alone: by a model of the two others, and by one that was trained on it too."""
        table = pd.DataFrame(index=SECTIONS, columns=["unseen", "seen"], dtype=float)
        for name in SECTIONS:
            rest, third = (cortex[part].copy() for part in (cortex.obs["slide"] != name, cortex.obs["slide"] == name))
            for part in (rest, third):
                st.pp.build_graph(part, library_key="slide")
            model = st.tl.fit(rest, progress=False)
            assert name not in model.slides
            for column, used in (("unseen", model), ("seen", trained[1])):
                labelled = st.tl.stage_niches(third, model=used, n_domains=4, copy=True)
                table.loc[name, column] = agreement(labelled)[name]
        assert table["unseen"].mean() >= table["seen"].mean() - 0.10, table
        assert table["unseen"].min() >= 0.45, table


def test_osmfish_end_to_end(dev_data, tmp_path, caplog):
    """Thirty-three genes, cells that lie exactly upon each other, loops of names: through everything and to disk."""
    adata = ad.read_h5ad(dev_data / "osmfish_cortex" / "SScortex.h5ad")
    before = adata.X.copy()
    with caplog.at_level(logging.INFO):
        st.pp.build_graph(adata)
        model = st.tl.fit(adata, epochs=4, progress=False)
        st.tl.stage_niches(adata, model=model, n_domains=11)
    assert (adata.X != before).nnz == 0
    assert adata.obs["stage_domain"].nunique() == 11
    assert np.isfinite(adata.obsm["X_stage"]).all()
    assert model.genes == sorted(model.genes)
    assert len(model.genes) == 33
    assert "training cells" in caplog.text
    assert "collapsed" not in caplog.text
    known = adata.obs["domain"].notna()
    assert adjusted_rand_score(adata.obs["domain"][known].astype(str), adata.obs["stage_domain"][known]) > 0.3
    adata.write_h5ad(tmp_path / "labelled.h5ad")
    assert ad.read_h5ad(tmp_path / "labelled.h5ad").obs["stage_path"].tolist() == adata.obs["stage_path"].tolist()


@pytest.mark.parametrize(
    ("path", "technology"),
    [("starmap_mpfc/BZ5", None), ("osmfish_cortex/SScortex", None), ("dlpfc_visium/151673", "visium")],
)
def test_bundled_model_labels_any_section(dev_data, path, technology):
    adata = ad.read_h5ad(dev_data / f"{path}.h5ad")
    st.pp.build_graph(adata, technology=technology)
    st.tl.stage_niches(adata, n_domains=4)
    assert adata.obs["stage_domain"].nunique() == 4
    assert adata.obs["stage_l3"].nunique() >= 15
    assert adata.obs["stage_confidence"].between(0, 1).all()
    largest = adata.obs["stage_l1"].value_counts(normalize=True).iloc[0]
    assert largest < 0.9


@pytest.mark.parametrize("path", ["starmap_mpfc/BZ5", "osmfish_cortex/SScortex"])
def test_settling_and_fine_tuning_bring_niches_nearer_to_the_expert(dev_data, path):
    """Mean over the levels of the tree, whose nodes keep their names."""
    adata = ad.read_h5ad(dev_data / f"{path}.h5ad")
    st.pp.build_graph(adata)
    frozen = st.tl.stage_niches(adata, settle=False, copy=True)
    settled = st.tl.stage_niches(adata, copy=True)
    tuned = st.tl.stage_niches(adata, model=st.tl.fit(adata, init="bundled", progress=False), copy=True)
    levels = frozen.uns["stage"]["levels"]
    nearness = {
        name: np.mean([st.metrics.nmi(each, level, reference="domain") for level in levels])
        for name, each in (("frozen", frozen), ("settled", settled), ("tuned", tuned))
    }
    assert nearness["settled"] > nearness["frozen"] + 0.01
    assert nearness["tuned"] > nearness["frozen"] + 0.01
    for each in (settled, tuned):
        assert each.obs["stage_l3"].nunique() < frozen.obs["stage_l3"].nunique()
