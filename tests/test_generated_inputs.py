"""A sample of the generated inputs, and each kind of fault that they found."""

from __future__ import annotations

import importlib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stage_sc as st

SAMPLE = 40


def test_a_sample(monkeypatch, capsys):
    """``python tests/bad_inputs.py`` runs more."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    bad_inputs = importlib.import_module("bad_inputs")
    assert bad_inputs.main(SAMPLE, 7) == 0, capsys.readouterr().out


@pytest.mark.parametrize("value", ["no", 2, 0, [], None])
def test_flags(raw_tissue, unchanged, value):
    for function in (st.pp.build_graph, st.pp.filter_cells, st.pp.filter_genes):
        with unchanged(raw_tissue), pytest.raises(TypeError, match="`copy` must be True or False"):
            function(raw_tissue, copy=value)


@pytest.mark.parametrize(("rng", "error"), [(-1, ValueError), ([], TypeError), (True, TypeError), ("a", TypeError)])
def test_seeds(tissue, small_model, rng, error):
    labelled = st.tl.stage_niches(tissue, model=small_model, copy=True)
    for function, arguments in (
        (st.datasets.simulate_tissue, (100,)),
        (st.datasets.simulate_cohort, (100,)),
        (st.tl.panel_agreement, (tissue, small_model)),
        (st.metrics.asw, (labelled, "stage_l1")),
    ):
        with pytest.raises(error, match="`rng`"):
            function(*arguments, rng=rng)


def test_platforms_and_scales_before_files_are_read(tmp_path):
    (tmp_path / "slide.h5ad").write_text("no file of this kind")
    for function in (st.tl.label_files, st.data.build_store):
        for arguments in ({"technology": "none"}, {"technology": [1]}, {"scale": 1e300}, {"scale": 10**400}):
            with pytest.raises((TypeError, ValueError), match=f"`{next(iter(arguments))}`"):
                function([tmp_path / "slide.h5ad"], tmp_path / "out", **arguments)
        with pytest.raises(NotADirectoryError, match="must name a folder"):
            function([tmp_path / "slide.h5ad"], tmp_path / "slide.h5ad")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda pairs: pairs.data.__setitem__(4, np.nan), "NaN"),
        (lambda pairs: pairs.indices.__setitem__(4, 10**6), "damaged"),
    ],
    ids=["NaN", "out of range"],
)
def test_graphs(tissue, small_model, change, match, unchanged):
    adata = st.tl.stage_niches(tissue, model=small_model, copy=True)
    for pairs in adata.obsp.values():
        change(pairs)
    with unchanged(adata):
        for function in (st.metrics.fide, st.pl.spatial_domains):
            with pytest.raises(ValueError, match=rf"obsp\['spatial_.*{match}"):
                function(adata, "stage_l1") if function is st.metrics.fide else function(adata, return_fig=True)
        with pytest.raises(ValueError, match=match):
            st.tl.stage_niches(adata, model=small_model)


@pytest.mark.parametrize("values", [[[1], [2]] * 2, pd.date_range("2020", periods=4), ["a", 0.5, "b", "a"]])
def test_columns_without_labels(values):
    adata = ad.AnnData(obs=pd.DataFrame({"label": values, "expert": list("aabb")}, index=list("wxyz")))
    with pytest.raises(TypeError, match="not labels"):
        st.metrics.ari(adata, "label", reference="expert")


def test_columns_of_one_name(tissue, unchanged):
    adata = tissue.copy()
    adata.obs = pd.concat([adata.obs, adata.obs[["domain"]]], axis=1)
    with unchanged(adata):
        for function in (st.pp.filter_cells, st.pp.filter_genes):
            with pytest.raises(ValueError, match="several columns 'domain'"):
                function(adata)
        with pytest.raises(ValueError, match="2 columns 'domain'"):
            st.metrics.ari(adata, "domain", reference="slide")
        with pytest.raises(ValueError, match="several columns 'domain'"):
            st.metrics.ari([adata, adata], "domain", reference="slide")


def test_columns_that_are_not_read(tissue, small_model):
    adata = tissue.copy()
    adata.obs[0], adata.obs["lists"] = 1, [[1]] * adata.n_obs
    st.pp.build_graph(adata)
    st.tl.stage_niches(adata, model=small_model)
    expected = st.tl.stage_niches(tissue, model=small_model, copy=True)
    assert adata.obs["stage_path"].tolist() == expected.obs["stage_path"].tolist()


def test_coordinates_far_from_the_origin(raw_tissue):
    adata = raw_tissue.copy()
    adata.obsm["spatial"] += 2.0**36
    st.pp.build_graph(adata)
    expected = st.pp.build_graph(raw_tissue, copy=True)
    assert (adata.obsp["local_connectivities"] != expected.obsp["local_connectivities"]).nnz < 0.01 * expected.n_obs


def test_folders_in_place_of_files(tissue, small_model, tmp_path):
    for write in (
        lambda path: st.model.save_checkpoint(small_model, path),
        lambda path: st.tl.fit(tissue, checkpoint=path),
        lambda path: st.pl.training_curves(small_model, save=path),
    ):
        with pytest.raises(IsADirectoryError, match="is a folder"):
            write(tmp_path)


@pytest.mark.parametrize(
    "arguments", [{"config": 3}, {"genes": "gene"}, {"genes": ["a", "a"]}, {"seed": "1"}, {"name": 3}]
)
def test_models(small_config, arguments):
    with pytest.raises((TypeError, ValueError), match=f"`{next(iter(arguments))}`"):
        st.model.Stage(**{"config": small_config, "genes": ["a"], "slides": []} | arguments)
