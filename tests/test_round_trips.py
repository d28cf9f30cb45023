"""What is written to an AnnData survives h5ad and zarr, and what is read back is as good as what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st

KINDS = ("h5ad", "zarr")
GRAPHS = ("spatial_connectivities", "spatial_distances", "local_connectivities")


def through(adata: ad.AnnData, folder: Path, kind: str) -> ad.AnnData:
    getattr(adata, f"write_{kind}")(folder / f"a.{kind}")
    return getattr(ad, f"read_{kind}")(folder / f"a.{kind}")


def assert_stored(before: Any, after: Any, where: str) -> None:
    """Equal with dtypes, up to what no file keeps: Python numbers and lists come back as numpy's, strings in any of
    pandas' dtypes."""
    if isinstance(before, dict):
        assert isinstance(after, dict), where
        assert set(before) == set(after), where
        for key, value in before.items():
            assert type(key) is str
            assert "/" not in key
            assert_stored(value, after[key], f"{where}/{key}")
    elif isinstance(before, pd.DataFrame):
        assert before.columns.tolist() == after.columns.tolist(), where
        assert before.index.tolist() == after.index.tolist(), where
        for name in before.columns:
            assert_column(before[name], after[name], f"{where}.{name}")
    elif sp.issparse(before):
        assert before.format == after.format == "csr", where
        for name in ("data", "indices", "indptr"):
            one, other = getattr(before, name), getattr(after, name)
            assert one.dtype == other.dtype, where
            assert one.tobytes() == other.tobytes(), where
    elif isinstance(before, np.ndarray) and before.dtype.kind in "OUT":  # strings
        assert before.tolist() == after.tolist(), where
    elif isinstance(before, np.ndarray):
        assert (before.dtype, before.shape) == (after.dtype, after.shape), where
        assert before.tobytes() == after.tobytes(), where
    elif isinstance(before, list):
        assert list(after) == before, where
        assert len({type(value) for value in before}) == 1, where
    else:
        assert isinstance(before, str | bool | int | float | np.generic | None), f"{where}: {type(before)}"
        assert np.asarray(after).dtype.kind == np.asarray(before).dtype.kind, where
        assert after == before, where


def assert_column(before: pd.Series, after: pd.Series, where: str) -> None:
    assert isinstance(before.dtype, pd.CategoricalDtype) == isinstance(after.dtype, pd.CategoricalDtype), where
    if isinstance(before.dtype, pd.CategoricalDtype):
        assert before.cat.categories.tolist() == after.cat.categories.tolist(), where
        assert before.cat.ordered == after.cat.ordered, where
        assert before.cat.codes.tolist() == after.cat.codes.tolist(), where
    elif isinstance(before.iloc[0], str):
        assert before.tolist() == after.tolist(), where
    else:
        assert before.dtype == after.dtype, where
        assert before.to_numpy().tobytes() == after.to_numpy().tobytes(), where


def assert_all_stored(before: ad.AnnData, after: ad.AnnData) -> None:
    assert_stored(before.obs, after.obs, "obs")
    for name in ("obsm", "obsp", "uns"):
        assert_stored(dict(getattr(before, name)), dict(getattr(after, name)), name)


@pytest.fixture(params=["one slide", "two slides"])
def built(request, tissue, slides) -> ad.AnnData:
    """After `build_graph`."""
    adata = (tissue if request.param == "one slide" else slides).copy()
    del adata.uns["simulation"], adata.obs["cell_type"]
    adata.strings_to_categoricals()  # which writing would do
    return adata


@pytest.fixture
def labelled(built, small_model) -> ad.AnnData:
    st.tl.stage_niches(built, model=small_model, n_domains=4)
    return built


@pytest.mark.parametrize("kind", KINDS)
class TestRoundTrip:
    def test_graph(self, built, small_model, tmp_path, kind, caplog):
        assert set(GRAPHS) <= set(built.obsp)
        after = through(built, tmp_path, kind)
        assert_all_stored(built, after)
        for adata in (built, after):
            st.tl.stage_niches(adata, model=small_model, n_domains=3)
        assert "rebuilding" not in caplog.text
        assert_all_stored(built, after)

    def test_labels(self, labelled, small_model, tmp_path, kind, caplog):
        before = labelled.uns["stage"]["tree"].copy()
        after = through(labelled, tmp_path, kind)
        assert_all_stored(labelled, after)
        assert after.obs["stage_l3"].cat.categories.tolist() != sorted(after.obs["stage_l3"].cat.categories)
        assert after.uns["stage"]["tree"].dtypes["n_cells"] == before.dtypes["n_cells"]
        assert after.obs["stage_confidence"].dtype == after.obsm["X_stage"].dtype == np.float32
        st.tl.stage_niches(after, model=small_model, n_domains=4)
        assert "rebuilding" not in caplog.text
        assert_all_stored(labelled, after)

    def test_rebuilt_after_reading(self, built, small_model, tmp_path, kind, caplog):
        """The recorded parameters are read as well."""
        st.pp.build_graph(
            built,
            library_key=built.uns["stage_graph"]["params"]["library_key"] or None,
            local=20.0,
            view=45.0,
            scale=1.1,
        )
        after = through(built, tmp_path, kind)
        results = []
        for adata in (built, after):
            part = adata[::3].copy()
            st.tl.stage_niches(part, model=small_model)
            results.append(part)
        assert "rebuilding" in caplog.text
        assert_all_stored(*results)

    def test_other_key_and_special_names(self, slides, small_model, tmp_path, kind):
        adata = slides.copy()
        del adata.uns["simulation"]
        adata.obs["my section"] = adata.obs.pop("slide").astype(str).map({"slide1": "A/1", "slide2": "Ä 2"})
        st.pp.build_graph(adata, library_key="my section")
        st.tl.stage_niches(adata, model=small_model, key_added="my niches", n_domains=2)
        after = through(adata, tmp_path, kind)
        adata.strings_to_categoricals()
        assert_all_stored(adata, after)
        st.tl.stage_niches(after, model=small_model, key_added="my niches", n_domains=2)
        assert_all_stored(adata, after)


def test_again_and_again(labelled, tmp_path):
    """From the second time on nothing changes at all, not even the types."""
    once = through(labelled, tmp_path, "h5ad")
    twice = through(once, tmp_path, "zarr")
    pd.testing.assert_frame_equal(once.obs, twice.obs, check_exact=True)
    assert_all_stored(once, twice)


def test_trained_on_what_was_read(built, small_config, tmp_path):
    after = through(built, tmp_path, "h5ad")
    one, other = (st.tl.fit(adata, config=small_config, progress=False) for adata in (built, after))
    assert one.slides == other.slides
    assert all(value.equal(other.state_dict()[name]) for name, value in one.state_dict().items())
    assert_all_stored(built, after)
    assert_all_stored(built, through(after, tmp_path, "h5ad"))


def test_model_and_labels_travel_together(tissue, small_model, tmp_path):
    """The digest in the file finds the checkpoint that made the labels."""
    path = st.model.save_checkpoint(small_model, tmp_path / "model")
    adata = st.tl.stage_niches(tissue, model=path, copy=True)
    after = through(adata, tmp_path, "h5ad")
    again = st.tl.stage_niches(after, model=st.model.load_checkpoint(path), copy=True)
    assert again.uns["stage"]["model"] == dict(after.uns["stage"]["model"])
    assert_stored(adata.obs, again.obs, "obs")


def test_backed_labels_are_written(tissue, small_model, tmp_path):
    """Labels of a backed object can be written to a new file."""
    tissue.copy().write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    st.tl.stage_niches(backed, model=small_model)
    backed.write_h5ad(tmp_path / "b.h5ad")
    after = ad.read_h5ad(tmp_path / "b.h5ad")
    assert_stored(backed.obs, after.obs, "obs")
    backed.file.close()
