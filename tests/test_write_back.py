"""Results into files: all else stays to the bit, and no moment of an interruption loses anything."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import zarr

import stage_sc as st

KINDS = ["slide.h5ad", "two.zarr", "three.zarr", "spatial.zarr"]
TABLE = Path("tables/A")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """One tissue as an .h5ad file, as zarr of both formats, and as two tables of a SpatialData folder with shapes."""
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    folder = tmp_path_factory.mktemp("originals")
    adata = st.datasets.simulate_tissue(120, rng=3)
    adata.obs["note"] = np.where(np.arange(120) % 2, "odd", "even")
    adata.layers["twice"] = 2 * adata.X
    adata.obsm["spatial"][5] = np.nan
    adata.write_h5ad(folder / "slide.h5ad")
    for name, number in (("two", 2), ("three", 3)):
        group = zarr.open_group(folder / f"{name}.zarr", mode="w", zarr_format=number)
        ad.io.write_elem(group, "/", adata)
        zarr.consolidate_metadata(group.store)
    adata.obs["instance"], adata.obs["region"] = np.arange(120) + 7, "cells"
    places = np.nan_to_num(adata.obsm["spatial"])
    cells = ShapesModel.parse(places, geometry=0, radius=5.0, index=adata.obs["instance"].to_numpy())
    keys = {"region": "cells", "region_key": "region", "instance_key": "instance"}
    tables = {name: TableModel.parse(adata.copy(), **keys) for name in "AB"}
    SpatialData(shapes={"cells": cells}, tables=tables).write(folder / "spatial.zarr")
    return folder


@pytest.fixture
def place(originals, tmp_path):
    """Copies a file of `originals`, and gives its path."""

    def copy(name: str) -> Path:
        source, target = originals / name, tmp_path / name
        return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target))

    return copy


def label(path, model, **options):
    options = {"table_key": "A", "n_domains": 3, "write_back": True, **options}
    (result,) = st.tl.label_files([path], path.parent / "out", model=model, **options)
    return ad.read_h5ad(result)


def read(path, table=TABLE, **options) -> ad.AnnData:
    """All of an AnnData, as anndata reads it."""
    path = path / table if (path / table).is_dir() else path
    return ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)


def read_consolidated(path) -> ad.AnnData:
    """All of an AnnData in a zarr folder, by the metadata that are kept for the whole."""
    group = zarr.open_consolidated(path)
    return ad.io.read_elem(group["tables/A"] if "tables" in group else group)


def bits(path) -> dict[str, str]:
    """Digests of the parts of a file: arrays of HDF5, or files of a folder."""
    if path.is_dir():
        return {
            one.relative_to(path).as_posix(): hashlib.sha256(one.read_bytes()).hexdigest()
            for one in path.rglob("*")
            if one.is_file()
        }
    import h5py

    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: str(item[()].tobytes() if item.shape else item[()])})
                if isinstance(item, h5py.Dataset) and item.dtype.kind != "O"
                else None
            )
        )
    return found


def ordered(content):
    """Mappings in the order of their keys: folders have none."""
    return {key: ordered(content[key]) for key in sorted(content)} if hasattr(content, "keys") else content


def assert_result(adata: ad.AnnData, result: ad.AnnData, key: str = "stage") -> None:
    """A file holds a result, with missing labels for the cell without coordinates."""
    names = [name for name in result.obs if name.startswith(key)]
    assert len(names) > 5
    kept = np.arange(adata.n_obs) != 5
    for name in names:
        assert adata.obs[name][kept].tolist() == result.obs[name].tolist()
        assert adata.obs[name].isna().tolist() == (~kept).tolist()
    np.testing.assert_array_equal(adata.obsm[f"X_{key}"][kept], result.obsm[f"X_{key}"])
    assert np.isnan(adata.obsm[f"X_{key}"][~kept]).all()
    assert adata.uns[key]["tree"].equals(result.uns[key]["tree"])
    assert adata.uns[key]["params"] == result.uns[key]["params"]


@pytest.mark.parametrize("name", KINDS)
def test_everything_else_stays(place, small_model, assert_same, name):
    path = place(name)
    before, had = read(path), bits(path)
    result = label(path, small_model)
    after = read(path)
    assert_result(after, result)
    for one in [after, *([read_consolidated(path)] if path.is_dir() else [])]:
        assert list(one.obs) == [*before.obs, *(key for key in result.obs if key.startswith("stage"))]
        one.obs = one.obs[before.obs.columns]
        del one.obsm["X_stage"], one.uns["stage"]
        for part in ("obsm", "uns", "layers"):
            assert_same(ordered(getattr(before, part)), ordered(getattr(one, part)))
        assert before.obs.equals(one.obs) and before.var.equals(one.var) and (before.X != one.X).nnz == 0
    metadata = {"obs/zarr.json", "obs/.zattrs", ".zmetadata", "tables/A/obs/zarr.json", "zarr.json"}
    assert {part for part, digest in had.items() if bits(path)[part] != digest} <= metadata
    assert sorted(one.name for one in path.parent.iterdir()) == sorted([path.name, "out"])


@pytest.mark.parametrize("name", KINDS)
def test_again_under_other_keys_and_replaced(place, small_model, name):
    """Nothing is computed or written anew after a result is in the file; a result of before leaves no trace."""
    path = place(name)
    label(path, small_model)
    embedded = path.parent / "out" / "embeddings"
    times = {one: one.stat().st_mtime_ns for one in [*embedded.iterdir(), *path.rglob("*"), path]}
    label(path, small_model)
    label(path, small_model, key_added="second", n_domains=2)
    label(path, small_model)
    assert all(one.stat().st_mtime_ns == time for one, time in times.items() if one.suffix == ".h5ad" and one != path)
    result = label(path, small_model, n_domains=None)
    adata = read(path)
    assert "stage_domain" not in adata.obs and adata.obs["second_domain"].nunique() == 2
    assert_result(adata, result)
    assert adata.obs.columns.is_unique
    if path.is_dir():
        assert read_consolidated(path).obs.equals(adata.obs)


def test_a_file_that_changes_is_embedded_again(place, small_model):
    path = place("slide.h5ad")
    label(path, small_model)
    adata = ad.read_h5ad(path)
    adata.X = adata.X[:, ::-1]
    adata.write_h5ad(path)
    before = adata.obs["stage_path"].tolist()
    result = label(path, small_model)
    assert_result(read(path), result)
    assert read(path).obs["stage_path"].tolist() != before


def test_tables_of_spatialdata(place, small_model):
    """Each has results of its own, the link with the shapes is kept, and the whole is read and written as before."""
    import spatialdata

    path = place("spatial.zarr")
    results = {name: label(path, small_model, table_key=name, key_added=f"key{name}") for name in "AB"}
    embedded = {one: one.stat().st_mtime_ns for one in (path.parent / "out" / "embeddings").glob("*.h5ad")}
    label(path, small_model, key_added="keyA")
    assert embedded == {one: one.stat().st_mtime_ns for one in embedded}  # of A, after B was written
    sdata = spatialdata.read_zarr(path)
    for name, other in ("AB", "BA"):
        table = sdata.tables[name]
        assert_result(table, results[name], f"key{name}")
        assert not any(column.startswith(f"key{other}") for column in table.obs)
        assert table.obs["instance"].tolist() == sdata.shapes["cells"].index.tolist()
        assert table.uns["spatialdata_attrs"]["region"] == "cells"
    assert len(spatialdata.join_spatialelement_table(sdata, "cells", table_name="A")[1]) == 120
    sdata.write(path.parent / "again.zarr")
    again = spatialdata.read_zarr(path.parent / "again.zarr").tables["A"]
    assert again.obs.equals(sdata.tables["A"].obs)


def test_names_of_the_user(place, small_model):
    """They are never replaced, and this is said before any work."""
    path = place("slide.h5ad")
    adata = ad.read_h5ad(path)
    adata.obs["stage_path"] = "by hand"
    adata.write_h5ad(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"stage_path.*slide\.h5ad"):
        label(path, small_model)
    assert path.read_bytes() == before and not (path.parent / "out").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(place, small_model):
    path = place("slide.h5ad")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match=r"slide\.h5ad"):
        label(path, small_model)


@pytest.mark.parametrize(("name", "replaced"), [("slide.h5ad", True), ("spatial.zarr", False)])
def test_killed_at_every_move(place, small_model, name, replaced):
    """The file can be read, with the result of before, none or the new one, and the next call writes the new one."""
    path, options = place(name), {"n_domains": None, "settle": False}
    whole = path.with_name("whole")
    if replaced:
        label(path, small_model, n_domains=None)
    label(path, small_model, write_back=False, **options)
    old, out = read(path), path.parent / "out"
    for one in (path, out):
        _copy(one, whole / one.name)
    results, status, step = [], signal.SIGKILL, 0
    while status:
        for one in (path, out):
            _copy(whole / one.name, one)
        if (pid := os.fork()) == 0:
            _die_at(step)
            label(path, small_model, **options)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL)
        found = [read(path), *([read_consolidated(path)] if path.is_dir() else [])]
        for adata in found:
            assert (adata.X != old.X).nnz == 0 and adata.obs["note"].equals(old.obs["note"])
            results.append(adata.obs.get("stage_path"))
        if step % 8 == 3 or not status:
            result = label(path, small_model, **options)
            assert_result(read(path), result)
            assert {one.name for one in path.parent.iterdir()} == {path.name, "out", "whole"}
        step += 1
    new = read(path).obs["stage_path"]
    for one in results:
        assert one is None or one.equals(new) or (replaced and one.equals(old.obs["stage_path"]))
    assert step > (8 if path.is_dir() else 1) and results[-1].equals(new)
    assert not replaced or not new.equals(old.obs["stage_path"])


def _copy(source: Path, target: Path) -> None:
    """Replace a file or folder by a copy with the same times."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(source, target)


def _die_at(number: int) -> None:
    """Kill this process at the move of a file or folder of this number."""
    moves = iter(range(10_000))

    def wrap(move):
        def moved(*paths):
            if not str(paths[0]).endswith(".partial") and next(moves) == number:  # of zarr, in a folder of its own
                os.kill(os.getpid(), signal.SIGKILL)
            return move(*paths)

        return moved

    os.rename, os.replace = wrap(os.rename), wrap(os.replace)
