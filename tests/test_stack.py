"""Stacks of aligned serial sections: graphs, niches and domains along z."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial import cKDTree

import stage_sc as st

N_SECTIONS, GAP = 4, 10.0


def simulate_stack(n_cells=800, rng=0):
    """Cells of one thick piece of tissue, dealt to sections at random, at the density of a single section."""
    adata = st.datasets.simulate_tissue(n_cells * N_SECTIONS, rotation=0, rng=rng)
    section = np.random.default_rng(rng).integers(N_SECTIONS, size=adata.n_obs)
    adata.obsm["spatial"] /= np.sqrt(N_SECTIONS)
    adata.obs["z"], adata.obs["section"] = section * GAP, [f"s{number}" for number in section]
    return adata


@pytest.fixture(scope="module")
def stack():
    return simulate_stack()


@pytest.fixture(scope="module")
def labelled(stack):
    adata = stack.copy()
    st.pp.build_graph(adata, z_key="z")
    st.tl.stage_niches(adata, n_domains=6)
    return adata


def edges_of(adata):
    return sp.coo_matrix(adata.obsp["spatial_distances"])


class TestGraph:
    def test_sections_have_the_graph_that_they_have_alone(self, stack, labelled):
        alone = st.pp.build_graph(stack, library_key="section", copy=True)
        found, z = edges_of(labelled), stack.obs["z"].to_numpy()
        same = z[found.row] == z[found.col]
        inner = sp.csr_matrix((found.data[same], (found.row[same], found.col[same])), shape=found.shape)
        assert abs(inner - alone.obsp["spatial_distances"]).max() < 1e-9
        # the bandwidth is that within sections, whatever their distance
        assert labelled.uns["stage_graph"]["slides"]["sigma"].iloc[0] == pytest.approx(
            np.median(alone.obsp["spatial_distances"].data), rel=1e-3
        )

    def test_cells_are_joined_with_the_nearest_three_above_and_below(self, labelled):
        xyz = np.c_[labelled.obsm["spatial"], labelled.obs["z"]]
        found, expected = edges_of(labelled), set()
        for low in range(N_SECTIONS - 1):
            one, other = (np.flatnonzero(xyz[:, 2] == GAP * number) for number in (low, low + 1))
            for here, there in ((one, other), (other, one)):
                distance, nearest = cKDTree(xyz[there]).query(xyz[here], 3)
                rows, columns = np.nonzero(distance <= 100)
                pairs = np.c_[here[rows], there[nearest[rows, columns]]].tolist()
                expected |= {frozenset(pair) for pair in pairs}
        across = xyz[found.row, 2] != xyz[found.col, 2]
        pairs = {frozenset(pair) for pair in np.c_[found.row, found.col][across].tolist()}
        assert pairs == expected
        assert np.allclose(found.data, np.linalg.norm(xyz[found.row] - xyz[found.col], axis=1))

    def test_local_neighbourhoods_are_balls(self, labelled):
        xyz = np.c_[labelled.obsm["spatial"], labelled.obs["z"]]
        counts = np.diff(sp.csr_matrix(labelled.obsp["local_connectivities"]).indptr)
        assert np.array_equal(counts, cKDTree(xyz).query_ball_point(xyz, 25.0, return_length=True))

    def test_third_column_is_in_the_unit_of_the_others(self, stack, labelled):
        adata = stack.copy()
        adata.obsm["xyz"] = np.c_[adata.obsm["spatial"], adata.obs["z"]] * 4
        st.pp.build_graph(adata, spatial_key="xyz", z_key="xyz", scale=0.25)
        assert abs(adata.obsp["spatial_distances"] - labelled.obsp["spatial_distances"]).max() < 1e-9

    def test_grids_have_a_cell_above(self):
        places = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), -1).reshape(-1, 2) * 16
        adata = ad.AnnData(np.ones((288, 2), np.float32), obsm={"spatial": np.tile(places, (2, 1))})
        adata.obs["z"] = np.repeat([0.0, 8.0], 144)
        st.pp.build_graph(adata, z_key="z")
        distances = sp.csr_matrix(adata.obsp["spatial_distances"])
        assert np.all(distances.diagonal(144) == 8.0)
        order = np.random.default_rng(0).permutation(288)
        other = adata[order].copy()
        st.pp.build_graph(other, z_key="z")
        assert (other.obsp["spatial_distances"] != distances[order][:, order]).nnz == 0


class TestLabels:
    def test_domains_agree_better_with_the_truth_than_those_of_single_sections(self):
        """Where single sections have few cells; of many, sections alone have enough neighbours."""
        by_section, of_stack = [], []
        for seed in range(3):
            stack = simulate_stack(400, rng=seed)
            st.pp.build_graph(stack, z_key="z")
            st.tl.stage_niches(stack, n_domains=6)
            for name in stack.obs["section"].unique():
                one = stack[stack.obs["section"] == name].copy()
                of_stack.append(st.metrics.ari(one, "domain", "stage_domain"))
                st.pp.build_graph(one)
                st.tl.stage_niches(one, n_domains=6)
                by_section.append(st.metrics.ari(one, "domain", "stage_domain"))
        assert np.mean(of_stack) > np.mean(by_section) + 0.03

    def test_neighbours_along_z_have_one_domain_more_often_than_without_the_graph(self, stack, labelled):
        apart = stack.copy()
        apart.obs["z"] *= 1000  # too far to be joined
        st.pp.build_graph(apart, z_key="z")
        st.tl.stage_niches(apart, n_domains=6)
        pairs = edges_of(labelled)
        across = (stack.obs["z"].to_numpy()[pairs.row] != stack.obs["z"].to_numpy()[pairs.col]).nonzero()[0]

        def agreement(adata):
            codes = adata.obs["stage_domain"].cat.codes.to_numpy()
            return np.mean(codes[pairs.row[across]] == codes[pairs.col[across]])

        assert agreement(labelled) > agreement(apart) + 0.03

    def test_shifts_and_order_change_nothing(self, stack, labelled):
        order = np.random.default_rng(1).permutation(stack.n_obs)
        other = stack[order].copy()
        other.obs["z"] += 12_340.0
        other.obsm["spatial"] += 500.0
        st.pp.build_graph(other, z_key="z")
        st.tl.stage_niches(other, n_domains=6)
        for key in ("stage_l1", "stage_path", "stage_domain"):
            assert other.obs[key].astype(str).tolist() == labelled.obs[key].astype(str).to_numpy()[order].tolist(), key

    def test_turned_upside_down(self, stack, labelled):
        other = stack.copy()
        other.obs["z"] = -other.obs["z"]
        st.pp.build_graph(other, z_key="z")
        st.tl.stage_niches(other, n_domains=6)
        assert other.obs["stage_domain"].tolist() == labelled.obs["stage_domain"].tolist()

    @pytest.mark.parametrize("form", ["h5ad", "zarr"])
    def test_files_keep_the_graph(self, labelled, form, tmp_path, caplog):
        path = tmp_path / f"stack.{form}"
        getattr(labelled, f"write_{form}")(path)
        other = getattr(ad, f"read_{form}")(path)
        st.tl.stage_niches(other, n_domains=6, key_added="again")
        assert "rebuild" not in caplog.text
        assert other.obs["again_domain"].tolist() == labelled.obs["stage_domain"].tolist()

    def test_subsets_are_rebuilt_as_stacks(self, labelled, caplog):
        part = labelled[labelled.obs["z"] < 15].copy()
        st.tl.stage_niches(part)
        assert "rebuilding" in caplog.text and part.uns["stage_graph"]["params"]["z_key"] == "z"
        z, edges = part.obs["z"].to_numpy(), edges_of(part)
        assert (z[edges.row] != z[edges.col]).any()
        single = labelled[labelled.obs["z"] == 0].copy()
        st.tl.stage_niches(single)
        assert single.obs["stage_l1"].notna().all()

    def test_models_are_trained_on_stacks(self, labelled):
        model = st.tl.fit(labelled, epochs=2, progress=False)
        other = labelled.copy()
        st.tl.stage_niches(other, model=model, key_added="own")
        assert model.history["loss"].notna().all() and other.obs["own_l1"].nunique() > 1

    def test_sections_are_drawn_apart(self, labelled, caplog):
        st.pl.spatial_domains(labelled, show=False)
        rows = [axes.get_ylabel() for axes in plt.gcf().axes if axes.get_ylabel()]
        assert rows == [f"z={GAP * number:g}" for number in range(N_SECTIONS)]
        assert "overlap" not in caplog.text
        plt.close("all")


class TestWrongInput:
    @pytest.mark.parametrize(
        ("change", "arguments", "error", "words"),
        [
            ({}, {"z_key": "depth_um"}, KeyError, "depth_um"),
            ({}, {"z_key": 3}, TypeError, "z_key"),
            ({}, {"z_key": "section"}, TypeError, "heights in µm"),
            ({}, {"z_key": "spatial"}, ValueError, "two columns"),
            ({}, {"z_key": "z", "library_key": "section"}, ValueError, "library_key=''"),
            ({"z": np.nan}, {"z_key": "z"}, ValueError, "no height"),
            ({"z": np.arange(3200.0)}, {"z_key": "z"}, ValueError, "different heights"),
            ({"z": np.r_[50.0, np.zeros(3199)]}, {"z_key": "z"}, ValueError, "z=50.*too few"),
        ],
    )
    def test_is_refused_and_nothing_is_written(self, stack, change, arguments, error, words):
        adata = stack.copy()
        adata.obs = adata.obs.assign(**change)
        with pytest.raises(error, match=words):
            st.pp.build_graph(adata, **arguments)
        assert not adata.obsp and "stage_graph" not in adata.uns

    def test_varying_third_column_names_the_way_out(self, stack):
        adata = stack.copy()
        adata.obsm["spatial"] = np.c_[adata.obsm["spatial"], adata.obs["z"]]
        with pytest.raises(ValueError, match="z_key='spatial'"):
            st.pp.build_graph(adata)

    def test_sections_beside_each_other_are_reported(self, stack, caplog):
        adata = stack.copy()
        adata.obsm["spatial"] += adata.obs[["z", "z"]].to_numpy() * 1000
        st.pp.build_graph(adata, z_key="z")
        assert "3 of 3 pairs of adjacent sections" in caplog.text and "aligned" in caplog.text

    def test_sections_far_apart_are_reported(self, stack, caplog):
        adata = stack.copy()
        adata.obs["z"] *= 20
        st.pp.build_graph(adata, z_key="z")
        assert "farther apart than radius=100" in caplog.text
