"""Labels from two halves of the genes: the figures, what they do not depend on, what is refused."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stage_sc as st
from stage_sc.metrics import _panels, panel_agreement
from stage_sc.pp import match_genes


@pytest.fixture(scope="module")
def table(tissue, small_model) -> pd.DataFrame:
    return panel_agreement(tissue, small_model, n_splits=2, n_domains=4)


def test_shape(table):
    labels = ["stage_l1", "stage_l2", "stage_l3", "stage_domain"]
    assert table.index.tolist() == [(split, name) for split in (0, 1) for name in labels]
    assert table.index.names == ["split", "labels"]
    assert table.columns.tolist() == ["ARI", "NMI", "JSD"]
    assert (table.dtypes == np.float64).all()
    assert table["ARI"].between(0.05, 0.999).all()  # two panels, one tissue
    assert not table.loc[0].equals(table.loc[1])


def test_same_as_by_hand(tissue, small_model, monkeypatch):
    """Halves share no gene and are all genes that the model knows; figures are those of the other metrics."""
    seen, true = [], st.tl.stage_niches

    def spy(halves: list[ad.AnnData], **arguments: object) -> None:
        true(halves, **arguments)
        seen.append(halves)

    monkeypatch.setattr(st.tl, "stage_niches", spy)
    table = panel_agreement(tissue, small_model, n_splits=2, n_domains=4, rng=5)
    for split, (one, other) in enumerate(seen):
        assert not set(one.var_names) & set(other.var_names)
        known = match_genes(tissue, vocabulary=small_model.vocabulary.keys()).table
        assert set(one.var_names) | set(other.var_names) == set(known.index[known["status"] == "matched"])
        assert abs(one.n_vars - other.n_vars) <= 1
        for half in (one, other):
            assert (half.X != tissue[:, half.var_names].X).nnz == 0
        both = ad.concat({"one": one, "other": other}, label="half", index_unique="-")
        for key in table.loc[split].index:
            first = one.obs.assign(other=other.obs[key])
            row = table.loc[split, key]
            assert row["ARI"] == st.metrics.ari(ad.AnnData(obs=first), key, "other")
            assert row["NMI"] == pytest.approx(st.metrics.nmi(ad.AnnData(obs=first), key, "other"))
            assert row["JSD"] == pytest.approx(st.metrics.jsd(both, key, "half"))
    assert set(seen[0][0].var_names) != set(seen[1][0].var_names)


def test_equal_labels(tissue, small_model, monkeypatch):
    """Both halves with all genes have the same labels."""
    monkeypatch.setattr(_panels.np, "isin", lambda tokens, half: np.ones(len(tokens), dtype=bool))
    table = panel_agreement(tissue, small_model, n_splits=1, n_domains=4)
    np.testing.assert_allclose(table["ARI"], 1)
    np.testing.assert_allclose(table["NMI"], 1)
    np.testing.assert_allclose(table["JSD"], 0, atol=1e-12)


def test_labels_without_a_common_name():
    figures = _panels._compare(pd.Series(list("aabb")), pd.Series(list("ccdd")))
    assert figures == {"ARI": 1, "NMI": pytest.approx(1), "JSD": pytest.approx(1)}


def test_order_of_cells_and_genes_does_not_matter(tissue, small_model, table):
    rng = np.random.default_rng(0)
    shuffled = tissue[rng.permutation(tissue.n_obs), rng.permutation(tissue.n_vars)].copy()
    other = panel_agreement(shuffled, small_model, n_splits=2, n_domains=4)
    pd.testing.assert_frame_equal(other, table, rtol=1e-10)


def test_seed(tissue, small_model, table):
    again = panel_agreement(tissue, small_model, n_splits=2, n_domains=4, rng=np.random.default_rng(0))
    pd.testing.assert_frame_equal(again, table)
    assert not panel_agreement(tissue, small_model, n_splits=2, n_domains=4, rng=1).equals(table)


def test_columns_of_one_gene_stay_together(tissue, small_model, monkeypatch):
    """Every gene twice, under two spellings: no half has what the other has."""
    again, halves = tissue.copy(), []
    again.var_names = [name.swapcase() for name in again.var_names]
    twice = ad.concat([tissue, again], axis="var", merge="same")
    twice.obsp, twice.uns = tissue.obsp, tissue.uns

    def stop(given: list[ad.AnnData], **_: object) -> None:
        halves.extend(given)
        raise InterruptedError

    monkeypatch.setattr(st.tl, "stage_niches", stop)
    with pytest.raises(InterruptedError):
        panel_agreement(twice, small_model)
    one, other = ({name.casefold() for name in half.var_names} for half in halves)
    assert one and other and not one & other
    assert all(half.n_vars == 2 * len(names) for half, names in zip(halves, (one, other), strict=True))


def test_nothing_is_changed(tissue, small_model, unchanged):
    adata = tissue.copy()
    st.tl.stage_niches(adata, model=small_model)
    with unchanged(adata):
        panel_agreement(adata, small_model, n_splits=1, n_domains=3)


def test_several_slides_and_a_stale_graph(slides, small_model, unchanged):
    part = slides[:300].copy()
    with unchanged(part):
        assert np.isfinite(panel_agreement(part, small_model, n_splits=1)).all(axis=None)


@pytest.mark.parametrize("form", ["layer", "backed", "dense", "dask"])
def test_expression_in_any_form(tissue, small_model, table, form, tmp_path):
    adata, layer = tissue.copy(), None
    if form == "layer":
        adata.layers["counts"], adata.X, layer = adata.X.copy(), None, "counts"
    elif form == "backed":
        adata.write_h5ad(tmp_path / "slide.h5ad")
        adata = ad.read_h5ad(tmp_path / "slide.h5ad", backed="r")
    elif form == "dense":
        adata.X = adata.X.toarray()
    else:
        import dask.array as da

        adata.X = da.from_array(adata.X.toarray(), chunks=(100, -1))
    other = panel_agreement(adata, small_model, n_splits=2, n_domains=4, layer=layer)
    pd.testing.assert_frame_equal(other, table)


def test_path_of_a_model(tissue, small_model, table, tmp_path):
    path = st.model.save_checkpoint(small_model, tmp_path / "model")
    pd.testing.assert_frame_equal(panel_agreement(tissue, path, n_splits=2, n_domains=4), table)


def test_refused(tissue, raw_tissue, small_model):
    with pytest.raises(TypeError, match="AnnData"):
        panel_agreement([tissue], small_model)
    with pytest.raises(TypeError, match="`model`"):
        panel_agreement(tissue, 3)
    with pytest.raises(ValueError, match="`n_splits`"):
        panel_agreement(tissue, small_model, n_splits=0)
    with pytest.raises(ValueError, match="`n_domains`"):
        panel_agreement(tissue, small_model, n_domains=0)
    with pytest.raises(KeyError, match="build_graph"):
        panel_agreement(raw_tissue, small_model)
    with pytest.raises(KeyError, match="counts"):
        panel_agreement(tissue, small_model, layer="counts")
    known = match_genes(tissue, vocabulary=small_model.vocabulary.keys()).table
    few = tissue[:, known.index[known["status"] == "matched"][:1]].copy()
    with pytest.raises(ValueError, match="knows 1 gene of 1 only"):
        panel_agreement(few, small_model)
