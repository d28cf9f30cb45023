"""The graph against brute force, its invariances, bad input, and the containers it is read from and stored in."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial import Delaunay, cKDTree
from scipy.spatial.distance import cdist

import stage_sc.pp as pp
from stage_sc.graph._state import read_graph
from stage_sc.graph._neighbors import gaussian_weights, ring

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


def built(xy: np.ndarray, library: object = None, **arguments: object) -> ad.AnnData:
    adata = cells(xy) if library is None else cells(xy, slide=library)
    pp.build_graph(adata, library_key=None if library is None else "slide", **arguments)
    return adata


def slide_row(adata: ad.AnnData, name: str = "") -> pd.Series:
    return adata.uns["stage_graph"]["slides"].loc[name]


def rings(adata: ad.AnnData) -> sp.csr_matrix:
    """View rings of all cells, slide by slide, as training finds them."""
    library_key, xy = adata.uns["stage_graph"]["params"]["library_key"], adata.obsm["spatial"]
    rows, cols, weights = [], [], []
    for name, row in adata.uns["stage_graph"]["slides"].iterrows():
        here = np.flatnonzero(adata.obs[library_key] == name) if library_key else np.arange(adata.n_obs)
        graph = sp.csr_matrix(adata.obsp["spatial_connectivities"])[here][:, here]
        places = xy[here] * row["scale"]
        sizes = (row["mode"], row["local"], row["view"], row["sigma"])
        found = ring(places, cKDTree(places), graph, np.arange(len(here)), sizes).tocoo()
        rows, cols, weights = [*rows, here[found.row]], [*cols, here[found.col]], [*weights, found.data]
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(cols))
    return sp.csr_matrix(entries, shape=(adata.n_obs, adata.n_obs))


def relation(adata: ad.AnnData, key: str) -> sp.csr_matrix:
    return rings(adata) if key == "view" else sp.csr_matrix(adata.obsp[key])


def assert_same(
    one: ad.AnnData,
    other: ad.AnnData,
    keys: tuple[str, ...] = KEYS,
    *,
    of: np.ndarray | slice = slice(None),
    **tolerance: float,
) -> None:
    """The graph of `one` is that among the cells `of` the other."""
    for key in keys:
        a, b = relation(one, key).sorted_indices(), relation(other, key)[of][:, of].sorted_indices()
        np.testing.assert_array_equal(a.indptr, b.indptr, err_msg=key)
        np.testing.assert_array_equal(a.indices, b.indices, err_msg=key)
        np.testing.assert_allclose(a.data, b.data, err_msg=key, **{"rtol": 0, **tolerance})


def squares(rows: int = 12, pitch: float = 8.0) -> np.ndarray:
    return pitch * np.argwhere(np.ones((rows, rows))).astype(float)


def rotate(xy: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return xy @ np.array([[c, s], [-s, c]])


class TestAgainstBruteForce:
    def expected_delaunay(self, xy: np.ndarray, radius: float) -> np.ndarray:
        places, place = np.unique(xy, axis=0, return_inverse=True)
        place = place.reshape(-1)
        joined = np.eye(len(places), dtype=bool)
        for triangle in Delaunay(places).simplices:
            for i in triangle:
                for j in triangle:
                    joined[i, j] = i == j or np.linalg.norm(places[i] - places[j]) <= radius
        expected = joined[np.ix_(place, place)]
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

    def test_radius_mode(self):
        xy = tissue()
        adata = built(xy, sigma=15.0)
        d = cdist(xy, xy)
        weight = np.exp(-(d**2) / (2 * 15.0**2))
        local, view = d <= 25, (d > 25) & (d <= 50)
        np.testing.assert_array_equal(adata.obsp["local_connectivities"].toarray() > 0, local)
        np.testing.assert_array_equal(rings(adata).toarray() > 0, view)
        np.testing.assert_allclose(adata.obsp["local_connectivities"].toarray(), np.where(local, weight, 0), rtol=1e-4)
        np.testing.assert_allclose(rings(adata).toarray(), np.where(view, weight, 0), rtol=1e-4)
        np.testing.assert_array_equal(adata.obsp["local_connectivities"].diagonal(), 1)
        row = slide_row(adata)
        assert (np.diff(rings(adata).indptr) == 0).sum() == (~view.any(axis=1)).sum() == 1
        assert row["no_local"] == (local.sum(axis=1) == 1).sum()
        assert row["mean_local"] == pytest.approx(local.sum(axis=1).mean() - 1, abs=0.01)

    @pytest.mark.parametrize(("local", "view"), [(1, 1), (1, 2), (2, 2), (2, 4)])
    def test_hops_mode(self, local, view):
        xy = tissue()
        adata = built(xy, mode="hops", local=local, view=view, sigma=15.0)
        joined = self.expected_delaunay(xy, 100.0)
        hops = np.where(np.eye(len(xy), dtype=bool), 0, np.inf)
        for step in range(1, 5):
            reached = (hops < step) @ joined.astype(float) > 0
            hops[reached & np.isinf(hops)] = step
        np.testing.assert_array_equal(adata.obsp["local_connectivities"].toarray() > 0, hops <= local)
        np.testing.assert_array_equal(rings(adata).toarray() > 0, hops == view)
        weight = np.exp(-(cdist(xy, xy) ** 2) / (2 * 15.0**2))
        np.testing.assert_allclose(rings(adata).toarray(), np.where(hops == view, weight, 0), rtol=1e-4, atol=1e-30)

    def test_default_sigma_is_the_median_edge(self):
        adata = built(tissue())
        lengths = adata.obsp["spatial_distances"].data
        assert slide_row(adata)["sigma"] == pytest.approx(np.median(lengths[lengths > 0]), rel=1e-4)

    def test_places_closer_than_qhull_can_tell_stay_connected(self):
        xy = np.r_[tissue(60), tissue(60)[20:21] + 1e-13]
        adata = built(xy)
        assert adata.obsp["spatial_connectivities"][60, 20] == 1
        assert adata.obsp["spatial_connectivities"][20, 60] == 1

    def test_weights_never_vanish(self):
        weights = gaussian_weights(np.array([0.0, 1.0, 1e4]), 1.0)
        assert weights.dtype == np.float32
        assert weights[0] == 1
        assert (weights > 0).all()

    def test_dtypes(self):
        adata = built(tissue())
        assert set(adata.obsp) == set(STORED)
        dtypes = ["float32", "float64", "float32"]
        for key, dtype in zip(STORED, dtypes, strict=True):
            assert adata.obsp[key].dtype == dtype
            assert adata.obsp[key].has_sorted_indices
            assert isinstance(adata.obsp[key], sp.csr_matrix)


def ring_of(
    xy: np.ndarray, cells: np.ndarray, graph: sp.csr_matrix, mode: str, local: float, view: float, sigma: float = 15.0
) -> sp.csr_matrix:
    return ring(xy, cKDTree(xy), graph, cells, (mode, local, view, sigma))


def weighted(adata: ad.AnnData, sigma: float) -> sp.csr_matrix:
    """The graph as a slide keeps it: Gaussian weights, 1 on the diagonal."""
    lengths = sp.csr_matrix(adata.obsp["spatial_distances"])
    edges = sp.csr_matrix((gaussian_weights(lengths.data, sigma), lengths.indices, lengths.indptr), lengths.shape)
    return sp.csr_matrix(edges + sp.identity(lengths.shape[0], np.float32, format="csr"))


class TestRing:
    """Of some cells, from the graph in any form."""

    CELLS = np.array([14, 250, 0, 10, 10, 13, 77])  # an isolated cell, coincident ones, one twice

    @pytest.mark.parametrize(("local", "view"), [(25.0, 50.0), (0.5, 20.0), (90.0, 110.0)])
    def test_radius(self, local, view):
        xy = tissue()
        got = ring_of(xy, self.CELLS, built(xy).obsp["spatial_connectivities"], "radius", local, view)
        d = cdist(xy[self.CELLS], xy)
        assert got.has_sorted_indices
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got.toarray() > 0, (local < d) & (d <= view))
        expected = np.where((local < d) & (d <= view), np.exp(-(d**2) / (2 * 15.0**2)), 0)
        np.testing.assert_allclose(got.toarray(), expected, rtol=1e-4)
        assert got[0].nnz == 0
        assert got[1].nnz > 0

    @pytest.mark.parametrize("sigma", [15.0, 4.0])
    @pytest.mark.parametrize(("local", "view"), [(1, 1), (2, 2), (1, 2), (2, 3), (1, 4)])
    def test_hops(self, local, view, sigma):
        """By a walk over the graph; with small weights too, whose products float32 cannot hold."""
        xy = tissue()
        adata = built(xy, mode="hops", local=local, view=view)
        adjacency = adata.obsp["spatial_connectivities"].toarray() > 0
        for graph in (sp.csr_matrix(adjacency), weighted(adata, sigma)):
            got = ring_of(xy, self.CELLS, graph, "hops", local, view, sigma)
            assert got.has_sorted_indices
            assert got.dtype == np.float32
            for cell, row in zip(self.CELLS, got, strict=True):
                seen, last = {int(cell)}, {int(cell)}
                for _ in range(view):
                    last = {int(other) for one in last for other in np.flatnonzero(adjacency[one])} - seen
                    seen |= last
                assert row.indices.tolist() == sorted(last)
                expected = gaussian_weights(cdist(xy[[cell]], xy[row.indices])[0], sigma)
                np.testing.assert_allclose(row.data, expected, rtol=1e-4)
        assert got[0].nnz == 0
        assert got[1].nnz > 0

    @pytest.mark.parametrize(("mode", "local", "view"), [("radius", 25.0, 50.0), ("hops", 2, 3)])
    def test_order_of_the_cells(self, mode, local, view):
        xy = tissue()
        graph = weighted(built(xy), 15.0)
        expected = ring_of(xy, np.arange(300), graph, mode, local, view)
        order = np.random.default_rng(3).permutation(300)
        got = ring_of(xy[order], np.arange(300), graph[order][:, order], mode, local, view)
        np.testing.assert_array_equal(got.toarray(), expected.toarray()[np.ix_(order, order)])
        some = np.random.default_rng(4).permutation(300)[:50]
        np.testing.assert_array_equal(ring_of(xy, some, graph, mode, local, view).toarray(), expected[some].toarray())


class TestInvariance:
    def test_cell_order(self):
        xy = tissue()
        library = np.where(np.arange(len(xy)) % 3, "a", "b")
        for mode in ("radius", "hops"):
            adata = built(xy, library, mode=mode)
            order = np.random.default_rng(1).permutation(len(xy))
            assert_same(built(xy[order], library[order], mode=mode), adata, of=order)

    def test_cell_order_on_a_square_lattice_triangulated_as_cells(self):
        """Every four neighbours lie on one circle: the triangulation is a matter of choice, but always the same."""
        xy = squares(10, 10.0)
        order = np.random.default_rng(1).permutation(len(xy))
        adata = built(xy, technology="xenium", mode="hops")
        assert_same(built(xy[order], technology="xenium", mode="hops"), adata, of=order)

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

    def test_unit_does_not_matter_when_it_is_inferred(self):
        xy = tissue(500)
        pixels = built(xy * 1000)
        again = built(xy * 4000)
        assert_same(pixels, again, atol=1e-3)

    def test_slides_do_not_touch(self):
        xy, other = tissue(), tissue(200, seed=1)
        library = ["one"] * len(xy) + ["two"] * len(other)
        adata = built(np.r_[xy, other], library)
        for name, alone in (("one", built(xy)), ("two", built(other))):
            assert_same(alone, adata, of=np.flatnonzero(adata.obs["slide"] == name))
        cut = np.array(library) == "one"
        for key in STORED:
            assert adata.obsp[key][cut][:, ~cut].nnz == 0


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "arguments", "error", "match"),
        [
            pytest.param({}, {"spatial_key": "xy"}, KeyError, "obsm holds 'spatial'", id="no coordinates"),
            pytest.param({}, {"library_key": "slide"}, KeyError, "obs holds nothing", id="no slides"),
            pytest.param({"nan": 3}, {}, ValueError, "3 of 300 cells have NaN", id="NaN"),
            pytest.param({"flat": True}, {}, ValueError, "at the same place", id="one place"),
            pytest.param({}, {"mode": "knn"}, ValueError, "'radius', 'hops', got 'knn'", id="mode"),
            pytest.param({}, {"radius": 0}, ValueError, "`radius` must be above 0", id="radius"),
            pytest.param({}, {"scale": -1.0}, ValueError, "`scale` must be above 0", id="scale"),
            pytest.param({}, {"scale": "px"}, TypeError, "`scale` must be a number", id="scale type"),
            pytest.param({}, {"scale": {"b": 1.0}}, KeyError, "slides that do not exist", id="scale of no slide"),
            pytest.param({}, {"local": 50, "view": 25}, ValueError, "farther than `local`", id="view inside local"),
            pytest.param({}, {"local": 60.0, "view": 60.0}, ValueError, "farther than `local`", id="empty ring"),
            pytest.param({}, {"mode": "hops", "local": 1.5}, TypeError, "an integer above 0", id="half a hop"),
            pytest.param({}, {"technology": 1}, TypeError, "must be a string", id="technology type"),
        ],
    )
    def test_refused_and_untouched(self, change, arguments, error, match):
        xy = tissue()
        if "nan" in change:
            xy[: change["nan"], 1] = np.nan
        if "flat" in change:
            xy[:] = 1.0
        adata = cells(xy)
        with pytest.raises(error, match=match):
            pp.build_graph(adata, **arguments)
        assert not adata.obsp
        assert not adata.uns
        assert list(adata.obsm) == ["spatial"]

    def test_fractional_hops_on_a_grid(self):
        with pytest.raises(ValueError, match="hexagonal.*hops are whole"):
            built(hexagonal(), local=1.5)

    def test_one_bad_slide_leaves_everything_untouched(self):
        adata = cells(tissue(), slide=["a"] * 297 + ["b"] * 3)
        with pytest.raises(ValueError, match="Slide 'b': 3 cells"):
            pp.build_graph(adata, library_key="slide")
        assert not adata.obsp
        assert not adata.uns

    def test_four_cells(self):
        adata = built(np.array([[0.0, 0], [10, 0], [0, 10], [11, 12]]))
        assert adata.obsp["spatial_connectivities"].nnz >= 8


class TestContainers:
    def test_coordinates_far_away_and_as_integers(self):
        xy = np.unique(tissue(400).round().astype(int), axis=0)
        assert_same(built(xy + 10_000_000), built(xy.astype(float)), atol=1e-6)

    def test_strings_stay_strings(self):
        adata = cells(tissue(), slide=["a", "b"] * 150)
        before = adata.obs["slide"].copy()
        pp.build_graph(adata, library_key="slide")
        pd.testing.assert_series_equal(adata.obs["slide"], before)

    def test_view_of_an_object(self):
        whole = cells(tissue())
        part = whole[::2]
        with pytest.warns(ad.ImplicitModificationWarning):
            pp.build_graph(part)
        assert part.obsp["local_connectivities"].shape == (150, 150)
        assert not whole.obsp

    def test_copy(self):
        adata = cells(tissue())
        changed = pp.build_graph(adata, copy=True)
        assert not adata.obsp
        assert_same(changed, built(tissue()))

    @pytest.mark.parametrize("copy", [False, True])
    def test_backed(self, tmp_path, copy):
        adata = cells(tissue())
        adata = ad.AnnData(np.ones((300, 2), np.float32), obs=adata.obs, obsm=dict(adata.obsm))
        adata.write_h5ad(tmp_path / "a.h5ad")
        backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        changed = pp.build_graph(backed, copy=copy)
        assert_same(changed if copy else backed, built(tissue()))
        backed.file.close()

    @pytest.mark.parametrize("kind", ["h5ad", "zarr"])
    def test_round_trip(self, tmp_path, kind, caplog):
        adata = built(tissue(), ["a/1", "b"] * 150, scale={"b": 1.0})
        path = tmp_path / f"a.{kind}"
        getattr(adata, f"write_{kind}")(path)
        again = getattr(ad, f"read_{kind}")(path)
        assert_same(again, adata)
        table = adata.uns["stage_graph"]["slides"]
        pd.testing.assert_frame_equal(
            again.uns["stage_graph"]["slides"].astype(table.dtypes), table, check_index_type=False
        )
        assert list(again.uns["spatial_neighbors"]["params"]["radius"]) == [0.0, 100.0]
        caplog.clear()
        for got, key in zip(read_graph(again), STORED[1:], strict=True):
            np.testing.assert_array_equal(got.toarray(), adata.obsp[key].toarray())
        assert not caplog.records
