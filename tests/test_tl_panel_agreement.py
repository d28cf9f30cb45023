"""Labels from two halves of the genes: by hand, invariances, forms of expression, and what is refused."""

from __future__ import annotations

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st
from stage_sc.metrics import compare_labels
from stage_sc.tl import panel_agreement


def known_genes(adata: ad.AnnData, model: st.model.Stage) -> pd.Series:
    table = st.pp.match_genes(adata, vocabulary=model.vocabulary.keys()).table
    return table.loc[table["status"] == "matched", "token"]


@pytest.fixture(scope="module")
def table(tissue, small_model) -> pd.DataFrame:
    return panel_agreement(tissue, small_model, n_splits=2, n_domains=4)


def test_same_as_by_hand(tissue, small_model, table):
    """Halves share no gene and are all genes that the model knows; figures are those of the other metrics."""
    labels = ["stage_l1", "stage_l2", "stage_l3", "stage_domain"]
    assert table.index.tolist() == [(split, name) for split in (0, 1) for name in labels]
    assert table.index.names == ["split", "labels"]
    assert table["ARI"].between(0.05, 0.999).all()  # two panels, one tissue
    assert not table.loc[0].equals(table.loc[1])
    known, rng = known_genes(tissue, small_model), np.random.default_rng(0)
    for split in (0, 1):
        tokens = np.array_split(rng.permutation(np.unique(known)), 2)
        halves = [tissue[:, known.index[known.isin(half)]].copy() for half in tokens]
        st.tl.stage_niches(halves, model=small_model, n_domains=4)
        for key in labels:
            pair = ad.AnnData(obs=halves[0].obs.assign(other=halves[1].obs[key]))
            expected = {"ARI": st.metrics.ari(pair, key, "other"), "NMI": st.metrics.nmi(pair, key, "other")}
            expected["JSD"] = st.metrics.jsd(halves, key)
            assert table.loc[split, key].to_dict() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("other", "jsd"), [("aabb", 0), ("ccdd", 1)])
def test_labels_that_agree_with_and_without_a_common_name(other, jsd):
    found = compare_labels(pd.Series(list("aabb")), pd.Series(list(other)))
    assert found == pytest.approx({"ARI": 1, "NMI": 1, "JSD": jsd})


def test_order_of_cells_and_genes_does_not_matter(tissue, small_model, table):
    rng = np.random.default_rng(0)
    shuffled = tissue[rng.permutation(tissue.n_obs), rng.permutation(tissue.n_vars)].copy()
    other = panel_agreement(shuffled, small_model, n_splits=2, n_domains=4)
    pd.testing.assert_frame_equal(other, table, rtol=1e-10)


def test_seed(tissue, small_model, table):
    again = panel_agreement(tissue, small_model, n_splits=1, n_domains=4, rng=np.random.default_rng(0))
    pd.testing.assert_frame_equal(again, table.loc[[0]])
    assert not panel_agreement(tissue, small_model, n_splits=1, n_domains=4, rng=1).equals(again)


def test_columns_of_one_gene_stay_together(tissue, small_model, table):
    """Counts of every gene in two columns, under two spellings."""
    half = sp.csr_matrix(np.floor(tissue.X.toarray() / 2))
    parts = [ad.AnnData(X, obs=tissue.obs, var=tissue.var[[]].copy()) for X in (half, tissue.X - half)]
    parts[1].var_names = tissue.var_names.str.swapcase()
    twice = ad.concat(parts, axis="var", merge="same")
    twice.obsm, twice.obsp, twice.uns = tissue.obsm, tissue.obsp, tissue.uns
    other = panel_agreement(twice, small_model, n_splits=1, n_domains=4)
    pd.testing.assert_frame_equal(other, table.loc[[0]], rtol=1e-10)


def test_nothing_is_changed(tissue, slides, small_model, unchanged):
    """Neither labels nor a stale graph."""
    adata, part = tissue.copy(), slides[:300].copy()
    st.tl.stage_niches(adata, model=small_model)
    with unchanged(adata, part):
        panel_agreement(adata, small_model, n_splits=1, n_domains=3)
        assert np.isfinite(panel_agreement(part, small_model, n_splits=1)).all(axis=None)


@pytest.mark.parametrize("form", ["layer", "backed", "dense", "dask"])
def test_expression_in_any_form(tissue, small_model, table, form, tmp_path):
    adata, layer, model = tissue.copy(), None, small_model
    if form == "layer":
        adata.layers["counts"], adata.X, layer = adata.X.copy(), None, "counts"
        model = st.model.save_checkpoint(small_model, tmp_path / "model")
    elif form == "backed":
        adata.write_h5ad(tmp_path / "slide.h5ad")
        adata = ad.read_h5ad(tmp_path / "slide.h5ad", backed="r")
    else:
        dense = adata.X.toarray()
        adata.X = dense if form == "dense" else da.from_array(dense, chunks=(100, -1))
    other = panel_agreement(adata, model, n_splits=1, n_domains=4, layer=layer)
    pd.testing.assert_frame_equal(other, table.loc[[0]])


def test_refused(tissue, raw_tissue, small_model):
    few = tissue[:, known_genes(tissue, small_model).index[:1]].copy()
    for adata, options, error, match in [
        ([tissue], {}, TypeError, "AnnData"),
        (tissue, {"model": 3}, TypeError, "`model`"),
        (tissue, {"n_splits": 0}, ValueError, "`n_splits`"),
        (tissue, {"n_domains": 0}, ValueError, "`n_domains`"),
        (raw_tissue, {}, KeyError, "build_graph"),
        (tissue, {"layer": "counts"}, KeyError, "counts"),
        (few, {}, ValueError, "1 gene"),
    ]:
        with pytest.raises(error, match=match):
            panel_agreement(adata, **{"model": small_model, **options})
