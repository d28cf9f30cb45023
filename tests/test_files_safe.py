"""Nothing of the user's is replaced: names in objects, files in the folder of results, parts of killed processes."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem

import stage_sc as st
from stage_sc.slides import MatrixWriter


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "slide1.h5ad"
    st.datasets.simulate_tissue(200, rng=3).write_h5ad(path)
    return path


def label(files, out, model, **options):
    return st.tl.label_files(files, out, model=model, **options)


class TestNamesInObjects:
    @pytest.mark.parametrize(("where", "name"), [("obs", "stage_domain"), ("obs", "stage_l7"), ("obsm", "X_stage")])
    def test_names_of_the_user_are_refused(self, tissue, small_model, unchanged, where, name):
        adata = tissue.copy()
        getattr(adata, where)[name] = np.ones((adata.n_obs, 2)) if where == "obsm" else "E12"
        with unchanged(adata), pytest.raises(ValueError, match=name):
            st.tl.stage_niches(adata, model=small_model)
        st.tl.stage_niches(adata, model=small_model, key_added="other")
        assert name in getattr(adata, where)

    def test_own_names_are_replaced(self, tissue, small_model):
        """Domains of the call before are removed by a call without domains."""
        adata = tissue.copy()
        st.tl.stage_niches(adata, model=small_model, n_domains=3)
        st.tl.stage_niches(adata, model=small_model)
        assert "stage_domain" not in adata.obs
        adata.obs["stage_domain"] = "forebrain"
        with pytest.raises(ValueError, match="stage_domain"):
            st.tl.stage_niches(adata, model=small_model)

    @pytest.mark.parametrize("key", ["run/1", "/", "a/"])
    def test_slash(self, tissue, file, small_model, tmp_path, key):
        with pytest.raises(ValueError, match="key_added"):
            st.tl.stage_niches(tissue.copy(), model=small_model, key_added=key)
        with pytest.raises(ValueError, match="key_added"):
            label([file], tmp_path / "out", small_model, key_added=key)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["settle", "copy"])
    @pytest.mark.parametrize("value", ["no", 1, None])
    def test_bools(self, tissue, small_model, name, value):
        with pytest.raises(TypeError, match=f"`{name}` must be True or False"):
            st.tl.stage_niches(tissue, model=small_model, **{name: value})


class TestOutput:
    def test_a_file_of_the_user(self, file, small_model, tmp_path):
        for place in ("slide1.h5ad", "embeddings/slide1.h5ad"):
            mine = tmp_path / place.replace("/", "-")[:4] / place
            mine.parent.mkdir(parents=True)
            mine.write_bytes(file.read_bytes())
            with pytest.raises(ValueError, match="slide1.h5ad"):
                label([file], tmp_path / place.replace("/", "-")[:4], small_model)
            assert mine.read_bytes() == file.read_bytes()

    def test_the_result_of_another_file(self, file, small_model, tmp_path):
        other = tmp_path / "b" / file.name
        other.parent.mkdir()
        other.write_bytes(file.read_bytes())
        (result,) = label([file], tmp_path / "out", small_model)
        before = result.read_bytes()
        with pytest.raises(ValueError, match="is the result of"):
            label([other], tmp_path / "out", small_model)
        assert result.read_bytes() == before
        assert len(label([file, other], tmp_path / "out", small_model)) == 2

    def test_other_keys_and_additions_are_kept(self, file, small_model, tmp_path):
        (result,) = label([file], tmp_path, small_model, n_domains=3)
        adata = ad.read_h5ad(result)
        adata.obs["mine"] = "weeks of work"
        adata.write_h5ad(result)
        label([file], tmp_path, small_model, key_added="second")
        label([file], tmp_path, small_model, n_domains=2)
        again = ad.read_h5ad(result)
        assert {"mine", "stage_path", "second_path", "stage_domain"} <= set(again.obs)
        assert again.obs["stage_domain"].nunique() == 2
        adata.obs["third_l1"] = "x"
        adata.write_h5ad(result)
        with pytest.raises(ValueError, match="third_l1"):
            label([file], tmp_path, small_model, key_added="third")

    def test_tables(self, file, small_model, tmp_path):
        """Results of two tables of a SpatialData folder."""
        spatialdata = pytest.importorskip("spatialdata")
        adata = ad.read_h5ad(file)
        table = ad.AnnData(adata.X, var=adata.var, obsm=dict(adata.obsm))
        tables = {name: spatialdata.models.TableModel.parse(table.copy()) for name in "AB"}
        spatialdata.SpatialData(tables=tables).write(tmp_path / "many.zarr")
        found = [label([tmp_path / "many.zarr"], tmp_path / "out", small_model, table_key=name)[0] for name in "AB"]
        assert [path.name for path in found] == ["many-A.h5ad", "many-B.h5ad"]
        assert all(path.exists() for path in found)

    @pytest.mark.parametrize(("given", "recorded"), [(None, "region"), ("region", "region"), ("", "")])
    def test_regions_are_slides(self, small_model, tmp_path, given, recorded):
        """Those of a table of SpatialData, in the result of its file as in memory."""
        spatialdata = pytest.importorskip("spatialdata")
        adata = st.datasets.simulate_tissue(100, n_slides=2, rng=4)
        obs = adata.obs[["slide"]].rename(columns={"slide": "region"}).assign(instance=np.arange(200))
        table = ad.AnnData(adata.X, obs=obs, var=adata.var, obsm=dict(adata.obsm))
        keys = {"region": ["slide1", "slide2"], "region_key": "region", "instance_key": "instance"}
        table = spatialdata.models.TableModel.parse(table, **keys)
        spatialdata.SpatialData(tables={"table": table.copy()}).write(tmp_path / "a.zarr")
        (result,) = label([tmp_path / "a.zarr"], tmp_path / "out", small_model, library_key=given)
        found = ad.read_h5ad(result)
        st.pp.build_graph(table, library_key=given)
        st.tl.stage_niches(table, model=small_model)
        assert found.obs["stage_path"].tolist() == table.obs["stage_path"].tolist()
        for one in (found, table):
            assert one.uns["stage"]["params"]["library_key"] == recorded
            assert one.uns["spatialdata_attrs"]["region_key"] == "region"
            if recorded:
                axes = st.pl.spatial_domains(one, keys="stage_l1", show=False)
                assert len(np.ravel(axes)) == 2
        assert st.metrics.jsd(found, "stage_l1") == st.metrics.jsd(table, "stage_l1")

    @pytest.mark.parametrize("given", ["slide.h5ad", b"slide.h5ad", 3, None, {"a": "slide.h5ad"}], ids=repr)
    def test_no_list(self, tmp_path, given):
        for call in (st.tl.label_files, st.data.build_store):
            with pytest.raises(TypeError, match="list of paths"):
                call(given, tmp_path / "out")
        with pytest.raises(TypeError, match="`files` must be a path"):
            st.tl.label_files([3], tmp_path / "out")


class TestKilled:
    def test_parts_are_removed(self, file, small_model, tissue, small_config, tmp_path):
        """Those of a process that has ended, not those of one that runs."""
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        host = socket.gethostname().split(".")[0]
        out, store = tmp_path / "out", tmp_path / "store"
        left, kept = [], []
        for name in ("out/.slide1.h5ad", "out/embeddings/.slide1.h5ad", "store/.slide1-123", ".state"):
            for parts, pid in ((left, ended.pid), (kept, os.getppid())):
                parts.append(tmp_path / f"{name}.{host}-{pid}-0123abcd.part")
                parts[-1].parent.mkdir(parents=True, exist_ok=True)
                parts[-1].mkdir() if "store" in name else parts[-1].write_text("x")
        label([file], out, small_model)
        st.data.build_store([file], store, progress=False)
        st.tl.fit(tissue, config=small_config.replace(epochs=0, warmup_epochs=0), checkpoint=tmp_path / "state")
        assert not any(part.exists() for part in left)
        assert all(part.exists() for part in kept)

    def test_temporary_folders(self, file, small_model, tmp_path, monkeypatch):
        """Those of a killed process are removed; a full disk is named."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        left = tmp_path / f".stage_sc.{socket.gethostname().split('.')[0]}-{ended.pid}-0123abcd.part"
        (left / "expression").mkdir(parents=True)
        label([file], tmp_path / "out", small_model)
        assert {path.name for path in tmp_path.iterdir()} == {"out"}

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(MatrixWriter, "append", full)
        for call in (label, lambda files, out, _: st.data.build_store(files, out, progress=False)):
            with pytest.raises(OSError, match=r"\.stage_sc\."):
                call([file], tmp_path / "full", small_model)
        assert {path.name for path in tmp_path.iterdir()} == {"out", "full"}

    def test_full_disk(self, small_model, tmp_path, monkeypatch):
        """The error names the file, and nothing is left."""

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="model.safetensors"):
            st.model.save_checkpoint(small_model, tmp_path / "model")
        assert not list(tmp_path.iterdir())


class TestNamesInMessages:
    def test_files(self, file, small_model, tmp_path, caplog):
        adata = ad.read_h5ad(file)
        bad = {}
        for name in ("names", "nan", "tiny", "empty"):
            bad[name] = adata[:3].copy() if name == "tiny" else adata.copy()
        bad["names"].var_names = [f"x{number}" for number in range(adata.n_vars)]
        bad["nan"].X = bad["nan"].X.toarray()
        bad["nan"].X[0, 0] = np.nan
        bad["empty"].X[0] = 0
        for name, one in bad.items():
            one.write_h5ad(tmp_path / f"{name}_9.h5ad")
            if name == "empty":
                label([tmp_path / f"{name}_9.h5ad"], tmp_path / "out", small_model)
                assert any("empty_9" in record.getMessage() for record in caplog.records)
            else:
                with pytest.raises((ValueError, KeyError), match=f"{name}_9.h5ad"):
                    label([tmp_path / f"{name}_9.h5ad"], tmp_path / "out", small_model)

    @pytest.mark.parametrize("kind", [dict, list])
    def test_objects(self, tissue, small_model, small_config, kind):
        broken = tissue.copy()
        del broken.uns["stage_graph"]
        data, name = ({"a": tissue, "p9": broken}, "p9") if kind is dict else ([tissue, broken], r"data\['1'\]")
        for call in (
            lambda: st.tl.stage_niches(data, model=small_model, copy=True, errors="raise"),
            lambda: st.tl.fit(data, config=small_config, progress=False),
        ):
            with pytest.raises(KeyError, match=name):
                call()


class TestOldFiles:
    def test_categories_of_anndata_07(self, tmp_path, small_model):
        adata = st.datasets.simulate_tissue(200, n_slides=2, rng=3)
        adata.write_h5ad(tmp_path / "a.h5ad")
        with h5py.File(tmp_path / "a.h5ad", "a") as file:
            codes = file["obs/slide/codes"][()]
            del file["obs/slide"]
            column = file["obs"].create_dataset("slide", data=codes.astype("i1"))
            names = file["obs"].require_group("__categories")
            names = names.create_dataset("slide", data=["slide1", "slide2"], dtype=h5py.string_dtype())
            column.attrs["categories"] = names.ref
            file["obs"].attrs["encoding-version"] = "0.1.0"
        (result,) = label([tmp_path / "a.h5ad"], tmp_path / "out", small_model, library_key="slide")
        assert ad.read_h5ad(result).obs["slide"].tolist() == adata.obs["slide"].tolist()

    def test_mudata(self, file, tmp_path):
        with h5py.File(tmp_path / "m.h5mu", "w") as group:
            write_elem(group, "obs", pd.DataFrame(index=["a"]))
            write_elem(group.create_group("mod"), "rna", ad.read_h5ad(file))
        with pytest.raises(ValueError, match="MuData file with the modalities 'rna'"):
            st.data.build_store([tmp_path / "m.h5mu"], tmp_path / "store", progress=False)


THREADS = """
import hashlib, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from threadpoolctl import threadpool_info, threadpool_limits
import stage_sc as st

tissue = st.datasets.simulate_tissue(300, rng=3)
st.pp.build_graph(tissue)
config = st.model.StageConfig(dim=16, n_layers=1, levels=(2, 6, 18), epochs=1, warmup_epochs=1)


def n_threads():
    return [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]


def label(number):
    model = st.tl.fit(tissue, config=config, progress=False)
    labelled = st.tl.stage_niches(tissue, model=model, n_domains=4, copy=True)
    content = labelled.obsm["X_stage"].tobytes() + labelled.obs.to_csv().encode()
    return model.digest, hashlib.sha256(content).hexdigest()


before, state, found = n_threads(), torch.get_rng_state(), {label(0)}
with ThreadPoolExecutor(2) as pool:
    others = pool.map(label, range(2))
    found |= {label(0), *others}
assert n_threads() == before, (n_threads(), before)
threadpool_limits(2)  # without an end
with ThreadPoolExecutor(1) as pool:
    found |= set(pool.map(label, range(1)))
assert torch.equal(state, torch.get_rng_state())
print(len(found), *found.pop())
"""


class TestThreads:
    def test_one_result(self):
        """The same model and labels alone and beside others, in any thread, for any number of threads."""
        found = set()
        for n_threads in (None, 1):
            environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
            environment |= {"OMP_NUM_THREADS": str(n_threads)} if n_threads else {}
            run = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            found.add(run.stdout.splitlines()[-1])
        assert len(found) == 1 and found.pop().startswith("1 ")

    def test_build_graph(self, raw_tissue):
        log = logging.getLogger("spatialdata._logging")
        before = log.level, list(log.filters)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: st.pp.build_graph(raw_tissue.copy()), range(6)))
        assert (log.level, log.filters) == before
