"""Simulated tissue: contents, chance, layers, lesion, panels, batch effects, and bad parameters."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline

from stage_sc.datasets import simulate_cohort, simulate_tissue

LAYERS = ["L1", "L2/3", "L4", "L5", "L6", "WM"]


@pytest.fixture(scope="module")
def tissue() -> ad.AnnData:
    return simulate_tissue(2500, n_slides=2, lesion="slide2")


def assert_same(first: ad.AnnData, second: ad.AnnData) -> None:
    assert first.X.dtype == second.X.dtype and (first.X != second.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, second.obs)
    pd.testing.assert_frame_equal(first.var, second.var)
    np.testing.assert_array_equal(first.obsm["spatial"], second.obsm["spatial"])
    assert first.uns["simulation"] == second.uns["simulation"]


def test_what_is_in_it(tissue):
    assert tissue.shape == (5000, 172)
    assert isinstance(tissue.X, sparse.csr_matrix) and tissue.X.dtype == np.float32 and tissue.X.has_sorted_indices
    assert (tissue.X.data > 0).all() and (tissue.X.data == np.round(tissue.X.data)).all()
    assert tissue.obsm["spatial"].dtype == np.float64 and np.isfinite(tissue.obsm["spatial"]).all()
    assert tissue.obs_names[[0, -1]].tolist() == ["slide1_cell0001", "slide2_cell2500"]
    assert tissue.obs_names.is_unique and tissue.var_names.is_unique
    assert tissue.obs["domain"].cat.categories.tolist() == [*LAYERS, "lesion"]
    assert tissue.obs["slide"].value_counts(sort=False).to_dict() == {"slide1": 2500, "slide2": 2500}
    assert isinstance(tissue.obs["cell_type"].dtype, pd.CategoricalDtype)
    assert tissue.var.loc["Gad1", "marker_of"] == "Lamp5, Vip, Sst, Pvalb"


def test_seeds_and_generators():
    """The global generator is neither read nor moved."""
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = simulate_tissue(300, lesion="slide1", batch_effect=0.3)
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(2)
    assert_same(simulate_tissue(300, lesion="slide1", batch_effect=0.3), first)
    seeded, generator = simulate_tissue(300, rng=7), np.random.default_rng(7)
    assert (simulate_tissue(300, rng=generator).X != seeded.X).nnz == 0
    assert all((simulate_tissue(300, rng=rng).X != seeded.X).nnz > 0 for rng in (generator, 8, None, None))


@pytest.mark.parametrize("n_cells", [50, 300, 3000])
def test_spacing_is_that_of_imaging_data(n_cells):
    coordinates = simulate_tissue(n_cells).obsm["spatial"]
    distances = KDTree(coordinates).query(coordinates, 2)[0][:, 1]
    assert 10 < np.median(distances) < 14
    assert len(np.unique(coordinates, axis=0)) == n_cells


def test_layers_are_bands_with_cells_of_their_own(tissue):
    healthy = tissue[tissue.obs["slide"] == "slide1"]
    depth = healthy.obs.groupby("domain", observed=True)["depth"]
    assert (depth.max().to_numpy()[:-1] <= depth.min().to_numpy()[1:]).all()
    fraction = pd.crosstab(healthy.obs["domain"], healthy.obs["cell_type"], normalize="index")
    typical = {"L2/3 IT": "L2/3", "L4 IT": "L4", "L5 IT": "L5", "L6 CT": "L6", "Oligo": "WM", "VLMC": "L1"}
    assert fraction[list(typical)].idxmax().to_dict() == typical
    assert fraction.to_numpy().max() < 0.75  # a layer is a mixture
    xy = healthy.obsm["spatial"]
    neighbours = pd.Series(KDTree(xy).query_ball_point(xy, 40, return_length=True), healthy.obs_names)
    crowding = neighbours.groupby(healthy.obs["domain"], observed=True).mean()
    assert crowding["L1"] < crowding["L5"] < crowding["L4"]


@pytest.mark.parametrize(
    ("gene", "inside", "outside"),
    [("Gad1", ["Vip", "Sst"], ["L2/3 IT", "Oligo"]), ("Plp1", ["Oligo"], ["Astro"]), ("Cx3cr1", ["Micro"], ["OPC"])],
)
def test_markers_mark(tissue, gene, inside, outside):
    mark, rest = (tissue[tissue.obs["cell_type"].isin(types), gene].X.mean() for types in (inside, outside))
    assert mark > 3 * rest


def test_genes_fade_with_depth_within_a_type():
    adata = simulate_tissue(5000)
    cells = adata[(adata.obs["cell_type"] == "L2/3 IT") & (adata.obs["domain"] == "L2/3")]
    fading, growing, flat = (
        spearmanr(cells[:, gene].X.toarray()[:, 0], cells.obs["depth"]).statistic
        for gene in ("Calb1", "Rasgrf2", "Snap25")
    )
    assert fading < -0.15 and growing > 0.15 and abs(flat) < 0.12


def test_lesion_is_on_one_slide_and_changes_nothing_else(tissue):
    lesion = tissue.obs["domain"] == "lesion"
    assert set(tissue.obs.loc[lesion, "slide"]) == {"slide2"}
    assert 0.03 < lesion.mean() * 2 < 0.15
    reactive = tissue.obs["cell_type"].isin(["Reactive astro", "Activated micro"])
    assert reactive[lesion].mean() > 0.3 and reactive[~lesion].mean() < 0.01
    for gene in ("Gfap", "Vim", "C1qa", "Cd68", "Lyz2"):
        assert tissue[lesion, gene].X.mean() > 3 * tissue[~lesion, gene].X.mean()

    healthy, same = simulate_tissue(2500, n_slides=2), ["domain", "cell_type", "depth"]
    np.testing.assert_array_equal(healthy.obsm["spatial"], tissue.obsm["spatial"])
    assert (healthy.obs.loc[~lesion, same].astype(str) == tissue.obs.loc[~lesion, same].astype(str)).all(axis=None)
    assert "lesion" not in healthy.obs["domain"].cat.categories
    adata = simulate_tissue(300, n_slides=3, lesion=["slide1", "slide3"])
    assert set(adata.obs.loc[adata.obs["domain"] == "lesion", "slide"]) == {"slide1", "slide3"}


def test_rotation_only_turns():
    straight, turned = simulate_tissue(300, rotation=0), simulate_tissue(300, rotation=180)
    assert (straight.X != turned.X).nnz == 0
    assert not np.allclose(straight.obsm["spatial"], turned.obsm["spatial"])
    np.testing.assert_allclose(pdist(straight.obsm["spatial"]), pdist(turned.obsm["spatial"]))
    assert spearmanr(straight.obsm["spatial"][:, 1], straight.obs["depth"]).statistic > 0.9


def test_panels_overlap_in_part_and_differ_in_depth():
    """Of one tissue, with other probes."""
    full, a, b = (simulate_tissue(2000, panel=panel) for panel in ("full", "A", "B"))
    for adata in (a, b):
        np.testing.assert_array_equal(adata.obsm["spatial"], full.obsm["spatial"])
        pd.testing.assert_frame_equal(adata.obs, full.obs)
    assert (a.n_vars, b.n_vars, len(a.var_names.intersection(b.var_names))) == (115, 86, 29)
    assert np.median(a.X.sum(axis=1).A1) > 2.5 * np.median(b.X.sum(axis=1).A1)
    assert a.uns["simulation"]["panel"] == "A" and list(simulate_cohort(50, panels=("A", "B"))) == ["slide1", "slide2"]
    types = [set(", ".join(each.var["marker_of"]).split(", ")) for each in (full, a, b)]
    assert len(types[0]) == 20 and types[1] == types[2] == types[0]
    spread = [np.log(one.to_df().mean() / other.to_df().mean()).std() for one, other in ((full, a), (a, b))]
    assert spread[0] < 0.1 and spread[1] > 0.5  # panels A and full are of one platform


def test_cohort_and_tissue_are_one_simulation():
    """A slide does not depend on those after it."""
    alone, adata = (simulate_tissue(300, n_slides=n, panel="A", batch_effect=0.4) for n in (1, 3))
    cohort = simulate_cohort(300, panels=("A", "A"), lesion="slide2", batch_effect=0.4)
    assert (alone.X != adata[:300].X).nnz == 0 and (cohort["slide1"].X != alone.X).nnz == 0
    np.testing.assert_array_equal(alone.obsm["spatial"], adata[:300].obsm["spatial"])
    assert not np.allclose(adata[:300].obs["depth"], adata[300:600].obs["depth"])
    adata = simulate_tissue(300, n_slides=2, panel="A", lesion="slide2", batch_effect=0.4)
    for name, slide in cohort.items():
        part = adata[adata.obs["slide"] == name]
        assert (slide.X != part.X).nnz == 0 and slide.obs_names.equals(part.obs_names)
        assert slide.obs["slide"].cat.categories.tolist() == [name]
        assert ("lesion" in slide.obs["domain"].cat.categories) == (name == "slide2")


def test_batch_effect_moves_genes_not_cells():
    """Of astrocytes, genes that they express alone, so that differences in composition do not count."""
    plain, shifted = (simulate_tissue(3000, n_slides=2, batch_effect=effect) for effect in (0.0, 0.8))
    spread = []
    for adata in (plain, shifted):
        cells = adata[adata.obs["cell_type"] == "Astro", adata.var["marker_of"] == "Astro, Reactive astro"]
        first, second = (cells[cells.obs["slide"] == name].to_df().mean() for name in ("slide1", "slide2"))
        spread.append(np.log(first / second).std())
    assert spread[0] < 0.2 and spread[1] > 0.6
    pd.testing.assert_frame_equal(plain.obs, shifted.obs)


def test_niches_show_in_neighbourhoods_better_than_in_cells():
    adata = simulate_tissue(2000)
    counts = adata.X.toarray()
    expression = np.log1p(counts / counts.sum(axis=1, keepdims=True) * np.median(counts.sum(axis=1)))
    _, nearest = KDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], 25)
    cluster = make_pipeline(PCA(20, random_state=0), KMeans(len(LAYERS), n_init=3, random_state=0))
    cells, neighbourhoods = (
        adjusted_rand_score(adata.obs["domain"], cluster.fit_predict(features))
        for features in (expression, expression[nearest].mean(axis=1))
    )
    assert 0.1 < cells < 0.4 and 0.6 < neighbourhoods < 0.95


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(tissue, tmp_path, suffix):
    path = tmp_path / f"tissue.{suffix}"
    getattr(tissue, f"write_{suffix}")(path)
    assert_same(getattr(ad, f"read_{suffix}")(path), tissue)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_cells": 20}, ValueError, "n_cells.*50.*20"),
        ({"n_cells": 300.0}, TypeError, "n_cells.*300.0"),
        ({"n_slides": 0}, ValueError, "n_slides"),
        ({"n_slides": True}, TypeError, "n_slides"),
        ({"panel": "C"}, ValueError, "'full', 'A', 'B'.*'C'"),
        ({"lesion": "slide2"}, ValueError, "'slide1'.*'slide2'"),
        ({"batch_effect": -0.1}, ValueError, "batch_effect.*0 and 3.*-0.1"),
        ({"batch_effect": float("nan")}, ValueError, "batch_effect"),
        ({"rotation": "left"}, TypeError, "rotation.*'left'"),
        ({"panels": "AB"}, TypeError, "'AB'"),
        ({"panels": ()}, ValueError, "panels"),
        ({"panels": ("A", "X")}, ValueError, "'X'"),
    ],
)
def test_bad_parameters(arguments, error, message):
    with pytest.raises(error, match=message):
        (simulate_cohort if "panels" in arguments else simulate_tissue)(**{"n_cells": 300, **arguments})
