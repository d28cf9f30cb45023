"""Real sections with expert labels, which labels are compared with: zero-shot, of an unseen section, after training.

The sections are no part of the project: without them these tests are skipped.
"""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stage_sc as st


@pytest.fixture(scope="module")
def cortex(dev_data: Path) -> dict[str, ad.AnnData]:
    """Three sections of one panel, in pixels, each from another mouse."""
    parts = {name: ad.read_h5ad(dev_data / "starmap_mpfc" / f"{name}.h5ad") for name in ("BZ14", "BZ5", "BZ9")}
    st.pp.build_graph(parts)
    return parts


@pytest.fixture(scope="module")
def zero_shot(cortex):
    return st.tl.stage_niches(cortex, n_domains=4, copy=True)


def agreement(parts: dict[str, ad.AnnData]) -> pd.Series:
    table = st.metrics.evaluate(parts, "stage_domain", reference="domain")
    return table.loc["stage_domain", "ARI"].drop("mean")


@pytest.mark.parametrize(("name", "distance"), [("BZ14", 174), ("BZ5", 165), ("BZ9", 153)])
def test_unit_is_found(cortex, name, distance):
    """Median distance in pixels."""
    row = cortex[name].uns["stage_graph"]["slides"].iloc[0]
    assert row["scale"] * distance == pytest.approx(10, rel=0.02) and 3 < row["mean_local"] < 15


def test_domains_agree_with_the_layers(zero_shot):
    ari = agreement(zero_shot)
    assert ari.mean() >= 0.70 and ari.min() >= 0.55, ari.to_dict()
    fractions = [adata.obs["stage_domain"].value_counts(normalize=True) for adata in zero_shot.values()]
    fractions = pd.concat(fractions, axis=1)
    assert fractions.shape == (4, 3) and fractions.min(axis=None) > 0.015
    assert fractions.min(axis=1).sum() > 0.7


def test_a_section_that_the_model_has_not_seen(cortex):
    """Domains rest on the gene vectors that training began with: no training is needed."""
    unseen = {}
    for name, adata in cortex.items():
        rest = {other: cortex[other] for other in cortex if other != name}
        model = st.tl.fit(rest, epochs=0, progress=False)
        assert sorted(model.slides) == sorted(rest)
        unseen[name] = st.tl.stage_niches(adata, model=model, n_domains=4, copy=True)
    ari = agreement(unseen)
    assert ari.mean() >= 0.60 and ari.min() >= 0.45, ari.to_dict()


def test_a_healthy_model(cortex):
    model = st.tl.fit(cortex, epochs=8, progress=False)
    last = model.history.iloc[-1]
    assert last["cosine"] < 0.8 and last["used"] == model.config.levels[-1]
    assert model.config.levels == (3, 8, 21)
    labelled = st.tl.stage_niches(cortex, model=model, copy=True)
    for adata in labelled.values():
        assert (adata.obs["stage_flag"] == "ok").mean() > 0.99
        used = adata.obs[adata.uns["stage"]["levels"]].nunique().tolist()
        assert used[0] == 3 and used[1] >= 7 and used[2] > 0.75 * 21
    jsd = [st.metrics.jsd(labelled, f"stage_l{level}") for level in (1, 2, 3)]
    assert jsd[0] < 0.05 and jsd[1] < 0.15 and jsd[2] < 0.5, jsd


def test_osmfish_end_to_end(dev_data, tmp_path, caplog):
    """Thirty-three genes, cells that lie exactly upon each other, loops of names: through everything and to disk."""
    adata = ad.read_h5ad(dev_data / "osmfish_cortex" / "SScortex.h5ad")
    before = adata.X.copy()
    with caplog.at_level(logging.INFO):
        st.pp.build_graph(adata)
        model = st.tl.fit(adata, epochs=2, progress=False)
        st.tl.stage_niches(adata, model=model, n_domains=11)
    assert (adata.X != before).nnz == 0 and np.isfinite(adata.obsm["X_stage"]).all()
    assert adata.obs["stage_domain"].nunique() == 11
    assert model.genes == sorted(model.genes) and len(model.genes) == 33
    assert "collapsed" not in caplog.text
    assert st.metrics.ari(adata, "stage_domain", reference="domain") > 0.3
    adata.write_h5ad(tmp_path / "labelled.h5ad")
    assert ad.read_h5ad(tmp_path / "labelled.h5ad").obs["stage_path"].tolist() == adata.obs["stage_path"].tolist()


@pytest.mark.parametrize("path", ["starmap_mpfc/BZ5", "osmfish_cortex/SScortex"])
def test_settling_and_fine_tuning_bring_niches_nearer_to_the_expert(dev_data, path):
    """Mean over the levels of the tree, whose nodes keep their names."""
    adata = ad.read_h5ad(dev_data / f"{path}.h5ad")
    st.pp.build_graph(adata)
    frozen, other = (st.tl.stage_niches(adata, settle=settle, copy=True) for settle in (False, True))
    others = [other]
    if "BZ5" in path:
        model = st.tl.fit(adata, init="bundled", epochs=5, progress=False)
        others.append(st.tl.stage_niches(adata, model=model, copy=True))
    levels = frozen.uns["stage"]["levels"]
    before, *after = (
        np.mean([st.metrics.nmi(each, level, reference="domain") for level in levels]) for each in (frozen, *others)
    )
    assert min(after) > before + 0.01
    assert all(each.obs["stage_l3"].nunique() < frozen.obs["stage_l3"].nunique() for each in others)
