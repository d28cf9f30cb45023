"""Neighbours of niches, distances to a niche, cell types of niches."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

import stage_sc as st
from stage_sc.analysis._contacts import Edges, patch_contacts, shuffled_moments


def stripes(order: str, width: int = 6, height: int = 12, seed: int = 0) -> ad.AnnData:
    """Stripes of labels side by side, with a graph."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(width * len(order)), np.arange(height))
    xy = np.c_[x.ravel(), y.ravel()] * 10 + rng.uniform(-3, 3, (x.size, 2))
    labels = np.array(list(order))[x.ravel() // width]
    adata = ad.AnnData(np.ones((x.size, 1), np.float32), obsm={"spatial": xy})
    adata.obs["label"] = pd.Categorical(labels)
    st.pp.build_graph(adata, scale=1.0)
    return adata


def test_moments_are_those_of_permutations():
    rng = np.random.default_rng(0)
    codes = rng.choice(3, 40, p=[0.5, 0.3, 0.2])
    graph = sp.triu(sp.random(40, 40, 0.15, random_state=1), 1, format="coo")
    edges = Edges(graph.row, graph.col, codes)
    mean, variance = shuffled_moments(edges, 3)
    drawn = np.array([edges._replace(codes=rng.permutation(codes)).count_pairs(3) for _ in range(4000)])
    assert np.allclose(drawn.mean(axis=0), mean, rtol=0.03)
    assert np.allclose(drawn.var(axis=0), variance, rtol=0.12)


def test_patches_count_once():
    adata = stripes("abab")
    st.tl.niche_neighbors(adata, groupby="label")
    table = adata.uns["niche_neighbors"]["table"].set_index(["group", "neighbor"])
    assert table.loc[("a", "b"), "n_contacts"] == 3 and table.loc[("a", "b"), "n_edges"] > 30
    assert table.loc[("a", "b"), "share"] == 1 and np.isnan(table.loc[("a", "a"), "share"])
    assert table.loc[("a", "a"), "z_score"] > 5 > -5 > table.loc[("a", "b"), "z_score"]


def test_neighbours_beyond_size():
    """a and b are side by side more often than their numbers of contacts tell."""
    adata = stripes("ababcdcdcdabab" * 4)
    st.tl.niche_neighbors(adata, groupby="label")
    table = adata.uns["niche_neighbors"]["table"].set_index(["group", "neighbor"])
    assert table.loc[("a", "b"), "fdr"] < 0.05 and table.loc[("a", "b"), "log2_ratio"] > 0.5
    assert table.loc[("b", "d"), "fdr"] < 0.05 and table.loc[("b", "d"), "log2_ratio"] < -0.5
    assert np.allclose(table["p_value"].unstack(), table["p_value"].unstack().T, equal_nan=True)
    totals = table.groupby("group", observed=True)[["n_contacts", "expected_contacts"]].sum()
    assert np.allclose(totals["n_contacts"], totals["expected_contacts"], rtol=1e-4)


def test_random_tiles_are_not_found():
    """Share of small p-values where labels of patches are random."""
    small = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y = np.meshgrid(np.arange(12), np.arange(12))
        cells = np.arange(144).reshape(12, 12)
        edges = Edges(np.r_[cells[:, :-1].ravel(), cells[:-1].ravel()], np.r_[cells[:, 1:].ravel(), cells[1:].ravel()],
                      rng.integers(0, 5, 144))  # fmt: skip
        found, expected = patch_contacts(edges, 5)
        pairs = np.triu_indices(5, 1)
        small.append(np.abs((found - expected)[pairs]) / np.sqrt(expected[pairs]) > 1.96)
    assert np.mean(small) < 0.06


def test_slides_containers_and_order(tmp_path):
    parts = {"one": stripes("abcab", seed=1), "two": stripes("cabba", seed=2)}
    st.tl.niche_neighbors(parts, groupby="label")
    table = parts["one"].uns["niche_neighbors"]["table"]
    joined = ad.concat(parts, label="slide", index_unique="-", pairwise=True)
    joined.obs["label"] = joined.obs["label"].astype("category")
    st.pp.build_graph(joined, library_key="slide", scale=1.0)
    joined = joined[np.random.default_rng(0).permutation(joined.n_obs)].copy()
    st.tl.niche_neighbors(joined, groupby="label", library_key="slide")
    pd.testing.assert_frame_equal(joined.uns["niche_neighbors"]["table"], table)
    for path, read in ((tmp_path / "a.h5ad", ad.read_h5ad), (tmp_path / "a.zarr", ad.read_zarr)):
        (joined.write_h5ad if path.suffix == ".h5ad" else joined.write_zarr)(path)
        pd.testing.assert_frame_equal(read(path).uns["niche_neighbors"]["table"], table, check_categorical=False)


def test_differences_between_conditions():
    """In condition y, b lies beside a; in x beside c. Niches are the same size."""
    orders = {"x": ["adcbadcb", "dabcdabc"[::-1], "adcbdacb"], "y": ["abcdabdc", "bacdbadc", "abdcabcd"]}
    parts = {}
    for condition, three in orders.items():
        for number, order in enumerate(three):
            part = parts[f"{condition}{number}"] = stripes(order, seed=number)
            part.obs["condition"] = condition
    st.tl.niche_neighbors(parts, groupby="label", condition_key="condition")
    table = parts["x0"].uns["niche_neighbors"]["differences"].set_index(["group", "neighbor"])
    assert table.loc[("b", "a"), "log2_fold"] > 0 and len(table) == 12
    assert table.loc[("b", "a"), "share"] > table.loc[("b", "a"), "reference_share"]
    assert (table["fdr"].dropna() >= table["p_value"][table["fdr"].notna()] - 1e-12).all()
    assert (table["lower"] <= table["log2_fold"] + 1e-6).all() and (table["upper"] >= table["log2_fold"] - 1e-6).all()
    axes = st.pl.niche_neighbors(parts, kind="differences", show=False)
    assert [label.get_text() for label in axes.get_yticklabels()] == list("abcd")
    with pytest.raises(ValueError, match="condition"):
        st.pl.niche_neighbors(parts, condition="y")
    plt.close("all")


def test_neighbours_bad_input():
    adata = stripes("ab")
    for options, error, match in (
        ({"groupby": "none"}, KeyError, "groupby"),
        ({"sample_key": "label"}, ValueError, "condition_key"),
        ({"min_cells": -1}, ValueError, "min_cells"),
        ({"key_added": ""}, TypeError, "key_added"),
    ):
        with pytest.raises(error, match=match):
            st.tl.niche_neighbors(adata, **{"groupby": "label"} | options)
    with pytest.raises(KeyError, match="niche_neighbors"):
        st.pl.niche_neighbors(adata)
    with pytest.raises(KeyError, match="build_graph"):
        st.tl.niche_neighbors(ad.AnnData(adata.X, obs=adata.obs, obsm=dict(adata.obsm)), groupby="label")
    st.tl.niche_neighbors(adata, groupby="label")
    with pytest.raises(ValueError, match="kind"):
        st.pl.niche_neighbors(adata, kind="differences")


def test_distances(caplog):
    parts = {"one": stripes("abc"), "two": stripes("bcc")}
    for part in parts.values():
        st.pp.build_graph(part, scale=2.0)
    st.tl.distance_to_niche(parts, ["a"], groupby="label")
    xy, labels = parts["one"].obsm["spatial"], parts["one"].obs["label"]
    expected = 2 * cdist(xy, xy[labels == "a"]).min(axis=1)
    assert np.allclose(parts["one"].obs["distance_to_niche"], expected)
    assert parts["two"].obs["distance_to_niche"].isna().all()
    bare = ad.AnnData(parts["one"].X, obs=parts["one"].obs[["label"]], obsm={"spatial": xy})
    copy = st.tl.distance_to_niche(bare, "a", groupby="label", key_added="d", copy=True)
    assert np.allclose(2 * copy.obs["d"], expected) and "d" not in bare.obs and "not in µm" in caplog.text
    with pytest.raises(ValueError, match="niche.*'q'"):
        st.tl.distance_to_niche(bare, "q", groupby="label")
    with pytest.raises(ValueError, match="key_added"):
        st.tl.distance_to_niche(bare, "a", groupby="label", key_added="label")


@pytest.mark.parametrize("n_slides", [1, 4])
def test_cell_types(n_slides):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"niche": rng.choice(["n", "m"], 2000), "slide": rng.integers(0, n_slides, 2000).astype(str)})
    obs["type"] = np.where(rng.random(2000) < np.where(obs["niche"] == "n", 0.5, 0.2), "T", "B")
    adata = ad.AnnData(np.ones((2000, 1), np.float32), obs=obs.set_index(obs.index.astype(str)))
    st.tl.cell_type_enrichment(adata, cell_type_key="type", groupby="niche", library_key="slide")
    table = adata.uns["cell_type_enrichment"]["table"].set_index(["group", "cell_type"])
    row = table.loc[("n", "T")]
    assert row["lower"] < 2 < row["upper"] and row["fdr"] < 0.05 and row["n_slides"] == n_slides
    assert np.isclose(row["log2_odds"], -table.loc[("n", "B"), "log2_odds"])
    assert np.isclose(row["expected"], (obs["type"] == "T").mean())
    assert adata.uns["cell_type_enrichment"]["params"]["units"] == ("slides" if n_slides > 2 else "cells")
    axes = st.pl.cell_type_enrichment(adata, show=False)
    assert len(axes.get_yticklabels()) == 2
    plt.close("all")
    with pytest.raises(ValueError, match="cell_type_key"):
        st.tl.cell_type_enrichment(adata, cell_type_key="niche", groupby="niche")
