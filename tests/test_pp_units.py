"""Units, grids and presets: what is guessed from the coordinates, and what is said about it."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

import stage_sc.pp as pp
from stage_sc.graph._neighbors import ring
from stage_sc.graph._platforms import PLATFORMS
from stage_sc.graph._units import distinct_places

STORED = ("spatial_connectivities", "spatial_distances", "local_connectivities")
KEYS = (*STORED, "view")  # the view ring is not stored


def cells(xy: np.ndarray, **obs: object) -> ad.AnnData:
    index = pd.RangeIndex(len(xy)).astype(str)
    return ad.AnnData(obs=pd.DataFrame(dict(obs), index=index), obsm={"spatial": xy})


def tissue(n: int = 300, size: float = 200.0, seed: int = 0) -> np.ndarray:
    """Uneven density, a few coincident cells, one cell far from all others."""
    rng = np.random.default_rng(seed)
    xy = size * rng.uniform(0, 1, (n, 2)) ** [1.5, 1.0]
    xy[10:13] = xy[0]
    xy[13] = xy[1]
    xy[14] = [size + 150, size + 150]
    return xy


def hexagonal(rows: int = 12, pitch: float = 100.0) -> np.ndarray:
    row, column = np.divmod(np.arange(rows * rows), rows)
    return np.c_[pitch * (column + 0.5 * (row % 2)), pitch * np.sqrt(0.75) * row]


def squares(rows: int = 12, pitch: float = 8.0) -> np.ndarray:
    return pitch * np.argwhere(np.ones((rows, rows))).astype(float)


def built(xy: np.ndarray, library: object = None, **arguments: object) -> ad.AnnData:
    adata = cells(xy) if library is None else cells(xy, slide=library)
    pp.build_graph(adata, library_key=None if library is None else "slide", **arguments)
    return adata


def slide_row(adata: ad.AnnData, name: str = "") -> pd.Series:
    return adata.uns["stage_graph"]["slides"].loc[name]


def rings(adata: ad.AnnData) -> sp.csr_matrix:
    """View rings of all cells, slide by slide, as training finds them."""
    library_key, table = adata.uns["stage_graph"]["params"]["library_key"], adata.uns["stage_graph"]["slides"]
    found = sp.lil_matrix((adata.n_obs, adata.n_obs), dtype=np.float32)
    for name, row in table.iterrows():
        here = np.flatnonzero(adata.obs[library_key] == name) if library_key else np.arange(adata.n_obs)
        graph, places = adata.obsp["spatial_connectivities"][here][:, here], adata.obsm["spatial"][here] * row["scale"]
        sizes = (row["mode"], row["local"], row["view"], row["sigma"])
        found[np.ix_(here, here)] = ring(places, cKDTree(places), graph, np.arange(len(here)), sizes)
    return found.tocsr()


def assert_same(one: ad.AnnData, other: ad.AnnData, keys: tuple[str, ...] = KEYS, **tolerance: float) -> None:
    for key in keys:
        pair = [rings(adata) if key == "view" else sp.csr_matrix(adata.obsp[key]) for adata in (one, other)]
        a, b = (matrix.sorted_indices() for matrix in pair)
        np.testing.assert_array_equal(a.indptr, b.indptr, err_msg=key)
        np.testing.assert_array_equal(a.indices, b.indices, err_msg=key)
        np.testing.assert_allclose(a.data, b.data, err_msg=key, **{"rtol": 0, **tolerance})


def rotate(xy: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return xy @ np.array([[c, s], [-s, c]])


class TestDistinctPlaces:
    @settings(max_examples=50, deadline=None)
    @given(some.lists(some.tuples(*[some.sampled_from([0.0, -0.0, 1.0, -2.5, 1e-300, 3e7])] * 2), min_size=1))
    def test_like_numpy(self, pairs):
        xy = np.array(pairs)
        places, place = distinct_places(xy)
        expected, inverse = np.unique(xy + 0.0, axis=0, return_inverse=True)
        np.testing.assert_array_equal(places, expected)
        np.testing.assert_array_equal(place, inverse.reshape(-1))
        np.testing.assert_array_equal(places[place], xy)
        assert not np.signbit(places[places == 0]).any()

    def test_any_layout_in_memory(self):
        xy = tissue()
        before = xy.copy()
        for other in (np.asfortranarray(xy), np.c_[xy, xy][:, 2:], xy[::-1][::-1]):
            for one, same in zip(distinct_places(other), distinct_places(xy), strict=True):
                np.testing.assert_array_equal(one, same)
        np.testing.assert_array_equal(xy, before)
        assert len(distinct_places(xy)[0]) == 300 - 4


class TestUnits:
    def test_microns_are_recognised_silently(self, caplog):
        assert slide_row(built(np.random.default_rng(0).uniform(0, 500, (2000, 2))))["scale"] == 1
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    @pytest.mark.parametrize("factor", [30.0, 0.005])
    def test_unknown_unit_is_taken_from_the_spacing_with_a_warning(self, caplog, factor):
        rng = np.random.default_rng(0)
        adata = built(factor * rng.uniform(0, 400, (2000, 2)))
        distance = cdist(*[adata.obsm["spatial"]] * 2)
        np.fill_diagonal(distance, np.inf)
        scale = slide_row(adata)["scale"]
        assert scale * np.median(distance.min(axis=1)) == pytest.approx(10, rel=1e-4)
        assert "unit of the coordinates is unknown" in caplog.text
        assert "`scale`" in caplog.text

    def test_each_slide_has_its_own_unit(self, caplog):
        xy = np.random.default_rng(0).uniform(0, 400, (1500, 2))
        adata = built(np.r_[xy, xy * 50], ["µm"] * 1500 + ["px"] * 1500)
        assert slide_row(adata, "µm")["scale"] == 1
        assert slide_row(adata, "px")["scale"] < 0.1
        assert "Slide 'px'" in caplog.text
        assert "Slide 'µm'" not in caplog.text

    def test_given_scale_for_all_or_for_each(self):
        xy = tissue()
        assert_same(built(xy * 4, scale=0.25), built(xy), atol=1e-9)
        library = ["a"] * len(xy) + ["b"] * len(xy)
        mixed = built(np.r_[xy * 4, xy], library, scale={"a": 0.25})
        assert_same(mixed, built(np.r_[xy, xy], library), atol=1e-9)

    def test_insane_scale_warns(self, caplog):
        built(tissue(), scale=100.0, mode="hops")
        assert "outside 2-200 µm" in caplog.text
        assert "scale=100" in caplog.text

    def test_scale_that_puts_everything_within_reach_is_refused(self):
        xy = np.random.default_rng(0).uniform(0, 1000, (3000, 2))
        with pytest.raises(ValueError, match="`scale`.*too small"):
            built(xy, scale=0.01)

    def test_pixels_of_a_named_instrument(self):
        rng = np.random.default_rng(0)
        pixels = rng.uniform(0, 800, (2000, 2)) / 0.2125
        assert slide_row(built(pixels, technology="Xenium"))["scale"] == 0.2125

    def test_sparse_neighbourhoods_are_reported(self, caplog):
        built(np.random.default_rng(0).uniform(0, 4000, (500, 2)), scale=1.0)
        assert "nobody in their local neighbourhood" in caplog.text


class TestGrids:
    @pytest.mark.parametrize("pitch", [100.0, 6.9, 137.0])
    def test_visium_is_recognised_in_microns_and_pixels(self, pitch, caplog):
        xy = hexagonal(pitch=pitch)
        adata = built(xy)
        row = slide_row(adata)
        assert (row["layout"], row["mode"], row["local"], row["view"]) == ("hexagonal", "hops", 1, 2)
        assert row["scale"] == pytest.approx(100 / pitch, rel=1e-4)
        assert ("scale=" in caplog.text) == (pitch != 100)
        expected = np.abs(cdist(xy, xy) / pitch - 1) < 0.1
        np.testing.assert_array_equal(adata.obsp["spatial_connectivities"].toarray() == 1, expected)
        np.testing.assert_allclose(adata.obsp["spatial_distances"].data, 100, rtol=1e-4)
        inside = 5 * 12 + 5
        assert adata.obsp["local_connectivities"][inside].nnz == 7
        assert rings(adata)[inside].nnz == 12

    def test_visium_with_holes(self):
        xy = hexagonal(20)
        keep = np.random.default_rng(0).uniform(size=len(xy)) < 0.8
        assert slide_row(built(xy[keep]))["layout"] == "hexagonal"

    @pytest.mark.parametrize("pitch", [2.0, 8.0, 16.0])
    def test_visium_hd(self, pitch):
        xy = squares(pitch=pitch)
        adata = built(xy)
        row = slide_row(adata)
        assert (row["layout"], row["mode"], row["scale"]) == ("square", "hops", 1)
        steps = cdist(xy, xy, "chebyshev").round() / pitch
        np.testing.assert_array_equal(adata.obsp["spatial_connectivities"].toarray() == 1, steps == 1)
        np.testing.assert_array_equal(adata.obsp["local_connectivities"].toarray() > 0, steps <= 2)
        np.testing.assert_array_equal(rings(adata).toarray() > 0, steps == 3)

    def test_rotated_grid_stays_a_grid(self):
        xy = hexagonal()
        assert_same(built(rotate(xy, 0.3)), built(xy), KEYS[2:])

    def test_random_cells_are_no_grid(self):
        for seed in range(5):
            assert slide_row(built(np.random.default_rng(seed).uniform(0, 100, (40, 2))))["layout"] == "cells"

    def test_small_grid_with_a_name(self):
        adata = built(hexagonal(3), technology="visium")
        assert slide_row(adata)["layout"] == "hexagonal"
        assert adata.obsp["spatial_connectivities"].nnz > 0


class TestPresets:
    @pytest.mark.parametrize("name", [*PLATFORMS, "Slide-seq", "Visium HD", "STEREO-seq"])
    def test_every_name_works(self, name):
        row = slide_row(built(tissue(), technology=name))
        assert row["mode"] == ("hops" if "visium" in name.casefold() else "radius")

    def test_stereo_seq_counts_in_half_microns(self):
        assert slide_row(built(tissue(), technology="stereo_seq"))["scale"] == 0.5

    def test_unknown_name_lists_the_valid_ones(self):
        with pytest.raises(ValueError, match="'xenum'.*xenium, merscope"):
            built(tissue(), technology="xenum")

    def test_arguments_win(self):
        row = slide_row(built(hexagonal(), technology="visium", mode="radius", local=150.0, sigma=70))
        assert (row["mode"], row["local"], row["view"], row["sigma"]) == ("radius", 150, 300, 70)
        row = slide_row(built(hexagonal(), local=2))
        assert (row["mode"], row["local"], row["view"]) == ("hops", 2, 2)


class TestRealSections:
    @pytest.mark.parametrize(
        ("path", "layout", "low", "high"),
        [
            ("dlpfc_visium/151673", "hexagonal", 1, 1),
            ("starmap_mpfc/BZ5", "cells", 0.05, 0.07),
            ("osmfish_cortex/SScortex", "cells", 1, 1),
            ("xenium_breast_idc/IDC_crop", "cells", 1, 1),
        ],
    )
    def test_what_is_reported(self, dev_data, path, layout, low, high):
        adata = ad.read_h5ad(dev_data / f"{path}.h5ad")
        pp.build_graph(adata)
        row = slide_row(adata)
        assert row["layout"] == layout
        assert low <= row["scale"] <= high
        assert row["isolated"] <= 2
        assert (np.diff(rings(adata).indptr) == 0).sum() < 0.01 * adata.n_obs
        assert 3 < row["mean_local"] < 25
