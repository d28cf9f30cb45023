"""Differential abundance: shares of niches between conditions, with samples as replicates."""

from __future__ import annotations

import logging

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

import stage_sc as st

CONDITIONS = ["a"] * 4 + ["b"] * 4
# Cells of the leaves of two parents, P (x, y, z) and Q (u, v), in four samples of each condition.
LEAVES = {"x": "P", "y": "P", "z": "P", "u": "Q", "v": "Q"}


def cohort(counts: np.ndarray, conditions: list[str] = CONDITIONS, **columns: list[object]) -> ad.AnnData:
    """One cell per count, `counts` is (leaves, samples)."""
    leaf = np.repeat(np.repeat(list(LEAVES), counts.shape[1]), counts.ravel())
    sample = np.repeat(np.tile(np.arange(counts.shape[1]), len(LEAVES)), counts.ravel())
    obs = pd.DataFrame({"fine": leaf, "coarse": [LEAVES[one] for one in leaf], "sample": [f"s{one}" for one in sample]})
    obs["condition"] = np.array(conditions, dtype=object)[sample]
    for name, values in columns.items():
        obs[name] = np.array(values)[sample]
    obs.index = obs.index.astype(str)
    return ad.AnnData(np.ones((len(obs), 1), np.float32), obs=obs)


def draw(seed: int = 0, n: int = 8, fold: float = 1.0, parent: float = 1.0) -> np.ndarray:
    """Over-dispersed counts; in the second half `fold` times x within P, and `parent` times P."""
    rng = np.random.default_rng(seed)
    counts = []
    for number in range(n):
        changed = number >= n // 2
        p = rng.beta(60 * 0.4, 60 * 0.6)
        p = p * parent / (p * parent + 1 - p) if changed else p
        weight = rng.dirichlet(60 * np.array([0.2, 0.3, 0.5])) * [fold if changed else 1, 1, 1]
        inside = rng.multinomial(round(2000 * p), weight / weight.sum())
        counts.append([*inside, *rng.multinomial(2000 - round(2000 * p), rng.dirichlet([24, 36]))])
    return np.array(counts).T


def compare(adata, **options) -> pd.DataFrame:
    st.tl.differential_abundance(
        adata, **{"condition_key": "condition", "sample_key": "sample", "groupby": ["coarse", "fine"]} | options
    )
    return adata.uns["differential_abundance"]["table"].set_index("group")


def test_a_difference_is_found_where_it_lies():
    table = compare(cohort(draw(seed=1, fold=6)))
    assert table.loc["x", "fdr"] < 0.02 and table["fdr"].idxmin() == "x"
    assert (table.loc[["P", "Q", "u", "v"], "fdr"] > 0.1).all()
    assert table.loc["x", "lower_within"] > 1 and table.loc["x", "parent"] == "P"
    parent = compare(cohort(draw(seed=1, parent=8)))
    assert (parent.loc[["P", "Q"], "fdr"] < 0.02).all() and (parent.loc[list(LEAVES), "fdr"] > 0.1).all()
    # Leaves of the parent grow with it among all cells, though not within it.
    assert (parent.loc[["x", "y", "z"], "log2_fold"] > 0.5).all()
    assert np.abs(parent.loc[["x", "y", "z"], "log2_fold_within"]).max() < 0.5


def test_folds_are_those_of_the_shares():
    counts = np.tile(np.array([[100], [300], [600], [400], [600]]), 8)
    counts[:3, 4:] = [[400], [300], [300]]
    table = compare(cohort(counts))
    assert np.isclose(table.loc["x", "log2_fold_within"], 2, atol=1e-3)
    assert np.isclose(table.loc["x", "log2_fold"], 2, atol=1e-3) and np.isclose(table.loc["x", "fraction"], 0.2)
    assert np.isclose(table.loc["z", "log2_fold_within"], -1, atol=1e-3)
    assert (table["lower_within"] <= table["log2_fold_within"]).all()


def test_two_children_are_one_question():
    table = compare(cohort(draw(seed=2, fold=2)))
    for pair in (["P", "Q"], ["u", "v"]):
        assert np.ptp(table.loc[pair, "p_value"]) < 1e-9 and table.loc[pair, "fdr"].nunique() == 1


def test_conditions_mirror_each_other():
    counts = draw(seed=3, fold=3)
    one, other = compare(cohort(counts)), compare(cohort(counts), reference="b")
    assert np.allclose(one["p_value"], other["p_value"], atol=1e-6)
    assert np.allclose(one["log2_fold"], -other["log2_fold"], atol=1e-5)
    assert np.allclose(one["lower_within"], -other["upper_within"], atol=1e-4)


def test_order_of_cells_and_names_of_samples_do_not_matter(tmp_path):
    adata = cohort(draw(seed=4, fold=2))
    table = compare(adata)
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    shuffled.obs["sample"] = "z" + shuffled.obs["sample"].str[::-1]
    assert np.allclose(compare(shuffled).loc[table.index, "p_value"], table["p_value"], atol=1e-8)
    parts = {name: adata[adata.obs["sample"] == name].copy() for name in sorted(set(adata.obs["sample"]))}
    assert np.allclose(_of_parts(parts)["p_value"], table["p_value"], atol=1e-8)
    for path, read in ((tmp_path / "a.h5ad", ad.read_h5ad), (tmp_path / "a.zarr", ad.read_zarr)):
        (adata.write_h5ad if path.suffix == ".h5ad" else adata.write_zarr)(path)
        stored = read(path).uns["differential_abundance"]
        pd.testing.assert_frame_equal(stored["table"].set_index("group"), table, check_categorical=False)
        assert stored["fractions"].shape == (8, len(table))


def _of_parts(parts: dict[str, ad.AnnData]) -> pd.DataFrame:
    """Each object is a slide, and so a sample."""
    st.tl.differential_abundance(parts, condition_key="condition", groupby=["coarse", "fine"])
    assert all("differential_abundance" in part.uns for part in parts.values())
    return parts["s0"].uns["differential_abundance"]["table"].set_index("group")


def test_promise_is_kept_without_difference():
    """With three samples each; the benchmark has many more cohorts."""
    p = [compare(cohort(draw(seed, n=6), ["a"] * 3 + ["b"] * 3)) for seed in range(30)]
    small = np.mean([(table["p_value"] < 0.05).mean() for table in p])
    assert small < 0.11, small
    assert np.mean([(table["fdr"] <= 0.1).any() for table in p]) < 0.2
    inside = np.mean([((table["lower_within"] <= 0) & (table["upper_within"] >= 0)).mean() for table in p])
    assert inside > 0.9


def test_no_replicates_no_p_values(caplog):
    counts = draw()[:, [0, 4, 5]]
    with caplog.at_level(logging.WARNING):
        adata = cohort(counts, ["a", "b", "b"])
        table = compare(adata)
    assert "No replicates" in caplog.text and "'a': 1" in caplog.text
    assert table[["p_value", "fdr", "lower", "upper"]].isna().all(axis=None) and table["log2_fold"].notna().all()
    changes, _ = st.pl.differential_abundance(adata, show=False)
    assert "not tested" in changes.get_title("left")


def test_specific_and_shared():
    counts = draw(seed=5)
    counts[0, :4] = 0
    table = compare(cohort(counts))
    assert table.loc["x", "specific_to"] == "b" and table.loc["y", "specific_to"] == ""
    assert table.loc["y", "found_in"] == "a, b" and table.loc["x", "found_in"] == "b"
    assert np.isfinite(table.loc["x", "log2_fold"]) and table.loc["x", "upper"] == np.inf
    assert table.loc["x", "lower"] > 0 and table.loc["x", "fdr"] < 0.05


def test_covariates_explain():
    """Pairs of patients that differ much more than conditions within them."""
    rng = np.random.default_rng(0)
    share = np.tile(np.array([0.05, 0.2, 0.5, 0.8]), 2)
    odds = share / (1 - share) * np.repeat([1, 2.0], 4) * np.exp(0.05 * rng.normal(size=8))
    x = np.round(1000 * odds / (1 + odds)).astype(int)
    counts = np.stack([x, 1000 - x, np.full(8, 200), np.full(8, 300), np.full(8, 400)])
    patient = ["p1", "p2", "p3", "p4"] * 2
    plain, paired = (compare(cohort(counts, patient=patient), covariates=c) for c in ([], "patient"))
    assert plain.loc["x", "p_value"] > 0.1 and paired.loc["x", "p_value"] < 0.02
    with pytest.raises(ValueError, match="covariates.*cannot be told apart"):
        compare(cohort(counts, batch=[1.0] * 4 + [2.0] * 4), covariates="batch")


def test_three_conditions_and_missing_ones(caplog):
    adata = cohort(draw(seed=6, n=9), ["a"] * 3 + ["b"] * 3 + ["c"] * 2 + [None])
    with caplog.at_level(logging.WARNING):
        table = compare(adata, groupby="fine")
    assert "1 of 9 samples" in caplog.text and list(table["condition"].unique()) == ["b", "c"]
    assert (table["reference"] == "a").all() and len(table) == 10


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"condition_key": "none"}, KeyError, "condition_key"),
        ({"condition_key": "coarse"}, ValueError, "condition_key.*several values"),
        ({"condition_key": "same"}, ValueError, "condition_key.*all samples"),
        ({"groupby": ["fine", "coarse"]}, ValueError, "groupby.*nested"),
        ({"groupby": []}, TypeError, "groupby"),
        ({"reference": "q"}, ValueError, "reference.*'q'"),
        ({"covariates": "none"}, KeyError, "covariates"),
        ({"covariates": "coarse"}, ValueError, "covariates.*several values"),
        ({"min_cells": 0}, ValueError, "min_cells"),
        ({"key_added": "a/b"}, ValueError, "key_added"),
        ({"key_added": "taken"}, ValueError, "key_added"),
    ],
)
def test_bad_input(options, error, match):
    adata = cohort(draw())
    adata.obs["same"], adata.uns["taken"] = "one", 3
    before = adata.obs.copy(), dict(adata.uns)
    with pytest.raises(error, match=match):
        compare(adata, **options)
    pd.testing.assert_frame_equal(adata.obs, before[0])
    assert adata.uns == before[1]


def test_levels_of_the_niches():
    adata = cohort(draw(fold=6)).copy()
    adata.obs["stage_l1"] = pd.Categorical(adata.obs["coarse"].map({"P": "N0", "Q": "N1"}))
    leaves = {name: f"N{number + 2}" for number, name in enumerate(LEAVES)}
    adata.obs["stage_l2"] = pd.Categorical(adata.obs["fine"].map(leaves))
    tree = pd.DataFrame({"level": [1, 1, 2, 2, 2, 2, 2], "parent": ["", "", "N0", "N0", "N0", "N1", "N1"]})
    tree.index = [f"N{number}" for number in range(7)]
    adata.uns["stage"] = {"levels": ["stage_l1", "stage_l2"], "tree": tree, "params": {}, "model": {}}
    given = compare(adata)
    for groupby in (None, "stage_l2"):
        table = compare(adata, groupby=groupby)
        assert np.allclose(table.loc[list(leaves.values()), "fdr"], given.loc[list(LEAVES), "fdr"])
    assert list(compare(adata, groupby="stage_l1").index) == ["N0", "N1"]


def test_plot(tmp_path):
    adata = cohort(draw(fold=6))
    compare(adata)
    changes, shares = st.pl.differential_abundance(adata, show=False)
    points = [one for one in changes.collections if isinstance(one, PathCollection)][-1]
    table = adata.uns["differential_abundance"]["table"]
    assert (points.get_facecolors() != 1).any(axis=1).sum() == (table["fdr"] <= 0.1).sum()
    names = [text.get_text() for text in changes.texts if text.get_text() != "■"]
    assert names == ["P", "x", "y", "z", "Q", "u", "v"] and shares.get_xscale() == "log"
    fig = st.pl.differential_abundance(adata, max_rows=2, return_fig=True, save=tmp_path / "a.svg")
    assert [text.get_text() for text in fig.axes[0].texts if text.get_text() != "■"] == ["P", "x"]
    assert "log2 fold" in (tmp_path / "a.svg").read_text()
    with pytest.raises(ValueError, match="condition"):
        st.pl.differential_abundance(adata, condition="q")
    plt.close("all")
