"""Labelling files: the same niches as in memory, on any scheduler, and nothing lost when a worker is killed."""

from __future__ import annotations

import os
import signal
import time

import anndata as ad
import numpy as np
import pytest

import stage_sc as st
from stage_sc._files import stamp
from stage_sc.tl import _label_files as module

LEVELS = ["stage_l1", "stage_l2", "stage_l3", "stage_path", "stage_flag", "stage_confidence"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Three files, of two kinds, one of them with two slides and a cell without a place."""
    folder = tmp_path_factory.mktemp("files")
    tissues = [st.datasets.simulate_tissue(400, rng=seed) for seed in range(4)]
    pair = ad.concat({"a": tissues[2], "b": tissues[3]}, label="slide", index_unique="-")
    pair.obsm["spatial"] = pair.obsm["spatial"].astype(float)
    pair.obsm["spatial"][5] = np.nan
    tissues[0].write_h5ad(folder / "one.h5ad")
    tissues[1].write_zarr(folder / "two.zarr")
    pair.write_h5ad(folder / "pair.h5ad")
    return [folder / "one.h5ad", folder / "two.zarr", folder / "pair.h5ad"]


@pytest.fixture(scope="module")
def own_model(slides):
    return st.tl.fit(in_memory_graphs(slides[:1])[0], epochs=1, progress=False)


def in_memory_graphs(paths):
    adatas = []
    for path in paths:
        adata = ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)
        st.pp.filter_cells(adata)
        st.pp.build_graph(adata)
        adatas.append(adata)
    return adatas


def in_memory(paths, **options):
    adatas = in_memory_graphs(paths)
    st.tl.stage_niches(adatas, **options)
    return adatas


class TestSameAsInMemory:
    def test_niches_domains_embedding(self, slides, tmp_path):
        results = st.tl.label_files(slides, tmp_path, n_domains=4)
        assert [path.name for path in results] == ["one.h5ad", "two.h5ad", "pair.h5ad"]
        for path, expected in zip(results, in_memory(slides, n_domains=4), strict=True):
            got = ad.read_h5ad(path)
            assert got.n_vars == 0
            assert got.obs_names.tolist() == expected.obs_names.tolist()
            for name in (*LEVELS, "stage_domain"):
                assert got.obs[name].tolist() == expected.obs[name].tolist(), name
            np.testing.assert_array_equal(got.obsm["X_stage"], expected.obsm["X_stage"])
            np.testing.assert_array_equal(got.obsm["spatial"], expected.obsm["spatial"])
            assert got.uns["stage"]["params"]["n_domains"] == 4
            assert got.uns["stage"]["tree"].equals(expected.uns["stage"]["tree"])

    def test_tree_as_it_is(self, slides, tmp_path):
        """Also after a call that let it settle, and files may come later without changing anything."""
        first = st.tl.label_files(slides[:2], tmp_path)
        settled = [ad.read_h5ad(path).obs["stage_path"].tolist() for path in first]
        results = st.tl.label_files(slides[:2], tmp_path, settle=False)
        expected = in_memory(slides, settle=False)
        for path, other, moved in zip(results, expected, settled, strict=False):
            got = ad.read_h5ad(path)
            assert got.obs["stage_path"].tolist() == other.obs["stage_path"].tolist() != moved
            assert not got.uns["stage"]["params"]["settle"]
        before = [path.stat().st_mtime_ns for path in results]
        third = st.tl.label_files(slides, tmp_path, settle=False)[2]
        assert ad.read_h5ad(third).obs["stage_path"].tolist() == expected[2].obs["stage_path"].tolist()
        assert [path.stat().st_mtime_ns for path in results] == before

    def test_order_of_the_files(self, slides, tmp_path, own_model):
        results = [
            st.tl.label_files(files, tmp_path / name, model=own_model, n_domains=4)
            for name, files in (("one", slides), ("other", slides[::-1]))
        ]
        for one, other in zip(results[0], results[1][::-1], strict=True):
            domains = [ad.read_h5ad(path).obs["stage_domain"] for path in (one, other)]
            assert domains[0].tolist() == domains[1].tolist()

    def test_library_key(self, slides, tmp_path):
        (result,) = st.tl.label_files(slides[2:], tmp_path, library_key="slide")
        adata = ad.read_h5ad(slides[2])
        st.pp.filter_cells(adata)
        st.pp.build_graph(adata, library_key="slide")
        st.tl.stage_niches(adata)
        got = ad.read_h5ad(result)
        assert got.obs["stage_path"].tolist() == adata.obs["stage_path"].tolist()
        assert got.uns["stage"]["params"]["library_key"] == "slide"

    def test_own_model_layer_and_key(self, slides, tmp_path):
        adata = ad.read_h5ad(slides[0])
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X * 0
        adata.write_h5ad(tmp_path / "layered.h5ad")
        model = st.tl.fit(in_memory(slides[:1])[0], epochs=1, progress=False)
        (result,) = st.tl.label_files(
            [tmp_path / "layered.h5ad"], tmp_path / "out", model=model, layer="counts", key_added="own"
        )
        expected = in_memory(slides[:1], model=model)[0]
        got = ad.read_h5ad(result)
        assert got.obs["own_path"].tolist() == expected.obs["stage_path"].tolist()
        assert got.uns["own"]["model"]["digest"] == expected.uns["stage"]["model"]["digest"]


class TestResume:
    def test_done_files_are_left(self, slides, tmp_path, monkeypatch):
        results = st.tl.label_files(slides, tmp_path)
        before = [path.stat().st_mtime_ns for path in results]
        monkeypatch.setattr(module, "build_graph", None)  # not even looked at
        assert st.tl.label_files(slides, tmp_path) == results
        assert [path.stat().st_mtime_ns for path in results] == before

    def test_another_model_or_file_is_another_result(self, slides, tmp_path):
        (result,) = st.tl.label_files(slides[:1], tmp_path)
        first = ad.read_h5ad(result).uns["stage"]["model"]["digest"]
        model = st.tl.fit(in_memory(slides[:1])[0], epochs=0, progress=False)
        st.tl.label_files(slides[:1], tmp_path, model=model)
        assert ad.read_h5ad(result).uns["stage"]["model"]["digest"] != first

    def test_error_keeps_what_is_done(self, slides, tmp_path):
        bad = ad.read_h5ad(slides[0])
        bad.X[0, 0] = -1
        bad.write_h5ad(tmp_path / "bad.h5ad")
        with pytest.raises(ValueError, match="negative"):
            st.tl.label_files([slides[0], tmp_path / "bad.h5ad"], tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").glob("*.h5ad")) == ["one.h5ad"]


class TestSchedulers:
    def test_threads(self, slides, tmp_path):
        results = st.tl.label_files(slides, tmp_path, n_domains=3, scheduler="threads")
        for path, expected in zip(results, in_memory(slides, n_domains=3), strict=True):
            assert ad.read_h5ad(path).obs["stage_domain"].tolist() == expected.obs["stage_domain"].tolist()

    def test_worker_killed(self, slides, tmp_path):
        """Two workers; the first to take up a file kills itself in the middle of it."""
        distributed = pytest.importorskip("distributed")
        mark = tmp_path / "killed"
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            pids = set(client.run(os.getpid).values())
            client.run(_arm, str(mark))
            results = st.tl.label_files(slides, tmp_path / "out", n_domains=4)
            deadline = time.monotonic() + 30
            while len(client.run(os.getpid)) < 2 and time.monotonic() < deadline:
                time.sleep(0.2)
            assert mark.exists()
            assert set(client.run(os.getpid).values()) != pids  # one is another process now
        for path, expected in zip(results, in_memory(slides, n_domains=4), strict=True):
            assert ad.read_h5ad(path).obs["stage_domain"].tolist() == expected.obs["stage_domain"].tolist()


def _arm(mark):
    """Let this worker die the first time that results are about to be written, if none has died yet."""
    write_labels = module.write_labels

    def die(*args):
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return write_labels(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    module.write_labels = die


class TestBadInput:
    def test_before_any_work(self, slides, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            st.tl.label_files([slides[0], "nowhere.h5ad"], tmp_path / "out")
        with pytest.raises(ValueError, match="empty"):
            st.tl.label_files([], tmp_path / "out")
        with pytest.raises(TypeError, match="n_domains"):
            st.tl.label_files(slides, tmp_path / "out", n_domains=2.5)
        with pytest.raises(ValueError, match="device"):
            st.tl.label_files(slides, tmp_path / "out", device="tpu")
        assert not (tmp_path / "out").exists()

    def test_names_that_collide(self, slides, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "one.h5ad").write_bytes(slides[0].read_bytes())
        files = [tmp_path / "a" / "one.h5ad", tmp_path / "b" / "one.h5ad"]
        results = st.tl.label_files(files, tmp_path / "out")
        assert [path.name for path in results] == ["a-one.h5ad", "b-one.h5ad"]
        with pytest.raises(ValueError, match="replace each other"):
            st.tl.label_files([files[0], files[0]], tmp_path / "out")

    def test_no_table(self, tmp_path):
        (tmp_path / "text.h5ad").write_text("no")
        with pytest.raises(ValueError, match="cannot be read"):
            st.tl.label_files([tmp_path / "text.h5ad"], tmp_path / "out")


def test_a_change_inside_a_zarr_folder_is_noticed(tmp_path):
    """The folder itself is not touched when a file deeper down is written."""
    deep = tmp_path / "slide.zarr" / "obsm" / "spatial"
    deep.mkdir(parents=True)
    (deep / "0").write_bytes(b"one")
    os.utime(deep / "0", ns=(10, 10))
    before, outside = stamp(tmp_path / "slide.zarr"), (tmp_path / "slide.zarr").stat()
    os.utime(deep / "0", ns=(20, 20))
    assert stamp(tmp_path / "slide.zarr") == (3, 20) != before == (3, 10)
    assert (tmp_path / "slide.zarr").stat().st_mtime_ns == outside.st_mtime_ns
    assert stamp(deep / "0") == (3, 20)


def test_a_file_is_never_replaced_by_its_result(slides, tmp_path):
    path = tmp_path / "one.h5ad"
    path.write_bytes(slides[0].read_bytes())
    for out in (tmp_path, tmp_path / "sub" / ".."):
        with pytest.raises(ValueError, match="The result of 'one.h5ad' would replace the file itself"):
            st.tl.label_files([slides[1], path], out)
    assert path.read_bytes() == slides[0].read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["one.h5ad"]
