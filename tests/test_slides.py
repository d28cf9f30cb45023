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

EXTRA = ["Blank-1", "NegControlProbe_00042", "GFAP", "ENSMUSG00000020932.15"]  # two controls, two more columns of gfap


def tissue(n_cells: int = 250, rng: int = 3) -> ad.AnnData:
    """A slide with control probes, a gene in three columns, an empty cell and an isolated one; no graph yet."""
    plain = st.datasets.simulate_tissue(n_cells, rng=rng)
    counts = sp.hstack([plain.X, np.random.default_rng(rng).poisson(3, (n_cells, len(EXTRA)))]).tolil()
    counts[7] = 0
    xy = plain.obsm["spatial"].copy()
    xy[9] = xy.max(axis=0) + 300
    var = pd.DataFrame(index=[*plain.var_names, *EXTRA])
    return ad.AnnData(sp.csr_matrix(counts, dtype=np.float32), plain.obs, var, obsm={"spatial": xy})


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


def matrices(slide: Slide) -> list[sp.csr_matrix]:
    """Expression, graph, neighbourhoods and view rings of all cells."""
    view = ring(slide.xy, slide.tree, slide.graph, np.arange(slide.n_cells), slide.sizes)
    return [values(slide), slide.graph, slide.local, view]


def assert_same(one: Slide, other: Slide) -> None:
    """To the bit; the positions in the AnnData are compared by whoever knows what they should be."""
    assert (one.genes, one.sizes) == (other.genes, other.sizes)
    for a, b in zip(matrices(one), matrices(other), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == np.float32
        for name in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("mean", "scale", "empty", "isolated"):
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
    """Three slides whose cells are mixed."""
    adata = st.datasets.simulate_tissue(120, n_slides=3, batch_effect=0.3)
    return graphed(adata[np.random.default_rng(0).permutation(360)].copy(), library_key="slide")


class TestNumbers:
    def test_genes(self, adata, slide):
        expected = {name.casefold() for name in adata.var_names if name not in EXTRA}
        assert slide.genes == sorted(slide.genes)
        assert len(slide.genes) == len(set(slide.genes)) == adata.n_vars - len(EXTRA)
        assert len(expected & set(slide.genes)) > 0.8 * len(expected)  # the others have another human symbol
        assert "gfap" in slide.genes
        assert not any("blank" in gene or "control" in gene for gene in slide.genes)

    def test_expression(self, adata, slide):
        counts, tokens = adata.X.toarray().astype(float), st.pp.match_genes(adata).table["token"].to_numpy()
        tokens[np.isin(adata.var_names, EXTRA[:2])] = ""
        assert (tokens == "gfap").sum() == 3
        summed = np.stack([counts[:, tokens == gene].sum(axis=1) for gene in slide.genes], axis=1)
        total = summed.sum(axis=1, keepdims=True)
        expected = np.log1p(summed / np.maximum(total, 1) * np.median(total[total > 0]))
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
        """Coordinates of a slide are µm, for any unit of the data."""
        plain, pixels = tissue(), tissue()
        pixels.obsm["spatial"] = plain.obsm["spatial"] * 8
        one, other = read(graphed(plain)), read(graphed(pixels, scale=0.125))
        assert_same(one, other)
        np.testing.assert_allclose(one.xy, other.xy, rtol=1e-12)

    def test_graph_weights(self, adata, slide):
        sigma = adata.uns["stage_graph"]["slides"]["sigma"].iloc[0]
        d, joined = (adata.obsp[f"spatial_{name}"].toarray() for name in ("distances", "connectivities"))
        expected = np.where(joined > 0, np.exp(-(d**2) / (2 * sigma**2)), np.eye(slide.n_cells))
        np.testing.assert_allclose(slide.graph.toarray(), expected[np.ix_(slide.cells, slide.cells)], rtol=1e-4)
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

    def test_rows_of_the_expression(self, slide):
        """It is kept as it was read: row by row the cells of the AnnData."""
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
        np.testing.assert_array_equal(one.toarray(), other[:, columns].toarray())


class TestSameForAnyOrder:
    @pytest.mark.parametrize("angle", [None, 0.0, 0.7, np.pi / 2], ids=["graph kept", "shifted", "rotated", "turned"])
    @pytest.mark.parametrize("shuffled", ["", "cells", "genes", "cells and genes"])
    def test_order_and_place(self, adata, slide, shuffled, angle):
        rng = np.random.default_rng(2)
        cells, genes = (
            rng.permutation(n) if name in shuffled else np.arange(n)
            for n, name in zip(adata.shape, ("cells", "genes"), strict=True)
        )
        other = (adata if angle is None else tissue())[cells, genes].copy()
        if angle is not None:
            other.obsm["spatial"] = rotated(other.obsm["spatial"], angle)
            graphed(other)
        result = read(other)
        assert_same(slide, result)
        assert (cells[result.cells] == slide.cells).all()

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
    def test_view(self, adata, slide):
        parts = {"": adata, "again": adata[:5]}
        larger = ad.concat(parts, pairwise=True, merge="same", uns_merge="first", index_unique="")
        assert_same(slide, read(larger[: adata.n_obs]))

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
            part = many[members]
            expected = read(graphed(ad.AnnData(part.X, part.obs, part.var, obsm={"spatial": part.obsm["spatial"]})))
            assert_same(expected, slide)
            assert (members[expected.cells] == slide.cells).all()

    def test_names(self, many, adata):
        names = [slide.name for slide in read_all(many, prefix="a")]
        assert names == ["a/slide1", "a/slide2", "a/slide3"]
        assert read(adata).name == "slide"
        assert read(adata, prefix="brain").name == "brain"


class TestLogAndErrors:
    @pytest.mark.parametrize(("n_known", "level"), [(172, "INFO"), (30, "WARNING"), (5, "WARNING")])
    def test_how_many_genes_are_known(self, adata, slide, caplog, n_known, level):
        with caplog.at_level(logging.INFO, logger="stage_sc"):
            read(adata, vocabulary=slide.genes[:n_known])
        (record,) = [record for record in caplog.records if "The model knows" in record.message]
        assert record.levelname == level


def test_genes_without_any_count_are_no_part_of_the_panel(adata):
    """As where panels were joined."""
    zeros = ad.AnnData(
        sp.csr_matrix((adata.n_obs, 3), dtype=np.float32), adata.obs, pd.DataFrame(index=["GAD1", "TP53", "new"])
    )
    joined = ad.concat([adata, zeros], axis="var", merge="first")
    joined.obsm["spatial"] = adata.obsm["spatial"]
    assert_same(read(graphed(joined)), read(adata))
