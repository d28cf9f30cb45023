"""Labelling files: the same niches as in memory, on any scheduler, and nothing lost when a worker is killed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import anndata as ad
import dask.config
import numpy as np
import pytest

import stage_sc as st

LABELS = ["stage_l1", "stage_l2", "stage_l3", "stage_path", "stage_flag", "stage_confidence"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Three files, of two kinds, one of them with two slides and a cell without coordinates."""
    folder = tmp_path_factory.mktemp("files")
    tissues = [st.datasets.simulate_tissue(200, rng=seed) for seed in range(4)]
    pair = ad.concat({"a": tissues[2], "b": tissues[3]}, label="slide", index_unique="-")
    pair.obsm["spatial"][5] = np.nan
    tissues[0].write_h5ad(folder / "one.h5ad")
    tissues[1].write_zarr(folder / "two.zarr")
    pair.write_h5ad(folder / "pair.h5ad")
    return [folder / "one.h5ad", folder / "two.zarr", folder / "pair.h5ad"]


@pytest.fixture(scope="module")
def expected(files):
    return in_memory(files, n_domains=4)


def in_memory(files, library_key=None, **options) -> dict[str, ad.AnnData]:
    adatas = {path.stem: ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path) for path in files}
    for adata in adatas.values():
        st.pp.filter_cells(adata)
    st.pp.build_graph(adatas, library_key=library_key)
    st.tl.stage_niches(adatas, **options)
    return adatas


def times(folder: Path) -> dict[str, int]:
    """When each result and each embedding was written."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.h5ad")}


def assert_same(results, expected, labels=(*LABELS, "stage_domain")):
    for path, other in zip(results, expected.values(), strict=True):
        got = ad.read_h5ad(path)
        for name in labels:
            assert got.obs[name].tolist() == other.obs[name].tolist(), name


def test_niches_domains_embeddings(files, expected, tmp_path):
    results = st.tl.label_files(files, tmp_path, n_domains=4)
    assert results == [tmp_path / name for name in ("one.h5ad", "two.h5ad", "pair.h5ad")]
    assert_same(results, expected)
    for path, other in zip(results, expected.values(), strict=True):
        got = ad.read_h5ad(path)
        assert got.n_vars == 0 and got.obs_names.tolist() == other.obs_names.tolist()
        for name in ("X_stage", "spatial"):
            np.testing.assert_array_equal(got.obsm[name], other.obsm[name])
        for name in ("params", "model", "levels"):
            assert got.uns["stage"][name] == pytest.approx(other.uns["stage"][name])
        assert got.uns["stage"]["tree"].equals(other.uns["stage"]["tree"])


def test_tree_as_it_is(files, tmp_path):
    """Also after a call that let it settle, and files may come later without changing anything."""
    settled = ad.read_h5ad(st.tl.label_files(files[:2], tmp_path)[0]).obs["stage_path"].tolist()
    st.tl.label_files(files[:2], tmp_path, settle=False)
    frozen, before = in_memory(files, settle=False), times(tmp_path)
    results = st.tl.label_files(files, tmp_path, settle=False)
    assert_same(results, frozen, LABELS)
    assert before.items() <= times(tmp_path).items()
    assert settled != frozen["one"].obs["stage_path"].tolist()
    assert not ad.read_h5ad(results[0]).uns["stage"]["params"]["settle"]


@pytest.mark.parametrize("options", [{"key_added": "other", "n_domains": 4}, {"n_domains": 3}, {"settle": False}])
def test_embeddings_are_used_again(files, tmp_path, options):
    """With other labels; expression is not read then, and nothing is written that is there."""
    copies = [Path(shutil.copy(path, tmp_path)) for path in files[::2]]
    results = st.tl.label_files(copies, tmp_path / "out", n_domains=4)
    before = times(tmp_path / "out")
    for path in copies:
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert st.tl.label_files(copies, tmp_path / "out", n_domains=4) == results
    assert times(tmp_path / "out") == before
    results = st.tl.label_files(copies, tmp_path / "out", **options)
    after = times(tmp_path / "out")
    assert all(after[name] == time for name, time in before.items() if name.startswith("embeddings"))
    names = [name.replace("stage", options.get("key_added", "stage")) for name in LABELS]
    assert_same(results, in_memory(files[::2], **options), names)


def test_order_of_the_files_and_threads(files, expected, tmp_path):
    results = st.tl.label_files(files[::-1], tmp_path, n_domains=4, scheduler="threads")
    assert_same(results[::-1], expected)


def test_library_key(files, tmp_path):
    results = st.tl.label_files(files[2:], tmp_path, library_key="slide")
    assert_same(results, in_memory(files[2:], library_key="slide"), LABELS)
    assert ad.read_h5ad(results[0]).uns["stage"]["params"]["library_key"] == "slide"


def test_own_model_layer_and_changed_files(files, tmp_path):
    """Results of another model, or of a file that has changed, are written anew."""
    model = st.tl.fit(in_memory(files[:1])["one"], epochs=0, progress=False)
    adata, path = ad.read_h5ad(files[0]), tmp_path / "layered.h5ad"
    adata.layers["counts"] = adata.X.copy()
    for X in (adata.X[:, ::-1], adata.X * 0):
        adata.X = X
        adata.write_h5ad(path)
        bundled = ad.read_h5ad(*st.tl.label_files([path], tmp_path / "out"))
        assert bundled.uns["stage"]["model"]["digest"] != model.digest
        assert (bundled.obs["stage_flag"] == "empty").all() == (X.sum() == 0)
    results = st.tl.label_files([path], tmp_path / "out", model=model, layer="counts")
    assert_same(results, in_memory(files[:1], model=model), ["stage_path", "stage_flag", "stage_confidence"])
    assert ad.read_h5ad(results[0]).uns["stage"]["model"]["digest"] == model.digest


def test_a_change_inside_a_zarr_folder_is_noticed(files, tmp_path):
    """The folder itself is not touched when a file deeper down is written."""
    slide = Path(shutil.copytree(files[1], tmp_path / "slide.zarr"))
    outside, found = slide.stat().st_mtime_ns, []
    for time in (None, None, 2_000_000_000_000_000_000):
        if time:
            os.utime(next(path for path in (slide / "obsm").rglob("*") if path.is_file()), ns=(time, time))
        st.tl.label_files([slide], tmp_path / "out")
        found.append(times(tmp_path / "out")["embeddings/slide.h5ad"])
    assert found[0] == found[1] < found[2]
    assert slide.stat().st_mtime_ns == outside


def test_error_keeps_the_results_before_it(files, tmp_path):
    bad, out = ad.read_h5ad(files[0]), tmp_path / "out"
    bad.X[0, 0] = -1
    bad.write_h5ad(tmp_path / "bad.h5ad")
    results, before = st.tl.label_files(files[:1], out), times(out)
    with pytest.raises(ValueError, match="negative"):
        st.tl.label_files([files[0], tmp_path / "bad.h5ad"], out, errors="raise")
    assert times(out) == before and st.tl.label_files(files[:1], out) == results


@pytest.mark.parametrize("number", [1, 2])
def test_a_failed_write_leaves_no_file(files, tmp_path, monkeypatch, number):
    """Of embeddings (the first file written after the model), or of a result."""
    sync, written = os.fsync, []

    def fail(descriptor):
        written.append(descriptor)
        sync(descriptor)
        if len(written) == number + 1:
            raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        st.tl.label_files(files[:1], tmp_path)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".safetensors")
    assert left == ["one.h5ad"] * (number - 1)
    (result,) = st.tl.label_files(files[:1], tmp_path)
    assert ad.read_h5ad(result).n_obs == 200


def test_worker_killed(files, tmp_path):
    """A worker kills itself at the end of a file, and what it has left is taken over by the next."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        distributed.utils.get_mp_context().set_forkserver_preload(["distributed", "stage_sc.tl"])  # once for both
        with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
            pids = set(client.run(os.getpid).values())
            client.run(_arm, tmp_path / "killed")
            results = st.tl.label_files(files[:1], tmp_path / "out", settle=False)
            assert set(client.run(os.getpid).values()) != pids
    assert (tmp_path / "killed").exists()
    assert_same(results, in_memory(files[:1], settle=False), LABELS)


def _arm(mark):
    """Let this worker die the first time that it writes, if none has died yet."""
    replace = os.replace

    def die(*paths):
        replace(*paths)
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    os.replace = die


def test_refused_before_any_work(files, tmp_path):
    for given, options, error, match in [
        ([files[0], "nowhere.h5ad"], {}, FileNotFoundError, "nowhere"),
        ([], {}, ValueError, "`files`"),
        (files, {"n_domains": 2.5}, TypeError, "n_domains"),
        (files, {"device": "tpu"}, ValueError, "device"),
        (files, {"key_added": ""}, TypeError, "key_added"),
    ]:
        with pytest.raises(error, match=match):
            st.tl.label_files(given, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "text.h5ad").write_text("no")
    with pytest.raises(ValueError, match=r"text\.h5ad"):
        st.tl.label_files([tmp_path / "text.h5ad"], tmp_path / "out")


def test_names_that_collide(files, tmp_path):
    """Files of one name in two folders; a result would never replace a file."""
    given = [tmp_path / name / "one.h5ad" for name in ("a", "b")]
    for path in given:
        path.parent.mkdir()
        shutil.copy(files[0], path)
    results = st.tl.label_files(given, tmp_path / "out")
    assert [path.name for path in results] == ["a-one.h5ad", "b-one.h5ad"]
    with pytest.raises(ValueError, match="one'"):
        st.tl.label_files([given[0], given[0]], tmp_path / "out")
    for out in (tmp_path / "a", tmp_path / "b" / ".." / "a"):
        with pytest.raises(ValueError, match="'one.h5ad'"):
            st.tl.label_files([files[1], given[0]], out)
    assert given[0].read_bytes() == files[0].read_bytes() and [*given[0].parent.iterdir()] == given[:1]
