"""A graph that no longer belongs to its cells is noticed and rebuilt; one that does is read as it is."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc.pp as pp
from stage_sc.graph._state import read_graph

KEYS = ("spatial_connectivities", "spatial_distances", "local_connectivities")


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


def built(xy: np.ndarray, library: object = None, **arguments: object) -> ad.AnnData:
    adata = cells(xy) if library is None else cells(xy, slide=library)
    pp.build_graph(adata, library_key=None if library is None else "slide", **arguments)
    return adata


def slide_row(adata: ad.AnnData, name: str = "") -> pd.Series:
    return adata.uns["stage_graph"]["slides"].loc[name]


def assert_same(one: ad.AnnData, other: ad.AnnData, keys: tuple[str, ...] = KEYS, **tolerance: float) -> None:
    for key in keys:
        a, b = (sp.csr_matrix(adata.obsp[key]).sorted_indices() for adata in (one, other))
        np.testing.assert_array_equal(a.indptr, b.indptr, err_msg=key)
        np.testing.assert_array_equal(a.indices, b.indices, err_msg=key)
        np.testing.assert_allclose(a.data, b.data, err_msg=key, **{"rtol": 0, **tolerance})


class TestStaleGraph:
    def test_without_a_graph(self):
        with pytest.raises(KeyError, match=r"st\.pp\.build_graph\(adata\)"):
            read_graph(cells(tissue()))

    def test_fresh_and_permuted_graphs_are_read_as_they_are(self, caplog):
        adata = built(tissue(), ["a", "b"] * 150)
        order = np.random.default_rng(0).permutation(300)
        for view in (adata, adata[order].copy()):
            caplog.clear()
            graph = read_graph(view)
            assert not caplog.records
            for got, key in zip(graph, KEYS[1:], strict=True):
                np.testing.assert_array_equal(got.toarray(), view.obsp[key].toarray(), err_msg=key)

    def test_more_than_is_needed(self, caplog):
        """Matrices and columns that are of no use any more, as in older files."""
        adata = built(tissue())
        adata.obsp["view_connectivities"] = adata.obsp["local_connectivities"].copy()
        adata.uns["stage_graph"]["slides"]["no_view"] = 3
        read_graph(adata)
        assert "rebuilding" not in caplog.text
        part = adata[:200].copy()
        read_graph(part)
        assert "rebuilding" in caplog.text
        assert part.uns["stage_graph"]["slides"]["n_cells"].tolist() == [200]

    def test_subset_is_rebuilt_in_the_same_unit(self, caplog):
        xy = np.random.default_rng(0).uniform(0, 40_000, (1500, 2))  # pixels
        adata = built(xy)
        scale, sigma = slide_row(adata)[["scale", "sigma"]]
        part = adata[:300].copy()
        graph = read_graph(part)
        assert "rebuilding" in caplog.text
        assert_same(part, built(xy[:300], scale=scale, sigma=sigma), atol=1e-9)
        np.testing.assert_array_equal(graph.local.toarray(), part.obsp["local_connectivities"].toarray())
        caplog.clear()
        read_graph(part)
        assert "rebuilding" not in caplog.text

    def test_slide_dropped(self, caplog):
        adata = built(np.r_[tissue(), tissue(seed=1)], ["a"] * 300 + ["b"] * 300)
        part = adata[:300].copy()
        read_graph(part)
        assert "rebuilding" in caplog.text
        assert part.uns["stage_graph"]["slides"].index.tolist() == ["a"]

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda xy: xy * 0.5, id="other unit"),
            pytest.param(lambda xy: xy[::-1].copy(), id="reordered by hand"),
            pytest.param(lambda xy: xy + np.arange(len(xy))[:, None] % 7, id="moved"),
        ],
    )
    def test_changed_coordinates(self, change, caplog):
        xy = tissue()
        adata = built(xy, local=20.0)
        adata.obsm["spatial"] = change(xy)
        read_graph(adata)
        assert "rebuilding" in caplog.text
        assert_same(adata, built(change(xy), local=20.0))

    def test_isolated_cell_that_moved_or_went(self, caplog):
        """No edge is lost or too long: only the fingerprint tells."""
        adata = built(tissue())
        adata.obsm["spatial"][14] = adata.obsm["spatial"][30] + 1
        read_graph(adata)
        assert "rebuilding" in caplog.text
        assert adata.obsp["spatial_connectivities"][14].nnz > 0
        caplog.clear()
        part = built(tissue())[np.arange(300) != 14].copy()
        read_graph(part)
        assert "rebuilding" in caplog.text

    def test_changed_slides(self):
        library = np.repeat(["a", "b"], 150)
        adata = built(tissue(), library)
        adata.obs["slide"] = library[::-1].copy()
        adata.obs["other"] = ["x", "y", "z"] * 100
        read_graph(adata)
        assert_same(adata, built(tissue(), library[::-1].copy()))
        read_graph(adata, library_key="other")
        assert_same(adata, built(tissue(), ["x", "y", "z"] * 100))
        assert adata.uns["stage_graph"]["params"]["library_key"] == "other"

    def test_graph_replaced_by_another_tool(self, caplog):
        import squidpy as sq

        adata = built(tissue())
        sq.gr.spatial_neighbors_knn(adata, n_neighs=4)
        read_graph(adata)
        assert "rebuilding" in caplog.text
        assert_same(adata, built(tissue()))

    def test_a_scale_given_for_all_holds_for_slides_of_other_names(self, caplog):
        xy = np.r_[tissue(), tissue(seed=1)]
        adata = built(xy, scale=0.8)
        adata.obs["slide"] = ["a"] * 300 + ["b"] * 300
        read_graph(adata, library_key="slide")
        assert adata.uns["stage_graph"]["slides"]["scale"].tolist() == [0.8, 0.8]
        assert adata.uns["stage_graph"]["slides"]["scale_given"].all()
        assert "estimated" not in caplog.text
        assert_same(adata, built(xy, adata.obs["slide"].to_numpy(), scale=0.8))

    def test_a_scale_that_does_not_tell_of_a_slide_is_reported(self, caplog):
        adata = built(np.r_[tissue(), tissue(seed=1)], ["a"] * 300 + ["b"] * 300, scale={"a": 0.8, "b": 0.9})
        adata.obs["slide"] = ["a"] * 300 + ["c"] * 300
        read_graph(adata)
        table = adata.uns["stage_graph"]["slides"]
        assert table.loc["a", "scale"] == 0.8
        assert not table.loc["c", "scale_given"]
        assert "does not say that of 'c', which is estimated" in caplog.text

    def test_given_scale_is_kept_when_coordinates_change(self):
        adata = built(tissue(), scale=0.8)
        adata.obsm["spatial"] = adata.obsm["spatial"] * 1.1
        read_graph(adata)
        assert slide_row(adata)["scale"] == 0.8
