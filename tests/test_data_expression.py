"""Expression from every container: read once, block by block, and the same to the bit."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.experimental import read_elem_lazy
from anndata.io import sparse_dataset, write_elem

import stage_sc as st
from stage_sc.data import _expression
from stage_sc.slides._expression import Expression, plan_columns, read_expression, scratch_folder
from stage_sc.slides._slide import Slide, read_slides_of
from stage_sc.slides._stored import StoredMatrix
from stage_sc.model import Stage, StageConfig

N = 270
EXTRA = ["Blank-1", "GFAP", "NegControlProbe_00042", "ENSMUSG00000020932.15", "Unseen"]


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    """Three slides whose cells are mixed; probes, a gene in three columns, one that is never seen, an empty cell."""
    plain = st.datasets.simulate_tissue(N // 3, n_slides=3, batch_effect=0.4, rng=3)
    more = np.random.default_rng(3).poisson(2, (N, len(EXTRA))) * [1, 1, 1, 1, 0]
    counts = sp.csr_matrix(sp.hstack([plain.X, sp.csr_matrix(more)]), dtype=np.float32).tolil()
    counts[7] = 0
    adata = ad.AnnData(
        counts.tocsr(),
        plain.obs,
        pd.DataFrame(index=[*plain.var_names, *EXTRA]),
        obsm={"spatial": plain.obsm["spatial"]},
    )
    adata = adata[np.random.default_rng(0).permutation(N)].copy()
    adata.X.sort_indices()
    st.pp.build_graph(adata, library_key="slide")
    return adata


def read(adata: ad.AnnData, scratch: Path | None = None, **arguments: object) -> list[Slide]:
    if scratch is not None:
        scratch.mkdir(exist_ok=True)
    return read_slides_of(adata, scaling="standardize", scratch=scratch, **arguments)


@pytest.fixture(scope="module")
def expected(adata) -> list[Slide]:
    return read(adata)


def assert_same(one: list[Slide], other: list[Slide]) -> None:
    """To the bit, with the order of cells and rows."""
    assert [slide.name for slide in one] == [slide.name for slide in other]
    for a, b in zip(one, other, strict=True):
        assert a.genes == b.genes
        for name in ("mean", "scale", "cells", "rows", "empty", "isolated", "xy"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        for x, y in ((a.take(np.arange(a.n_cells)), b.take(np.arange(b.n_cells))), (a.graph, b.graph)):
            for name in ("indptr", "indices", "data"):
                got, want = getattr(x, name), getattr(y, name)
                np.testing.assert_array_equal(got, want, err_msg=name)
                assert got.dtype.kind != "f" or got.dtype == want.dtype == np.float32


def with_x(adata: ad.AnnData, X: object) -> ad.AnnData:
    return ad.AnnData(X, adata.obs, adata.var, obsm=dict(adata.obsm), obsp=dict(adata.obsp), uns=dict(adata.uns))


def by_chunks(X: sp.csr_matrix, sizes: tuple[int, ...], kind: Callable[[np.ndarray], object]) -> da.Array:
    """A dask array whose chunks are made by `kind`, e.g. as csr."""
    dense = da.from_array(X.toarray(), chunks=(sizes, X.shape[1]))
    return dense.map_blocks(kind, dtype=X.dtype, meta=kind(np.zeros((0, X.shape[1]), X.dtype)))


IN_MEMORY = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr array": sp.csr_array,
    "csc array": sp.csc_array,
    "dense": lambda X: X.toarray(),
    "columns first": lambda X: np.asfortranarray(X.toarray()),
    "uint16": lambda X: X.toarray().astype(np.uint16),
    "int64": lambda X: X.astype(np.int64),
    "float64": lambda X: X.astype(np.float64),
}
DASK = {
    "dask dense": lambda X: da.from_array(X.toarray(), chunks=(60, 50)),
    "dask in one": lambda X: da.from_array(X.toarray(), chunks=(N, 177)),
    "dask uneven": lambda X: da.from_array(X.toarray(), chunks=((1, 100, 3, 166), -1)),
    "dask csr": lambda X: by_chunks(X, (100, 100, 70), sp.csr_matrix),
    "dask csr arrays": lambda X: by_chunks(X, (100, 100, 70), sp.csr_array),
    "dask csc": lambda X: by_chunks(X, (30, 240), sp.csc_matrix),
    "dask ints": lambda X: da.from_array(X.toarray().astype(np.int32), chunks=(77, 20)),
}
FORMS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": lambda X: X.toarray()}


@pytest.fixture(scope="module")
def files(adata, tmp_path_factory) -> Path:
    """The matrix in every form that a file keeps."""
    folder = tmp_path_factory.mktemp("files")
    with h5py.File(folder / "x.h5", "w") as file:
        for form, convert in FORMS.items():
            write_elem(file, form, convert(adata.X))
            write_elem(zarr.open(folder / "x.zarr", mode="a"), form, convert(adata.X))
            with_x(adata, convert(adata.X)).write_h5ad(folder / f"{form}.h5ad")
    return folder


@pytest.fixture(params=["one block", "blocks of 40 rows", "blocks of 10 rows"])
def blocks(request, monkeypatch) -> str:
    """How much is read at a time."""
    if request.param == "blocks of 40 rows":
        monkeypatch.setattr(_expression, "BLOCK_ROWS", 40)
    elif request.param == "blocks of 10 rows":
        monkeypatch.setattr(_expression, "BLOCK_ENTRIES", 10 * 177)
    return request.param


class TestContainers:
    @pytest.mark.parametrize("form", IN_MEMORY)
    @pytest.mark.parametrize("stored", [False, True], ids=["memory", "scratch"])
    def test_memory(self, adata, expected, form, stored, blocks, tmp_path):
        other = with_x(adata, IN_MEMORY[form](adata.X))
        found = read(other, tmp_path / "scratch" if stored else None)
        assert all(isinstance(slide.expression, StoredMatrix) == stored for slide in found)
        assert_same(found, expected)

    @pytest.mark.parametrize("form", DASK)
    def test_dask(self, adata, expected, form, blocks, tmp_path):
        other = with_x(adata, DASK[form](adata.X))
        assert_same(read(other, tmp_path / "scratch"), expected)
        assert_same(read(other), expected)
        assert isinstance(other.X, da.Array)

    @pytest.mark.parametrize("form", FORMS)
    def test_backed_h5ad(self, expected, form, blocks, files):
        backed = ad.read_h5ad(files / f"{form}.h5ad", backed="r")
        with scratch_folder(backed) as scratch:
            assert scratch is not None
            assert_same(read(backed, scratch), expected)
        assert backed.isbacked
        backed.file.close()

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("kind", ["zarr", "h5"])
    def test_lazy(self, adata, expected, form, kind, blocks, files):
        store = zarr.open(files / "x.zarr", mode="r") if kind == "zarr" else h5py.File(files / "x.h5", "r")
        other = with_x(adata, read_elem_lazy(store[form]))
        assert isinstance(other.X, da.Array)
        with scratch_folder(other) as scratch:
            assert scratch is not None
            assert_same(read(other, scratch), expected)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("kind", ["zarr", "h5"])
    def test_arrays_in_files(self, adata, expected, form, kind, blocks, files, tmp_path):
        store = zarr.open(files / "x.zarr", mode="r") if kind == "zarr" else h5py.File(files / "x.h5", "r")
        other = with_x(adata, store[form] if form == "dense" else sparse_dataset(store[form]))
        assert_same(read(other, tmp_path / "scratch"), expected)

    def test_lazy_object(self, adata, expected, tmp_path):
        with_x(adata, adata.X).write_zarr(tmp_path / "a.zarr")
        other = with_x(adata, ad.experimental.read_lazy(tmp_path / "a.zarr").X)
        assert_same(read(other, tmp_path / "scratch"), expected)

    def test_lazy_layer(self, adata, expected, blocks, tmp_path):
        other = with_x(adata, -np.ones(adata.shape))
        other.layers["counts"] = DASK["dask csr"](adata.X)
        with scratch_folder(other, "counts") as scratch:
            assert scratch is not None
            assert_same(read(other, scratch, layer="counts"), expected)
        with scratch_folder(other) as scratch:
            assert scratch is None

    @pytest.mark.parametrize("stored", [False, True], ids=["memory", "scratch"])
    @pytest.mark.parametrize("change", ["linear", "logged", "nearly whole"])
    def test_no_counts(self, adata, stored, change, blocks, tmp_path):
        """Sums of other values depend on their order: it must be the same one."""
        other = adata.copy()
        noise = np.random.default_rng(0).random(other.X.nnz, dtype=np.float32)
        other.X.data = {
            "linear": 7 * (other.X.data + noise),
            "logged": np.log1p(other.X.data + noise),
            "nearly whole": other.X.data + 1e-3 * (noise - 0.5),
        }[change]
        if change == "nearly whole":  # but for one value of one slide
            other.X.data[0] = 30.5
        genes = np.random.default_rng(1).permutation(adata.n_vars)
        reference = read_whole(other)
        assert_same(read(other, tmp_path / "scratch" if stored else None), reference)
        assert_same(read(other[:, genes].copy(), tmp_path / "other" if stored else None), reference)

    def test_view_of_a_backed_one(self, adata, tmp_path):
        adata.write_h5ad(tmp_path / "a.h5ad")
        backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        members = np.flatnonzero(adata.obs["slide"] == "slide2")
        for scratch in (None, tmp_path / "scratch"):
            (got,) = read(backed[members], scratch)
            (want,) = read(adata[members].copy())
            assert_same([got], [want])
        backed.file.close()


def read_whole(adata: ad.AnnData) -> list[Slide]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_expression, "BLOCK_ROWS", 65_536)
        patch.setattr(_expression, "BLOCK_ENTRIES", 2**25)
        return read(adata)


class TestNumbers:
    @pytest.mark.parametrize("stored", [False, True], ids=["memory", "scratch"])
    def test_statistics_by_numpy(self, adata, stored, blocks, tmp_path):
        (tmp_path / "x").mkdir()
        tokens = [None if name.startswith(("Blank", "Neg")) else name.casefold() for name in adata.var_names]
        names = sorted({token for token in tokens if token})
        known = set(names[::2]) | {"gfap", "unseen"}
        codes = pd.factorize(adata.obs["slide"].astype(str), sort=True)[0]
        columns = plan_columns(tokens, known.__contains__)
        found = read_expression(adata.X, columns, codes, 3, tmp_path / "x" if stored else None)
        dense = adata.X.toarray().astype(float)
        merged = np.stack([dense[:, [t == name for t in tokens]].sum(axis=1) for name in names], axis=1)
        for code, read in enumerate(found):
            here = merged[codes == code]
            total = here.sum(axis=1, keepdims=True)
            factor = np.divide(np.median(total[total > 0]), total, out=np.zeros_like(total), where=total > 0)
            x = np.log1p(here * factor)
            used = [name in known and here[:, position].any() for position, name in enumerate(names)]
            assert read.genes == [name for name, use in zip(names, used, strict=True) if use]
            assert "gfap" in read.genes
            assert "unseen" not in read.genes
            x = x[:, used]
            np.testing.assert_allclose(read.matrix[:].toarray(), x, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(read.mean, x.mean(axis=0), rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(read.deviation, x.std(axis=0), rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(read.filled, here[:, used].any(axis=1))
            assert read.identity.dtype == np.uint64

    def identity(self, X: np.ndarray, names: list[str]) -> np.ndarray:
        (read,) = read_expression(sp.csr_matrix(X), plan_columns(names, bool), np.zeros(len(X), int), 1)
        return read.identity

    def test_identity(self):
        """The same for cells with the same counts, whatever stands around them, and for no others."""
        X = np.random.default_rng(0).poisson(1.0, (200, 12)).astype(np.float32)
        X[3] = X[150]
        X[5] = 0
        names = [f"gene{number}" for number in range(12)]
        found = self.identity(X, names)
        cells, genes = np.random.default_rng(1).permutation(200), np.random.default_rng(2).permutation(12)
        other = self.identity(X[cells][:, genes], [names[gene] for gene in genes])
        np.testing.assert_array_equal(other, found[cells])
        assert found[3] == found[150]
        assert len(np.unique(found)) == len(np.unique(X, axis=0))
        wider = self.identity(np.c_[X, np.zeros((200, 2))], [*names, "none", "nobody"])
        np.testing.assert_array_equal(wider, found)
        filled = X.any(axis=1)
        assert (self.identity(X, names[::-1])[filled] != found[filled]).mean() > 0.95
        assert (self.identity(2 * X, names)[filled] != found[filled]).all()

    def test_slide_without_any_known_gene(self, blocks):
        X = sp.csr_matrix(np.array([[1, 0], [2, 0], [0, 3], [0, 1]], np.float32))
        columns = plan_columns(["a", "b"], lambda name: name == "a")
        one, other = read_expression(X, columns, np.array([0, 0, 1, 1]), 2)
        assert one.genes == other.genes == ["a"]
        assert not other.filled.any()
        assert one.filled.all()
        assert other.matrix.nnz == 0

    def test_many_cells_of_equal_counts(self):
        """Sums over cells are exact: a mean of equal values is that value, and their deviation 0."""
        X = sp.csr_matrix(np.full((5000, 3), 7, np.float32))
        (read,) = read_expression(X, plan_columns(["a", "b", "c"], bool), np.zeros(5000, int), 1)
        np.testing.assert_allclose(read.mean, np.log1p(7), atol=2**-24)
        np.testing.assert_allclose(read.deviation, 0, atol=1e-3)


class Recorder:
    """A matrix of which rows are asked for, as of a file."""

    def __init__(self, X: object, format: str | None = None) -> None:
        self.X, self.shape, self.asked = X, X.shape, []
        if format is not None:
            self.format, self.to_memory = format, self._all

    def __getitem__(self, rows: object) -> object:
        if rows is Ellipsis:
            return self._all()
        assert isinstance(rows, slice)
        self.asked.append((rows.start, rows.stop))
        return self.X[rows]

    def _all(self) -> object:
        self.asked.append((0, self.shape[0]))
        return self.X


def read_plain(X: object, scratch: Path | None = None) -> Expression:
    n, width = X.shape
    columns = plan_columns([f"g{number:04}" for number in range(width)], bool)
    return read_expression(X, columns, np.zeros(n, int), 1, scratch)[0]


class TestReadOnce:
    @pytest.mark.parametrize("make", [lambda X: X, lambda X: X.toarray()], ids=["sparse", "dense"])
    def test_rows_of_a_file(self, adata, make, blocks, tmp_path):
        recorder = Recorder(make(adata.X), "csr" if make(adata.X) is adata.X else None)
        read_plain(recorder, tmp_path)
        ends = [stop for _, stop in recorder.asked]
        assert [start for start, _ in recorder.asked] == [0, *ends[:-1]]
        assert ends[-1] == N
        assert len(ends) == {"one block": 1, "blocks of 40 rows": 7, "blocks of 10 rows": 27}[blocks]

    def test_file_of_columns(self, adata, blocks, tmp_path):
        """Rows of it can only be had all at once."""
        recorder = Recorder(sp.csc_matrix(adata.X), "csc")
        read_plain(recorder, tmp_path)
        assert recorder.asked == [(0, N)]

    @pytest.mark.parametrize("sizes", [(N,), (20, 50, 200), (1,) * N, (100, 0, 170), (40, 40, 40, 150)], ids=len)
    @pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix], ids=["dense", "csr"])
    def test_chunks_of_dask(self, adata, sizes, kind, blocks, tmp_path):
        made: Counter[object] = Counter()

        def chunk(block: np.ndarray, block_info: dict | None = None) -> object:
            if block_info:
                made[block_info[0]["chunk-location"]] += 1
            return kind(block)

        X = da.from_array(adata.X.toarray(), chunks=(sizes, adata.n_vars))
        X = X.map_blocks(chunk, dtype=np.float32, meta=kind(np.zeros((0, adata.n_vars), np.float32)))
        got = read_plain(X, tmp_path)
        used = {(number, 0) for number, size in enumerate(sizes) if size}
        assert {place: n for place, n in made.items() if place in used} == dict.fromkeys(used, 1)
        np.testing.assert_array_equal(got.matrix[:].toarray(), read_plain(adata.X).matrix.toarray())

    def test_dask_blocks_are_whole_chunks_of_about_the_size(self, monkeypatch):
        monkeypatch.setattr(_expression, "BLOCK_ROWS", 40)
        sizes = [block.shape[0] for block in _expression._row_blocks(da.zeros((200, 3), chunks=(7, 3)))]
        assert sum(sizes) == 200
        assert all(end % 7 == 0 for end in np.cumsum(sizes[:-1]))
        assert {size // 7 for size in sizes} == {5, 6}
        X = da.zeros((200, 3), chunks=((90, 1, 109), 3))
        assert [block.shape[0] for block in _expression._row_blocks(X)] == [90, 110]

    def test_wide_rows(self, monkeypatch):
        """A block is never more than so many entries, but a row at least."""
        monkeypatch.setattr(_expression, "BLOCK_ENTRIES", 100)
        assert [len(block) for block in _expression._row_blocks(np.zeros((7, 30)))] == [3, 3, 1]
        assert [len(block) for block in _expression._row_blocks(np.zeros((3, 1000)))] == [1, 1, 1]
        assert [len(block) for block in _expression._row_blocks(np.zeros((3, 0)))] == [3]
        assert not list(_expression._row_blocks(np.zeros((0, 4))))


@pytest.fixture
def model(adata, expected) -> Stage:
    """Untrained, with a tree."""
    genes = sorted({gene for slide in expected for gene in slide.genes})
    made = Stage(StageConfig(dim=8, n_layers=1, levels=(2, 4)), genes, ["one"], version="0").eval()
    made.tree.parent[2:] = made.tree.parent.new_tensor([0, 1, 0, 1])
    return made


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class TestScratch:
    def test_nobody_needs_it_in_memory(self, adata, temporary):
        for X in (adata.X, adata.X.toarray(), sp.csc_matrix(adata.X)):
            with scratch_folder(with_x(adata, X)) as folder:
                assert folder is None
                assert not list(temporary.iterdir())
        with scratch_folder(adata[:50]) as folder:
            assert folder is None

    @pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
    def test_is_gone_afterwards(self, adata, temporary, error):
        try:
            with scratch_folder(with_x(adata, DASK["dask csr"](adata.X))) as folder:
                assert list(temporary.iterdir()) == [folder]
                read(with_x(adata, adata.X), folder)
                assert list(folder.iterdir())
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt):
            assert error is not None
        assert not list(temporary.iterdir())

    def test_no_x(self, adata, temporary):
        with pytest.raises(ValueError, match="is None"):
            with scratch_folder(with_x(adata, None)):
                pass
        with pytest.raises(KeyError, match="layers"):
            with scratch_folder(adata, "raw"):
                pass
        assert not list(temporary.iterdir())

    @pytest.mark.parametrize("form", ["dask csr", "dask dense", "dask csc"])
    def test_labels(self, adata, model, form, temporary, blocks):
        """From disk they are those from memory, and nothing stays behind."""
        one, other = adata.copy(), with_x(adata, DASK[form](adata.X))
        for data in (one, other):
            st.tl.stage_niches(data, model=model, n_domains=2)
        columns = [name for name in one.obs if name.startswith("stage_")]
        assert len(columns) == 6
        pd.testing.assert_frame_equal(one.obs[columns], other.obs[columns], check_exact=True)
        np.testing.assert_array_equal(one.obsm["X_stage"], other.obsm["X_stage"])
        assert not list(temporary.iterdir())

    @pytest.mark.parametrize(("value", "match"), [(-1, "1 negative"), (np.nan, "1 NaN"), (np.inf, "1 NaN or infinite")])
    @pytest.mark.parametrize("row", [0, 269])
    def test_values_that_are_refused(self, adata, model, value, match, row, blocks, temporary, unchanged):
        """Wherever they are: nothing is written, neither to the data nor to disk."""
        X = adata.X.toarray()
        X[row, 3] = value
        stored = with_x(adata, da.from_array(X, chunks=(40, -1)))
        memory = with_x(adata, X)
        with unchanged(memory), pytest.raises(ValueError, match=match):
            st.tl.stage_niches(memory, model=model)
        with pytest.raises(ValueError, match=match):
            st.tl.stage_niches(stored, model=model)
        assert not [
            name for name in (*stored.obs, *stored.obsm, *stored.uns) if name in ("stage", "X_stage", "stage_l1")
        ]
        assert not list(temporary.iterdir())

    def test_user_matrix_is_not_changed(self, adata, blocks):
        for form in IN_MEMORY:
            X = IN_MEMORY[form](adata.X)
            before = X.copy()
            read(with_x(adata, X))
            different = X != before
            assert X.dtype == before.dtype
            assert (different.nnz if sp.issparse(different) else different.sum()) == 0


class Made:
    """Rows that are made when they are asked for."""

    N, WIDTH, PER_ROW = 40_000, 300, 40
    shape = (N, WIDTH)

    def __getitem__(self, rows: slice) -> sp.csr_matrix:
        n = rows.stop - rows.start
        rng = np.random.default_rng(rows.start)
        columns = rng.integers(1, 14, (n, self.PER_ROW)).cumsum(axis=1).ravel() % self.WIDTH
        values = rng.integers(1, 5, n * self.PER_ROW).astype(np.float32)
        return sp.csr_matrix((values, columns, np.arange(0, n * self.PER_ROW + 1, self.PER_ROW)), (n, self.WIDTH))


class TestMemory:
    def peak(self, scratch: Path | None) -> int:
        tracemalloc.start()
        try:
            got = read_plain(Made(), scratch)
            assert got.matrix.shape == Made.shape
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def test_expression_does_not_stay(self, tmp_path, monkeypatch):
        """What is kept for each cell, and a few times a block."""
        monkeypatch.setattr(_expression, "BLOCK_ROWS", 1000)
        size = 8 * Made.N * Made.PER_ROW
        assert self.peak(None) > 0.9 * size
        assert self.peak(tmp_path) < 0.4 * size

    def test_files_hold_what_was_read(self, tmp_path):
        on_disk, in_memory = read_plain(Made(), tmp_path), read_plain(Made())
        assert isinstance(on_disk.matrix, StoredMatrix)
        some = np.random.default_rng(0).integers(0, Made.N, 500)
        np.testing.assert_array_equal(on_disk.matrix[some].toarray(), in_memory.matrix[some].toarray())
