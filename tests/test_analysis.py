"""Tables about niches: agreement with slow references, invariances, containers, files, and bad input."""

from __future__ import annotations

import logging
import subprocess
import sys
from itertools import combinations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from scipy.stats import linregress

import stage_sc as st

TOOLS = ["rank_niche_genes", "spatial_genes", "pathways", "niche_paga", "composition"]


@pytest.fixture(scope="module")
def cohort() -> ad.AnnData:
    """Three slides with layers, cell types, a graph and an embedding; three cells without counts."""
    adata = st.datasets.simulate_tissue(150, n_slides=3, rng=3)
    counts = adata.X.tolil()
    counts[[0, 200, 400]] = 0
    adata.X = sp.csr_matrix(counts, dtype=np.float32)
    adata.obs["kind"] = pd.Categorical(np.random.default_rng(0).choice(["a", "b/c"], adata.n_obs))
    st.pp.build_graph(adata, library_key="slide")
    adata.obsm["X_stage"] = sc.pp.pca(np.log1p(adata.X.toarray()), n_comps=5).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def net(cohort) -> pd.DataFrame:
    genes = cohort.var_names
    sets = {"up": genes[:8], "down": genes[8:20], "tiny": genes[:2]}
    return pd.DataFrame(
        [(name, gene) for name, members in sets.items() for gene in members], columns=["source", "target"]
    )


def call(tool: str, data: object, net: pd.DataFrame, **given: object) -> object:
    given = {"groupby": "domain", "library_key": "slide", **given}
    if tool == "rank_niche_genes":
        given = {"method": "t-test", "n_genes": None, **given}
    return getattr(st.tl, tool)(data, *([net] if tool == "pathways" else []), **given)


def table(adata: ad.AnnData, tool: str, name: str = "table") -> pd.DataFrame:
    return adata.uns[tool][name]


def log_normalised(adata: ad.AnnData) -> np.ndarray:
    """Slide by slide, as scanpy."""
    result = np.zeros(adata.shape)
    for slide in adata.obs["slide"].unique():
        part = adata[adata.obs["slide"] == slide].copy()
        counts = part.X.toarray().astype(float)
        total = counts.sum(axis=1, keepdims=True)
        scaled = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0) * np.median(total[total > 0])
        result[(adata.obs["slide"] == slide).to_numpy()] = np.log1p(scaled)
    return result


@pytest.mark.parametrize("method", ["t-test", "wilcoxon"])
def test_markers_are_those_of_scanpy(cohort, net, method, monkeypatch):
    adata, rank = cohort.copy(), sc.tl.rank_genes_groups
    other = ad.AnnData(log_normalised(adata), obs=adata.obs.copy(), var=adata.var.copy())
    if method == "wilcoxon":  # which is compiled for many seconds: another test of scanpy instead
        monkeypatch.setattr(sc.tl, "rank_genes_groups", lambda *given, **options: rank(*given, **{**options, **quick}))
    quick = {"method": "t-test_overestim_var" if method == "wilcoxon" else "t-test"}
    call("rank_niche_genes", adata, net, method=method)
    rank(other, "domain", pts=True, **quick)
    expected = sc.get.rank_genes_groups_df(other, None).astype({"group": str}).set_index(["group", "names"])
    found = table(adata, "rank_niche_genes").astype({"group": str, "names": str}).set_index(["group", "names"])
    assert len(found) == len(expected)
    for name in ("scores", "logfoldchanges", "pvals", "pvals_adj", "pct_nz_group", "pct_nz_reference"):
        np.testing.assert_allclose(found[name], expected.loc[found.index, name], rtol=2e-3, atol=1e-4, err_msg=name)


def test_markers_within_a_cell_type_are_those_of_its_cells_alone(cohort, net):
    adata = cohort.copy()
    call("rank_niche_genes", adata, net, cell_type_key="kind")
    found = table(adata, "rank_niche_genes")
    own = found[found["cell_type"] == "a"].reset_index(drop=True)
    alone = adata.copy()
    alone.obs["domain"] = alone.obs["domain"].astype(object).where(alone.obs["kind"] == "a")
    call("rank_niche_genes", alone, net)
    pd.testing.assert_frame_equal(
        own.drop(columns="cell_type").astype({"group": str, "names": str}),
        table(alone, "rank_niche_genes").astype({"group": str, "names": str}),
    )
    assert {*found["cell_type"]} == {"a", "b/c"}


def test_replicates_decide_under_variation_between_slides(cohort, net):
    """A gene that is high in a layer of one slide of three is a marker of cells, and none of slides."""
    adata = cohort.copy()
    dense = adata.X.toarray()
    layer = adata.obs["domain"].iloc[1]
    inside = (adata.obs["domain"] == layer).to_numpy()
    dense[inside & (adata.obs["slide"] == "slide1").to_numpy(), 0] += 60
    dense[inside, 1] += np.random.default_rng(0).poisson(120, inside.sum())
    adata.X = sp.csr_matrix(dense, dtype=np.float32)
    adata.obs["own"] = pd.Categorical(np.where(inside, "in", "out"))
    st.tl.rank_niche_genes(adata, groupby="own", library_key="slide", n_genes=None)
    assert adata.uns["rank_niche_genes"]["params"]["method"] == "pseudobulk"
    call("rank_niche_genes", adata, net, groupby="own", key_added="cells")
    by_slide, by_cell = (
        table(adata, key).query("group == 'in'").set_index("names")["pvals_adj"]
        for key in ("rank_niche_genes", "cells")
    )
    one, every = adata.var_names[:2]
    assert by_cell[one] < 1e-5 and by_cell[every] < 1e-5
    assert by_slide[every] < 1e-4 and by_slide[one] > 1e-2


def test_small_niches_are_left_out_and_named(cohort, net, caplog):
    adata = cohort.copy()
    names = adata.obs["domain"].astype(str).to_numpy().copy()
    names[3:7] = "few"
    adata.obs["domain"] = names
    for tool in ("rank_niche_genes", "pathways", "niche_paga"):
        caplog.clear()
        call(tool, adata, net, min_cells=5)
        assert "'few'" in caplog.text, tool
        column = "group_a" if tool == "niche_paga" else "group"
        assert "few" not in set(table(adata, tool)[column]), tool


def test_moran_and_eta_squared_by_their_definitions(cohort, net):
    adata = cohort.copy()
    call("spatial_genes", adata, net)
    values, slides = log_normalised(adata), table(adata, "spatial_genes", "slides")
    graph = (adata.obsp["spatial_distances"] != 0).astype(float)
    for slide in ("slide1", "slide3"):
        rows = (adata.obs["slide"] == slide).to_numpy()
        weights = graph[rows][:, rows].toarray()
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1)
        labels = adata.obs["domain"][rows].to_numpy()
        for gene in adata.var_names[[0, 5, 30]]:
            x = values[rows, adata.var_names.get_loc(gene)]
            z = x - x.mean()
            moran = len(x) / weights.sum() * (z @ weights @ z) / (z @ z)
            between = sum((labels == k).sum() * (x[labels == k].mean() - x.mean()) ** 2 for k in set(labels))
            found = slides[(slides["slide"] == slide) & (slides["names"] == gene)].iloc[0]
            np.testing.assert_allclose([found["moran_i"], found["eta_squared"]], [moran, between / (z @ z)], rtol=1e-4)


def test_genes_that_differ_between_slides_only_are_not_spatial(cohort, net):
    adata = cohort.copy()
    dense = adata.X.toarray()
    level = adata.obs["slide"].cat.codes.to_numpy() * 30 + 3
    dense[:, 0] = np.random.default_rng(1).poisson(level)
    adata.X = sp.csr_matrix(dense, dtype=np.float32)
    call("spatial_genes", adata, net)
    found = table(adata, "spatial_genes").set_index("names").loc[adata.var_names[0]]
    assert abs(found["moran_i"]) < 0.15 and found["eta_squared"] < 0.15 and found["n_slides"] == 3


def test_names_of_genes_stay_in_the_axes_and_apart(cohort, net):
    adata = cohort.copy()
    call("spatial_genes", adata, net)
    ax = st.pl.spatial_genes(adata, n_genes=40, show=False)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) > 5 and max(box.x1 for box in boxes) < ax.bbox.x1 + 2
    assert not [1 for number, box in enumerate(boxes) if box.count_overlaps(boxes[:number])]
    plt.close(ax.figure)


def test_genes_are_not_of_a_niche_of_few_cells(cohort, net):
    adata = cohort.copy()
    kinds = adata.obs["domain"].astype(str)
    gene = adata.var_names[0]
    kinds.iloc[adata[:, gene].X.toarray().ravel().argmax()] = "one cell"
    adata.obs["domain"] = kinds.astype("category")
    for min_cells, few in ((1, True), (2, False)):
        call("spatial_genes", adata, net, min_cells=min_cells)
        group = table(adata, "spatial_genes").set_index("names")["group"]
        assert (group[gene] == "one cell") == few and (group == "one cell").any() == few


def test_pathways_are_a_regression_on_membership(cohort, net):
    adata = cohort[cohort.obs["slide"] == "slide1"].copy()
    call("pathways", adata, net)
    found = table(adata, "pathways").astype({"group": str, "source": str}).set_index(["group", "source"])
    filled = adata.X.sum(axis=1).A1 > 0
    values = log_normalised(adata)[filled]
    varies = values.std(axis=0) > 0
    genes, values = adata.var_names[varies], values[:, varies]
    z = (values - values.mean(axis=0)) / values.std(axis=0, ddof=1)
    labels = adata.obs["domain"].to_numpy()[filled]
    for group, source in found.index:
        profile = z[labels == group].mean(axis=0)
        member = genes.isin(net.loc[net["source"] == source, "target"])
        fit = linregress(member.astype(float), profile)
        np.testing.assert_allclose(found.loc[(group, source), "score"], fit.slope / fit.stderr, rtol=1e-3)
    assert {source for _, source in found.index} == {"up", "down"}


def test_pathways_leave_figures_of_others_alone(tmp_path):
    script = (
        "import matplotlib as mpl, pandas as pd, stage_sc as st\n"
        "adata = st.datasets.simulate_tissue(100)\n"
        "before = dict(mpl.rcParams)\n"
        "net = pd.DataFrame({'source': 'a', 'target': adata.var_names[:10]})\n"
        "st.tl.pathways(adata, net, groupby='domain')\n"
        "assert dict(mpl.rcParams) == before\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, cwd=tmp_path)


def test_names_of_pathways_without_the_word_of_the_collection(cohort, net):
    adata = cohort.copy()
    for words, names in (({"up": "HALLMARK_UP", "down": "HALLMARK_DOWN_A"}, {"UP", "DOWN_A"}), ({}, {"up", "down"})):
        st.tl.pathways(adata, net.replace(words), groupby="domain", library_key="slide")
        ax = st.pl.pathways(adata, show=False)
        assert {label.get_text() for label in ax.get_yticklabels()} == names
        plt.close(ax.figure)


def test_paga_by_its_definition(cohort, net):
    adata = cohort[cohort.obs["slide"] == "slide1"].copy()
    st.pp.build_graph(adata, library_key="slide")
    call("niche_paga", adata, net, min_cells=1)
    edges = adata.obsp["spatial_distances"]
    found = table(adata, "niche_paga")
    labels, names = adata.obs["domain"].to_numpy(), list(found["group_a"].cat.categories)
    ends = labels[edges.tocoo().row], labels[edges.tocoo().col]
    for a, b in combinations(names, 2):
        between = ((ends[0] == a) & (ends[1] == b)).sum() + ((ends[0] == b) & (ends[1] == a)).sum()
        leaving, size = ({name: (values == name).sum() for name in (a, b)} for values in (ends[0], labels))
        chance = (leaving[a] * size[b] + leaving[b] * size[a]) / (len(labels) - 1)
        row = found[(found["group_a"] == a) & (found["group_b"] == b)]
        np.testing.assert_allclose(row["space"].sum(), min(between / chance, 1), rtol=1e-6)
        assert row["n_contacts"].sum() == between / 2


def test_composition_counts_cells(cohort, net):
    adata = cohort.copy()
    call("composition", adata, net)
    found = table(adata, "composition")
    expected = pd.crosstab(adata.obs["slide"], adata.obs["domain"], normalize="index")
    for row in found.itertuples():
        np.testing.assert_allclose(row.fraction, expected.loc[row.by, row.group])
        np.testing.assert_allclose(row.slide_mean, row.fraction)
    call("composition", adata, net, groupby="kind", by="domain")
    found = table(adata, "composition")
    for row in found.itertuples():
        cells = adata.obs[adata.obs["domain"] == row.by]
        by_slide = cells.groupby("slide", observed=True)["kind"].apply(
            lambda kind, name=row.group: (kind == name).mean()
        )
        expected = [(cells["kind"] == row.group).mean(), by_slide.mean(), by_slide.std(), len(by_slide)]
        np.testing.assert_allclose([row.fraction, row.slide_mean, row.slide_sd, row.n_slides], expected)
    assert adata.uns["composition"]["linkage"].shape == (found["by"].nunique() - 1, 4)


@pytest.mark.parametrize("tool", TOOLS)
def test_order_of_cells_and_genes_does_not_matter(cohort, net, tool):
    one = cohort.copy()
    draw = np.random.default_rng(5)
    other = cohort[draw.permutation(cohort.n_obs)][:, draw.permutation(cohort.n_vars)].copy()
    for adata in (one, other):
        call(tool, adata, net)
    first, second = (table(adata, tool).astype(object) for adata in (one, other))
    keys = [name for name in first if isinstance(first[name].iloc[0], str)]
    first, second = (frame.sort_values(keys, ignore_index=True) for frame in (first, second))
    pd.testing.assert_frame_equal(first.infer_objects(), second.infer_objects(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_dictionary_gives_the_table_of_one_object(cohort, net, tool, tmp_path):
    whole = cohort.copy()
    parts = {name: cohort[cohort.obs["slide"] == name].copy() for name in ("slide1", "slide2", "slide3")}
    for part in parts.values():
        st.pp.build_graph(part)
    call(tool, whole, net)
    kept = {name: part.X.copy() for name, part in parts.items()}
    assert call(tool, parts, net, library_key=None) is None
    expected = table(whole, tool)
    for name, part in parts.items():
        found = table(part, tool)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6, check_categorical=False)
        assert (part.X != kept[name]).nnz == 0
    copies = call(tool, list(parts.values()), net, library_key=None, key_added="other", copy=True)
    assert "other" not in parts["slide1"].uns and "other" in copies[2].uns
    for ending in ("h5ad", "zarr"):
        path = tmp_path / f"slide.{ending}"
        getattr(parts["slide1"], f"write_{ending}")(path)
        again = getattr(ad, f"read_{ending}")(path)
        pd.testing.assert_frame_equal(table(again, tool), table(parts["slide1"], tool))


def test_default_labels_are_domains_then_level_two(cohort, net):
    adata = cohort.copy()
    tree = pd.DataFrame(
        {"level": [1, 1, 2, 2, 2], "parent": ["", "", "N1", "N0", "N0"]}, ["N0", "N1", "N2", "N3", "N4"]
    )
    half = np.arange(adata.n_obs) % 2
    adata.obs["stage_l1"] = pd.Categorical(np.array(["N1", "N0"])[half])
    adata.obs["stage_l2"] = pd.Categorical(np.array(["N2", "N3"])[half])
    adata.uns["stage"] = {
        "levels": ["stage_l1", "stage_l2"],
        "tree": tree,
        "params": {"library_key": "slide"},
        "model": {},
    }
    st.tl.composition(adata)
    found = table(adata, "composition")
    assert list(found["group"].cat.categories) == ["N3", "N2"] and set(found["by"]) == {"slide1", "slide2", "slide3"}
    adata.obs["stage_domain"] = pd.Categorical(np.array(["D10", "D2"])[half])
    st.tl.composition(adata)
    assert list(table(adata, "composition")["group"].cat.categories) == ["D2", "D10"]
    del adata.uns["stage"]
    with pytest.raises(KeyError, match="groupby"):
        st.tl.composition(adata)


@pytest.mark.parametrize("tool", TOOLS)
def test_bad_arguments_change_nothing(cohort, net, tool, unchanged):
    adata = cohort.copy()
    adata.uns["mine"] = {"a": 1}
    adata.obs["all missing"] = pd.Categorical([None] * adata.n_obs)
    with unchanged(adata):
        for given, error in (
            ({"groupby": "none"}, KeyError),
            ({"groupby": 3}, TypeError),
            ({"groupby": "all missing"}, ValueError),
            ({"groupby": None}, KeyError),
            ({"key_added": "mine"}, ValueError),
            ({"key_added": "a/b"}, ValueError),
            ({"library_key": "none"}, KeyError),
            ({"copy": "yes"}, TypeError),
        ):
            with pytest.raises(error) as raised:
                call(tool, adata, net, **given)
            assert next(iter(given)) in str(raised.value)
        with pytest.raises(ValueError, match="no cells"):
            call(tool, [adata, adata[:0].copy()], net)


def test_expression_that_is_not_valid(cohort, net):
    for tool in ("rank_niche_genes", "spatial_genes", "pathways"):
        adata = cohort.copy()
        adata.X.data[3] = -1
        with pytest.raises(ValueError, match="negative"):
            call(tool, adata, net)
        with pytest.raises(KeyError, match="none"):
            call(tool, adata, net, layer="none")
        other = cohort.copy()
        other.var_names = [f"x{name}" for name in other.var_names]
        with pytest.raises(ValueError, match="no gene in common"):
            call(tool, [cohort.copy(), other], net)
    logged = cohort.copy()
    logged.X = sp.csr_matrix(log_normalised(logged))
    with pytest.raises(ValueError, match="counts"):
        call("rank_niche_genes", logged, net, method="pseudobulk")


def test_sets_of_genes_that_are_not_valid(cohort, net):
    for bad, error in (
        ({"up": ["gene"]}, TypeError),
        (net.rename(columns={"target": "gene"}), ValueError),
        (net.assign(target="elsewhere"), ValueError),
        (net.assign(weight=np.nan), ValueError),
    ):
        with pytest.raises(error, match="net"):
            st.tl.pathways(cohort.copy(), bad, groupby="domain", library_key="slide")


def test_without_the_extras(cohort, net, monkeypatch, caplog):
    import stage_sc.analysis._rank_genes as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    adata = cohort.copy()
    st.tl.rank_niche_genes(adata, groupby="domain", library_key="slide")
    assert adata.uns["rank_niche_genes"]["params"]["method"] == "t-test" and "pydeseq2" in caplog.text
    with pytest.raises(ImportError, match="pydeseq2"):
        call("rank_niche_genes", adata, net, method="pseudobulk")
    monkeypatch.setitem(sys.modules, "decoupler", None)
    with pytest.raises(ImportError, match="decoupler"):
        call("pathways", adata, net)


def test_known_markers_of_real_tissue(dev_data, caplog):
    caplog.set_level(logging.ERROR)
    breast = ad.read_h5ad(dev_data / "xenium_breast_idc" / "IDC_crop.h5ad")
    st.tl.rank_niche_genes(breast, groupby="domain", n_genes=12)
    best = table(breast, "rank_niche_genes").groupby("group", observed=True)["names"].agg(set)
    assert {"CD3E", "TRAC", "PTPRC"} <= best["Immune cells"] and {"LUM", "CCDC80"} <= best["Stroma"]
    mice = {name: ad.read_h5ad(dev_data / "starmap_mpfc" / f"{name}.h5ad") for name in ("BZ5", "BZ9", "BZ14")}
    st.tl.rank_niche_genes(mice, groupby="domain", n_genes=5, method="t-test")
    best = table(mice["BZ9"], "rank_niche_genes").groupby("group", observed=True)["names"].agg(set)
    assert "Cux2" in best["L2/3"] and "Etv1" in best["L5"] and {"Pcp4", "Syt6", "Ctgf"} <= best["L6"]
