"""Expression from every container: read once, block by block, log-normalised as scanpy does, the same to the bit."""

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
import scanpy as sc
import scipy.sparse as sp
import zarr
from anndata.experimental import read_elem_lazy
from anndata.io import sparse_dataset, write_elem

import stage_sc as st
from stage_sc.slides import Slide, StoredMatrix, _expression, read_slides, scratch_folder
from stage_sc.slides._expression import Expression, plan_columns, read_expression

N = 270
EXTRA = ["Blank-1", "GFAP", "NegControlProbe_00042", "ENSMUSG00000020932.15", "Unseen"]


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    """Three slides whose cells are mixed; probes, a gene in three columns, one that is never seen, an empty cell."""
    plain = st.datasets.simulate_tissue(N // 3, n_slides=3, batch_effect=0.4, rng=3)
    more = np.random.default_rng(3).poisson(2, (N, len(EXTRA))) * [1, 1, 1, 1, 0]
    counts = sp.hstack([plain.X, sp.csr_matrix(more)]).tolil()
    counts[7] = 0
    var = pd.DataFrame(index=[*plain.var_names, *EXTRA])
    adata = ad.AnnData(sp.csr_matrix(counts, dtype=np.float32), plain.obs, var, obsm=dict(plain.obsm))
    adata = adata[np.random.default_rng(0).permutation(N)].copy()
    adata.X.sort_indices()
    st.pp.build_graph(adata, library_key="slide")
    return adata


def read(adata: ad.AnnData, scratch: Path | None = None, **arguments: object) -> list[Slide]:
    if scratch is not None:
        scratch.mkdir(exist_ok=True)
    return read_slides(adata, st.model.StageConfig(), scratch=scratch, **arguments)


def read_plain(X: object, scratch: Path | None = None, names: list[str] | None = None) -> Expression:
    """The expression of one slide, all columns of which are genes."""
    n, width = X.shape
    columns = plan_columns(names or [f"g{number:04}" for number in range(width)], bool)
    return read_expression(X, columns, np.zeros(n, int), 1, scratch)[0]


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
                np.testing.assert_array_equal(getattr(x, name), getattr(y, name), err_msg=name)
            assert x.dtype == y.dtype == np.float32


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
    "dense": lambda X: X.toarray(),
    "columns first": lambda X: np.asfortranarray(X.toarray().astype(np.int16)),
    "uint16": lambda X: X.toarray().astype(np.uint16),
    "int64": lambda X: X.astype(np.int64),
    "float64": lambda X: X.astype(np.float64),
}
DASK = {
    "dask dense": lambda X: da.from_array(X.toarray(), chunks=(60, 50)),
    "dask uneven": lambda X: da.from_array(X.toarray(), chunks=((1, 100, 3, 166), -1)),
    "dask csr": lambda X: by_chunks(X, (100, 100, 70), sp.csr_matrix),
    "dask csr arrays": lambda X: by_chunks(X, (100, 100, 70), sp.csr_array),
    "dask csc": lambda X: by_chunks(X, (30, 240), sp.csc_matrix),
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
    """Size of the blocks that are read."""
    if request.param == "blocks of 40 rows":
        monkeypatch.setattr(_expression, "BLOCK_ROWS", 40)
    elif request.param == "blocks of 10 rows":
        monkeypatch.setattr(_expression, "BLOCK_ENTRIES", 10 * 177)
    return request.param


class TestContainers:
    @pytest.mark.parametrize("form", IN_MEMORY)
    def test_memory(self, adata, expected, form, blocks, tmp_path):
        X = IN_MEMORY[form](adata.X)
        other, before = with_x(adata, X), X.copy()
        assert_same(read(other), expected)
        found = read(other, tmp_path / "scratch")
        assert all(isinstance(slide.expression, StoredMatrix) for slide in found)
        assert_same(found, expected)
        assert type(other.X) is type(X)
        assert X.dtype == before.dtype
        assert not (X != before).sum()

    @pytest.mark.parametrize("form", DASK)
    def test_dask(self, adata, expected, form, blocks, tmp_path):
        other = with_x(adata, DASK[form](adata.X))
        assert_same(read(other, tmp_path / "scratch"), expected)
        assert_same(read(other), expected)
        assert isinstance(other.X, da.Array)

    @pytest.mark.parametrize("form", FORMS)
    def test_backed_h5ad(self, adata, expected, form, blocks, files, tmp_path):
        backed = ad.read_h5ad(files / f"{form}.h5ad", backed="r")
        with scratch_folder(backed) as scratch:
            assert scratch is not None
            assert_same(read(backed, scratch), expected)
        members = np.flatnonzero(adata.obs["slide"] == "slide2")
        for folder in (None, tmp_path / "view"):
            assert_same(read(backed[members], folder), read(adata[members].copy()))
        assert backed.isbacked
        backed.file.close()

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("kind", ["zarr", "h5"])
    def test_files(self, adata, expected, form, kind, blocks, files, tmp_path):
        """Lazily as dask arrays, and as arrays in files."""
        store = zarr.open(files / "x.zarr", mode="r") if kind == "zarr" else h5py.File(files / "x.h5", "r")
        lazy = with_x(adata, read_elem_lazy(store[form]))
        with scratch_folder(lazy) as scratch:
            assert scratch is not None
            assert_same(read(lazy, scratch), expected)
        stored = with_x(adata, store[form] if form == "dense" else sparse_dataset(store[form]))
        assert_same(read(stored, tmp_path / "scratch"), expected)

    def test_lazy_layer(self, adata, expected, blocks):
        other = with_x(adata, -np.ones(adata.shape))
        other.layers["counts"] = DASK["dask csr"](adata.X)
        with scratch_folder(other, "counts") as scratch:
            assert scratch is not None
            assert_same(read(other, scratch, layer="counts"), expected)
        with scratch_folder(other) as scratch:
            assert scratch is None

    def test_unsorted_indices_repeats_and_stored_zeros(self):
        parts = np.array([2.0, 1, 0, 3, 1]), np.array([2, 0, 1, 1, 1]), np.array([0, 3, 5])
        odd, plain = sp.csr_matrix(parts, shape=(2, 3)), np.array([[1.0, 0, 2], [0, 4, 0]])
        for got, want in zip(read_plain(odd), read_plain(plain), strict=True):
            np.testing.assert_array_equal(*(x.toarray() if sp.issparse(x) else x for x in (got, want)))
        assert read_plain(odd).matrix.nnz == 3
        assert odd.indices.tolist() == [2, 0, 1, 1, 1]  # not sorted in place

    @pytest.mark.parametrize("stored", [False, True], ids=["memory", "scratch"])
    @pytest.mark.parametrize("change", ["linear", "logged", "nearly whole"])
    def test_no_counts(self, adata, stored, change, blocks, tmp_path):
        """Sums of other values depend on their order: it must be the same one, for any order of the genes."""
        other = adata.copy()
        noise = np.random.default_rng(0).random(other.X.nnz, dtype=np.float32)
        other.X.data = {
            "linear": 7 * (other.X.data + noise),
            "logged": np.log1p(other.X.data + noise),
            "nearly whole": other.X.data + 1e-3 * (noise - 0.5),
        }[change]
        if change == "nearly whole":  # but for one value of one slide
            other.X.data[0] = 30.5
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_expression, "BLOCK_ROWS", 65_536)
            patch.setattr(_expression, "BLOCK_ENTRIES", 2**25)
            reference = read(other)
        assert_same(read(other, tmp_path / "scratch" if stored else None), reference)
        for seed in range(2):
            genes = np.random.default_rng(seed).permutation(adata.n_vars)
            assert_same(read(other[:, genes].copy(), tmp_path / f"{seed}" if stored else None), reference)


@pytest.fixture
def counts() -> np.ndarray:
    """Counts with an empty cell and an empty gene."""
    counts = np.random.default_rng(0).poisson(1.0, (40, 12)).astype(np.float32)
    counts[5] = counts[:, 3] = 0
    return counts


def by_scanpy(counts: np.ndarray) -> np.ndarray:
    adata, total = ad.AnnData(counts.copy()), counts.sum(axis=1)
    sc.pp.normalize_total(adata, target_sum=np.median(total[total > 0]))
    sc.pp.log1p(adata)
    return np.delete(adata.X, 3, axis=1)


class TestKinds:
    """Counts, nearly whole numbers, linear values, logged values."""

    def test_counts(self, counts, caplog):
        np.testing.assert_allclose(read_plain(counts).matrix.toarray(), by_scanpy(counts), rtol=1e-6)
        nearly = read_plain(counts * np.float32(1.0001)).matrix
        np.testing.assert_array_equal(nearly.toarray(), read_plain(counts).matrix.toarray())
        assert not caplog.records

    def test_logged_values_are_kept_with_a_warning(self, counts, caplog):
        logged = np.insert(by_scanpy(counts), 3, 0, axis=1)
        np.testing.assert_array_equal(read_plain(logged).matrix.toarray(), by_scanpy(counts))
        assert "log-normalised" in caplog.text

    def test_linear_values_are_logged_with_a_warning(self, counts, caplog):
        linear = 100 * np.expm1(np.insert(by_scanpy(counts), 3, 0, axis=1))
        np.testing.assert_allclose(read_plain(linear).matrix.toarray(), by_scanpy(linear), rtol=1e-4)
        assert "not logged" in caplog.text

    def test_one_value_that_is_not_whole_decides_for_all(self, counts, monkeypatch):
        monkeypatch.setattr(_expression, "BLOCK_ROWS", 10)
        counts[30, 2] = 26.5
        np.testing.assert_allclose(read_plain(counts).matrix.toarray(), by_scanpy(counts), rtol=1e-6)

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: x,
            lambda x: x * np.float32(1.0001),
            lambda x: x * np.float32(1.37),
            lambda x: x * np.float32(31.7),
            np.log1p,
            lambda x: np.where(np.arange(40)[:, None] < 39, x * 1.0001, x * 40.4),
            lambda x: np.where(np.arange(40)[:, None] > 0, x, x * 40.4),
            np.zeros_like,
        ],
        ids=["counts", "nearly whole", "below 25", "linear", "logged", "last row linear", "first row linear", "zeros"],
    )
    def test_blocks_make_no_difference(self, counts, change, monkeypatch):
        values = change(counts).astype(np.float32)
        expected = read_plain(values)
        for rows in (1, 13, 39):
            monkeypatch.setattr(_expression, "BLOCK_ROWS", rows)
            for got, want in zip(read_plain(values), expected, strict=True):
                np.testing.assert_array_equal(*(x.toarray() if sp.issparse(x) else x for x in (got, want)))

    def test_sums_of_large_counts_are_exact(self, monkeypatch):
        monkeypatch.setattr(_expression, "BLOCK_ROWS", 1)
        got = read_plain(np.full((2, 3), 2.0**23, np.float32) + np.float32([[0, 1, 2], [2, 1, 0]])).matrix.toarray()
        np.testing.assert_array_equal(got[0], got[1][::-1])

    def test_real_counts_are_recognised(self, dev_data, caplog):
        for path in sorted(dev_data.glob("*/*.h5ad")):
            if path.parent.name.startswith("imc"):  # intensities of proteins
                continue
            read_plain(ad.read_h5ad(path).X)
            assert not caplog.records, path


class TestNumbers:
    @pytest.mark.parametrize("stored", [False, True], ids=["memory", "scratch"])
    def test_statistics_by_numpy(self, adata, stored, blocks, tmp_path):
        tokens = [None if name.startswith(("Blank", "Neg")) else name.casefold() for name in adata.var_names]
        names = sorted({token for token in tokens if token})
        known = set(names[::2]) | {"gfap", "unseen"}
        codes = pd.factorize(adata.obs["slide"].astype(str), sort=True)[0]
        columns = plan_columns(tokens, known.__contains__)
        found = read_expression(adata.X, columns, codes, 3, tmp_path if stored else None)
        dense = adata.X.toarray().astype(float)
        merged = np.stack([dense[:, [t == name for t in tokens]].sum(axis=1) for name in names], axis=1)
        for code, read in enumerate(found):
            here = merged[codes == code]
            total = here.sum(axis=1, keepdims=True)
            factor = np.divide(np.median(total[total > 0]), total, out=np.zeros_like(total), where=total > 0)
            used = [name in known and here[:, position].any() for position, name in enumerate(names)]
            assert read.genes == [name for name, use in zip(names, used, strict=True) if use]
            assert "gfap" in read.genes
            assert "unseen" not in read.genes
            x = np.log1p(here * factor)[:, used]
            np.testing.assert_allclose(read.matrix[:].toarray(), x, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(read.mean, x.mean(axis=0), rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(read.deviation, x.std(axis=0), rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(read.filled, here[:, used].any(axis=1))

    def test_identity(self):
        """The same for cells with the same counts, for any order of cells and genes, and for no others."""
        X = np.random.default_rng(0).poisson(1.0, (200, 12)).astype(np.float32)
        X[3], X[5] = X[150], 0
        names = [f"gene{number}" for number in range(12)]
        found = read_plain(X, names=names).identity
        cells, genes = np.random.default_rng(1).permutation(200), np.random.default_rng(2).permutation(12)
        other = read_plain(X[cells][:, genes], names=[names[gene] for gene in genes]).identity
        np.testing.assert_array_equal(other, found[cells])
        assert found.dtype == np.uint64
        assert found[3] == found[150]
        assert len(np.unique(found)) == len(np.unique(X, axis=0))
        wider = read_plain(np.c_[X, np.zeros((200, 2))], names=[*names, "none", "unseen"]).identity
        np.testing.assert_array_equal(wider, found)
        filled = X.any(axis=1)
        assert (read_plain(X, names=names[::-1]).identity[filled] != found[filled]).mean() > 0.95
        assert (read_plain(2 * X, names=names).identity[filled] != found[filled]).all()

    def test_slide_without_any_known_gene(self, blocks):
        X = sp.csr_matrix(np.array([[1, 0], [2, 0], [0, 3], [0, 1]], np.float32))
        columns = plan_columns(["a", "b"], lambda name: name == "a")
        one, other = read_expression(X, columns, np.array([0, 0, 1, 1]), 2)
        assert one.genes == other.genes == ["a"]
        assert one.filled.tolist() == [True, True]
        assert other.filled.tolist() == [False, False]
        assert other.matrix.nnz == 0

    def test_many_cells_of_equal_counts(self):
        """Sums over cells are exact: a mean of equal values is that value, and their deviation 0."""
        got = read_plain(np.full((5000, 3), 7, np.float32))
        np.testing.assert_allclose(got.mean, np.log1p(7), atol=2**-24)
        np.testing.assert_allclose(got.deviation, 0, atol=1e-3)


class Recorder:
    """A matrix, as of a file, that keeps the rows that are asked for."""

    def __init__(self, X: object, format: str | None = None) -> None:
        self.X, self.shape, self.asked = X, X.shape, []
        if format is not None:
            self.format, self.to_memory = format, lambda: self[:]

    def __getitem__(self, rows: object) -> object:
        start, stop, _ = (slice(None) if rows is Ellipsis else rows).indices(self.shape[0])
        self.asked.append((start, stop))
        return self.X[start:stop]


class TestReadOnce:
    @pytest.mark.parametrize("sparse", [True, False])
    def test_rows_of_a_file(self, adata, sparse, blocks, tmp_path):
        recorder = Recorder(adata.X, "csr") if sparse else Recorder(adata.X.toarray())
        read_plain(recorder, tmp_path)
        ends = [stop for _, stop in recorder.asked]
        assert [start for start, _ in recorder.asked] == [0, *ends[:-1]]
        assert ends[-1] == N
        assert len(ends) == {"one block": 1, "blocks of 40 rows": 7, "blocks of 10 rows": 27}[blocks]
        columns = Recorder(sp.csc_matrix(adata.X), "csc")
        read_plain(columns, tmp_path)
        assert columns.asked == [(0, N)]  # rows of csc can only be had all at once

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

    def test_sizes_of_blocks(self, monkeypatch):
        """Whole chunks of dask; limited numbers of rows and of entries, but one row at least."""
        monkeypatch.setattr(_expression, "BLOCK_ROWS", 40)
        monkeypatch.setattr(_expression, "BLOCK_ENTRIES", 120)
        for X, sizes in (
            (da.zeros((200, 3), chunks=(7, 3)), [42, 42, 42, 35, 39]),
            (da.zeros((200, 3), chunks=((90, 1, 109), 3)), [90, 110]),
            (np.zeros((7, 40)), [3, 3, 1]),
            (np.zeros((3, 1000)), [1, 1, 1]),
            (np.zeros((3, 0)), [3]),
            (np.zeros((0, 4)), []),
        ):
            assert [block.shape[0] for block in _expression._row_blocks(X)] == sizes


@pytest.fixture
def model(expected) -> st.model.Stage:
    """Untrained, with a tree."""
    genes = sorted({gene for slide in expected for gene in slide.genes})
    config = st.model.StageConfig(dim=8, n_layers=1, levels=(2, 4), domain_starts=2, domain_refined=1)
    made = st.model.Stage(config, genes, ["one"], version="0").eval()
    made.tree.parent[2:] = made.tree.parent.new_tensor([0, 1, 0, 1])
    return made


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class TestScratch:
    def test_only_for_what_is_on_disk(self, adata, temporary):
        for X in (adata.X, adata.X.toarray(), sp.csc_matrix(adata.X)):
            with scratch_folder(with_x(adata, X)) as folder:
                assert folder is None
        with scratch_folder(adata[:50]) as folder:
            assert folder is None
        for wrong, layer, error in ((with_x(adata, None), None, ValueError), (adata, "raw", KeyError)):
            with pytest.raises(error, match="layer"), scratch_folder(wrong, layer):
                pass
        assert not list(temporary.iterdir())

    @pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
    def test_is_gone_afterwards(self, adata, temporary, error):
        try:
            with scratch_folder(with_x(adata, DASK["dask csr"](adata.X))) as folder:
                assert list(temporary.iterdir()) == [folder]
                read(adata, folder)
                assert list(folder.iterdir())
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt):
            assert error is not None
        assert not list(temporary.iterdir())

    @pytest.mark.parametrize("form", ["dask csr", "dask dense", "dask csc"])
    def test_labels(self, adata, model, form, temporary, monkeypatch, assert_same):
        """From disk they are those from memory, and nothing stays behind."""
        monkeypatch.setattr(_expression, "BLOCK_ROWS", 40)
        one, other = adata.copy(), with_x(adata, DASK[form](adata.X))
        for data in (one, other):
            st.tl.stage_niches(data, model=model, n_domains=2)
        assert "stage_domain" in one.obs
        assert_same((one.obs, one.obsm["X_stage"]), (other.obs, other.obsm["X_stage"]))
        assert not list(temporary.iterdir())

    @pytest.mark.parametrize("value", [-1, np.nan, np.inf])
    @pytest.mark.parametrize("row", [0, 269])
    def test_values_that_are_refused(self, adata, model, value, row, blocks, temporary, unchanged):
        """Wherever they are: nothing is written, neither to the data nor to disk."""
        X = adata.X.toarray()
        X[row, 3] = value
        memory, stored = with_x(adata, X), with_x(adata, da.from_array(X, chunks=(40, -1)))
        places = [set(place) for place in (stored.obs, stored.obsm, stored.uns)]
        for data in (memory, stored):
            with unchanged(memory), pytest.raises(ValueError, match="1 negative" if value == -1 else "1 NaN"):
                st.tl.stage_niches(data, model=model)
        assert [set(place) for place in (stored.obs, stored.obsm, stored.uns)] == places
        assert not list(temporary.iterdir())


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


def test_memory(tmp_path, monkeypatch):
    """With scratch, no more than a few values per cell, and a few times a block."""
    monkeypatch.setattr(_expression, "BLOCK_ROWS", 1000)
    found, peaks = [], []
    for scratch in (None, tmp_path):
        tracemalloc.start()
        try:
            found.append(read_plain(Made(), scratch).matrix)
            peaks.append(tracemalloc.get_traced_memory()[1] / (8 * Made.N * Made.PER_ROW))
        finally:
            tracemalloc.stop()
    assert peaks[0] > 0.9
    assert peaks[1] < 0.4
    some = np.random.default_rng(0).integers(0, Made.N, 500)
    np.testing.assert_array_equal(found[0][some].toarray(), found[1][some].toarray())
