"""Stores: what is in them is what is read from the files; damage and interruption are noticed and mended."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

import stage_sc as st
from stage_sc.model import StageConfig
from stage_sc.slides import CHUNK, read_slides


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One section in an h5ad file; two in a zarr folder, one cell of which has no place."""
    folder = tmp_path_factory.mktemp("files")
    sections = [st.datasets.simulate_tissue(n, rng=n) for n in (700, 500, 600)]
    sections[0].write_h5ad(folder / "one.h5ad")
    pair = ad.concat({"a": sections[1], "b": sections[2]}, label="slide", index_unique="-")
    pair.obsm["spatial"] = pair.obsm["spatial"].astype(float)
    pair.obsm["spatial"][7] = np.inf
    pair.write_zarr(folder / "pair.zarr")
    return [folder / "one.h5ad", folder / "pair.zarr"]


@pytest.fixture(scope="module")
def store(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    build(files[:1], folder)
    return build(files, folder, library_key=None)


def build(paths, folder, **arguments):
    return st.data.build_store(paths, folder, progress=False, **arguments)


def from_memory(path, library_key=None, config=None, **options):
    adata = ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)
    st.pp.filter_cells(adata)
    st.pp.build_graph(adata, library_key=library_key)
    return read_slides(adata, config or StageConfig(), **options)


def places_of(stored, expected):
    """Of every stored cell, its place in the other slide."""
    order = np.argsort(expected.cells)
    return order[np.searchsorted(expected.cells[order], stored.cells[:])]


def assert_same_slide(stored, expected):
    """The same cells in another order, with the same neighbours."""
    back, everything = places_of(stored, expected), np.arange(stored.n_cells)
    assert (stored.n_cells, stored.genes, stored.sizes) == (expected.n_cells, expected.genes, expected.sizes)
    for name in ("mean", "scale"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(expected, name))
    for name in ("xy", "empty", "isolated"):
        np.testing.assert_array_equal(getattr(stored, name)[:], getattr(expected, name)[back])
    assert (stored.take(everything) != expected.take(back)).nnz == 0
    for name in ("graph", "local"):
        got = getattr(stored, name)[everything]
        assert got.has_sorted_indices
        assert (got != getattr(expected, name)[back][:, back]).nnz == 0


class TestContent:
    def test_slides_are_those_of_the_files(self, store, files):
        slides = store.slides()
        expected = [slide for path in files for slide in from_memory(path)]
        assert store.n_cells == sum(slide.n_cells for slide in expected) == 1799
        assert repr(store) == f"Store: 1799 cells, 2 slides, {len({g for s in slides for g in s.genes})} genes"
        for got, wanted in zip(slides, expected, strict=True):
            assert got.stored
            assert_same_slide(got, wanted)

    def test_several_slides_in_a_file(self, files, tmp_path):
        store = build(files[1:], tmp_path, library_key="slide")
        for got, wanted in zip(store.slides(), from_memory(files[1], "slide"), strict=True):
            assert_same_slide(got, wanted)
            assert got.name.endswith(f"pair/{wanted.name}")

    @pytest.mark.parametrize("changes", [{"scaling": "none"}, {"scaling": "center"}, {"min_sd": 0.5}], ids=str)
    def test_scaling(self, store, files, changes):
        (expected,) = from_memory(files[0], config=StageConfig(**changes))
        assert_same_slide(store.slides(StageConfig(**changes))[0], expected)

    def test_vocabulary(self, store, files):
        known = store.slides()[0].genes[1::3]
        (expected,), slide = from_memory(files[0], vocabulary=set(known)), store.slides(vocabulary=set(known))[0]
        assert slide.genes == known
        assert_same_slide(slide, expected)
        with pytest.raises(ValueError, match="no gene of any slide"):
            store.slides(vocabulary={"nothing"})

    def test_neighbours_are_near_on_disk(self, tmp_path):
        """Chunks of cells that follow each other are small parts of the tissue."""
        adata = ad.AnnData(sp.csr_matrix(np.ones((4 * CHUNK, 1))), var=pd.DataFrame(index=["GAD1"]))
        adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 700, (adata.n_obs, 2))
        adata.write_h5ad(tmp_path / "a.h5ad")
        (slide,) = build([tmp_path / "a.h5ad"], tmp_path / "store").slides()
        assert_same_slide(slide, from_memory(tmp_path / "a.h5ad")[0])
        assert len(slide.boxes) == 4
        assert np.prod(slide.boxes[:, 1] - slide.boxes[:, 0], axis=1).sum() < 1.1 * 700**2

    def test_order_of_the_cells_in_the_file_does_not_matter(self, store, files, tmp_path):
        adata = ad.read_h5ad(files[0])
        order = np.random.default_rng(1).permutation(adata.n_obs)
        adata[order].copy().write_h5ad(tmp_path / "one.h5ad")
        first, (second,) = store.slides()[0], build([tmp_path / "one.h5ad"], tmp_path / "store").slides()
        np.testing.assert_array_equal(order[second.cells[:]], first.cells[:])
        for name in ("expression", "graph", "local"):
            assert (getattr(first, name)[:] != getattr(second, name)[:]).nnz == 0

    def test_spatialdata(self, files, tmp_path):
        spatialdata = pytest.importorskip("spatialdata")
        adata = ad.read_h5ad(files[0])
        table = spatialdata.models.TableModel.parse(ad.AnnData(adata.X, var=adata.var, obsm=dict(adata.obsm)))
        spatialdata.SpatialData(tables={"cells": table}).write(tmp_path / "data.zarr")
        store = build([tmp_path / "data.zarr"], tmp_path / "store")
        assert_same_slide(store.slides()[0], from_memory(files[0])[0])
        with pytest.raises(KeyError, match="spots"):
            build([tmp_path / "data.zarr"], tmp_path / "other", table_key="spots")

    @pytest.mark.parametrize("form", ["csr", "csc", "dense", "layer"])
    def test_expression_in_any_form(self, store, files, tmp_path, form):
        adata = ad.read_h5ad(files[0])
        counts = adata.layers["counts"] = sp.csr_matrix(adata.X)
        adata.X = {"csr": counts, "csc": counts.tocsc(), "dense": counts.toarray(), "layer": counts * 0}[form]
        adata.write_h5ad(tmp_path / "one.h5ad")
        other = build([tmp_path / "one.h5ad"], tmp_path / "store", layer="counts" if form == "layer" else None)
        assert_same_slide(other.slides()[0], from_memory(files[0])[0])


class TestResume:
    def test_files_that_are_there_are_left(self, store, files):
        before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
        again = build(files, store.path)
        assert again.n_cells == store.n_cells
        assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before

    def test_a_changed_file_is_read_again(self, tmp_path):
        for n in (400, 300):
            st.datasets.simulate_tissue(n).write_h5ad(tmp_path / "one.h5ad")
            store = build([tmp_path / "one.h5ad"], tmp_path / "store")
            assert [slide.n_cells for slide in store.slides()] == [n]

    def test_a_change_inside_a_zarr_folder_is_noticed(self, files, tmp_path):
        folder = tmp_path / "pair.zarr"
        shutil.copytree(files[1], folder)
        (before,) = build([folder], tmp_path / "store").slides()
        root = zarr.open_group(folder, mode="r+")
        root["X/data"][:] = root["X/data"][:] + 1
        (after,), (anew,) = (build([folder], tmp_path / name).slides() for name in ("store", "anew"))
        assert (after.expression[:] != anew.expression[:]).nnz == 0
        assert after.mean.sum() != pytest.approx(before.mean.sum(), rel=1e-3)

    def test_error_leaves_what_was_built(self, files, tmp_path):
        bad = ad.read_h5ad(files[0])
        bad.X[3, 0] = -1
        bad.write_h5ad(tmp_path / "bad.h5ad")
        with pytest.raises(ValueError, match="negative"):
            build([files[0], tmp_path / "bad.h5ad"], tmp_path / "store")
        assert st.data.Store(tmp_path / "store").n_cells == 700
        assert not list((tmp_path / "store").glob("*.part"))

    def test_killed_in_the_middle(self, files, tmp_path, monkeypatch, capsys):
        """Killed while it works on the second file, the first stays, and the same command completes the store."""
        command = [sys.executable, "-m", "stage_sc.data", str(tmp_path / "store"), *map(str, files), "--verify"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list((tmp_path / "store").glob(".pair-*.part")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        first = st.data.Store(tmp_path / "store")
        assert first.n_cells == 700
        before = os.stat(first.folders[0] / "xy").st_mtime_ns
        monkeypatch.setattr(sys, "argv", command[2:])
        runpy.run_module("stage_sc.data", run_name="__main__")
        assert capsys.readouterr().out.startswith("Store: 1799 cells, 2 slides")
        assert os.stat(first.folders[0] / "xy").st_mtime_ns == before
        assert not list((tmp_path / "store").glob("*.part"))


class TestDamage:
    @pytest.fixture
    def copy(self, store, tmp_path):
        return st.data.Store(shutil.copytree(store.path, tmp_path / "store"))

    def test_checksum(self, copy):
        copy.verify()
        path = copy.folders[0] / "expression.data"
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match="checksum"):
            st.data.Store(copy.path).verify()  # the size is right

    @pytest.mark.parametrize("change", [lambda path: os.truncate(path, 100), os.remove], ids=["short", "gone"])
    def test_size(self, copy, change):
        change(copy.folders[0] / "graph.indices")
        with pytest.raises(ValueError, match="damaged"):
            st.data.Store(copy.path)

    def test_format(self, copy):
        path = next(copy.path.glob("*/file.json"))
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": "stage_sc store 99"}))
        with pytest.raises(ValueError, match="store 99"):
            st.data.Store(copy.path)


class TestBadInput:
    def test_nothing_to_build(self, files, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            build([files[0], "nowhere.h5ad"], tmp_path / "store")
        with pytest.raises(ValueError, match="empty"):
            build([], tmp_path / "store")
        assert not (tmp_path / "store").exists()
        with pytest.raises(FileNotFoundError, match="build_store"):
            st.data.Store(tmp_path / "store")
        (tmp_path / "store").mkdir()
        with pytest.raises(FileNotFoundError, match="no slides"):
            st.data.Store(tmp_path / "store")

    @pytest.mark.parametrize(
        ("argument", "part"),
        [
            ({"spatial_key": "centroid"}, "obsm/centroid"),
            ({"layer": "raw"}, "layers/raw"),
            ({"library_key": "x"}, "obs/x"),
        ],
    )
    def test_keys(self, files, tmp_path, argument, part):
        with pytest.raises(KeyError, match=part):
            build(files[:1], tmp_path / "store", **argument)

    @pytest.mark.parametrize("name", ["text.h5ad", "folder.zarr"])
    def test_other_files(self, tmp_path, name):
        (tmp_path / "text.h5ad").write_text("no")
        (tmp_path / "folder.zarr").mkdir()
        with pytest.raises(ValueError, match="Expected is an .h5ad file"):
            build([tmp_path / name], tmp_path / "store")


@pytest.mark.parametrize("key", ["spatial_key", "library_key", "layer"])
def test_a_store_has_its_own_keys(store, key):
    with pytest.raises(TypeError, match=f"A store has its own `{key}`"):
        st.tl.fit(store, **{key: "x"})
