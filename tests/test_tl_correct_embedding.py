"""Embedding without shifts between slides: exact on shifts that are known, rare niches, diagnostics, bad input."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stage_sc as st


def cohort(shifts: np.ndarray, counts: np.ndarray, rng: int = 0, noise: float = 0.05) -> tuple[ad.AnnData, np.ndarray]:
    """Cells around the centre of each niche, moved by a shift of niche and slide; and the embedding without it."""
    generator = np.random.default_rng(rng)
    n_slides, n_niches, dim = shifts.shape
    slide, niche = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices((n_slides, n_niches)))
    true = np.eye(n_niches, dim)[niche] + noise * generator.normal(size=(len(niche), dim))
    obs = pd.DataFrame({"slide": [f"s{i}" for i in slide], "niche": [f"k{i}" for i in niche]})
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(np.ones((len(obs), 1), np.float32), obs=obs)
    adata.obsm["X_stage"] = (true + shifts[slide, niche]).astype(np.float32)
    return adata, true


@pytest.fixture
def shifted() -> tuple[ad.AnnData, np.ndarray]:
    shifts = np.zeros((2, 3, 8))
    shifts[1] = np.random.default_rng(1).normal(scale=0.4, size=(3, 8))
    return cohort(shifts, np.full((2, 3), 200))


def correct(adata: ad.AnnData, **arguments: object) -> tuple[np.ndarray, pd.DataFrame]:
    table = st.tl.correct_embedding(adata, **{"groupby": "niche", "library_key": "slide", **arguments})
    return adata.obsm["X_stage_corrected"], table


def means(adata: ad.AnnData, x: np.ndarray) -> np.ndarray:
    return pd.DataFrame(x).groupby([adata.obs["niche"].values, adata.obs["slide"].values]).mean().to_numpy()


def test_centroids_meet(shifted):
    adata, true = shifted
    before = adata.obsm["X_stage"].copy()
    x, table = correct(adata, shrinkage=0.0, temperature=0.0)
    by_slide = means(adata, x).reshape(3, 2, -1)
    np.testing.assert_allclose(by_slide[:, 0], by_slide[:, 1], atol=1e-5)
    # Cells of one niche and slide keep their places among each other.
    rows = np.flatnonzero((adata.obs["niche"] == "k0") & (adata.obs["slide"] == "s1"))
    np.testing.assert_allclose(np.diff(x[rows], axis=0), np.diff(before[rows], axis=0), atol=1e-5)
    assert (adata.obsm["X_stage"] == before).all()
    assert table.loc["mixing", "before"] < 0.1 < 0.9 < table.loc["mixing", "after"]


def test_mixture_of_niches_mixes_too(shifted):
    adata, _ = shifted
    _, table = correct(adata)
    assert table.loc["mixing within niches", "after"] > 0.8
    assert table.loc["purity niche", "after"] >= 0.99
    assert table.loc["silhouette niche", "after"] > table.loc["silhouette niche", "before"]


def test_rare_niche_moves_with_its_slide():
    """Its own centroid is noise: with shrinkage the estimate is nearer to the shift, which all niches share."""
    shifts = np.zeros((2, 4, 8))
    shifts[1] = 0.5 * np.eye(8)[7]
    counts = np.array([[300, 300, 300, 2], [300, 300, 300, 2]])
    errors = {}
    for shrinkage in (0.0, 10.0):
        found = []
        for seed in range(4):
            adata, true = cohort(shifts, counts, seed, noise=0.3)
            x, _ = correct(adata, shrinkage=shrinkage, temperature=0.0)
            rare = np.flatnonzero(adata.obs["niche"] == "k3")
            between = (x - true)[rare]
            found.append(np.linalg.norm(between[:2].mean(axis=0) - between[2:].mean(axis=0)))
        errors[shrinkage] = np.mean(found)
    assert errors[10.0] < 0.3 * errors[0.0]


def test_niche_of_one_slide_and_cells_without_label():
    shifts = np.zeros((2, 3, 8))
    shifts[1] = 0.5 * np.eye(8)[7]
    adata, true = cohort(shifts, np.array([[300, 300, 0], [300, 300, 100]]))
    adata.obs.loc[adata.obs_names[-5:], "niche"] = None
    x, _ = correct(adata, shrinkage=0.0, temperature=0.0)
    alone = slice(adata.n_obs - 100, adata.n_obs)
    first = adata.obs["slide"] == "s0"
    difference = (x - true)[alone].mean(axis=0) - (x - true)[first].mean(axis=0)
    np.testing.assert_allclose(difference, 0, atol=0.02)


def test_order_of_cells_and_container(shifted):
    adata, _ = shifted
    x, table = correct(adata)
    order = np.random.default_rng(3).permutation(adata.n_obs)
    other, again = correct(adata[order].copy())
    np.testing.assert_allclose(other, x[order], atol=1e-6)
    np.testing.assert_allclose(again, table, atol=1e-6)
    parts = {name: adata[adata.obs["slide"] == name].copy() for name in ("s0", "s1")}
    st.tl.correct_embedding(parts, groupby="niche")
    np.testing.assert_allclose(np.concatenate([one.obsm["X_stage_corrected"] for one in parts.values()]), x, atol=1e-6)


def test_of_a_model_and_files(slides, small_model, tmp_path):
    adata = slides.copy()
    st.tl.stage_niches(adata, model=small_model)
    table = st.tl.correct_embedding(adata, conserve=["domain", "cell_type"])
    np.testing.assert_allclose(np.linalg.norm(adata.obsm["X_stage_corrected"], axis=1), 1, atol=1e-5)
    assert adata.uns["stage_corrected"]["params"]["groupby"] == "stage_l2"
    assert table.index.tolist() == [
        *("mixing", "mixing within niches", "purity stage_l2", "silhouette stage_l2"),
        *("purity domain", "silhouette domain", "purity cell_type", "silhouette cell_type"),
    ]
    assert table.loc["mixing", "after"] > table.loc["mixing", "before"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for read in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        np.testing.assert_array_equal(read.obsm["X_stage_corrected"], adata.obsm["X_stage_corrected"])
        assert read.uns["stage_corrected"]["diagnostics"].equals(table)
        assert read.uns["stage_corrected"]["shifts"]["n_cells"].sum() == adata.n_obs


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"groupby": "none"}, KeyError, "`groupby`"),
        ({"conserve": "none"}, KeyError, "`conserve`"),
        ({"groupby": None}, KeyError, "stage_niches"),
        ({"library_key": ""}, ValueError, "one slide only"),
        ({"groupby": "slide"}, ValueError, "two slides"),
        ({"shrinkage": -1}, ValueError, "`shrinkage`"),
        ({"temperature": np.nan}, ValueError, "`temperature`"),
    ],
)
def test_bad_input(shifted, unchanged, arguments, error, match):
    adata, _ = shifted
    with unchanged(adata), pytest.raises(error, match=match):
        correct(adata, **arguments)


def test_bad_embedding(shifted, unchanged):
    adata, _ = shifted
    for change, match in ((lambda x: x.__setitem__((0, 0), np.nan), "NaN"), (lambda x: None, "X_stage")):
        broken = adata.copy()
        change(broken.obsm["X_stage"])
        if match == "X_stage":
            del broken.obsm["X_stage"]
        with unchanged(broken), pytest.raises((KeyError, ValueError), match=match):
            correct(broken)
