"""The graph: against brute force, invariances, units and grids, containers, and what becomes of a stale one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial import Delaunay, cKDTree
from scipy.spatial.distance import cdist

import stage_sc.pp as pp
from stage_sc.graph import gaussian_weights, read_graph, ring

STORED = ("spatial_connectivities", "spatial_distances", "local_connectivities")
KEYS = (*STORED, "view")  # the view ring is not stored


def cells(xy: np.ndarray, **obs: object) -> ad.AnnData:
    index = pd.RangeIndex(xy.shape[0]).astype(str)
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


def printed(rows: int = 20, seed: int = 0) -> np.ndarray:
    """Spots 200 µm apart, each up to 20 µm off its place."""
    return squares(rows, 200.0) + np.random.default_rng(seed).uniform(-20, 20, (rows * rows, 2))


def squares(rows: int = 12, pitch: float = 8.0) -> np.ndarray:
    return pitch * np.argwhere(np.ones((rows, rows))).astype(float)


def rotate(xy: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return xy @ np.array([[c, s], [-s, c]])


def built(xy: np.ndarray, library: object = None, **arguments: object) -> ad.AnnData:
    adata = cells(xy) if library is None else cells(xy, slide=library)
    pp.build_graph(adata, library_key=None if library is None else "slide", **arguments)
    return adata


def slide_row(adata: ad.AnnData, name: str = "") -> pd.Series:
    return adata.uns["stage_graph"]["slides"].loc[name]


def ring_of(xy: np.ndarray, some: np.ndarray, graph: sp.csr_matrix, *sizes: object) -> sp.csr_matrix:
    return ring(xy, cKDTree(xy), graph, some, sizes)


def relation(adata: ad.AnnData, key: str) -> sp.csr_matrix:
    """A stored matrix, or the view rings of all cells, slide by slide."""
    if key != "view":
        return sp.csr_matrix(adata.obsp[key])
    library_key, xy = adata.uns["stage_graph"]["params"]["library_key"], adata.obsm["spatial"]
    found = sp.lil_matrix((adata.n_obs, adata.n_obs), dtype=np.float32)
    for name, row in adata.uns["stage_graph"]["slides"].iterrows():
        here = np.flatnonzero(adata.obs[library_key] == name) if library_key else np.arange(adata.n_obs)
        graph = sp.csr_matrix(adata.obsp["spatial_distances"])[here][:, here]
        graph.data = gaussian_weights(graph.data, row["sigma"])  # as a slide keeps it, with 1 on the diagonal
        graph = sp.csr_matrix(graph + sp.identity(len(here)), dtype=np.float32)
        sizes = row[["mode", "local", "view", "sigma"]]
        found[np.ix_(here, here)] = ring_of(xy[here] * row["scale"], np.arange(len(here)), graph, *sizes)
    return found.tocsr()


def rings(adata: ad.AnnData) -> sp.csr_matrix:
    return relation(adata, "view")


def assert_same(
    one: ad.AnnData, other: ad.AnnData, keys: tuple[str, ...] = KEYS, *, of: object = slice(None), **tolerance: float
) -> None:
    """The graph of `one` is that among the cells `of` the other."""
    for key in keys:
        a, b = relation(one, key).sorted_indices(), relation(other, key)[of][:, of].sorted_indices()
        np.testing.assert_array_equal(a.indptr, b.indptr, err_msg=key)
        np.testing.assert_array_equal(a.indices, b.indices, err_msg=key)
        np.testing.assert_allclose(a.data, b.data, err_msg=key, **{"rtol": 0, **tolerance})


class TestAgainstBruteForce:
    def expected_delaunay(self, xy: np.ndarray, radius: float) -> np.ndarray:
        places, place = np.unique(xy, axis=0, return_inverse=True)
        joined = np.eye(len(places), dtype=bool)
        for triangle in Delaunay(places).simplices:
            joined[np.ix_(triangle, triangle)] |= cdist(places[triangle], places[triangle]) <= radius
        expected = joined[np.ix_(place.reshape(-1), place.reshape(-1))]
        np.fill_diagonal(expected, False)
        return expected

    @pytest.mark.parametrize("radius", [20.0, 100.0])
    def test_delaunay_with_coincident_cells(self, radius):
        xy = tissue()
        adata = built(xy, radius=radius)
        expected = self.expected_delaunay(xy, radius)
        np.testing.assert_array_equal(adata.obsp["spatial_connectivities"].toarray() == 1, expected)
        np.testing.assert_allclose(adata.obsp["spatial_distances"].toarray(), np.where(expected, cdist(xy, xy), 0))
        assert adata.obsp["spatial_distances"].nnz == expected.sum()  # edges of length 0 are stored too
        assert len(np.unique(expected.sum(axis=0))) > 3  # the example has unequal degrees
        assert not expected[14].any()
        assert slide_row(adata)["isolated"] >= 1

    @pytest.mark.parametrize(("low", "high"), [(25.0, 50.0), (0.5, 20.0), (90.0, 110.0)])
    def test_radius_mode(self, low, high):
        xy = tissue()
        adata = built(xy, sigma=15.0, local=low, view=high, scale=1.0)
        d = cdist(xy, xy)
        weight = np.exp(-(d**2) / (2 * 15.0**2))
        local, view = d <= low, (d > low) & (d <= high)
        for got, pairs in ((adata.obsp["local_connectivities"], local), (rings(adata), view)):
            np.testing.assert_array_equal(got.toarray() > 0, pairs)
            np.testing.assert_allclose(got.toarray(), np.where(pairs, weight, 0), rtol=1e-4)
        np.testing.assert_array_equal(adata.obsp["local_connectivities"].diagonal(), 1)
        assert (np.diff(rings(adata).indptr) == 0).sum() == (~view.any(axis=1)).sum() >= 1
        assert slide_row(adata)["no_local"] == (local.sum(axis=1) == 1).sum()
        assert slide_row(adata)["mean_local"] == pytest.approx(local.sum(axis=1).mean() - 1, abs=0.01)

    @pytest.mark.parametrize("sigma", [15.0, 4.0])  # products of small weights vanish in float32
    @pytest.mark.parametrize(("local", "view"), [(1, 1), (1, 2), (2, 2), (2, 4)])
    def test_hops_mode(self, local, view, sigma):
        xy = tissue()
        adata = built(xy, mode="hops", local=local, view=view, sigma=sigma)
        joined = self.expected_delaunay(xy, 100.0)
        hops = np.where(np.eye(len(xy), dtype=bool), 0, np.inf)
        for step in range(1, 5):
            reached = (hops < step) @ joined.astype(float) > 0
            hops[reached & np.isinf(hops)] = step
        np.testing.assert_array_equal(adata.obsp["local_connectivities"].toarray() > 0, hops <= local)
        np.testing.assert_array_equal(rings(adata).toarray() > 0, hops == view)
        weight = np.exp(-(cdist(xy, xy) ** 2) / (2 * sigma**2))
        np.testing.assert_allclose(rings(adata).toarray(), np.where(hops == view, weight, 0), rtol=1e-4, atol=1e-30)

    def test_default_sigma_is_the_median_edge(self):
        adata = built(tissue())
        lengths = adata.obsp["spatial_distances"].data
        assert slide_row(adata)["sigma"] == pytest.approx(np.median(lengths[lengths > 0]), rel=1e-4)

    def test_coincident_cells(self):
        """Closer than Qhull can tell, or at a zero of another sign."""
        xy = np.r_[tissue(60), tissue(60)[20:21] + 1e-13, [[0.0, 5.0], [-0.0, 5.0]]]
        joined = built(xy).obsp["spatial_connectivities"]
        assert joined[60, 20] == joined[20, 60] == joined[61, 62] == joined[62, 61] == 1

    def test_numbers_of_any_type(self):
        adata = built(tissue(), radius=np.int64(90), sigma=np.float32(15), local=20)
        assert_same(adata, built(tissue(), radius=90.0, sigma=15.0, local=20.0))

    def test_weights_never_vanish(self):
        weights = gaussian_weights(np.array([0.0, 1.0, 1e4]), 1.0)
        assert weights.dtype == np.float32
        assert weights[0] == 1
        assert (weights > 0).all()

    def test_stored(self):
        adata = built(tissue())
        assert list(adata.uns["spatial_neighbors"]["params"]["radius"]) == [0.0, 100.0]
        assert set(adata.obsp) == set(STORED)
        for key, dtype in zip(STORED, ["float32", "float64", "float32"], strict=True):
            assert adata.obsp[key].dtype == dtype
            assert adata.obsp[key].has_sorted_indices
            assert isinstance(adata.obsp[key], sp.csr_matrix)


@pytest.mark.parametrize(("mode", "local", "view"), [("radius", 25.0, 50.0), ("radius", 90.0, 110.0), ("hops", 2, 3)])
def test_rings_of_some_cells(mode, local, view):
    """An isolated cell, coincident ones, one twice."""
    xy, some = tissue(), np.array([14, 250, 0, 10, 10, 13, 77])
    adata = built(xy, mode=mode, local=local, view=view, sigma=15.0)
    got = ring_of(xy, some, adata.obsp["spatial_connectivities"], mode, local, view, 15.0)
    np.testing.assert_array_equal(got.toarray(), rings(adata)[some].toarray())
    assert got.has_sorted_indices
    assert got.dtype == np.float32
    assert got[0].nnz == 0
    assert got[1].nnz > 0


class TestInvariance:
    @pytest.mark.parametrize(
        ("xy", "arguments"),
        [
            pytest.param(tissue(), {"mode": "radius"}, id="radius"),
            pytest.param(tissue(), {"mode": "hops"}, id="hops"),
            # every four neighbours lie on one circle: the triangulation is a matter of choice, but always the same
            pytest.param(squares(20, 10.0), {"mode": "hops", "technology": "xenium"}, id="lattice"),
        ],
    )
    def test_cell_order(self, xy, arguments):
        library = np.where(np.arange(len(xy)) < len(xy) // 2, "a", "b")
        adata, order = built(xy, library, **arguments), np.random.default_rng(1).permutation(len(xy))
        assert_same(built(xy[order], library[order], **arguments), adata, of=order)

    @pytest.mark.parametrize("mode", ["radius", "hops"])
    def test_rotation_and_shift_leave_weights_to_the_bit(self, mode):
        xy = tissue(1000, 400.0)
        moved = rotate(xy, 0.7) + [1234.5, -98765.4]
        moved[10:13], moved[13] = moved[0], moved[1]  # coincident cells stay coincident
        one, other = built(xy, mode=mode), built(moved, mode=mode)
        assert_same(one, other, ("spatial_connectivities", "local_connectivities", "view"))
        assert_same(one, other, ("spatial_distances",), atol=1e-8)

    def test_pairs_on_the_boundary_stay_on_their_side(self):
        xy = np.array([[0.0, 0.0], [15, 20], [30, 40], [0, 10], [10, 0], [3, 3]])  # distances of exactly 25 and 50
        for angle in np.linspace(0, 6, 25):
            adata = built(rotate(xy, angle) + 1000 * angle)
            assert adata.obsp["local_connectivities"][0, 1] > 0
            assert rings(adata)[0, 1] == 0
            assert rings(adata)[0, 2] > 0

    def test_slides_do_not_touch(self):
        xy, other = tissue(), tissue(200, seed=1)
        library = ["one"] * len(xy) + ["two"] * len(other)
        adata = built(np.r_[xy, other], library)
        for name, alone in (("one", built(xy)), ("two", built(other))):
            assert_same(alone, adata, of=np.flatnonzero(adata.obs["slide"] == name))
        cut = np.array(library) == "one"
        for key in STORED:
            assert adata.obsp[key][cut][:, ~cut].nnz == 0


class TestUnits:
    def test_microns_are_recognised_silently(self, caplog):
        assert slide_row(built(np.random.default_rng(0).uniform(0, 500, (2000, 2))))["scale"] == 1
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    @pytest.mark.parametrize("factor", [30.0, 0.005])
    def test_unknown_unit_is_taken_from_the_spacing_with_a_warning(self, caplog, factor):
        xy = factor * np.random.default_rng(0).uniform(0, 400, (2000, 2))
        adata = built(xy)
        nearest = cKDTree(xy).query(xy, 2)[0][:, 1]
        assert slide_row(adata)["scale"] * np.median(nearest) == pytest.approx(10, rel=1e-4)
        assert "`scale`" in caplog.text
        assert_same(adata, built(xy * 4), atol=1e-3)

    def test_each_slide_has_its_own_unit(self, caplog):
        xy = np.random.default_rng(0).uniform(0, 400, (1500, 2))
        adata = built(np.r_[xy, xy * 50], ["µm"] * 1500 + ["px"] * 1500)
        assert slide_row(adata, "µm")["scale"] == 1
        assert slide_row(adata, "px")["scale"] < 0.1
        assert "'px'" in caplog.text
        assert "'µm'" not in caplog.text

    def test_given_scale_for_all_or_for_each(self):
        xy = tissue()
        assert_same(built(xy * 4, scale=0.25), built(xy), atol=1e-9)
        library = ["a"] * len(xy) + ["b"] * len(xy)
        mixed = built(np.r_[xy * 4, xy], library, scale={"a": 0.25})
        assert_same(mixed, built(np.r_[xy, xy], library), atol=1e-9)

    def test_pixels_of_a_named_instrument(self):
        pixels = np.random.default_rng(0).uniform(0, 800, (2000, 2)) / 0.2125
        assert slide_row(built(pixels, technology="Xenium"))["scale"] == 0.2125

    def test_sparse_neighbourhoods_are_reported(self, caplog):
        built(np.random.default_rng(0).uniform(0, 1500, (500, 2)), scale=1.0)
        assert "of 500 cells" in caplog.text
        assert 'mode="hops"' in caplog.text


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

    def test_visium_with_holes_and_small(self):
        xy = hexagonal(20)
        keep = np.random.default_rng(0).uniform(size=len(xy)) < 0.8
        small = built(hexagonal(3), technology="visium")
        assert slide_row(built(xy[keep]))["layout"] == slide_row(small)["layout"] == "hexagonal"
        assert small.obsp["spatial_connectivities"].nnz > 0

    @pytest.mark.parametrize(("pitch", "local", "view"), [(2.0, 8, 12), (8.0, 2, 3), (16.0, 1, 2), (25.0, 1, 2)])
    def test_bins(self, pitch, local, view):
        """Neighbourhoods of Visium HD and of binned Stereo-seq reach about as far whatever the bin."""
        xy = squares(26, pitch=pitch)
        adata = built(xy)
        row = slide_row(adata)
        assert (row["layout"], row["mode"], row["scale"]) == ("square", "hops", 1)
        steps = cdist(xy, xy, "chebyshev").round() / pitch
        np.testing.assert_array_equal(adata.obsp["spatial_connectivities"].toarray() == 1, steps == 1)
        np.testing.assert_array_equal(adata.obsp["local_connectivities"].toarray() > 0, steps <= local)
        np.testing.assert_array_equal(rings(adata).toarray() > 0, steps == view)

    def test_random_cells_are_no_grid(self):
        for seed in range(5):
            assert slide_row(built(np.random.default_rng(seed).uniform(0, 100, (40, 2))))["layout"] == "cells"

    @pytest.mark.parametrize(
        "name",
        "xenium merscope merfish cosmx starmap osmfish seqfish verafish slide_seq stereo_seq visium visium_hd "
        "spatial_transcriptomics st".split()
        + ["Slide-seq", "Visium HD", "STEREO-seq", "Spatial Transcriptomics"],
    )
    def test_every_technology(self, name):
        row = slide_row(built(tissue(), technology=name))
        spots = name == "st" or any(word in name.casefold() for word in ("visium", "transcriptomics"))
        assert row["mode"] == ("hops" if spots else "radius")
        assert (row["scale"] == 0.5) == ("stereo" in name.casefold())  # counts in half microns

    def test_arguments_win(self):
        row = slide_row(built(hexagonal(), technology="visium", mode="radius", local=150.0, sigma=70))
        assert (row["mode"], row["local"], row["view"], row["sigma"]) == ("radius", 150, 300, 70)
        row = slide_row(built(hexagonal(), local=2))
        assert (row["mode"], row["local"], row["view"]) == ("hops", 2, 2)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class TestPrintedSpots:
    """Arrays of spots that lie near, not on, the places of a grid."""

    @pytest.mark.parametrize("technology", [None, "spatial_transcriptomics", "ST"])
    @pytest.mark.parametrize("scale", [None, 1.0])
    @pytest.mark.parametrize("angle", [0.0, 0.7])
    def test_recognised_in_microns_without_a_warning(self, technology, scale, angle, caplog):
        xy = printed()
        adata = built(rotate(xy, angle), technology=technology, scale=scale)
        row = slide_row(adata)
        assert (row["layout"], row["scale"], row["mode"], row["local"], row["view"]) == ("spots", 1, "hops", 1, 2)
        assert not warnings_in(caplog)
        assert (row["isolated"], row["no_local"]) == (0, 0)
        assert 5 < row["mean_degree"] < 6
        assert adata.obsp["spatial_distances"].max() <= row["radius"] < 400
        assert_same(adata, built(xy), atol=1e-6)

    def test_recorded_radius_and_a_subset(self):
        adata = built(printed())
        assert adata.uns["stage_graph"]["params"]["radius"] == 100
        part = adata[adata.obsm["spatial"][:, 0] < 1000].copy()
        read_graph(part)
        row = slide_row(part)
        assert (row["layout"], row["isolated"], row["radius"]) == ("spots", 0, slide_row(adata)["radius"])
        assert slide_row(built(printed(), radius=900.0))["radius"] == 900

    @pytest.mark.parametrize("factor", [1 / 200, 0.3, 5.0])
    @pytest.mark.parametrize("technology", [None, "spatial_transcriptomics"])
    def test_pixels_and_indices_with_a_warning(self, factor, technology, caplog):
        row = slide_row(built(printed() * factor, technology=technology))
        nearest = np.median(cKDTree(printed()).query(printed(), 2)[0][:, 1])
        assert row["scale"] * factor * nearest == pytest.approx(200, rel=1e-4)
        assert (row["layout"], row["scale_source"], row["isolated"]) == ("spots", "guess", 0)
        (message,) = warnings_in(caplog)
        assert "`scale`" in message

    def test_pixels_of_an_image(self, caplog):
        for pixel in (0.5, 9.0):
            adata = cells(printed() / pixel)
            adata.uns["spatial"] = {"a": {"scalefactors": {"microns_per_pixel": pixel}}}
            pp.build_graph(adata)
            row = slide_row(adata)
            assert (row["layout"], row["scale"], row["scale_source"]) == ("spots", pixel, "pixels")
        assert not warnings_in(caplog)

    def test_holes_are_not_crossed(self):
        xy = printed()
        centre = np.abs(xy - 1900).max(axis=1) < 500
        keep = ~centre & (np.random.default_rng(1).uniform(size=len(xy)) < 0.9)
        adata = built(xy[keep])
        row = slide_row(adata)
        assert (row["layout"], row["scale"], row["isolated"]) == ("spots", 1, 0)
        edges = adata.obsp["spatial_connectivities"].tocoo()
        middle = (xy[keep][edges.row] + xy[keep][edges.col]) / 2
        assert not (np.abs(middle - 1900).max(axis=1) < 300).any()

    def test_beside_cells(self, caplog):
        tissue_of_cells = np.random.default_rng(0).uniform(0, 400, (1500, 2))
        adata = built(np.r_[printed(), tissue_of_cells], ["spots"] * 400 + ["cells"] * 1500)
        assert adata.uns["stage_graph"]["slides"]["layout"].to_dict() == {"cells": "cells", "spots": "spots"}
        assert not warnings_in(caplog)
        of_spots = np.flatnonzero(adata.obs["slide"] == "spots")
        assert_same(built(printed()), adata, of=of_spots)

    @pytest.mark.parametrize("pitch", [100.0, 150.0, 200.0])
    @pytest.mark.parametrize("arguments", [{}, {"scale": 1.0}, {"technology": "spatial_transcriptomics"}], ids=str)
    def test_places_of_the_array(self, pitch, arguments, caplog):
        row = slide_row(built(rotate(squares(pitch=pitch), 0.3), **arguments))
        assert (row["layout"], row["scale"], row["local"], row["view"]) == ("square", 1, 1, 2)
        assert row["isolated"] == 0
        assert not warnings_in(caplog)

    @pytest.mark.parametrize("spacing", [4.0, 10.0])
    @pytest.mark.parametrize("scale", [None, 1.0])
    def test_regular_cells_and_beads_are_cells(self, spacing, scale, caplog):
        row = slide_row(built(printed() * spacing / 200, scale=scale))
        assert (row["layout"], row["scale"], row["mode"], row["radius"]) == ("cells", 1, "radius", 100)
        assert not warnings_in(caplog)

    def test_irregular_places_too_far_apart_for_cells(self, caplog):
        xy = np.random.default_rng(0).uniform(0, 4000, (500, 2))
        row = slide_row(built(xy, scale=1.0))
        assert row["layout"] == "spots"
        assert row["isolated"] <= 50
        (message,) = warnings_in(caplog)
        assert "technology='spatial_transcriptomics'" in message
        caplog.clear()
        assert slide_row(built(xy, scale=1.0, technology="spatial_transcriptomics"))["layout"] == "spots"
        assert not warnings_in(caplog)

    def test_named_cells_beyond_the_radius(self, caplog):
        assert slide_row(built(printed(), scale=1.0, technology="xenium"))["isolated"] == 400
        assert "radius=100 µm" in caplog.text
        assert "technology='spatial_transcriptomics'" in caplog.text
        caplog.clear()
        assert slide_row(built(printed(), scale=1.0, technology="xenium", radius=370, mode="hops"))["isolated"] == 0
        assert not warnings_in(caplog)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"spatial_key": "xy"}, KeyError, "'xy'.*'spatial'"),
            ({"mode": "knn"}, ValueError, "'radius', 'hops'.*'knn'"),
            ({"radius": 0}, ValueError, "`radius`"),
            ({"radius": True}, TypeError, "`radius`"),
            ({"sigma": np.inf}, ValueError, "`sigma`"),
            ({"scale": -1.0}, ValueError, "`scale`"),
            ({"scale": "px"}, TypeError, "`scale`"),
            ({"scale": {"b": 1.0}}, KeyError, r"`scale`.*\['b'\]"),
            ({"local": 50, "view": 25}, ValueError, "`view`.*`local`"),
            ({"local": 60.0, "view": 60.0}, ValueError, "`view`.*`local`"),
            ({"mode": "hops", "local": 1.5}, TypeError, "`local`.*integer"),
            ({"technology": 1}, TypeError, "`technology`"),
            ({"technology": "xenum"}, ValueError, "'xenum'.*xenium, merscope"),
        ],
        ids=str,
    )
    def test_refused_and_untouched(self, arguments, error, match, unchanged):
        adata = cells(tissue())
        with unchanged(adata), pytest.raises(error, match=match):
            pp.build_graph(adata, **arguments)

    def test_fractional_hops_on_a_grid(self):
        with pytest.raises(ValueError, match=r"local=1\.5.*hexagonal"):
            built(hexagonal(), local=1.5)

    @pytest.mark.parametrize("offset", [0.0, 1e6])
    def test_a_line_far_away(self, offset):
        with pytest.raises(ValueError, match="line"):
            built(np.outer(np.arange(6), [0.1, 0.3]) + offset)
        assert built(tissue() + offset).n_obs == 300


class TestCoordinates:
    """Containers of the coordinates and slides of one object."""

    @pytest.mark.parametrize(
        "convert",
        [
            lambda xy: xy.astype(int),
            lambda xy: xy.astype(np.float32),
            sp.csr_matrix,
            lambda xy: pd.DataFrame(xy, columns=["x", "y"], index=pd.RangeIndex(len(xy)).astype(str)),
            np.asfortranarray,
            lambda xy: np.c_[xy, np.full(len(xy), 7.0)],  # a constant third coordinate
        ],
        ids=["integers", "float32", "sparse", "frame", "fortran", "three columns"],
    )
    def test_any_container(self, convert):
        xy = tissue().round()
        assert_same(built(convert(xy)), built(xy), STORED)

    def test_third_coordinate_of_each_slide(self):
        xy, library = np.r_[tissue(), tissue()], ["a"] * 300 + ["b"] * 300
        xyz = np.c_[xy, np.repeat([7.0, 9.0], 300)]
        assert_same(built(xyz, library), built(xy, library), STORED)
        with pytest.raises(ValueError, match="7 to 9.*`library_key`"):
            built(xyz)

    @pytest.mark.parametrize(
        "library",
        [["b", "a"] * 150, pd.Categorical(["b", "a"] * 150, categories=["unused", "b", "a"]), np.array([10, 9] * 150)],
        ids=["strings", "unsorted categories", "integers"],
    )
    def test_slides(self, library):
        adata = cells(tissue(), slide=library)
        before = adata.obs.copy()
        pp.build_graph(adata, library_key="slide")
        pd.testing.assert_frame_equal(adata.obs, before)  # strings stay strings
        assert adata.uns["stage_graph"]["slides"].index.tolist() == sorted({str(name) for name in library})

    def test_view_of_an_object(self):
        whole = cells(tissue())
        part = whole[::2]
        with pytest.warns(ad.ImplicitModificationWarning):
            pp.build_graph(part)
        assert part.obsp["local_connectivities"].shape == (150, 150)
        assert not whole.obsp

    @pytest.mark.parametrize("copy", [False, True])
    def test_backed(self, tmp_path, copy):
        ad.AnnData(np.ones((300, 2), np.float32), obsm={"spatial": tissue()}).write_h5ad(tmp_path / "a.h5ad")
        backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        changed = pp.build_graph(backed, copy=copy)
        assert_same(changed if copy else backed, built(tissue()))
        assert bool(backed.obsp) != copy
        backed.file.close()


CONTAINERS = [
    pytest.param(lambda one, other: {"one": one, 7: other}, ["one", "7"], id="dict"),
    pytest.param(lambda one, other: [one, other], ["0", "1"], id="list"),
    pytest.param(lambda one, other: (one, other), ["0", "1"], id="tuple"),
]


def pair() -> tuple[ad.AnnData, ad.AnnData]:
    return cells(tissue()), cells(tissue(200, seed=1) * 8, slide=["x", "y"] * 100)


@pytest.mark.parametrize(("container", "names"), CONTAINERS)
class TestSeveral:
    def test_each_as_alone(self, container, names, unchanged):
        """In place and as a copy."""
        parts, scale = pair(), {names[0]: 1.0, names[1]: 0.125}
        given = container(*parts)
        with unchanged(*parts):
            found = pp.build_graph(given, scale={names[1]: 0.125}, copy=True)
        assert type(found) is (dict if isinstance(given, dict) else list)
        assert list(found) == list(given) if isinstance(given, dict) else len(found) == 2
        assert pp.build_graph(given, scale=scale) is None
        for part, copied, own in zip(
            parts, found.values() if isinstance(found, dict) else found, (1, 0.125), strict=True
        ):
            alone = pp.build_graph(part, scale=own, copy=True)
            assert_same(part, alone)
            assert_same(copied, alone)
            pd.testing.assert_frame_equal(part.uns["stage_graph"]["slides"], alone.uns["stage_graph"]["slides"])
            assert part.uns["stage_graph"]["params"] == alone.uns["stage_graph"]["params"]
        parts[0].uns["stage_graph"]["params"]["mode"] = "changed"
        assert parts[1].uns["stage_graph"]["params"]["mode"] is None  # nothing is shared

    def test_slides_within_objects(self, container, names):
        one, other = pair()
        one.obs["slide"] = "y"
        scale = {f"{names[0]}/y": 1.0, f"{names[1]}/x": 0.125, f"{names[1]}/y": 0.2}
        pp.build_graph(container(one, other), library_key="slide", scale=scale)
        assert other.uns["stage_graph"]["slides"]["scale"].to_dict() == {"x": 0.125, "y": 0.2}
        with pytest.raises(KeyError, match=r"`scale`.*\['y'\]"):
            pp.build_graph(container(one, other), library_key="slide", scale={"y": 1.0})

    @pytest.mark.parametrize(
        ("library", "change", "name"),
        [
            pytest.param("slide", lambda xy: xy[:7], "/y", id="few cells of a slide"),
            pytest.param(None, lambda xy: 0 * xy, "", id="one place"),
            pytest.param(None, lambda xy: np.c_[xy, xy[:, 0]], "", id="third coordinate"),
            pytest.param(None, lambda xy: xy[:0], "", id="no cells"),
        ],
    )
    def test_one_that_is_refused_is_named(self, container, names, library, change, name, unchanged):
        one, xy = cells(tissue(), slide="x"), change(tissue(200))
        bad = cells(xy, slide=(["x", "y"] * 100)[: len(xy)])
        with unchanged(one, bad), pytest.raises(ValueError, match=f"'{names[1]}{name}'"):
            pp.build_graph(container(one, bad), library_key=library, errors="raise")

    def test_one_that_is_refused_late(self, container, names, unchanged):
        """When its pairs are counted, after the graph of the other was built."""
        parts = cells(tissue()), cells(np.random.default_rng(0).uniform(0, 1000, (3000, 2)))
        with unchanged(*parts), pytest.raises(ValueError, match="`scale`"):
            pp.build_graph(container(*parts), scale={names[0]: 1.0, names[1]: 0.01}, errors="raise")


def put(adata: ad.AnnData, change: Callable[[np.ndarray], np.ndarray]) -> ad.AnnData:
    adata.obsm["spatial"] = change(adata.obsm["spatial"])
    return adata


def name_slides(adata: ad.AnnData, names: np.ndarray) -> ad.AnnData:
    adata.obs["slide"] = names
    return adata


def by_squidpy(adata: ad.AnnData) -> ad.AnnData:
    import squidpy as sq

    sq.gr.spatial_neighbors_knn(adata, n_neighs=4)
    return adata


HALVES = np.repeat(["a", "b"], 150)
CHANGES = {
    "other unit": lambda adata: put(adata, lambda xy: xy * 0.5),
    "reordered by hand": lambda adata: put(adata, lambda xy: xy[::-1].copy()),
    "moved": lambda adata: put(adata, lambda xy: xy + np.arange(300)[:, None] % 7),
    # the isolated cell has no edge to lose: only the fingerprint tells
    "isolated cell moved": lambda adata: put(adata, lambda xy: np.where(np.arange(300)[:, None] == 14, xy[30] + 1, xy)),
    "isolated cell gone": lambda adata: adata[np.arange(300) != 14].copy(),
    "slide dropped": lambda adata: adata[HALVES == "a"].copy(),
    "slides exchanged": lambda adata: name_slides(adata, HALVES[::-1].copy()),
    "graph of another tool": by_squidpy,
}


class TestStaleGraph:
    def test_fresh_and_permuted_graphs_are_read_as_they_are(self, caplog):
        adata = built(tissue(), ["a", "b"] * 150)
        for view in (adata, adata[np.random.default_rng(0).permutation(300)].copy()):
            graph = read_graph(view)
            assert not caplog.records
            for got, key in zip(graph, STORED[1:], strict=True):
                np.testing.assert_array_equal(got.toarray(), view.obsp[key].toarray(), err_msg=key)

    @pytest.mark.parametrize("change", CHANGES)
    def test_rebuilt(self, change, caplog):
        # a part keeps the sigma of the whole, which is tested below
        arguments = {"local": 20.0, "sigma": 15.0 if change in ("isolated cell gone", "slide dropped") else None}
        adata = CHANGES[change](built(tissue(), HALVES, **arguments))
        graph = read_graph(adata)
        assert "rebuilding" in caplog.text
        assert_same(adata, built(adata.obsm["spatial"], adata.obs["slide"].tolist(), **arguments))
        assert adata.uns["stage_graph"]["slides"].index.tolist() == sorted(set(adata.obs["slide"]))
        np.testing.assert_array_equal(graph.local.toarray(), adata.obsp["local_connectivities"].toarray())
        caplog.clear()
        read_graph(adata)
        assert not caplog.records

    def test_subset_is_rebuilt_in_the_same_unit(self, caplog):
        xy = np.random.default_rng(0).uniform(0, 40_000, (1500, 2))  # pixels
        adata = built(xy)
        scale, sigma = slide_row(adata)[["scale", "sigma"]]
        part = adata[:300].copy()
        read_graph(part)
        assert "rebuilding" in caplog.text
        assert_same(part, built(xy[:300], scale=scale, sigma=sigma), atol=1e-9)

    def test_another_library_key(self):
        adata, other = built(tissue(), HALVES), ["x", "y", "z"] * 100
        adata.obs["other"] = other
        read_graph(adata, library_key="other")
        assert_same(adata, built(tissue(), other))
        assert adata.uns["stage_graph"]["params"]["library_key"] == "other"

    def test_given_scale(self, caplog):
        """Kept for other coordinates; one given for all holds for slides of other names."""
        adata = built(tissue(), scale=0.8)
        adata.obs["slide"] = HALVES
        read_graph(adata, library_key="slide")
        assert (adata.uns["stage_graph"]["slides"]["scale_source"] == "given").all()
        assert_same(adata, built(tissue(), HALVES, scale=0.8))
        adata.obsm["spatial"] *= 1.1
        read_graph(adata)
        assert adata.uns["stage_graph"]["slides"]["scale"].tolist() == [0.8, 0.8]
        assert "`scale`" not in caplog.text

    def test_a_scale_that_does_not_tell_of_a_slide_is_reported(self, caplog):
        adata = built(tissue(), HALVES, scale={"a": 0.8, "b": 0.9})
        adata.obs["slide"] = np.where(HALVES == "a", "a", "c")
        read_graph(adata)
        table = adata.uns["stage_graph"]["slides"]
        assert table.loc["a", "scale"] == 0.8
        assert table.loc["c", "scale_source"] != "given"
        assert "`scale`" in caplog.text
        assert "'c'" in caplog.text


@pytest.mark.parametrize(
    ("path", "layout", "low", "high"),
    [
        ("dlpfc_visium/151673", "hexagonal", 1, 1),
        ("mob_st/Rep11", "spots", 1, 1),
        ("her2st_breast/A1", "spots", 1, 1),
        ("her2st_breast/B1", "spots", 1, 1),
        ("her2st_breast/C1", "spots", 1, 1),
        ("her2st_breast/H1", "spots", 1, 1),
        ("starmap_mpfc/BZ5", "cells", 0.05, 0.07),
        ("osmfish_cortex/SScortex", "cells", 1, 1),
        ("xenium_breast_idc/IDC_crop", "cells", 1, 1),
    ],
)
def test_real_sections(dev_data, path, layout, low, high):
    adata = ad.read_h5ad(dev_data / f"{path}.h5ad")
    pp.build_graph(adata)
    row = slide_row(adata)
    assert row["layout"] == layout
    assert low <= row["scale"] <= high
    assert row["isolated"] <= 2
    assert 3 < row["mean_local"] < 25
    assert (np.diff(rings(adata).indptr) == 0).sum() < 0.01 * adata.n_obs
