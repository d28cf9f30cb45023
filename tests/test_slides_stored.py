"""Matrices and arrays in files against scipy and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as some

from stage_sc.slides import MatrixWriter, StoredArray, StoredMatrix, files_of


def matrix(n: int = 37, width: int = 11, seed: int = 0) -> sp.csr_matrix:
    """With empty rows at the beginning, in the middle and at the end, and a stored zero."""
    made = sp.random(n, width, 0.3, format="lil", rng=np.random.default_rng(seed), dtype=np.float32)
    for row in (0, 1, 17, n - 1):
        made[row] = 0
    made = sp.csr_matrix(made)
    made.data[5] = 0
    return made


def written(matrix: sp.csr_matrix, base, cuts: tuple[int, ...] = ()) -> StoredMatrix:
    writer = MatrixWriter(base, matrix.shape[1])
    bounds = [0, *cuts, matrix.shape[0]]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        writer.append(matrix[start:stop])
    return writer.finish()


def assert_same(got: sp.csr_matrix, expected: sp.csr_matrix) -> None:
    assert isinstance(got, sp.csr_matrix)
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)


@pytest.fixture
def stored(tmp_path) -> StoredMatrix:
    return written(matrix(), tmp_path / "m")


class TestMatrix:
    @settings(max_examples=100, deadline=None)
    @given(some.data())
    def test_any_rows(self, tmp_path_factory, data):
        n, width = data.draw(some.integers(0, 30)), data.draw(some.integers(1, 5))
        full = sp.random(n, width, data.draw(some.floats(0, 1)), format="csr", rng=np.random.default_rng(1))
        full = sp.csr_matrix(full, dtype=np.float32)
        cuts = tuple(sorted(data.draw(some.lists(some.integers(0, n), max_size=4))))
        stored = written(full, tmp_path_factory.mktemp("x") / "m", cuts)
        assert stored.shape == full.shape
        start, stop = (data.draw(some.none() | some.integers(-n - 2, n + 2)) for _ in range(2))
        assert_same(stored[start:stop], full[start:stop])
        if n:
            rows = np.array(data.draw(some.lists(some.integers(0, n - 1))), dtype=int)
            assert_same(stored[rows], full[rows])

    def test_types_and_orders_of_what_is_appended(self, tmp_path):
        writer, expected = MatrixWriter(tmp_path / "m", 11), np.rint(10 * matrix())
        for dtype, index in (("f8", "i8"), ("i4", "i4"), ("f4", "i8")):
            part = sp.csr_matrix(expected.astype(dtype))
            part.indices, part.indptr = part.indices.astype(index), part.indptr.astype(index)
            writer.append(part)
        writer.append(expected[::-1])
        assert (writer.finish()[:] != sp.vstack([expected] * 3 + [expected[::-1]])).nnz == 0

    def test_files(self, stored, tmp_path):
        sizes = [path.stat().st_size for path in files_of(tmp_path / "m")]
        assert sizes == [38 * 8, matrix().nnz * 4, matrix().nnz * 4]
        assert_same(StoredMatrix(tmp_path / "m", 11)[:], matrix())
        assert MatrixWriter(tmp_path / "none", 3).finish().shape == (0, 3)
        other = matrix(20, 11, seed=1)
        assert_same(written(other, tmp_path / "m")[:], other)  # anew

    def test_what_is_read_is_a_copy(self, stored):
        part = stored[2:30]
        part.data[:] = part.indices[:] = -1
        assert_same(stored[2:30], matrix()[2:30])

    @pytest.mark.parametrize("columns", [[0], [2, 3, 7], [10], list(range(11)), [9, 10]], ids=str)
    def test_some_columns(self, stored, tmp_path, columns):
        some_columns = StoredMatrix(tmp_path / "m", 11, np.array(columns))
        assert some_columns.shape == (37, len(columns))
        for rows in (slice(None), slice(4, 20), np.array([5, 2, 2, 36]), slice(3, 3)):
            assert_same(some_columns[rows], matrix()[rows][:, columns])

    def test_reads_the_rows_asked_for_and_no_more(self, stored, monkeypatch):
        asked, plain = {}, StoredArray.__getitem__

        def spy(array, rows):
            result = plain(array, rows)
            asked[array.path.suffix] = len(result)
            return result

        monkeypatch.setattr(StoredArray, "__getitem__", spy)
        for rows, n_pointers in ((slice(4, 8), 5), (np.array([20, 3]), 2)):
            part = stored[rows]
            assert asked == {".indptr": n_pointers, ".indices": part.nnz, ".data": part.nnz}


class TestArray:
    @pytest.mark.parametrize("n", [10, 0])
    @pytest.mark.parametrize("shape", [(), (2,)])
    def test_rows(self, tmp_path, n, shape):
        values = np.arange(n * (2 if shape else 1), dtype="<i8").reshape(n, *shape)
        values.tofile(tmp_path / "a")
        stored = StoredArray(tmp_path / "a", "<i8", *shape)
        assert len(stored) == n
        some_rows = [np.array([3, 3, 0])] if n else []
        for rows in (slice(None), slice(2, 5), slice(8, 20), slice(4, 4), np.array([], dtype=int), *some_rows):
            np.testing.assert_array_equal(stored[rows], values[rows])
            assert stored[rows].dtype == values.dtype
            assert type(stored[rows]) is np.ndarray

    def test_overwrite(self, tmp_path):
        np.arange(10, dtype="<f4").tofile(tmp_path / "a")
        stored = StoredArray(tmp_path / "a", "<f4")
        before = stored[:]
        for start, values in ((3, [7.0, 8.0]), (9, np.array([1])), (0, np.array([], np.float32))):  # of any type
            stored.overwrite(start, np.asarray(values))
        np.testing.assert_array_equal(stored[:], [0, 1, 2, 7, 8, 5, 6, 7, 8, 1])
        np.testing.assert_array_equal(before, np.arange(10))
