"""Bad input to every entry point: a clear error before any work, with the data as it was; or a warning and a result."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st

EMPTY, ISOLATED = 7, 9  # cells of the tissue


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@pytest.fixture
def graphed(tissue) -> ad.AnnData:
    return tissue.copy()


@pytest.fixture(params=["label", "train", "tune"])
def use(request, small_model, small_config) -> Callable[..., object]:
    """Each function that takes cells with a graph."""

    def call(data: object, **arguments: object) -> object:
        if request.param == "label":
            return st.tl.stage_niches(data, model=small_model, **arguments)
        start = {"init": small_model} if request.param == "tune" else {"config": small_config}
        return st.tl.fit(data, epochs=1, progress=False, **start, **arguments)

    call.kind = request.param
    return call


# ------------------------------------------------------------------------------------------------------- coordinates


def remove(adata: ad.AnnData) -> None:
    del adata.obsm["spatial"]


def set_some(value: float, where: int = 3) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        adata.obsm["spatial"][:where, 1] = value

    return change


def on_a_line(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] = np.linspace(0, 900, adata.n_obs)[:, None] * [1.0, 2.0] + 5


def at_one_place(adata: ad.AnnData) -> None:
    adata.obsm["spatial"][:] = 7.0


def one_column(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] = adata.obsm["spatial"][:, :1]


def words(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] = pd.DataFrame({"x": ["a"] * 300, "y": "b"}, adata.obs_names)


def with_depth(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] = np.c_[adata.obsm["spatial"], np.arange(300.0)]


COORDINATES = [
    pytest.param(remove, KeyError, r"`adata\.obsm\['spatial'\]` does not exist.*Pass `spatial_key`", id="missing"),
    pytest.param(set_some(np.nan), ValueError, r"3 of 300 cells have NaN.*st\.pp\.filter_cells\(adata\)", id="NaN"),
    pytest.param(set_some(-np.inf, 1), ValueError, r"1 of 300 cells .*infinite.*filter_cells", id="infinite"),
    pytest.param(on_a_line, ValueError, r"all 300 cells lie on one line", id="collinear"),
    pytest.param(at_one_place, ValueError, r"all 300 cells lie at the same place", id="equal"),
    pytest.param(one_column, ValueError, r"must have shape \(n_cells, 2\), got \(300, 1\)", id="one column"),
    pytest.param(words, TypeError, "must hold numbers", id="words"),
    pytest.param(with_depth, ValueError, "third coordinate .* varies from 0 to 299.*`library_key`", id="third"),
]


@pytest.mark.parametrize(("change", "error", "match"), COORDINATES)
def test_coordinates_of_build_graph(raw_tissue, change, error, match, unchanged):
    adata = raw_tissue.copy()
    change(adata)
    with unchanged(adata), pytest.raises(error, match=match):
        st.pp.build_graph(adata)


@pytest.mark.parametrize(("change", "error", "match"), COORDINATES)
def test_coordinates_that_were_changed_after_the_graph(graphed, change, error, match, use, unchanged):
    change(graphed)
    with unchanged(graphed), pytest.raises(error, match=match):
        use(graphed)


def test_three_cells(raw_tissue, graphed, use, unchanged):
    few, few_graphed = raw_tissue[:3].copy(), graphed[:3].copy()
    with unchanged(few), pytest.raises(ValueError, match="3 cells are too few .* at least 4"):
        st.pp.build_graph(few)
    with unchanged(few_graphed), pytest.raises(ValueError, match="3 cells are too few .* at least 4"):
        use(few_graphed)


def test_no_cells(raw_tissue, graphed, use, unchanged):
    none, none_graphed = raw_tissue[:0].copy(), graphed[:0].copy()
    with unchanged(none), pytest.raises(ValueError, match="has no cells"):
        st.pp.build_graph(none)
    with unchanged(none_graphed), pytest.raises(ValueError, match="has no cells"):
        use(none_graphed)


@pytest.mark.parametrize(("scale", "spacing"), [(0.01, r"0\.1\d*"), (100.0, r"1\.\d+e\+03")])
def test_wrong_scale(raw_tissue, small_model, scale, spacing, caplog):
    """Said, and used nevertheless: what the user says is what counts."""
    adata = raw_tissue.copy()
    st.pp.build_graph(adata, scale=scale)
    said = warnings_of(caplog)
    assert re.search(rf"nearest cell is {spacing} µm with scale={scale:g}, outside 2-200 µm: `scale` should be", said)
    st.tl.stage_niches(adata, model=small_model)
    assert adata.obs["stage_l1"].notna().all()


def test_wrong_scale_of_many_cells(unchanged):
    """All within 50 µm of each other: refused, or memory would end."""
    adata = st.datasets.simulate_tissue(2000)
    with unchanged(adata), pytest.raises(ValueError, match="others within 50 µm on average: `scale`"):
        st.pp.build_graph(adata, scale=0.01)


def test_unknown_unit(raw_tissue, caplog):
    adata = raw_tissue.copy()
    adata.obsm["spatial"] = adata.obsm["spatial"] * 1000
    st.pp.build_graph(adata)
    said = warnings_of(caplog)
    assert "unit of the coordinates is unknown" in said
    assert "Pass `scale`" in said


# ------------------------------------------------------------------------------------------------------------- slides


@pytest.mark.parametrize(
    "values", [["a", None], ["a", np.nan], pd.Categorical(["a", None])], ids=["None", "NaN", "cat"]
)
def test_slides_with_missing_values(graphed, use, values, unchanged):
    graphed.obs["section"] = values * 150 if isinstance(values, list) else pd.Categorical(list(values) * 150)
    match = r"150 of 300 cells have no slide: .*obs\['section'\].*notna"
    with unchanged(graphed), pytest.raises(ValueError, match=match):
        st.pp.build_graph(graphed, library_key="section")
    with unchanged(graphed), pytest.raises(ValueError, match=match):
        use(graphed, library_key="section")


def test_slides_that_lost_a_name_after_the_graph(slides, use, unchanged):
    adata = slides.copy()
    adata.obs.loc[adata.obs_names[:5], "slide"] = np.nan
    with unchanged(adata), pytest.raises(ValueError, match="5 of 400 cells have no slide"):
        use(adata)


def test_no_such_slide_column(graphed, use, unchanged):
    with unchanged(graphed), pytest.raises(KeyError, match=r"obs\['section'\].*does not exist, obs holds 'slide'"):
        st.pp.build_graph(graphed, library_key="section")
    with unchanged(graphed), pytest.raises(KeyError, match=r"obs\['section'\].*does not exist, obs holds 'slide'"):
        use(graphed, library_key="section")


def test_a_slide_of_three_cells(graphed, use, unchanged):
    graphed.obs["section"] = ["many"] * 297 + ["few"] * 3
    with unchanged(graphed), pytest.raises(ValueError, match="Slide 'few': 3 cells are too few"):
        st.pp.build_graph(graphed, library_key="section")
    with unchanged(graphed), pytest.raises(ValueError, match="Slide 'few': 3 cells are too few"):
        use(graphed, library_key="section")


# --------------------------------------------------------------------------------------------------------- expression


def negative(adata: ad.AnnData) -> None:
    adata.X.data[:4] = -2.5


def not_a_number(adata: ad.AnnData) -> None:
    adata.X.data[5] = np.nan


def infinite(adata: ad.AnnData) -> None:
    adata.X = adata.X.toarray()
    adata.X[3, 3] = np.inf


def missing(adata: ad.AnnData) -> None:
    adata.X = None


def no_genes(adata: ad.AnnData) -> None:
    adata._inplace_subset_var(np.zeros(adata.n_vars, bool))


EXPRESSION = [
    pytest.param(negative, r"4 negative values \(smallest -2\.5\).*raw counts", id="negative"),
    pytest.param(not_a_number, "1 NaN or infinite values", id="NaN"),
    pytest.param(infinite, "1 NaN or infinite values", id="infinite"),
    pytest.param(missing, r"`adata\.X` is None.*`layer`", id="no X"),
    pytest.param(no_genes, "no genes", id="no genes"),
]


@pytest.mark.parametrize(("change", "match"), EXPRESSION)
def test_expression(graphed, change, match, use, unchanged):
    change(graphed)
    with unchanged(graphed), pytest.raises(ValueError, match=match):
        use(graphed)


@pytest.mark.parametrize(("change", "match"), EXPRESSION)
def test_expression_of_cells_whose_graph_is_stale(tissue, change, match, use, unchanged):
    """Refused before the graph is rebuilt."""
    part = tissue[:250].copy()
    change(part)
    with unchanged(part), pytest.raises(ValueError, match=match):
        use(part)


def test_expression_in_a_layer(graphed, use, unchanged):
    with unchanged(graphed), pytest.raises(KeyError, match=r"layers\['counts'\].*does not exist, layers are: none"):
        use(graphed, layer="counts")
    graphed.layers["scaled"] = graphed.X.toarray() - 1
    with unchanged(graphed), pytest.raises(ValueError, match="negative values"):
        use(graphed, layer="scaled")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gene{:03}", "172 unknown"), ("ENSG9{:010}", "172 Ensembl id|172 unknown")],
    ids=["names", "ids"],
)
def test_no_gene_in_the_vocabulary(graphed, small_model, name, kind, unchanged):
    graphed.var_names = [name.format(number) for number in range(172)]
    match = rf"None of the 172 genes is in the vocabulary.*({kind}).*'{name.format(0)}'.*symbols or Ensembl"
    with unchanged(graphed), pytest.raises(ValueError, match=match):
        st.tl.stage_niches(graphed, model=small_model)
    with unchanged(graphed), pytest.raises(ValueError, match=match):
        st.tl.fit(graphed, init=small_model, progress=False)


def test_no_gene_but_control_probes(graphed, use, unchanged):
    graphed.var_names = [f"Blank-{number}" for number in range(172)]
    with unchanged(graphed), pytest.raises(ValueError, match="gene"):
        use(graphed)


def test_duplicate_genes_are_added_up(tissue, small_model, small_config, caplog):
    """A gene in two columns is the sum of both."""
    split = tissue.copy()
    first = tissue.X[:, :1].toarray() // 2
    column = sp.csr_matrix(tissue.X[:, :1].toarray() - first)
    split = ad.AnnData(
        sp.hstack([sp.csr_matrix(first), tissue.X[:, 1:], column], format="csr"),
        tissue.obs,
        pd.DataFrame(index=[*tissue.var_names, tissue.var_names[0]]),
        obsm=dict(tissue.obsm),
        uns=dict(tissue.uns),
        obsp=dict(tissue.obsp),
    )
    assert not split.var_names.is_unique
    st.tl.stage_niches(split, model=small_model)
    assert "1 genes have several columns" in warnings_of(caplog)
    assert tissue.var_names[0].casefold() in warnings_of(caplog).casefold()
    expected = st.tl.stage_niches(tissue, model=small_model, copy=True)
    assert split.obs["stage_path"].tolist() == expected.obs["stage_path"].tolist()
    assert st.tl.fit(split, config=small_config, epochs=0, progress=False).genes == small_model.genes
    st.pp.build_graph(split)


def test_logged_values(graphed, use, caplog):
    graphed.X = np.log1p(graphed.X.toarray())
    use(graphed)
    assert "taken as already log-normalised" in warnings_of(caplog)
    assert "raw counts" in warnings_of(caplog)


def test_linear_values_that_are_no_counts(graphed, use, caplog):
    graphed.X = graphed.X.toarray() * 12.345
    use(graphed)
    assert "no counts" in warnings_of(caplog)


# -------------------------------------------------------------------------------------------------------------- cells


def test_empty_and_isolated_cells(graphed, use, caplog):
    use(graphed)
    for what in ("1 cells have no counts of the genes used", "1 cells have no neighbour"):
        assert what in warnings_of(caplog)
    if use.kind == "label":
        assert graphed.n_obs == 300
        assert graphed.obs["stage_flag"].iloc[[EMPTY, ISOLATED, 0]].tolist() == ["empty", "isolated", "ok"]
        assert graphed.obs[["stage_l1", "stage_l2", "stage_l3", "stage_confidence"]].notna().all().all()
        assert np.isfinite(graphed.obsm["X_stage"]).all()


def test_an_empty_cell_is_labelled_by_its_neighbours(graphed, small_model):
    """Among equal cells it is like them."""
    graphed.X = sp.csr_matrix(np.tile(graphed.X[20].toarray(), (300, 1)))
    counts = graphed.X.tolil()
    counts[50] = 0
    graphed.X = counts.tocsr()
    st.tl.stage_niches(graphed, model=small_model)
    niche = graphed.obs["stage_l1"]
    assert graphed.obs["stage_flag"].iloc[50] == "empty"
    near = graphed.obsp["local_connectivities"][50].indices
    assert niche.iloc[50] in set(niche.iloc[[cell for cell in near if cell != 50]])


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_no_counts_at_all(graphed, small_model, small_config, caplog):
    graphed.X = sp.csr_matrix(graphed.shape, dtype=np.float32)
    st.tl.stage_niches(graphed, model=small_model)
    assert "300 cells have no counts" in warnings_of(caplog)
    assert (graphed.obs["stage_flag"] == "empty").all()
    assert np.isfinite(graphed.obsm["X_stage"]).all()
    caplog.clear()
    with pytest.raises(ValueError, match="no cell has any counts"):
        st.tl.fit(graphed, config=small_config, epochs=2, progress=False)


def test_no_edges_at_all(raw_tissue, small_model, small_config, caplog):
    """Cells so far apart that none has a neighbour."""
    adata = raw_tissue.copy()
    st.pp.build_graph(adata, scale=1000.0)
    st.tl.stage_niches(adata, model=small_model)
    assert (adata.obs["stage_flag"].drop(adata.obs_names[EMPTY]) == "isolated").all()
    assert "300 cells have no neighbour" in warnings_of(caplog)
    model = st.tl.fit(adata, config=small_config, epochs=1, progress=False)
    assert model.embedder.vectors.isfinite().all()


@pytest.mark.parametrize("n_cells", [4, 9, 30])
def test_few_cells(tissue, n_cells):
    """As many as a graph needs are enough for everything."""
    adata = tissue[20 : 20 + n_cells].copy()
    st.pp.build_graph(adata, scale=1.0)
    model = st.tl.fit(adata, epochs=2, progress=False)
    st.tl.stage_niches(adata, model=model, n_domains=2)
    assert adata.obs["stage_domain"].nunique() == 2


# ---------------------------------------------------------------------------------------- objects, models, arguments


def test_no_graph(raw_tissue, use, unchanged):
    with unchanged(raw_tissue), pytest.raises(KeyError, match=r"st\.pp\.build_graph\(adata\)"):
        use(raw_tissue)


def test_half_a_graph(graphed, use, unchanged):
    del graphed.obsp["local_connectivities"]
    with unchanged(graphed), pytest.raises(KeyError, match=r"st\.pp\.build_graph\(adata\)"):
        use(graphed)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (None, "must be an AnnData object, got NoneType"),
        ("slide.h5ad", r"got str.*scanpy\.read_h5ad"),
        (3, "got int"),
        (np.ones((4, 2)), "got ndarray"),
        (pd.DataFrame({"x": [1]}), "got DataFrame"),
    ],
    ids=["None", "path", "number", "array", "frame"],
)
def test_wrong_objects(wrong, match, use):
    with pytest.raises(TypeError, match=match):
        st.pp.build_graph(wrong)
    with pytest.raises(TypeError, match=match):
        use(wrong)


def test_spatialdata(tissue, use, unchanged):
    from spatialdata import SpatialData

    sdata = SpatialData(tables={"cells": tissue.copy()})
    for function in (st.pp.build_graph, use):
        with unchanged(sdata["cells"]), pytest.raises(TypeError, match=r'SpatialData.*sdata\.tables\["'):
            function(sdata)


def test_lists(tissue, use, unchanged):
    with unchanged(tissue), pytest.raises(TypeError, match=r"got list.*anndata\.concat.*library_key"):
        st.pp.build_graph([tissue, tissue])
    for wrong in ([tissue, "slide.h5ad"], (tissue, None)):
        with unchanged(tissue), pytest.raises(TypeError, match="must be an AnnData object, got (str|NoneType)"):
            use(wrong)
    with pytest.raises(ValueError, match="empty"):
        use([])


@pytest.mark.parametrize("change", [negative, remove, at_one_place])
@pytest.mark.parametrize("first", ["fresh", "stale"])
def test_one_of_a_list_is_bad(tissue, graphed, first, change, use, unchanged):
    """Nothing is written to the other, which comes first; not even a rebuilt graph."""
    other, bad = tissue[: 300 if first == "fresh" else 250].copy(), graphed
    change(bad)
    with unchanged(other, bad), pytest.raises((KeyError, ValueError)):
        use([other, bad])


@pytest.mark.parametrize("parameter", ["model", "init"])
def test_wrong_models(graphed, parameter, unchanged, tmp_path):
    function = st.tl.stage_niches if parameter == "model" else st.tl.fit
    (tmp_path / "broken.safetensors").write_bytes(b"no such format, but long enough to look")
    for wrong, error, match in (
        (3, TypeError, "must be a model .*got int"),
        ({"weights": 1}, TypeError, "got dict"),
        (graphed, TypeError, "got AnnData"),
        ("nowhere.safetensors", FileNotFoundError, r"no checkpoint 'nowhere\.safetensors'"),
        (tmp_path / "nowhere", FileNotFoundError, "no checkpoint"),
        (tmp_path, FileNotFoundError, "no checkpoint"),
        (tmp_path / "broken.safetensors", ValueError, "cannot be read"),
    ):
        with unchanged(graphed), pytest.raises(error, match=match):
            function(graphed, **{parameter: wrong})


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_domains": 0}, ValueError, "`n_domains` must be above 0"),
        ({"n_domains": -3}, ValueError, "`n_domains` must be above 0"),
        ({"n_domains": 2.5}, TypeError, "`n_domains` must be an integer"),
        ({"n_domains": True}, TypeError, "`n_domains` must be an integer"),
        ({"n_domains": "4"}, TypeError, "`n_domains` must be an integer"),
        ({"key_added": ""}, TypeError, "`key_added` must be a string"),
        ({"key_added": None}, TypeError, "`key_added` must be a string"),
        ({"spatial_key": "xy"}, KeyError, r"obsm\['xy'\].*obsm holds 'spatial'"),
        ({"model": None, "layer": "counts"}, KeyError, "layers"),
        ({"device": "abacus"}, ValueError, "`device` must be one of 'auto', 'cpu'.*got 'abacus'"),
        ({"device": 0}, TypeError, "`device` must be a string, got 0"),
    ],
    ids=str,
)
def test_arguments_of_stage_niches(tissue, small_model, arguments, error, match, unchanged):
    with unchanged(tissue), pytest.raises(error, match=match):
        st.tl.stage_niches(tissue, **{"model": small_model, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"epochs": -1}, ValueError, "`epochs`"),
        ({"epochs": 1.5}, TypeError, "`epochs` must be an integer"),
        ({"patience": 0}, ValueError, "`patience` must be above 0"),
        ({"patience": "5"}, TypeError, "`patience` must be an integer"),
        ({"config": {"dim": 8}}, TypeError, "must be a stage_sc.model.StageConfig, got dict"),
        ({"config": "paper"}, TypeError, "must be a stage_sc.model.StageConfig, got str"),
        ({"spatial_key": "xy"}, KeyError, r"obsm\['xy'\]"),
        ({"rng": "seed"}, TypeError, "seed"),
        ({"rng": -1}, ValueError, "non-negative|expected"),
        ({"device": "abacus"}, ValueError, "abacus"),
    ],
    ids=str,
)
def test_arguments_of_fit(tissue, arguments, error, match, unchanged):
    with unchanged(tissue), pytest.raises(error, match=match):
        st.tl.fit(tissue, progress=False, **arguments)


def test_more_leaves_than_cells(tissue, unchanged):
    config = st.model.StageConfig(levels=(2, 400))
    with unchanged(tissue), pytest.raises(ValueError, match="levels"):
        st.tl.fit(tissue, config=config, progress=False)


def test_no_slides_to_train_on():
    for nothing in ([], {}, ()):
        with pytest.raises(ValueError, match="empty"):
            st.tl.fit(nothing)
