"""Expression from every container: read once, block by block, log-normalised as scanpy does, the same to the bit."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
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
    counts = sp.hstack([plain.X, np.random.default_rng(3).poisson(2, (N, len(EXTRA))) * [1, 1, 1, 1, 0]]).tolil()
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
    for a, b in zip(one, other, strict=True):
        assert (a.name, a.genes) == (b.name, b.genes)
        for name in ("mean", "scale", "cells", "rows", "empty", "isolated", "xy"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        for x, y in ((a.take(np.arange(a.n_cells)), b.take(np.arange(b.n_cells))), (a.graph, b.graph)):
            assert x.dtype == y.dtype == np.float32
            for name in ("indptr", "indices", "data"):
                np.testing.assert_array_equal(getattr(x, name), getattr(y, name), err_msg=name)


def assert_same_fields(one: Expression, other: Expression) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(*(x.toarray() if sp.issparse(x) else x for x in (a, b)))


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


IN_FILES = [f"{kind} {form}" for kind in ("backed", "zarr", "h5", "lazy-zarr", "lazy-h5") for form in FORMS]


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


def opened(adata: ad.AnnData, name: str, files: Path) -> ad.AnnData:
    if name not in IN_FILES:
        return with_x(adata, (IN_MEMORY | DASK)[name](adata.X))
    kind, form = name.split()
    if kind == "backed":
        return ad.read_h5ad(files / f"{form}.h5ad", backed="r")
    store = zarr.open(files / "x.zarr", mode="r") if "zarr" in kind else h5py.File(files / "x.h5", "r")
    if "lazy" in kind:
        return with_x(adata, read_elem_lazy(store[form]))
    return with_x(adata, store[form] if form == "dense" else sparse_dataset(store[form]))


@pytest.fixture(params=["one block", "blocks of 40 rows", "blocks of 10 rows"])
def blocks(request, monkeypatch) -> str:
    """Size of the blocks that are read."""
    if request.param != "one block":
        name, size = ("BLOCK_ROWS", 40) if "40" in request.param else ("BLOCK_ENTRIES", 10 * 177)
        monkeypatch.setattr(_expression, name, size)
    return request.param


class TestContainers:
    @pytest.mark.parametrize("form", [*IN_MEMORY, *DASK, *IN_FILES])
    def test_any(self, adata, expected, form, blocks, files, tmp_path):
        """In memory, as dask arrays, backed, and as arrays in files, lazy or not."""
        other = opened(adata, form, files)
        with scratch_folder(other) as scratch:
            assert (scratch is None) == (form in IN_MEMORY)
        for folder in (None, tmp_path / "scratch"):
            found = read(other, folder)
            assert_same(found, expected)
            assert folder is None or all(isinstance(slide.expression, StoredMatrix) for slide in found)
        if form in IN_MEMORY:
            before = IN_MEMORY[form](adata.X)
            assert (type(other.X), other.X.dtype) == (type(before), before.dtype)
            assert not (other.X != before).sum()

    @pytest.mark.parametrize("form", FORMS)
    def test_view_of_a_backed_object(self, adata, form, blocks, files, tmp_path):
        backed = ad.read_h5ad(files / f"{form}.h5ad", backed="r")
        members = np.flatnonzero(adata.obs["slide"] == "slide2")
        for folder in (None, tmp_path / "view"):
            assert_same(read(backed[members], folder), read(adata[members].copy()))
        assert backed.isbacked
        backed.file.close()

    def test_lazy_layer(self, adata, expected, blocks):
        other = with_x(adata, -np.ones(adata.shape))
        other.layers["counts"] = DASK["dask csr"](adata.X)
        with scratch_folder(other, "counts") as scratch, scratch_folder(other) as none:
            assert scratch is not None
            assert none is None
            assert_same(read(other, scratch, layer="counts"), expected)

    def test_unsorted_indices_repeats_and_stored_zeros(self):
        parts = np.array([2.0, 1, 0, 3, 1]), np.array([2, 0, 1, 1, 1]), np.array([0, 3, 5])
        odd = sp.csr_matrix(parts, shape=(2, 3))
        assert_same_fields(read_plain(odd), read_plain(np.array([[1.0, 0, 2], [0, 4, 0]])))
        assert read_plain(odd).matrix.nnz == 3
        assert odd.indices.tolist() == [2, 0, 1, 1, 1]  # not sorted in place

    @pytest.fixture(params=["linear", "logged", "nearly whole"])
    def no_counts(self, request, adata) -> tuple[ad.AnnData, list[Slide]]:
        """Values other than counts, and their slides read as one block."""
        other, noise = adata.copy(), np.random.default_rng(0).random(adata.X.nnz, dtype=np.float32)
        other.X.data = {
            "linear": 7 * (other.X.data + noise),
            "logged": np.log1p(other.X.data + noise),
            "nearly whole": other.X.data + 1e-3 * (noise - 0.5),
        }[request.param]
        if request.param == "nearly whole":  # but for one value of one slide
            other.X.data[0] = 30.5
        return other, read(other)

    @pytest.mark.parametrize("stored", [False, True], ids=["memory", "scratch"])
    def test_no_counts(self, no_counts, stored, blocks, tmp_path):
        """Sums of other values depend on their order: it must be the same one, for any order of the genes."""
        other, reference = no_counts
        assert_same(read(other, tmp_path / "scratch" if stored else None), reference)
        for seed in range(2):
            genes = np.random.default_rng(seed).permutation(other.n_vars)
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
        read = read_plain(counts).matrix.toarray()
        np.testing.assert_allclose(read, by_scanpy(counts), rtol=1e-6)
        np.testing.assert_array_equal(read_plain(counts * np.float32(1.0001)).matrix.toarray(), read)
        assert not caplog.records
        counts[30, 2] = 26.5  # one value that is not whole decides for all
        np.testing.assert_allclose(read_plain(counts).matrix.toarray(), by_scanpy(counts), rtol=1e-6)

    def test_other_values_have_a_warning(self, counts, caplog):
        logged = np.insert(by_scanpy(counts), 3, 0, axis=1)
        np.testing.assert_array_equal(read_plain(logged).matrix.toarray(), by_scanpy(counts))
        assert "log-normalised" in caplog.text
        linear = 100 * np.expm1(logged)
        np.testing.assert_allclose(read_plain(linear).matrix.toarray(), by_scanpy(linear), rtol=1e-4)
        assert "not logged" in caplog.text

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda x: x, id="counts"),
            pytest.param(lambda x: x * np.float32(1.0001), id="nearly whole"),
            pytest.param(lambda x: x * np.float32(1.37), id="below 25"),
            pytest.param(lambda x: x * np.float32(31.7), id="linear"),
            pytest.param(np.log1p, id="logged"),
            pytest.param(lambda x: np.where(np.arange(40)[:, None] < 39, x * 1.0001, x * 40.4), id="last row linear"),
            pytest.param(lambda x: np.where(np.arange(40)[:, None] > 0, x, x * 40.4), id="first row linear"),
            pytest.param(np.zeros_like, id="zeros"),
        ],
    )
    def test_blocks_make_no_difference(self, counts, change, monkeypatch):
        values = change(counts).astype(np.float32)
        expected = read_plain(values)
        for rows in (1, 13, 39):
            monkeypatch.setattr(_expression, "BLOCK_ROWS", rows)
            assert_same_fields(read_plain(values), expected)

    def test_sums_of_large_counts_are_exact(self, monkeypatch):
        monkeypatch.setattr(_expression, "BLOCK_ROWS", 1)
        got = read_plain(np.full((2, 3), 2.0**23, np.float32) + np.float32([[0, 1, 2], [2, 1, 0]])).matrix.toarray()
        np.testing.assert_array_equal(got[0], got[1][::-1])

    def test_real_counts_are_recognised(self, dev_data, caplog):
        for path in sorted(dev_data.glob("*/*.h5ad")):
            if not path.parent.name.startswith("imc"):  # intensities of proteins
                read_plain(ad.read_h5ad(path).X)
                assert not caplog.records, path


class TestNumbers:
    def test_identity(self):
        """The same for cells with the same counts, for any order of cells and genes, and for no others."""
        X, names = np.random.default_rng(0).poisson(1.0, (200, 12)).astype(np.float32), [f"gene{k}" for k in range(12)]
        X[3], X[5] = X[150], 0
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

    def __init__(self, X: object, format: str = "") -> None:
        self.X, self.shape, self.asked = X, X.shape, []
        if format:
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
        starts, ends = zip(*recorder.asked, strict=True)
        assert (*starts, N) == (0, *ends)
        assert len(ends) == {"one block": 1, "blocks of 40 rows": 7, "blocks of 10 rows": 27}[blocks]
        columns = Recorder(sp.csc_matrix(adata.X), "csc")
        read_plain(columns, tmp_path)
        assert columns.asked == [(0, N)]  # rows of csc can only be had all at once

    @pytest.mark.parametrize("sizes", [(N,), (20, 50, 200), (1,) * N, (100, 0, 170), (40, 40, 40, 150)], ids=len)
    @pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix], ids=["dense", "csr"])
    def test_chunks_of_dask(self, adata, sizes, kind, blocks, tmp_path):
        made: Counter[int] = Counter()

        def chunk(block: np.ndarray, block_info: dict | None = None) -> object:
            if block_info and len(block):
                made[block_info[0]["chunk-location"][0]] += 1
            return kind(block)

        got = read_plain(by_chunks(adata.X, sizes, chunk), tmp_path)
        assert made == {number: 1 for number, size in enumerate(sizes) if size}
        np.testing.assert_array_equal(got.matrix[:].toarray(), read_plain(adata.X).matrix.toarray())

    def test_whole_chunks_and_one_row_at_least(self, monkeypatch):
        monkeypatch.setattr(_expression, "BLOCK_ENTRIES", 120)
        for X, sizes in ((da.zeros((200, 3), chunks=(7, 3)), [42, 42, 42, 35, 39]), (np.zeros((3, 1000)), [1, 1, 1])):
            assert [block.shape[0] for block in _expression._row_blocks(X)] == sizes


@pytest.fixture(scope="module")
def model(adata) -> st.model.Stage:
    config = st.model.StageConfig(dim=8, n_layers=1, levels=(2, 4), domain_starts=2, domain_refined=1)
    return st.tl.fit(adata, config=config, epochs=0, progress=False)


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class TestScratch:
    def test_only_for_what_is_on_disk(self, adata, temporary):
        for data in (*(with_x(adata, convert(adata.X)) for convert in FORMS.values()), adata[:50]):
            with scratch_folder(data) as folder:
                assert folder is None
        for wrong, layer, error in ((with_x(adata, None), None, ValueError), (adata, "raw", KeyError)):
            with pytest.raises(error, match="layer"), scratch_folder(wrong, layer):
                pass
        assert not list(temporary.iterdir())

    @pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
    def test_is_gone_afterwards(self, adata, temporary, error):
        with pytest.raises(error) if error else nullcontext():
            with scratch_folder(with_x(adata, DASK["dask csr"](adata.X))) as folder:
                assert list(temporary.iterdir()) == [folder]
                read(adata, folder)
                assert list(folder.iterdir())
                if error:
                    raise error
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
        for data in (memory, stored):
            with unchanged(memory), pytest.raises(ValueError, match="1 negative" if value == -1 else "1 NaN"):
                st.tl.stage_niches(data, model=model)
        assert not [
            key for part in (stored.obs, stored.obsm, stored.uns) for key in part if key in ("stage", "X_stage")
        ]
        assert stored.obs.columns.tolist() == adata.obs.columns.tolist()
        assert not list(temporary.iterdir())


def test_memory(tmp_path, monkeypatch):
    """With scratch, no more than a few values per cell, and a few times a block."""
    monkeypatch.setattr(_expression, "BLOCK_ROWS", 1000)
    X = sp.random(40_000, 300, 0.13, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    X.data, found, peaks = np.ceil(4 * X.data), [], []
    for scratch in (None, tmp_path):
        tracemalloc.start()
        found.append(read_plain(X, scratch).matrix)
        peaks.append(tracemalloc.get_traced_memory()[1] / (8 * X.nnz))
        tracemalloc.stop()
    assert peaks[0] > 0.9
    assert peaks[1] < 0.4
    np.testing.assert_array_equal(found[0][::80].toarray(), found[1][np.arange(0, 40_000, 80)].toarray())
