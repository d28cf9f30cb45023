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

from stage_sc.datasets import simulate_cohort, simulate_tissue

LAYERS = ["L1", "L2/3", "L4", "L5", "L6", "WM"]


@pytest.fixture(scope="module")
def tissue() -> ad.AnnData:
    return simulate_tissue(2500, n_slides=2, lesion="slide2")


def assert_same(first: ad.AnnData, second: ad.AnnData) -> None:
    assert first.X.dtype == second.X.dtype
    assert (first.X != second.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, second.obs)
    pd.testing.assert_frame_equal(first.var, second.var)
    np.testing.assert_array_equal(first.obsm["spatial"], second.obsm["spatial"])
    assert first.uns["simulation"] == second.uns["simulation"]


def counts_of(adata: ad.AnnData, gene: str, cell_types: list[str]) -> np.ndarray:
    return adata[adata.obs["cell_type"].isin(cell_types), gene].X.toarray().ravel()


def test_what_is_in_it(tissue):
    assert tissue.shape == (5000, 172)
    assert isinstance(tissue.X, sparse.csr_matrix)
    assert tissue.X.dtype == np.float32
    assert tissue.X.has_sorted_indices
    assert (tissue.X.data > 0).all()
    assert (tissue.X.data == np.round(tissue.X.data)).all()
    assert tissue.obsm["spatial"].dtype == np.float64
    assert np.isfinite(tissue.obsm["spatial"]).all()
    assert tissue.obs_names[[0, -1]].tolist() == ["slide1_cell0001", "slide2_cell2500"]
    assert tissue.obs_names.is_unique
    assert tissue.var_names.is_unique
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
    seeded = simulate_tissue(300, rng=7)
    generator = np.random.default_rng(7)
    first, second = simulate_tissue(300, rng=generator), simulate_tissue(300, rng=generator)
    assert (first.X != seeded.X).nnz == 0
    for other in (second, simulate_tissue(300, rng=8), simulate_tissue(300, rng=None), simulate_tissue(300, rng=None)):
        assert (other.X != seeded.X).nnz > 0


def test_slide_does_not_depend_on_those_after_it():
    alone, among = simulate_tissue(300), simulate_tissue(300, n_slides=3)
    assert (alone.X != among[:300].X).nnz == 0
    np.testing.assert_array_equal(alone.obsm["spatial"], among[:300].obsm["spatial"])
    assert not np.allclose(among[:300].obs["depth"], among[300:600].obs["depth"])


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
    share = pd.crosstab(healthy.obs["domain"], healthy.obs["cell_type"], normalize="index")
    typical = {"L2/3 IT": "L2/3", "L4 IT": "L4", "L5 IT": "L5", "L6 CT": "L6", "Oligo": "WM", "VLMC": "L1"}
    assert share[list(typical)].idxmax().to_dict() == typical
    assert share.to_numpy().max() < 0.75  # a layer is a mixture
    coordinates = healthy.obsm["spatial"]
    neighbours = pd.Series(KDTree(coordinates).query_ball_point(coordinates, 40, return_length=True))
    crowding = neighbours.groupby(healthy.obs["domain"].to_numpy(), observed=True).mean()
    assert crowding["L1"] < crowding["L5"] < crowding["L4"]


def test_markers_mark(tissue):
    for gene, inside, outside in [
        ("Gad1", ["Vip", "Sst"], ["L2/3 IT", "Oligo"]),
        ("Slc17a7", ["L4 IT", "L6 CT"], ["Pvalb", "Astro"]),
        ("Plp1", ["Oligo"], ["Astro", "L5 IT"]),
        ("Cx3cr1", ["Micro"], ["Endo", "OPC"]),
    ]:
        assert counts_of(tissue, gene, inside).mean() > 3 * counts_of(tissue, gene, outside).mean()


def test_genes_fade_with_depth_within_a_type():
    adata = simulate_tissue(5000)
    for gene, cell_type, layer, sign in [
        ("Calb1", "L2/3 IT", "L2/3", -1), ("Rasgrf2", "L2/3 IT", "L2/3", 1), ("Syt6", "L6 CT", "L6", 1)
    ]:  # fmt: skip
        cells = adata[(adata.obs["cell_type"] == cell_type) & (adata.obs["domain"] == layer)]
        graded, flat = (
            spearmanr(cells[:, g].X.toarray()[:, 0], cells.obs["depth"]).statistic for g in (gene, "Snap25")
        )
        assert sign * graded > 0.15
        assert abs(flat) < 0.12


def test_lesion_is_on_one_slide_and_changes_nothing_else(tissue):
    lesion = tissue.obs["domain"] == "lesion"
    assert set(tissue.obs.loc[lesion, "slide"]) == {"slide2"}
    assert 0.03 < lesion.mean() * 2 < 0.15
    reactive = tissue.obs["cell_type"].isin(["Reactive astro", "Activated micro"])
    assert reactive[lesion].mean() > 0.3
    assert reactive[~lesion].mean() < 0.01
    spot, rest = tissue[lesion], tissue[~lesion]
    for gene in ("Gfap", "Vim", "C1qa", "Cd68", "Lyz2"):
        assert spot[:, gene].X.mean() > 3 * rest[:, gene].X.mean()

    healthy = simulate_tissue(2500, n_slides=2)
    np.testing.assert_array_equal(healthy.obsm["spatial"], tissue.obsm["spatial"])
    same = ["domain", "cell_type", "depth"]
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
    cohort = simulate_cohort(400, panels=("A", "B"))
    assert list(cohort) == ["slide1", "slide2"]
    a, b = cohort["slide1"], cohort["slide2"]
    shared = a.var_names.intersection(b.var_names)
    assert (a.n_vars, b.n_vars, len(shared)) == (115, 86, 29)
    assert np.median(a.to_df().sum(axis=1)) > 2.5 * np.median(b.to_df().sum(axis=1))
    assert a.uns["simulation"]["panel"] == "A"
    every_type = set(", ".join(simulate_tissue(50).var["marker_of"]).split(", "))
    assert len(every_type) == 20
    for adata in (a, b):
        assert set(", ".join(adata.var["marker_of"]).split(", ")) == every_type


def test_panels_see_the_same_tissue_with_other_probes():
    full, a, b = (simulate_tissue(2000, panel=panel) for panel in ("full", "A", "B"))
    for adata in (a, b):
        np.testing.assert_array_equal(adata.obsm["spatial"], full.obsm["spatial"])
        pd.testing.assert_frame_equal(adata.obs, full.obs)

    def spread(first: ad.AnnData, second: ad.AnnData) -> float:
        shared = first.var_names.intersection(second.var_names)
        ratio = np.asarray(first[:, shared].X.mean(axis=0) / second[:, shared].X.mean(axis=0))
        return float(np.log(ratio).std())

    assert spread(full, a) < 0.1  # one platform
    assert spread(a, b) > 0.5


def test_cohort_and_tissue_are_one_simulation():
    adata = simulate_tissue(300, n_slides=2, panel="A", lesion="slide2", batch_effect=0.4)
    cohort = simulate_cohort(300, panels=("A", "A"), lesion="slide2", batch_effect=0.4)
    for name, slide in cohort.items():
        part = adata[adata.obs["slide"] == name]
        assert (slide.X != part.X).nnz == 0
        assert slide.obs_names.equals(part.obs_names)
        assert slide.obs["slide"].cat.categories.tolist() == [name]
        assert ("lesion" in slide.obs["domain"].cat.categories) == (name == "slide2")


def test_batch_effect_moves_genes_not_cells():
    def spread(batch_effect: float) -> tuple[float, ad.AnnData]:
        adata = simulate_tissue(3000, n_slides=2, batch_effect=batch_effect)
        # Astrocytes and what they express alone, so that differences in composition do not count.
        marks_astrocytes = adata.var["marker_of"] == "Astro, Reactive astro"
        cells = adata[adata.obs["cell_type"] == "Astro", marks_astrocytes]
        first, second = (cells[cells.obs["slide"] == name].to_df().mean() for name in ("slide1", "slide2"))
        return float(np.log(first / second).std()), adata

    (none, plain), (strong, shifted) = spread(0.0), spread(0.8)
    assert none < 0.2
    assert strong > 0.6
    pd.testing.assert_frame_equal(plain.obs, shifted.obs)


def test_niches_show_in_neighbourhoods_better_than_in_cells():
    adata = simulate_tissue(2000)
    counts = adata.X.toarray()
    expression = np.log1p(counts / counts.sum(axis=1, keepdims=True) * np.median(counts.sum(axis=1)))
    _, nearest = KDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], 25)

    def agreement(features: np.ndarray) -> float:
        reduced = PCA(20, random_state=0).fit_transform(features)
        labels = KMeans(len(LAYERS), n_init=3, random_state=0).fit_predict(reduced)
        return adjusted_rand_score(adata.obs["domain"], labels)

    assert 0.1 < agreement(expression) < 0.4
    assert 0.6 < agreement(expression[nearest].mean(axis=1)) < 0.95


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
    ],
)
def test_bad_parameters_of_a_tissue(arguments, error, message):
    with pytest.raises(error, match=message):
        simulate_tissue(**{"n_cells": 300, **arguments})


@pytest.mark.parametrize(
    ("panels", "error", "message"),
    [("AB", TypeError, "'AB'"), ((), ValueError, "panels"), (("A", "X"), ValueError, "'X'")],
)
def test_bad_panels_of_a_cohort(panels, error, message):
    with pytest.raises(error, match=message):
        simulate_cohort(300, panels=panels)
