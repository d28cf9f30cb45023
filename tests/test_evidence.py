"""Evidence in an object about its slides, units and spots: used where certain, else named in a warning or an error."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st


def cells(xy: np.ndarray, **obs: object) -> ad.AnnData:
    return ad.AnnData(obs=pd.DataFrame(obs, index=pd.RangeIndex(len(xy)).astype(str)), obsm={"spatial": xy})


def tissue(n: int = 1000, size: float = 400.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, size, (n, 2))


def two(n: int = 500, shift: float = 0.0) -> np.ndarray:
    """Two pieces of tissue, the second shifted."""
    return np.r_[tissue(n), tissue(n, seed=1) + [shift, 0]]


def warnings_of(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def crossing(adata: ad.AnnData, groups: np.ndarray) -> int:
    edges = sp.coo_matrix(adata.obsp["spatial_connectivities"])
    return int((groups[edges.row] != groups[edges.col]).sum())


HALVES = np.repeat(["one", "two"], 500)


class TestPiecesOnOnePlace:
    @pytest.mark.parametrize("column", ["fov", "library_id", "sampleID", "Donor", "batch", "my_section"])
    def test_column_is_named(self, caplog, column):
        st.pp.build_graph(cells(two(), **{column: HALVES}))
        assert f"library_key={column!r}" in warnings_of(caplog)

    @pytest.mark.parametrize("column", ["fov", "library_id", "region"])
    def test_pieces_that_lie_apart_are_silent(self, caplog, column):
        st.pp.build_graph(cells(two(shift=450.0), **{column: HALVES}))
        assert not warnings_of(caplog)

    def test_cell_types_and_regions_of_one_tissue_are_silent(self, caplog):
        xy = tissue(2000)
        layers, kind = np.floor(xy[:, 0] / 50).astype(int).astype(str), np.where(np.arange(2000) % 2, "a", "b")
        st.pp.build_graph(cells(xy, region=layers, fov=layers, cell_type=kind))
        assert not warnings_of(caplog)

    def test_names_of_joined_cells(self, caplog):
        both = ad.concat([cells(tissue()), cells(tissue(seed=1))], index_unique="-", keys=["a", "b"])
        st.pp.build_graph(both)
        assert "library_key" in warnings_of(caplog)

    def test_repeated_places(self, caplog):
        st.pp.build_graph(cells(np.r_[tissue(), tissue()], origin_of_spot=np.repeat(["a", "b"], 1000)))
        assert "library_key='origin_of_spot'" in warnings_of(caplog)

    def test_global_coordinates_are_named(self, caplog):
        adata = cells(two(), fov=HALVES)
        adata.obsm["stitched"] = two(shift=400.0)
        st.pp.build_graph(adata)
        assert "spatial_key='stitched'" in warnings_of(caplog)

    def test_plots_and_metrics(self, caplog):
        adata = st.datasets.simulate_tissue(400, n_slides=2, rng=1)
        adata.obs = adata.obs.rename(columns={"slide": "sample"})
        st.metrics.pas(adata, "domain")
        assert "library_key='sample'" in warnings_of(caplog)
        caplog.clear()
        st.pl.spatial_domains(adata, keys="domain", return_fig=True)
        assert "library_key='sample'" in warnings_of(caplog)

    def test_regions_of_spatialdata_are_slides(self, caplog):
        adata = cells(two(), part=HALVES, label=HALVES)
        adata.uns["spatialdata_attrs"] = {"region": ["one", "two"], "region_key": "part", "instance_key": "id"}
        st.pp.build_graph(adata)
        assert adata.uns["stage_graph"]["params"]["library_key"] == "part"
        assert crossing(adata, HALVES) == 0
        assert not warnings_of(caplog)
        st.pp.build_graph(adata, library_key="")
        assert crossing(adata, HALVES) > 0

    def test_slides_of_the_graph_hold_for_metrics(self):
        adata = cells(two(), sample=HALVES, domain=np.where(two()[:, 0] > 200, "x", "y"))
        st.pp.build_graph(adata, library_key="sample")
        by_name = st.metrics.pas(adata, "domain", library_key="sample")
        assert st.metrics.pas(adata, "domain") == by_name

    def test_joined_graphs_stay_apart(self, caplog):
        parts = {}
        for seed in (1, 2):
            parts[f"s{seed}"] = st.datasets.simulate_tissue(300, rng=seed)
            st.pp.build_graph(parts[f"s{seed}"])
        both = ad.concat(parts, label="sample", index_unique="-", uns_merge="first", pairwise=True)
        st.tl.stage_niches(both)
        assert crossing(both, both.obs["sample"].to_numpy()) == 0
        assert "'sample'" in warnings_of(caplog)


class TestPartsOfOneSection:
    def test_fields_that_adjoin(self, caplog):
        xy = tissue(2000)
        st.pp.build_graph(cells(xy, fov=(xy // 200).astype(int) @ [2, 1]), library_key="fov")
        assert "adjoin" in warnings_of(caplog)

    @pytest.mark.parametrize("shift", [0.0, 100.0, 350.0, 700.0])
    def test_other_sections_do_not(self, caplog, shift):
        st.pp.build_graph(cells(two(shift=shift), slide=HALVES), library_key="slide")
        assert not warnings_of(caplog)

    def test_very_small_slides(self, caplog):
        parts = [cells(tissue(40, 80.0, seed)) for seed in range(3)]
        st.pp.build_graph(parts)
        assert "fewer than 100 cells" in warnings_of(caplog)


class TestUnits:
    def test_both_readings_are_named(self, caplog):
        dense = tissue(2000, 200.0) / 0.108  # 2.2 µm to the nearest cell
        for technology in (None, "xenium"):
            caplog.clear()
            adata = cells(dense)
            st.pp.build_graph(adata, technology=technology)
            assert "scale=0.2125" in warnings_of(caplog)
            assert adata.uns["stage_graph"]["slides"]["scale_source"].tolist() == ["guess"]
        caplog.clear()
        st.pp.build_graph(cells(dense), scale=0.108)
        assert "uncertain" not in warnings_of(caplog)

    @pytest.mark.parametrize(("factor", "source"), [(1.0, "µm"), (5.0, "pixels")])
    def test_columns_with_known_unit_decide(self, caplog, factor, source):
        xy = tissue(500, 600.0)
        adata = cells(xy * factor, x_centroid=xy[:, 0] + 7, y_centroid=xy[:, 1])
        st.pp.build_graph(adata)
        row = adata.uns["stage_graph"]["slides"].iloc[0]
        assert (row["scale"], row["scale_source"]) == (pytest.approx(1 / factor, rel=1e-4), source)
        assert not warnings_of(caplog)

    def test_pixel_size_of_the_image(self):
        adata = cells(np.argwhere(np.ones((15, 15))) * 29.2)
        adata.uns["spatial"] = {"id": {"scalefactors": {"microns_per_pixel": 0.274}}}
        st.pp.build_graph(adata)
        assert adata.uns["stage_graph"]["slides"]["scale"].tolist() == [0.274]

    @pytest.mark.parametrize("technology", [None, "visium"])
    @pytest.mark.parametrize("turned", [False, True])
    @pytest.mark.parametrize("factor", [1, 100])
    def test_array_indices_are_refused_with_the_remedy(self, technology, turned, factor):
        row, column = (grid.ravel() for grid in np.meshgrid(np.arange(20), np.arange(30), indexing="ij"))
        indices = np.c_[row, 2 * column + row % 2] * float(factor)
        adata = cells(indices[:, ::-1].copy() if turned else indices)
        with pytest.raises(ValueError, match="array indices") as error:
            st.pp.build_graph(adata, technology=technology)
        exec(str(error.value).split("`: `" if "`: `" in str(error.value) else ": `")[-1].split("`")[0])
        st.pp.build_graph(adata)
        found = adata.uns["stage_graph"]["slides"].iloc[0]
        assert (found["layout"], found["scale"]) == ("hexagonal", 1)


class TestCells:
    @pytest.mark.parametrize("values", [[1, 0], [True, False], ["1", "0"]])
    def test_background_spots(self, caplog, values):
        xy = tissue()
        adata = cells(xy, in_tissue=np.where(xy[:, 0] < 300, *values))
        st.pp.build_graph(adata)
        assert f"{(xy[:, 0] >= 300).sum()} of 1000 spots" in warnings_of(caplog)

    @pytest.mark.parametrize("place", [(0.0, 0.0), (-1.0, 7.0)])
    def test_placeholder(self, caplog, place):
        xy = tissue(3000)
        xy[:50] = place
        st.pp.build_graph(cells(xy))
        assert "50 of 3000 cells lie at the same place" in warnings_of(caplog)
        xy[:1100] = place
        adata = cells(xy)
        with pytest.raises(ValueError, match="1100 of 3000 cells lie at the same place"):
            st.pp.build_graph(adata)
        assert not adata.uns

    @pytest.mark.parametrize(
        "pair",
        [("x_centroid", "y_centroid"), ("CenterX_global_px", "CenterY_global_px"), ("X", "Y"), ("pos_x", "pos_y")],
    )
    def test_coordinates_in_obs(self, pair):
        adata = cells(tissue(), **dict(zip(pair, tissue().T, strict=True)), n_counts=np.ones(1000))
        del adata.obsm["spatial"]
        with pytest.raises(KeyError, match=f"'{pair[0]}'"):
            st.pp.build_graph(adata)

    def test_too_many_hops(self):
        with pytest.raises(ValueError, match="hops"):
            st.pp.build_graph(cells(tissue(4000)), mode="hops", local=25)
        few = cells(tissue(100))
        st.pp.build_graph(few, mode="hops", local=10**9)  # ends when no cell is added
        assert few.obsp["local_connectivities"].nnz <= 100**2

    @pytest.mark.parametrize(
        "kind", [lambda xy: xy.astype(complex), lambda xy: xy.astype("datetime64[s]"), lambda xy: xy.astype(str)]
    )
    def test_coordinates_of_other_types(self, kind):
        adata = cells(kind(tissue()))
        with pytest.raises(TypeError, match="must hold numbers"):
            st.pp.build_graph(adata)

    def test_masked_coordinates_are_missing(self):
        adata = cells(tissue())
        adata.obsm["spatial"] = np.ma.masked_array(tissue(), mask=np.arange(1000)[:, None] < [7, 7])
        with pytest.raises(ValueError, match="7 of 1000 cells"):
            st.pp.build_graph(adata)

    @pytest.mark.parametrize("broken", [{}, {"params": {}}, "text", None])
    def test_broken_state(self, broken):
        adata = st.datasets.simulate_tissue(200, rng=0)
        st.pp.build_graph(adata)
        adata.uns["stage_graph"] = broken
        with pytest.raises(ValueError, match="build_graph"):
            st.tl.stage_niches(adata)
        st.pl.spatial_domains(adata, keys="domain", return_fig=True)

    @pytest.mark.parametrize("key", [["spatial"], 3])
    def test_keys_of_other_types(self, key):
        with pytest.raises(TypeError, match="spatial_key"):
            st.pp.build_graph(cells(tissue()), spatial_key=key)
        with pytest.raises(TypeError, match="library_key"):
            st.pp.build_graph(cells(tissue()), library_key=key)
