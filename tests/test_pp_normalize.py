"""Log-normalised expression: equal to scanpy's, from every container, and never written back."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

from stage_sc.slides._values import Values, expression, to_csr


@pytest.fixture
def counts() -> np.ndarray:
    """Counts with an empty cell and an empty gene."""
    counts = np.random.default_rng(0).poisson(1.0, (40, 12)).astype(np.float32)
    counts[5] = 0
    counts[:, 3] = 0
    return counts


def expected(counts: np.ndarray) -> np.ndarray:
    adata = ad.AnnData(counts.copy())
    total = counts.sum(axis=1)
    sc.pp.normalize_total(adata, target_sum=np.median(total[total > 0]))
    sc.pp.log1p(adata)
    return adata.X


def log_normalize(x: Any) -> tuple[sp.csr_matrix, bool]:
    """Normalised in one block, and whether these were counts."""
    matrix, values = to_csr(x), Values()
    values.add(matrix)
    factors = values.factors()
    if factors is not None:
        matrix.data = values.normalize(matrix.data, np.repeat(factors, np.diff(matrix.indptr)))
    return matrix, values.counts


CONTAINERS = [
    pytest.param(sp.csr_matrix, id="csr"),
    pytest.param(sp.csc_matrix, id="csc"),
    pytest.param(sp.csr_array, id="csr array"),
    pytest.param(sp.coo_matrix, id="coo"),
    pytest.param(np.asarray, id="dense"),
    pytest.param(np.asfortranarray, id="fortran"),
    pytest.param(lambda x: x.astype(np.int32), id="int32"),
    pytest.param(lambda x: x.astype(np.uint8), id="uint8"),
    pytest.param(lambda x: sp.csr_matrix(x.astype(np.int64)), id="csr int64"),
    pytest.param(lambda x: x.astype(np.float64), id="float64"),
]


class TestCounts:
    @pytest.mark.parametrize("convert", CONTAINERS)
    def test_equals_scanpy(self, counts, convert):
        got, was_counts = log_normalize(convert(counts))
        assert was_counts
        assert isinstance(got, sp.csr_matrix)
        assert got.dtype == np.float32
        assert got.has_sorted_indices
        assert got.nnz == np.count_nonzero(counts)
        np.testing.assert_allclose(got.toarray(), expected(counts), rtol=1e-6)

    @pytest.mark.parametrize("convert", CONTAINERS)
    def test_input_is_not_changed(self, counts, convert):
        matrix = convert(counts)
        before = matrix.copy()
        log_normalize(matrix)
        assert matrix.dtype == before.dtype
        different = matrix != before
        assert (different.nnz if sp.issparse(different) else different.sum()) == 0

    def test_view(self, counts):
        adata = ad.AnnData(sp.csr_matrix(counts))
        got, _ = log_normalize(expression(adata[::2]))
        np.testing.assert_allclose(got.toarray(), expected(counts[::2]), rtol=1e-6)
        np.testing.assert_array_equal(adata.X.toarray(), counts)

    @pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray])
    def test_backed(self, counts, convert, tmp_path):
        ad.AnnData(convert(counts)).write_h5ad(tmp_path / "a.h5ad")
        adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        got, _ = log_normalize(expression(adata))
        np.testing.assert_allclose(got.toarray(), expected(counts), rtol=1e-6)
        got, _ = log_normalize(expression(adata[::2]))
        np.testing.assert_allclose(got.toarray(), expected(counts[::2]), rtol=1e-6)
        adata.file.close()

    @pytest.mark.parametrize("sparse", [False, True])
    def test_dask(self, counts, sparse):
        array = pytest.importorskip("dask.array").from_array(counts, chunks=(10, 12))
        got, _ = log_normalize(array.map_blocks(sp.csr_matrix) if sparse else array)
        np.testing.assert_allclose(got.toarray(), expected(counts), rtol=1e-6)

    def test_unsorted_indices_repeats_and_stored_zeros(self):
        matrix = sp.csr_matrix(
            (np.array([2.0, 1, 0, 3, 1]), np.array([2, 0, 1, 1, 1]), np.array([0, 3, 5])), shape=(2, 3)
        )
        got = to_csr(matrix)
        np.testing.assert_array_equal(got.toarray(), [[1, 0, 2], [0, 4, 0]])
        assert got.nnz == 3

    def test_order_of_genes_and_cells_changes_nothing(self, counts):
        rng = np.random.default_rng(1)
        cells, genes = rng.permutation(40), rng.permutation(12)
        almost = counts + np.where(counts > 0, rng.uniform(-5e-4, 5e-4, counts.shape), 0).astype(np.float32)
        one, other = log_normalize(almost)[0], log_normalize(almost[cells][:, genes])[0]
        np.testing.assert_array_equal(one.toarray()[cells][:, genes], other.toarray())

    def test_nearly_whole_numbers_are_counts(self, counts):
        got, was_counts = log_normalize(counts * np.float32(1.0001))
        assert was_counts
        np.testing.assert_array_equal(got.toarray(), log_normalize(counts)[0].toarray())

    def test_empty_matrix(self):
        got, was_counts = log_normalize(sp.csr_matrix((3, 4)))
        assert was_counts
        assert got.nnz == 0


class TestOthers:
    def test_logged_values_are_kept_with_a_warning(self, counts, caplog):
        logged = expected(counts)
        got, was_counts = log_normalize(logged)
        assert not was_counts
        np.testing.assert_array_equal(got.toarray(), logged)
        assert "already log-normalised" in caplog.text

    def test_linear_values_are_logged_with_a_warning(self, counts, caplog):
        linear = 100 * np.expm1(expected(counts))
        got, was_counts = log_normalize(linear)
        assert not was_counts
        np.testing.assert_allclose(got.toarray(), expected(linear), rtol=1e-4)
        assert "not logged" in caplog.text

    @pytest.mark.parametrize(("value", "match"), [(np.nan, "1 NaN"), (np.inf, "infinite"), (-1.0, "1 negative")])
    @pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix])
    def test_refused_values(self, counts, value, match, convert):
        counts[0, 0] = value
        with pytest.raises(ValueError, match=match):
            log_normalize(convert(counts))


class TestExpression:
    def test_layers(self, counts):
        adata = ad.AnnData(counts, layers={"raw": counts + 1})
        assert expression(adata).max() == counts.max()
        assert expression(adata, "raw").max() == counts.max() + 1
        with pytest.raises(KeyError, match="layers are: 'raw'"):
            expression(adata, "counts")

    def test_no_matrix(self):
        with pytest.raises(ValueError, match="Pass `layer`"):
            expression(ad.AnnData(shape=(3, 2)))


def in_blocks(matrix: np.ndarray, cuts: list[int]) -> tuple[np.ndarray, Values]:
    """Normalised rows that were looked at in several blocks."""
    values, csr = Values(), to_csr(matrix)
    for block in np.split(np.arange(len(matrix)), cuts):
        values.add(csr[block])
    factors = values.factors()
    if factors is not None:
        csr.data = values.normalize(csr.data, np.repeat(factors, np.diff(csr.indptr)))
    return csr.toarray(), values


class TestBlocks:
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda x: x, id="counts"),
            pytest.param(lambda x: x * np.float32(1.0001), id="nearly whole"),
            pytest.param(lambda x: x * np.float32(1.37), id="linear and below 25"),
            pytest.param(lambda x: x * np.float32(31.7), id="linear"),
            pytest.param(np.log1p, id="logged"),
            pytest.param(lambda x: np.where(np.arange(40)[:, None] < 39, x * 1.0001, x * 40.4), id="last row broken"),
            pytest.param(lambda x: np.where(np.arange(40)[:, None] > 0, x, x * 40.4), id="first row broken"),
            pytest.param(np.zeros_like, id="nothing"),
        ],
    )
    @pytest.mark.parametrize("cuts", [[1], [20], [0, 13, 13, 39], list(range(1, 40))], ids=len)
    def test_make_no_difference(self, counts, change, cuts):
        values = change(counts).astype(np.float32)
        got, kind = in_blocks(values, cuts)
        expected, was_counts = log_normalize(values)
        np.testing.assert_array_equal(got, expected.toarray())
        assert kind.counts == was_counts

    def test_one_value_that_is_not_whole_decides_for_all(self, counts, caplog):
        counts[30, 2] = 26.5
        got, kind = in_blocks(counts, [10, 20])
        assert not kind.counts
        assert "not logged" in caplog.text
        total = counts.sum(axis=1, keepdims=True)
        factor = np.divide(np.median(total[total > 0]), total, out=np.zeros_like(total), where=total > 0)
        np.testing.assert_allclose(got, np.log1p(counts * factor), rtol=1e-6)

    def test_sums_of_large_counts_are_exact(self):
        counts = np.full((2, 3), 2.0**23, np.float32) + np.float32([[0, 1, 2], [2, 1, 0]])
        got, _ = in_blocks(counts, [1])
        np.testing.assert_array_equal(got[0], got[1][::-1])


def test_real_counts_are_recognised(dev_data):
    for path in sorted(dev_data.glob("*/*.h5ad")):
        assert log_normalize(ad.read_h5ad(path).X)[1], path
