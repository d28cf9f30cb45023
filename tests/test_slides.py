"""Slides from an AnnData: numbers by loops, the same to the bit however the data comes, and what is refused."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st
from stage_sc.graph import ring
from stage_sc.model import StageConfig
from stage_sc.slides import Slide, read_slides

MATRICES = ("expression", "graph", "local", "view")
ARRAYS = ("mean", "scale", "empty", "isolated")
EXTRA = ["Blank-1", "NegControlProbe_00042", "GFAP", "ENSMUSG00000020932.15"]  # two controls, two more columns of gfap


def tissue(n_cells: int = 250, rng: int = 3) -> ad.AnnData:
    """A slide with control probes, a gene in three columns, an empty cell and an isolated one; no graph yet."""
    plain = st.datasets.simulate_tissue(n_cells, rng=rng)
    more = np.random.default_rng(rng).poisson(3, (n_cells, len(EXTRA)))
    counts = sp.hstack([plain.X, sp.csr_matrix(more)]).tolil()
    counts[7] = 0
    xy = plain.obsm["spatial"].copy()
    xy[9] = xy.max(axis=0) + 300
    index = [*plain.var_names, *EXTRA]
    return ad.AnnData(
        sp.csr_matrix(counts, dtype=np.float32), plain.obs, pd.DataFrame(index=index), obsm={"spatial": xy}
    )


def graphed(adata: ad.AnnData, **arguments: object) -> ad.AnnData:
    st.pp.build_graph(adata, **arguments)
    return adata


def read_all(adata: ad.AnnData, **arguments: object) -> list[Slide]:
    return read_slides(adata, StageConfig(), **arguments)


def read(adata: ad.AnnData, **arguments: object) -> Slide:
    (slide,) = read_all(adata, **arguments)
    return slide


def values(slide: Slide) -> sp.csr_matrix:
    """Expression of all cells, in the order of the slide."""
    return slide.take(np.arange(slide.n_cells))


def rings(slide: Slide) -> sp.csr_matrix:
    """View rings of all cells."""
    return ring(slide.xy, slide.tree, slide.graph, np.arange(slide.n_cells), slide.sizes)


def matrices(slide: Slide) -> list[sp.csr_matrix]:
    return [values(slide), slide.graph, slide.local, rings(slide)]


def assert_same(one: Slide, other: Slide) -> None:
    """To the bit; the positions in the AnnData are compared by whoever knows what they should be."""
    assert one.genes == other.genes
    assert one.sizes == other.sizes
    for name, a, b in zip(MATRICES, matrices(one), matrices(other), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a.indptr, b.indptr, err_msg=name)
        np.testing.assert_array_equal(a.indices, b.indices, err_msg=name)
        np.testing.assert_array_equal(a.data.view(np.uint32), b.data.view(np.uint32), err_msg=name)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def rotated(xy: np.ndarray, angle: float) -> np.ndarray:
    return xy @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + [12_345.6, -987.6]


@pytest.fixture(scope="module")
def adata():
    return graphed(tissue())


@pytest.fixture(scope="module")
def slide(adata):
    return read(adata)


@pytest.fixture(scope="module")
def many():
    return graphed(st.datasets.simulate_tissue(120, n_slides=3, batch_effect=0.3), library_key="slide")


class TestNumbers:
    def test_genes(self, adata, slide):
        expected = {name.casefold() for name in adata.var_names if name not in EXTRA}
        assert slide.genes == sorted(slide.genes)
        assert len(slide.genes) == len(set(slide.genes)) == adata.n_vars - len(EXTRA)
        assert len(expected & set(slide.genes)) > 0.8 * len(expected)  # the others have another human symbol
        assert "gfap" in slide.genes
        assert not any("blank" in gene or "control" in gene for gene in slide.genes)

    def test_expression_by_loops(self, adata, slide):
        counts, columns = adata.X.toarray().astype(float), {}
        tokens = st.pp.match_genes(adata).table["token"]
        for position, name in enumerate(adata.var_names):
            if name not in EXTRA[:2]:
                columns.setdefault(tokens.iloc[position], []).append(position)
        assert len(columns["gfap"]) == 3
        summed = np.stack([counts[:, columns[gene]].sum(axis=1) for gene in slide.genes], axis=1)
        total = summed.sum(axis=1)
        expected = np.zeros_like(summed)
        for cell in range(len(summed)):
            if total[cell]:
                expected[cell] = np.log1p(summed[cell] / total[cell] * np.median(total[total > 0]))
        np.testing.assert_allclose(values(slide).toarray(), expected[slide.cells], rtol=1e-5, atol=1e-6)

    def test_scaling(self, adata):
        for scaling, min_sd in (("none", 1e-3), ("center", 1e-3), ("standardize", 1e-3), ("standardize", 0.4)):
            (slide,) = read_slides(adata, StageConfig(scaling=scaling, min_sd=min_sd))
            x = values(slide).toarray().astype(float)
            mean = x.mean(axis=0) if scaling != "none" else 0 * x[0]
            scale = np.maximum(x.std(axis=0), min_sd) if scaling == "standardize" else 0 * x[0] + 1
            np.testing.assert_allclose(slide.mean, mean, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(slide.scale, scale, rtol=1e-4)
            assert slide.mean.dtype == slide.scale.dtype == np.float32

    def test_cells_maps_back(self, adata, slide):
        assert sorted(slide.cells) == list(range(adata.n_obs)) == list(range(slide.n_cells))
        pairs = np.ix_(slide.cells, slide.cells)
        np.testing.assert_array_equal(slide.local.toarray(), adata.obsp["local_connectivities"].toarray()[pairs])
        settings = adata.uns["stage_graph"]["slides"].iloc[0]
        assert slide.sizes == (settings["mode"], settings["local"], settings["view"], settings["sigma"])
        np.testing.assert_array_equal(slide.xy, adata.obsm["spatial"][slide.cells] * settings["scale"])
        assert slide.xy.dtype == np.float64

    def test_scale(self):
        """Coordinates of a slide are µm, whatever the unit of the data."""
        plain, pixels = tissue(), tissue()
        pixels.obsm["spatial"] = plain.obsm["spatial"] * 8
        one, other = read(graphed(plain)), read(graphed(pixels, scale=0.125))
        assert_same(one, other)
        np.testing.assert_allclose(one.xy, other.xy, rtol=1e-12)

    def test_graph_weights(self, adata, slide):
        sigma = adata.uns["stage_graph"]["slides"]["sigma"].iloc[0]
        edges = sp.coo_matrix(adata.obsp["spatial_distances"])
        expected = np.zeros((slide.n_cells, slide.n_cells))
        expected[edges.row, edges.col] = np.exp(-(edges.data**2) / (2 * sigma**2))
        np.fill_diagonal(expected, 1)
        expected = expected[np.ix_(slide.cells, slide.cells)]
        np.testing.assert_allclose(slide.graph.toarray(), expected, rtol=1e-4)
        np.testing.assert_array_equal(slide.graph.diagonal(), 1)
        assert slide.graph.nnz == adata.obsp["spatial_connectivities"].nnz + adata.n_obs
        for matrix in (slide.graph, slide.local):
            assert matrix.has_sorted_indices
            assert (np.diff(matrix.indices) > 0).sum() >= matrix.nnz - slide.n_cells
            assert not (matrix != matrix.T).nnz

    def test_flags(self, slide):
        assert slide.cells[slide.empty].tolist() == [7]
        assert slide.cells[slide.isolated].tolist() == [9]
        assert slide.take(np.flatnonzero(slide.empty)).nnz == 0
        (isolated,) = np.flatnonzero(slide.isolated)
        assert slide.graph[isolated].indices.tolist() == [isolated]

    def test_rows_of_the_expression(self, adata, slide):
        """It is kept as it was read: row by row the cells of the AnnData."""
        assert slide.rows is not None
        np.testing.assert_array_equal(slide.rows, slide.cells)
        cells = np.array([5, 200, 5, 31])
        np.testing.assert_array_equal(slide.take(cells).toarray(), slide.expression[slide.cells[cells]].toarray())
        for size in (1, 7, 250, 1000):
            found = np.full((slide.n_cells, len(slide.genes)), np.nan)
            for part, rows in slide.blocks(size):
                assert rows.shape[0] <= size
                found[part] = rows.toarray()
            np.testing.assert_array_equal(found, values(slide).toarray())

    def test_vocabulary_selects_genes_after_scaling_to_the_total(self, adata, slide):
        few = read(adata, vocabulary=["gfap", slide.genes[3], "no such gene"])
        columns = sorted([slide.genes.index("gfap"), 3])
        assert few.genes == [slide.genes[column] for column in columns]
        # the order of cells depends on the genes used
        one, other = (part.take(np.argsort(part.cells)) for part in (few, slide))
        other = other[:, columns]
        np.testing.assert_array_equal(one.toarray(), other.toarray())


class TestSameForAnyOrder:
    def test_cells(self, adata, slide):
        order = np.random.default_rng(0).permutation(adata.n_obs)
        reordered = adata[order].copy()
        rebuilt = graphed(tissue()[order].copy())
        for other in (reordered, rebuilt):
            result = read(other)
            assert_same(slide, result)
            assert (order[result.cells] == slide.cells).all()

    def test_genes(self, adata, slide):
        shuffled = adata[:, np.random.default_rng(1).permutation(adata.n_vars)].copy()
        result = read(shuffled)
        assert_same(slide, result)
        assert (result.cells == slide.cells).all()

    @pytest.mark.parametrize("angle", [0.0, 0.7, np.pi / 2])
    def test_rotated_and_shifted(self, slide, angle):
        moved = tissue()
        moved.obsm["spatial"] = rotated(moved.obsm["spatial"], angle)
        result = read(graphed(moved))
        assert_same(slide, result)
        assert (result.cells == slide.cells).all()

    def test_all_at_once(self, slide):
        rng = np.random.default_rng(2)
        order, genes = rng.permutation(slide.n_cells), rng.permutation(tissue().n_vars)
        moved = tissue()[order, genes].copy()
        moved.obsm["spatial"] = rotated(moved.obsm["spatial"], 2.0)
        result = read(graphed(moved))
        assert_same(slide, result)
        assert (order[result.cells] == slide.cells).all()

    def test_cells_told_apart_by_their_neighbours_alone(self, adata):
        """All have the same counts; or none have any but one of them, seven cells in a row."""
        flat = adata.copy()
        flat.X = np.ones(flat.shape, np.float32)
        flat.obsm["spatial"][9] = flat.obsm["spatial"][10] + 5
        path = ad.AnnData(np.diag([3.0, *[0] * 6]), var=pd.DataFrame(index=adata.var_names[:7]))
        path.obsm["spatial"] = np.c_[np.arange(7.0) * 11, np.arange(7.0) ** 2]
        for one in (flat, path):
            order = np.random.default_rng(3).permutation(one.n_obs)
            expected, got = (read(graphed(x, radius=40.0, scale=1.0)) for x in (one.copy(), one[order].copy()))
            assert (order[got.cells] == expected.cells).all()

    def test_cells_in_order(self, adata, slide):
        """Read again in that order they stay; neighbours stand near each other."""
        assert read(adata[slide.cells].copy()).cells.tolist() == list(range(slide.n_cells))
        pairs, anywhere = slide.graph.tocoo(), np.random.default_rng(0).permutation(slide.n_cells)
        apart = np.abs(pairs.row - pairs.col)
        assert apart.max() < 0.5 * slide.n_cells
        assert apart.mean() < 0.3 * np.abs(anywhere[pairs.row] - anywhere[pairs.col]).mean()


class TestContainers:
    """Those of the expression alone are in test_slides_expression."""

    def test_view(self, adata, slide):
        parts = {"": adata, "again": adata[:5]}
        larger = ad.concat(parts, pairwise=True, merge="same", uns_merge="first", index_unique="")
        view = larger[: adata.n_obs]
        assert_same(slide, read(view))
        assert view.is_view

    def test_layer_and_nothing_is_written(self, adata, slide, unchanged):
        other = adata.copy()
        other.layers["counts"] = other.X.copy()
        other.X = -np.ones(other.shape)
        with unchanged(other):
            assert_same(slide, read(other, layer="counts"))


class TestSlides:
    @pytest.mark.parametrize("key", [None, "slide"])
    def test_each_is_what_it_would_be_alone(self, many, key):
        slides = read_all(many, library_key=key)
        assert [slide.name for slide in slides] == ["slide1", "slide2", "slide3"]
        for slide in slides:
            members = np.flatnonzero(many.obs["slide"] == slide.name)
            alone = ad.AnnData(
                many.X[members], many.obs.iloc[members], many.var, obsm={"spatial": many.obsm["spatial"][members]}
            )
            expected = read(graphed(alone))
            assert_same(expected, slide)
            assert (members[expected.cells] == slide.cells).all()

    def test_mixed_rows(self, many):
        order = np.random.default_rng(0).permutation(many.n_obs)
        slides = read_all(many[order].copy())
        for one, other in zip(read_all(many), slides, strict=True):
            assert_same(one, other)
            assert (order[other.cells] == one.cells).all()

    def test_names(self, many, adata):
        names = [slide.name for slide in read_all(many, prefix="a")]
        assert names == ["a/slide1", "a/slide2", "a/slide3"]
        assert read(adata).name == "slide"
        assert read(adata, prefix="brain").name == "brain"

    def test_panels_of_a_cohort(self):
        cohort = {name: graphed(one) for name, one in st.datasets.simulate_cohort(80, panels=("A", "B")).items()}
        alone = {name: read(one) for name, one in cohort.items()}
        shared = set(alone["slide1"].genes) & set(alone["slide2"].genes)
        assert len(shared) == 29
        for name, one in cohort.items():
            assert read(one, vocabulary=shared).genes == sorted(shared)
            union = {*alone["slide1"].genes, *alone["slide2"].genes}
            assert_same(read(one, vocabulary=union), alone[name])


class TestLogAndErrors:
    def test_warnings(self, adata, caplog):
        with caplog.at_level(logging.WARNING, logger="stage_sc"):
            read(adata)
        assert "several columns, which were added up: gfap" in caplog.text
        assert "1 cells have no counts" in caplog.text
        assert "1 cells have no neighbour" in caplog.text

    @pytest.mark.parametrize(("n_known", "level"), [(172, "INFO"), (30, "WARNING"), (5, "WARNING")])
    def test_how_many_genes_are_known(self, adata, slide, caplog, n_known, level):
        with caplog.at_level(logging.INFO, logger="stage_sc"):
            read(adata, vocabulary=slide.genes[:n_known])
        (record,) = [record for record in caplog.records if "The model knows" in record.message]
        assert record.levelname == level

    def test_stale_graph_is_rebuilt(self, adata, caplog):
        part = adata[adata.obs_names[50:]].copy()
        with caplog.at_level(logging.WARNING, logger="stage_sc"):
            slide = read(part)
        assert "rebuilding" in caplog.text
        assert slide.n_cells == adata.n_obs - 50
        np.testing.assert_array_equal(
            slide.local.toarray(), part.obsp["local_connectivities"].toarray()[np.ix_(slide.cells, slide.cells)]
        )

    def test_refused(self, adata):
        with pytest.raises(KeyError, match="build_graph"):
            read(tissue())
        with pytest.raises(KeyError, match="raw"):
            read(adata, layer="raw")
        with pytest.raises(KeyError, match="sample"):
            read(adata, library_key="sample")
        with pytest.raises(ValueError, match="None of the"):
            read(adata, vocabulary=["nothing"])
        for value, message in ((-1, "negative"), (np.nan, "NaN")):
            bad = adata.copy()
            bad.X[0, 0] = value
            with pytest.raises(ValueError, match=message):
                read(bad)


class TestUnmeasuredGenes:
    def test_are_no_part_of_the_panel(self, adata):
        """As where panels were joined: genes without any count here change nothing."""
        zeros = ad.AnnData(
            sp.csr_matrix((adata.n_obs, 3), dtype=np.float32), adata.obs, pd.DataFrame(index=["GAD1", "TP53", "new"])
        )
        joined = ad.concat([adata, zeros], axis="var", merge="first")
        joined.obsm["spatial"] = adata.obsm["spatial"]
        assert_same(read(graphed(joined)), read(adata))
