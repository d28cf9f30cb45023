"""Checks of user input: what passes, what is refused, and that nothing is changed."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stage_sc._checks import (
    check_anndata,
    check_choice,
    check_positive,
    read_coordinates,
    read_slides,
    slide_coordinates,
)


def cells(xy: np.ndarray, **obs: object) -> ad.AnnData:
    """AnnData without expression at the given places."""
    index = pd.RangeIndex(xy.shape[0]).astype(str)
    return ad.AnnData(obs=pd.DataFrame(dict(obs), index=index), obsm={"spatial": xy})


@pytest.fixture
def square() -> np.ndarray:
    return np.array([[0.0, 0.0], [10, 0], [0, 10], [10, 10], [5, 4]])


class TestAnnData:
    def test_passes_it_on(self, square):
        adata = cells(square)
        assert check_anndata(adata) is adata

    @pytest.mark.parametrize(("value", "hint"), [([1], "concat"), ({}, "concat"), ("slide.h5ad", "read_h5ad")])
    def test_other_types_are_refused_with_a_way_out(self, value, hint):
        with pytest.raises(TypeError, match=hint):
            check_anndata(value)

    def test_spatialdata_names_its_tables(self):
        class SpatialData:
            tables = {"table": None}

        with pytest.raises(TypeError, match=r"sdata\.tables.*'table'"):
            check_anndata(SpatialData())


def test_what_was_not_read_yet_is_refused(tmp_path):
    ad.AnnData(np.eye(3, 2), obsm={"spatial": np.eye(3, 2)}).write_h5ad(tmp_path / "lazy.h5ad")
    lazy = ad.experimental.read_lazy(tmp_path / "lazy.h5ad")
    with pytest.raises(TypeError, match="not read from disk yet") as error:
        check_anndata(lazy, name="data")
    assert "data.obs.to_memory()" in str(error.value)  # which works:
    check_anndata(ad.AnnData(lazy.X, obs=lazy.obs.to_memory(), var=lazy.var.to_memory(), obsm=dict(lazy.obsm)))


class TestNumbers:
    @pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int64(3)])
    def test_positive(self, value):
        check_positive(value, "x")

    @pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
    def test_not_positive(self, value):
        with pytest.raises(ValueError, match="`x` must be above 0"):
            check_positive(value, "x")

    @pytest.mark.parametrize("value", ["1", None, True, [1]])
    def test_not_a_number(self, value):
        with pytest.raises(TypeError, match="`x` must be a number"):
            check_positive(value, "x")

    def test_not_an_integer(self):
        check_positive(np.int32(2), "x", integer=True)
        with pytest.raises(TypeError, match="an integer"):
            check_positive(2.0, "x", integer=True)

    def test_choice(self):
        check_choice("a", "x", ("a", "b"))
        with pytest.raises(ValueError, match="'a', 'b', got 'c'"):
            check_choice("c", "x", ("a", "b"))


class TestCoordinates:
    def test_missing_key_names_what_is_there(self, square):
        adata = cells(square)
        adata.obsm["X_pca"] = square
        with pytest.raises(KeyError, match=r"'xy'.*'spatial', 'X_pca'"):
            read_coordinates(adata, "xy")

    @pytest.mark.parametrize(
        "convert",
        [
            pytest.param(lambda xy: xy.astype(int), id="integers"),
            pytest.param(lambda xy: xy.astype(np.float32), id="float32"),
            pytest.param(sp.csr_matrix, id="sparse"),
            pytest.param(
                lambda xy: pd.DataFrame(xy, columns=["x", "y"], index=pd.RangeIndex(len(xy)).astype(str)), id="frame"
            ),
        ],
    )
    def test_any_container(self, square, convert):
        got = read_coordinates(cells(convert(square.round())))
        np.testing.assert_array_equal(got, square.round())
        assert got.dtype == np.float64

    def test_returns_a_copy(self, square):
        adata = cells(square)
        read_coordinates(adata)[:] = 0
        assert adata.obsm["spatial"].max() == 10

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, square, bad):
        square[1:3, 0] = bad
        with pytest.raises(ValueError, match=r"2 of 5 cells.*filter_cells"):
            read_coordinates(cells(square))

    def test_shape_and_type(self, square):
        with pytest.raises(ValueError, match=r"\(n_cells, 2\), got \(5, 1\)"):
            read_coordinates(cells(square[:, :1]))
        text = pd.DataFrame({"x": ["a"] * 5, "y": ["b"] * 5}, index=pd.RangeIndex(5).astype(str))
        with pytest.raises(TypeError, match="must hold numbers"):
            read_coordinates(cells(text))


class TestSlides:
    def test_without_key_all_cells_are_one_slide(self, square):
        slides = read_slides(cells(square))
        assert slides.names == [""]
        np.testing.assert_array_equal(slides.codes, 0)

    @pytest.mark.parametrize(
        "column",
        [
            pytest.param(["b", "a", "b", "a", "b"], id="strings"),
            pytest.param(
                pd.Categorical(["b", "a", "b", "a", "b"], categories=["unused", "b", "a"]), id="unsorted categories"
            ),
        ],
    )
    def test_names_are_sorted_and_only_used_ones(self, square, column):
        slides = read_slides(cells(square, slide=column), "slide")
        assert slides.names == ["a", "b"]
        np.testing.assert_array_equal(slides.codes, [1, 0, 1, 0, 1])

    def test_integers(self, square):
        assert read_slides(cells(square, slide=[3, 3, 1, 1, 1]), "slide").names == ["1", "3"]

    def test_refusals(self, square):
        with pytest.raises(KeyError, match=r"obs holds 'slide'"):
            read_slides(cells(square, slide=list("ababa")), "sample")
        with pytest.raises(ValueError, match="2 of 5 cells have no slide"):
            read_slides(cells(square, slide=["a", None, "a", None, "a"]), "slide")


class TestSlideCoordinates:
    def test_constant_third_coordinate_is_dropped_per_slide(self, square):
        xyz = np.c_[np.r_[square, square], np.repeat([7.0, 9.0], 5)]
        adata = cells(xyz, slide=["a"] * 5 + ["b"] * 5)
        xy, slides = slide_coordinates(adata, "spatial", "slide")
        np.testing.assert_array_equal(xy, xyz[:, :2])
        assert slides.names == ["a", "b"]
        with pytest.raises(ValueError, match=r"varies from 7 to 9.*library_key"):
            slide_coordinates(adata, "spatial", None)

    def test_few_cells_names_the_slide(self, square):
        with pytest.raises(ValueError, match=r"Slide 'b': 1 cells are too few"):
            slide_coordinates(cells(square, slide=list("aaaab")), "spatial", "slide")

    def test_no_cells(self):
        with pytest.raises(ValueError, match="no cells"):
            slide_coordinates(cells(np.empty((0, 2))), "spatial", None)

    @pytest.mark.parametrize("offset", [0.0, 1e6])
    def test_one_place_or_one_line(self, square, offset):
        with pytest.raises(ValueError, match="at the same place"):
            slide_coordinates(cells(np.full((5, 2), 0.1 + offset)), "spatial", None)
        line = np.outer(np.arange(6), [0.1, 0.3]) + offset
        with pytest.raises(ValueError, match="on one line"):
            slide_coordinates(cells(line), "spatial", None)
        slide_coordinates(cells(square + offset), "spatial", None)
