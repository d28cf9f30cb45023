"""What is written to an AnnData survives h5ad and zarr, and what is read back is as good as what was written."""

from __future__ import annotations

from collections.abc import Mapping
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


def kept(value: Any) -> Any:
    """What files keep, with dtypes: Python's numbers and lists come back as numpy's, strings in any dtype."""
    if isinstance(value, Mapping):
        assert all(type(key) is str and "/" not in key for key in value)
        return {key: kept(value[key]) for key in sorted(value)}
    if isinstance(value, pd.DataFrame):
        return value.index.tolist(), {name: kept(value[name]) for name in value}, value.columns.tolist()
    if sp.issparse(value):
        return value.format, [kept(getattr(value, name)) for name in ("data", "indices", "indptr")]
    if isinstance(getattr(value, "dtype", None), pd.CategoricalDtype):
        return value.cat.categories.tolist(), value.cat.ordered, value.cat.codes.tolist()
    assert not isinstance(value, list) or len({type(part) for part in value}) == 1
    value = np.asarray(value)
    strings = value.dtype.kind in "OUT"
    return value.shape, value.tolist() if strings else (value.dtype, value.tobytes())


def assert_stored(
    before: ad.AnnData, after: ad.AnnData, names: tuple[str, ...] = ("obs", "obsm", "obsp", "uns")
) -> None:
    for name in names:
        assert kept(getattr(before, name)) == kept(getattr(after, name)), name


@pytest.fixture(params=["one slide", "two slides"])
def built(request, tissue, slides) -> ad.AnnData:
    """After `build_graph`."""
    adata = (tissue if request.param == "one slide" else slides).copy()
    del adata.uns["simulation"], adata.obs["cell_type"]
    adata.strings_to_categoricals()  # which writing would do
    return adata


@pytest.mark.parametrize("kind", KINDS)
class TestRoundTrip:
    def test_graph_and_labels(self, built, small_model, tmp_path, kind, caplog):
        assert set(GRAPHS) <= set(built.obsp)
        after = through(built, tmp_path, kind)
        assert_stored(built, after)
        for adata in (built, after):
            st.tl.stage_niches(adata, model=small_model, n_domains=4)
        assert_stored(built, after)
        again = through(after, tmp_path, kind)
        assert_stored(built, again)
        assert again.obs["stage_l3"].cat.categories.tolist() != sorted(again.obs["stage_l3"].cat.categories)
        assert again.obs["stage_confidence"].dtype == again.obsm["X_stage"].dtype == np.float32
        st.tl.stage_niches(again, model=small_model, n_domains=4)
        assert "rebuilding" not in caplog.text
        assert_stored(built, again)

    def test_rebuilt_after_reading(self, built, small_model, tmp_path, kind, caplog):
        """The recorded parameters are read as well."""
        library_key = built.uns["stage_graph"]["params"]["library_key"] or None
        st.pp.build_graph(built, library_key=library_key, local=20.0, view=45.0, scale=1.1)
        after = through(built, tmp_path, kind)
        parts = [adata[::3].copy() for adata in (built, after)]
        for part in parts:
            st.tl.stage_niches(part, model=small_model)
        assert "rebuilding" in caplog.text
        assert_stored(*parts)

    def test_other_key_and_special_names(self, slides, small_model, tmp_path, kind):
        adata = slides.copy()
        del adata.uns["simulation"]
        adata.obs["my section"] = adata.obs.pop("slide").astype(str).map({"slide1": "A/1", "slide2": "Ä 2"})
        st.pp.build_graph(adata, library_key="my section", scale={"A/1": 1.1})
        st.tl.stage_niches(adata, model=small_model, key_added="my niches", n_domains=2)
        after = through(adata, tmp_path, kind)
        adata.strings_to_categoricals()
        assert_stored(adata, after)
        st.tl.stage_niches(after, model=small_model, key_added="my niches", n_domains=2)
        assert_stored(adata, after)


def test_backed_labels_are_written(tissue, small_model, tmp_path):
    tissue.copy().write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    st.tl.stage_niches(backed, model=small_model)
    backed.write_h5ad(tmp_path / "b.h5ad")
    assert_stored(backed, ad.read_h5ad(tmp_path / "b.h5ad"), ("obs",))
    backed.file.close()
