"""Bad input to every entry point: a clear error before any work, with the data as it was; or a warning and a result."""

from __future__ import annotations

import logging
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


def remove(adata: ad.AnnData) -> None:
    del adata.obsm["spatial"]


def place(make: Callable[[np.ndarray], object]) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        adata.obsm["spatial"] = make(adata.obsm["spatial"].copy())

    return change


def first(n: int, value: float) -> Callable[[ad.AnnData], None]:
    return place(lambda xy: np.where(np.arange(300)[:, None] < n, [0, value], xy))


at_one_place = place(lambda xy: 0 * xy + 7)
COORDINATES = [
    pytest.param(remove, KeyError, r"obsm\['spatial'\].*`spatial_key`", id="missing"),
    pytest.param(first(3, np.nan), ValueError, r"3 of 300 cells.*filter_cells", id="NaN"),
    pytest.param(first(1, -np.inf), ValueError, r"1 of 300 cells.*filter_cells", id="infinite"),
    pytest.param(place(lambda xy: np.outer(np.arange(300), [1.0, 2.0]) + 5), ValueError, "300 cells.* line", id="line"),
    pytest.param(at_one_place, ValueError, "300 cells.* same place", id="equal"),
    pytest.param(place(lambda xy: xy[:, :1]), ValueError, r"\(300, 1\)", id="one column"),
    pytest.param(place(lambda xy: np.full(xy.shape, "a")), TypeError, "must hold numbers", id="words"),
    pytest.param(place(lambda xy: np.c_[xy, np.arange(300.0)]), ValueError, "0 to 299.*`library_key`", id="third"),
]


@pytest.mark.parametrize(("change", "error", "match"), COORDINATES)
def test_coordinates(raw_tissue, graphed, change, error, match, use, unchanged):
    """Of a new graph, and changed after the graph."""
    for function, adata in ((st.pp.build_graph, raw_tissue.copy()), (use, graphed)):
        change(adata)
        with unchanged(adata), pytest.raises(error, match=match):
            function(adata)


@pytest.mark.parametrize(("n_cells", "match"), [(3, "3 cells.* 4"), (0, "no cells")])
def test_few_or_no_cells(raw_tissue, graphed, use, n_cells, match, unchanged):
    few, few_graphed = raw_tissue[:n_cells].copy(), graphed[:n_cells].copy()
    with unchanged(few, few_graphed):
        for function, data in ((st.pp.build_graph, few), (use, few_graphed)):
            with pytest.raises(ValueError, match=match):
                function(data)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_wrong_scale(raw_tissue, small_model, scale, caplog):
    """Reported, and used nevertheless."""
    adata = st.pp.build_graph(raw_tissue, scale=scale, copy=True)
    assert f"scale={scale:g}" in warnings_of(caplog)
    st.tl.stage_niches(adata, model=small_model)
    assert adata.obs["stage_l1"].notna().all()


NO_NAME = (ValueError, r"150 of 300 cells.*obs\['section'\]")


@pytest.mark.parametrize(
    ("section", "error", "match"),
    [
        pytest.param(["a", None] * 150, *NO_NAME, id="None"),
        pytest.param(["a", np.nan] * 150, *NO_NAME, id="NaN"),
        pytest.param(pd.Categorical(["a", None] * 150), *NO_NAME, id="category"),
        pytest.param(["many"] * 297 + ["few"] * 3, ValueError, "'few'.*3 cells", id="three cells"),
        pytest.param(None, KeyError, r"obs\['section'\].*'slide'", id="no column"),
    ],
)
def test_slides(graphed, use, section, error, match, unchanged):
    if section is not None:
        graphed.obs["section"] = section
    for function in (st.pp.build_graph, use):
        with unchanged(graphed), pytest.raises(error, match=match):
            function(graphed, library_key="section")


def test_slides_that_lost_a_name_after_the_graph(slides, use, unchanged):
    adata = slides.copy()
    adata.obs.loc[adata.obs_names[:5], "slide"] = np.nan
    with unchanged(adata), pytest.raises(ValueError, match="5 of 400 cells"):
        use(adata)


def negative(adata: ad.AnnData) -> None:
    adata.X.data[:4] = -2.5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (negative, r"4 negative.*-2\.5"),
        (lambda adata: adata.X.data.__setitem__(5, np.nan), "1 NaN"),
        (lambda adata: setattr(adata, "X", np.full(adata.shape, np.inf)), "51600 NaN or infinite"),
        (lambda adata: setattr(adata, "X", None), "`layer`"),
        (lambda adata: adata._inplace_subset_var(np.zeros(172, bool)), "no genes"),
        (lambda adata: setattr(adata, "var_names", [f"Blank-{k}" for k in range(172)]), "172 (genes|control probes)"),
    ],
    ids=["negative", "NaN", "infinite", "missing", "no genes", "control probes"],
)
@pytest.mark.parametrize("n_cells", [300, 250], ids=["fresh", "stale"])
def test_expression(tissue, change, match, use, n_cells, unchanged):
    """Refused before a stale graph is rebuilt."""
    adata = tissue[:n_cells].copy()
    change(adata)
    with unchanged(adata), pytest.raises(ValueError, match=match.replace("51600", str(172 * n_cells))):
        use(adata)


def test_expression_in_a_layer(graphed, use, unchanged):
    with unchanged(graphed), pytest.raises(KeyError, match=r"layers\['counts'\].*none"):
        use(graphed, layer="counts")
    graphed.layers["scaled"] = graphed.X.toarray() - 1
    with unchanged(graphed), pytest.raises(ValueError, match="negative"):
        use(graphed, layer="scaled")


@pytest.mark.parametrize("name", ["gene{:03}", "ENSG9{:010}"])
def test_no_gene_in_the_vocabulary(graphed, small_model, name, unchanged):
    graphed.var_names = [name.format(number) for number in range(172)]
    for function, model in ((st.tl.stage_niches, "model"), (st.tl.fit, "init")):
        with unchanged(graphed), pytest.raises(ValueError, match=f"None of the 172 genes.*'{name.format(0)}'"):
            function(graphed, **{model: small_model})


def test_duplicate_genes_are_added_up(tissue, small_model, small_config, caplog):
    """A gene in two columns is the sum of both."""
    first = sp.csr_matrix(tissue.X[:, :1].toarray() // 2)
    X = sp.hstack([first, tissue.X[:, 1:], tissue.X[:, :1] - first], format="csr")
    var = pd.DataFrame(index=[*tissue.var_names, tissue.var_names[0]])
    split = ad.AnnData(X, tissue.obs, var, obsm=dict(tissue.obsm), uns=dict(tissue.uns), obsp=dict(tissue.obsp))
    st.tl.stage_niches(split, model=small_model)
    assert tissue.var_names[0].casefold() in warnings_of(caplog).casefold()
    expected = st.tl.stage_niches(tissue, model=small_model, copy=True)
    assert split.obs["stage_path"].tolist() == expected.obs["stage_path"].tolist()
    assert st.tl.fit(split, config=small_config, epochs=0, progress=False).genes == small_model.genes


def test_empty_and_isolated_cells(graphed, use, caplog):
    use(graphed)
    assert "1 cells have no counts" in warnings_of(caplog)
    assert "1 cells have no neighbour" in warnings_of(caplog)
    if use.kind == "label":
        assert graphed.n_obs == 300
        assert graphed.obs["stage_flag"].iloc[[EMPTY, ISOLATED, 0]].tolist() == ["empty", "isolated", "ok"]
        assert graphed.obs[["stage_l1", "stage_l2", "stage_l3", "stage_confidence"]].notna().all().all()
        assert np.isfinite(graphed.obsm["X_stage"]).all()


def test_an_empty_cell_is_labelled_by_its_neighbours(graphed, small_model):
    """Among equal cells it is like them."""
    graphed.X = sp.csr_matrix((np.arange(300) != 50)[:, None] * graphed.X[20].toarray())
    st.tl.stage_niches(graphed, model=small_model)
    niche, near = graphed.obs["stage_l1"], graphed.obsp["local_connectivities"][50].indices
    assert graphed.obs["stage_flag"].iloc[50] == "empty"
    assert niche.iloc[50] in set(niche.iloc[[cell for cell in near if cell != 50]])


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_no_counts_at_all(graphed, small_model, small_config, caplog):
    graphed.X = sp.csr_matrix(graphed.shape, dtype=np.float32)
    st.tl.stage_niches(graphed, model=small_model)
    assert "300 cells have no counts" in warnings_of(caplog)
    assert (graphed.obs["stage_flag"] == "empty").all()
    assert np.isfinite(graphed.obsm["X_stage"]).all()
    with pytest.raises(ValueError, match="no cell.* counts"):
        st.tl.fit(graphed, config=small_config, epochs=2, progress=False)


def test_no_edges_at_all(raw_tissue, small_model, small_config, caplog):
    """Cells so far apart that none has a neighbour."""
    adata = st.pp.build_graph(raw_tissue, scale=1000.0, copy=True)
    st.tl.stage_niches(adata, model=small_model)
    assert (adata.obs["stage_flag"].drop(adata.obs_names[EMPTY]) == "isolated").all()
    assert "300 cells have no neighbour" in warnings_of(caplog)
    model = st.tl.fit(adata, config=small_config, epochs=1, progress=False)
    assert model.embedder.vectors.isfinite().all()


@pytest.mark.parametrize("n_cells", [4, 30])
def test_few_cells(tissue, n_cells, caplog):
    """As many as a graph needs pass through everything; so few cells have no directions, and get one domain."""
    adata = tissue[20 : 20 + n_cells].copy()
    st.pp.build_graph(adata, scale=1.0)
    st.tl.stage_niches(adata, model=st.tl.fit(adata, epochs=2, progress=False), n_domains=2)
    assert adata.obs["stage_domain"].nunique() == 1
    assert adata.uns["stage"]["slides"]["n_directions"].tolist() == [0]
    assert "varies in space beyond chance" in caplog.text


def test_no_graph(raw_tissue, graphed, use, unchanged):
    del graphed.obsp["local_connectivities"]
    for adata in (raw_tissue, graphed):
        with unchanged(adata), pytest.raises(KeyError, match=r"st\.pp\.build_graph"):
            use(adata)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (None, "NoneType"),
        (3, "int"),
        (np.ones((4, 2)), "ndarray"),
        (pd.DataFrame({"x": [1]}), "DataFrame"),
        ([b"slide.h5ad"], r"\['0'\].*bytes"),
        ({"a": None}, r"\['a'\].*NoneType"),
        (([None],), r"\['0'\].*list"),
    ],
    ids=["None", "number", "array", "frame", "list", "dict", "nested"],
)
def test_wrong_objects(wrong, match, use):
    for function in (st.pp.build_graph, use):
        with pytest.raises(TypeError, match=match):
            function(wrong)


@pytest.mark.parametrize("wrong", ["slide.h5ad", ["slide.h5ad"], "", "slide\0"])
def test_paths_of_nothing(wrong, use):
    for function in (st.pp.build_graph, use):
        with pytest.raises(FileNotFoundError, match="no file"):
            function(wrong)


def test_annotations_that_were_not_read_yet(tissue, use, tmp_path):
    tissue.copy().write_zarr(tmp_path / "lazy.zarr")  # which changes strings into categories
    lazy = ad.experimental.read_lazy(tmp_path / "lazy.zarr")
    with pytest.raises(TypeError, match=r"data\.obs\.to_memory\(\)"):
        use(lazy)
    obsm = {"spatial": np.asarray(lazy.obsm["spatial"])}
    st.pp.build_graph(ad.AnnData(lazy.X, obs=lazy.obs.to_memory(), var=lazy.var.to_memory(), obsm=obsm))


def test_containers_without_anything_or_with_equal_keys(tissue, use, unchanged):
    for function in (st.pp.build_graph, use):
        for nothing in ([], {}, ()):
            with pytest.raises(ValueError, match="empty"):
                function(nothing)
        with unchanged(tissue), pytest.raises(ValueError, match=r"\['1', '1'\]"):
            function({1: tissue, "1": tissue})


@pytest.mark.parametrize("change", [negative, remove, at_one_place])
@pytest.mark.parametrize("n_cells", [300, 250], ids=["fresh", "stale"])
def test_one_of_several_is_bad(tissue, graphed, n_cells, change, use, unchanged):
    """Nothing is written to the other, which comes first; not even a rebuilt graph."""
    other, bad = tissue[:n_cells].copy(), graphed
    change(bad)
    for container in ([other, bad], {"a": other, "b": bad}):
        stops = {"errors": "raise"} if use.kind == "label" else {}
        with unchanged(other, bad), pytest.raises((KeyError, ValueError)):
            use(container, **stops)


@pytest.mark.parametrize("parameter", ["model", "init"])
def test_wrong_models(graphed, parameter, unchanged, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no such format, but long enough to be read")
    for wrong, error, match in (
        (3, TypeError, "int"),
        ({"weights": 1}, TypeError, "dict"),
        (graphed, TypeError, "AnnData"),
        ("nowhere.safetensors", FileNotFoundError, r"'nowhere\.safetensors'"),
        (tmp_path, FileNotFoundError, "checkpoint"),
        (tmp_path / "broken.safetensors", ValueError, "cannot be read"),
    ):
        with unchanged(graphed), pytest.raises(error, match=match):
            (st.tl.stage_niches if parameter == "model" else st.tl.fit)(graphed, **{parameter: wrong})


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        *[({"n_domains": value}, ValueError, "`n_domains`") for value in (0, -3)],
        *[({"n_domains": value}, TypeError, "`n_domains`.*integer") for value in (2.5, True, "4")],
        *[({"key_added": value}, TypeError, "`key_added`") for value in ("", None)],
        ({"spatial_key": "xy"}, KeyError, r"obsm\['xy'\].*'spatial'"),
        ({"model": None, "layer": "counts"}, KeyError, "layers"),
        ({"device": "abacus"}, ValueError, "`device`.*'auto', 'cpu'.*'abacus'"),
        ({"device": 0}, TypeError, "`device`.*0"),
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
        ({"epochs": 1.5}, TypeError, "`epochs`.*integer"),
        ({"patience": 0}, ValueError, "`patience`"),
        ({"patience": "5"}, TypeError, "`patience`.*integer"),
        ({"config": {"dim": 8}}, TypeError, "`config`.*dict"),
        ({"config": "paper"}, TypeError, "`config`.*str"),
        ({"config": st.model.StageConfig(levels=(2, 400))}, ValueError, "levels.*400.*300"),
        ({"spatial_key": "xy"}, KeyError, r"obsm\['xy'\]"),
        ({"rng": "seed"}, TypeError, "seed"),
        ({"rng": -1}, ValueError, "`rng`"),
        ({"device": "abacus"}, ValueError, "abacus"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_of_fit(tissue, arguments, error, match, unchanged):
    with unchanged(tissue), pytest.raises(error, match=match):
        st.tl.fit(tissue, progress=False, **arguments)
