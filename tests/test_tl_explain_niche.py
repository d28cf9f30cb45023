"""Explanations of niches: sums, planted genes, what removal does, invariances, bad input."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st

KEY = "explain_niche"


@pytest.fixture(scope="module")
def tissue():
    """Two slides with a graph."""
    adata = st.datasets.simulate_tissue(400, n_slides=2, batch_effect=0.2, rng=5)
    st.pp.build_graph(adata, library_key="slide")
    return adata


@pytest.fixture(scope="module")
def model(tissue):
    training = {"epochs": 4, "warmup_epochs": 2, "learning_rate": 3e-3, "domain_starts": 9, "domain_refined": 1}
    config = st.model.StageConfig(dim=16, n_layers=1, levels=(2, 5, 12), **training)
    return st.tl.fit(tissue, config=config, progress=False)


@pytest.fixture(scope="module")
def labelled(tissue, model):
    """Niches of the settled tree and domains. Copy before writing to it."""
    return st.tl.stage_niches(tissue, model=model, n_domains=4, copy=True)


@pytest.fixture(scope="module")
def fixed(tissue, model):
    """Niches of the tree as it is."""
    return st.tl.stage_niches(tissue, model=model, settle=False, copy=True)


def explain(adata, niche, **given):
    """Result on a copy; all cells of both niches unless `n_cells` is given."""
    return st.tl.explain_niche(adata, niche, copy=True, **{"n_cells": 10_000, **given}).uns[KEY]


def largest(adata, column="stage_l2"):
    return adata.obs[column].value_counts().index[0]


def path_sums(prototypes, parent, levels):
    """Sum of prototypes along each path."""
    unit = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    leaves = np.arange(sum(levels) - levels[-1], sum(levels))
    sums, node = np.zeros((len(leaves), unit.shape[1])), leaves
    above = np.zeros((len(leaves), 0), int)
    for _ in levels:
        above = np.column_stack([node, above])
        sums += unit[node]
        node = parent[node]
    return sums, above


def margin(h, sums, above, niche, reference):
    """Best product with a leaf below one node less that below the other."""
    scores = h.astype(np.float64) @ sums.T
    one, other = ((above == int(node[1:])).any(axis=1) for node in (niche, reference))
    return scores[:, one].max(axis=1) - scores[:, other].max(axis=1)


def check_sums(result):
    """All tables add up to the score difference, to the stated error."""
    params, table = result["params"], result["table"]
    parts = params["sum_contributions"] + params["baseline_difference"] + params["error"]
    assert parts == pytest.approx(params["score_difference"], abs=1e-9)
    total = params["sum_contributions"]
    for frame in (table, result["neighbors"], result["hops"]):
        assert frame["contribution"].sum() == pytest.approx(total, abs=1e-9 * max(abs(total), 1))
        assert np.allclose(frame["niche"] - frame["reference"], frame["contribution"], atol=1e-9)
    assert np.allclose(table["own"] + table["neighbors"], table["contribution"], atol=1e-9)
    assert result["hops"]["contribution"][0] == pytest.approx(table["own"].sum(), abs=1e-9 * max(abs(total), 1))
    assert table["contribution"].abs().is_monotonic_decreasing
    assert result["neighbors"][["niche_share", "reference_share"]].sum().to_numpy() == pytest.approx([1, 1])


def check_margin(adata, model, prototypes, column):
    """Scores are those of the prototypes, and contributions add up to them."""
    niche = largest(adata, column)
    result = explain(adata, niche, model=model)
    params = result["params"]
    sums, above = path_sums(prototypes, model.tree.parent.numpy(), model.tree.levels)
    scores = margin(adata.obsm["X_stage"], sums, above, niche, params["reference"])
    inside, beside = (scores[adata.obs[column] == node] for node in (niche, params["reference"]))
    assert (inside.mean(), beside.mean()) == pytest.approx((params["score_niche"], params["score_reference"]), abs=1e-5)
    assert inside.min() > -1e-6 and beside.max() < 1e-6  # the score decided
    check_sums(result)
    assert abs(params["error"]) < 1e-3 * params["score_difference"] and abs(params["baseline_difference"]) < 1e-8
    assert params["agreement"] == 1


@pytest.mark.parametrize("column", ["stage_l1", "stage_l2"])
def test_contributions_add_up_to_the_margin_of_the_tree(fixed, model, column):
    check_margin(fixed, model, model.tree.prototypes.detach().numpy(), column)


def test_contributions_add_up_to_the_margin_of_the_settled_tree(labelled, model):
    h = labelled.obsm["X_stage"].astype(np.float64)
    prototypes = model.tree.prototypes.detach().numpy().astype(np.float64)
    prototypes *= model.config.prior_weight * len(h) / np.linalg.norm(prototypes, axis=1, keepdims=True)
    for key in labelled.uns["stage"]["levels"]:  # settling ends where the labels are those of the moved prototypes
        np.add.at(prototypes, labelled.obs[key].astype(str).str[1:].astype(int).to_numpy(), h)
    check_margin(labelled, model, prototypes, "stage_l2")


def test_top_down_paths_are_decided_by_siblings(tissue, model):
    """The configuration of the paper: unscaled expression, no averaging, the nearest child at each node."""
    config = st.model.StageConfig.paper(dim=16, n_layers=1, levels=(2, 5), epochs=1, warmup_epochs=0)
    paper = st.tl.fit(tissue, config=config, progress=False)
    adata = st.tl.stage_niches(tissue, model=paper, settle=False, copy=True)
    niche = largest(adata, "stage_l2")
    other = next(one for one in adata.obs["stage_l2"].cat.categories if one != niche)
    params = explain(adata, niche, reference=other, model=paper, n_cells=100)["params"]
    assert params["score_niche"] > 0 > params["score_reference"]
    assert abs(params["error"]) < 0.02 * params["score_difference"]


def test_domains_are_exact(labelled, model):
    for niche, other in (("D1", None), ("D4", "D2")):
        result = explain(labelled, niche, reference=other, model=model, n_cells=100, cell_type_key="cell_type")
        params = result["params"]
        check_sums(result)
        assert abs(params["error"]) < 1e-5 * params["score_difference"]
        assert params["score_niche"] > 0 > params["score_reference"]
        assert set(result["neighbors"]["label"]) <= set(labelled.obs["cell_type"])
    edge = np.median(labelled.obsp["spatial_distances"].data)
    assert result["hops"]["hops"].max() == round(model.config.domain_reach / edge) > 2


def planted():
    """Cells that are the same everywhere but for one gene, high on the left; and the sides."""
    rng = np.random.default_rng(1)
    places = np.stack(np.meshgrid(np.arange(28.0), np.arange(28.0)), -1).reshape(-1, 2) * 10
    places += rng.uniform(-4, 4, places.shape)
    genes = st.datasets.simulate_tissue(100).var_names[:30]
    counts = rng.poisson(2.0, (len(places), 30)).astype(np.float32)
    left = places[:, 0] < 135
    counts[:, 11] = rng.poisson(np.where(left, 8.0, 0.5))
    adata = ad.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=genes), obsm={"spatial": places})
    st.pp.build_graph(adata)
    return adata, left


def test_a_planted_gene_comes_first():
    adata, left = planted()
    config = st.model.StageConfig(dim=8, n_layers=1, levels=(2,), epochs=4, warmup_epochs=4, learning_rate=1e-3)
    model = st.tl.fit(adata, config=config, progress=False)
    st.tl.stage_niches(adata, model=model, n_domains=2)
    for column in ("stage_l1", "stage_domain"):
        on_left = adata.obs[column][left].mode()[0]
        assert ((adata.obs[column] == on_left) == left).mean() > 0.9
        table = explain(adata, on_left, model=model, n_cells=100)["table"]
        assert table["names"][0] == adata.var_names[11] and table["niche_mean"][0] > table["reference_mean"][0]
        assert table["contribution"][0] > 5 * table["contribution"][1:].abs().max()


def test_removal_of_the_first_genes_lowers_the_margin(tissue, model):
    """The best genes set to their mean on the slide, beside as many others, and scored by the model."""
    adata = tissue[tissue.obs["slide"] == "slide1"].copy()
    st.pp.build_graph(adata)
    st.tl.stage_niches(adata, model=model, settle=False)
    niche = largest(adata, "stage_l1")
    result = explain(adata, niche, model=model, n_cells=150)
    tree = model.tree
    sums, above = path_sums(tree.prototypes.detach().numpy(), tree.parent.numpy(), tree.levels)
    inside = (adata.obs["stage_l1"] == niche).to_numpy()

    def mean_margin(removed):
        logged = adata.copy()
        counts = adata.X.toarray()
        total = counts.sum(axis=1, keepdims=True)
        values = np.log1p(counts / np.maximum(total, 1) * np.median(total))
        place = adata.var_names.get_indexer(removed)
        values[:, place] = values[:, place].mean(axis=0)
        logged.X = values.astype(np.float32)
        st.tl.stage_niches(logged, model=model, settle=False)
        return margin(logged.obsm["X_stage"], sums, above, niche, result["params"]["reference"])[inside].mean()

    names = result["table"]["names"].to_numpy()
    before, without = mean_margin([]), mean_margin(names[:15])
    others = [mean_margin(np.random.default_rng(seed).choice(names[15:], 15, replace=False)) for seed in (0, 1)]
    assert before - without > 3 * max(abs(before - other) for other in others)


def test_any_order_of_cells_and_genes_and_files(labelled, model, tmp_path):
    niche = largest(labelled)
    rng = np.random.default_rng(0)
    mixed = labelled[rng.permutation(labelled.n_obs), rng.permutation(labelled.n_vars)].copy()
    labelled.copy().write_h5ad(tmp_path / "slides.h5ad")
    for name in (niche, "D2"):
        expected = explain(labelled, name, model=model, n_cells=40, cell_type_key="cell_type")
        for other in (mixed, ad.read_h5ad(tmp_path / "slides.h5ad")):
            found = explain(other, name, model=model, n_cells=40, cell_type_key="cell_type")
            for key in ("table", "neighbors", "hops"):
                pd.testing.assert_frame_equal(found[key], expected[key], rtol=1e-6, atol=1e-9)


def test_result_survives_a_file_and_data_is_not_changed(labelled, model, tmp_path):
    adata = labelled.copy()
    before = adata.X.copy()
    assert st.tl.explain_niche(adata, "D1", model=model, n_cells=20) is None
    assert (adata.X != before).nnz == 0 and set(adata.uns) - set(labelled.uns) == {KEY}
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for again in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        pd.testing.assert_frame_equal(again.uns[KEY]["table"], adata.uns[KEY]["table"], check_dtype=False)
        assert len(st.pl.explain_niche(again, show=False)[0].get_yticklabels()) == 15
    copied = st.tl.explain_niche(labelled, "D1", model=model, n_cells=20, copy=True)
    assert KEY not in labelled.uns and copied.uns[KEY]["params"] == adata.uns[KEY]["params"]
    other = explain(labelled, "D1", model=model, n_cells=20, rng=1)
    assert not other["table"]["contribution"].equals(copied.uns[KEY]["table"]["contribution"])


def test_names_and_several_objects(labelled, model):
    adata = labelled.copy()
    st.tl.annotate_niches(adata, {"D1": "left wall", (niche := largest(adata)): "core"})
    for name, id_ in (("left wall", "D1"), ("core", niche)):
        params = explain(adata, name, model=model, n_cells=20)["params"]
        assert (params["niche"], params["niche_name"]) == (id_, name)
    parts = {name: labelled[labelled.obs["slide"] == name].copy() for name in ("slide1", "slide2")}
    for part in parts.values():
        st.pp.build_graph(part)
    st.tl.stage_niches(parts, model=model, n_domains=4)
    result = st.tl.explain_niche(parts, "D1", model=model, n_cells=30, copy=True)["slide2"].uns[KEY]
    check_sums(result)
    with pytest.raises(ValueError, match="all objects of the call"):
        explain(parts["slide1"], "D1", model=model, n_cells=30)


def test_bad_input(labelled, model):
    tree = labelled.uns["stage"]["tree"]
    leaf = tree.index[(tree["n_cells"] > 0) & (tree["level"] == 3)][0]
    small = st.tl.stage_niches(labelled[labelled.obs["slide"] == "slide1"].copy(), copy=True)  # by the bundled model
    theirs = small.uns["stage"]["tree"]
    used = theirs[(theirs["n_cells"] > 0) & (theirs["level"] > 1)]
    alone = used.index[~used.duplicated("parent", keep=False)][0]
    empty = theirs.index[(theirs["n_cells"] == 0) & (theirs["level"] == 1)][0]
    for niche, given, match in ((alone, {}, "no sibling"), (empty, {"reference": alone}, "no cell is in")):
        with pytest.raises(ValueError, match=match):
            explain(small, niche, **given)
    for error, match, niche, given in [
        (KeyError, "no niche has the id or name 'N9999'", "N9999", {}),
        (KeyError, "no niche has", "D99", {}),
        (ValueError, "part of the other", leaf, {"reference": tree.loc[leaf, "parent"]}),
        (ValueError, "the same niche", "D1", {"reference": "D1"}),
        (ValueError, "compare two of a kind", "D1", {"reference": leaf}),
        (ValueError, f"digest {model.digest}.*Pass the model", "D1", {"model": None}),
        (ValueError, "no column of", "D1", {"groupby": "cell_type"}),
        (KeyError, "cell_type_key", "D1", {"cell_type_key": "none"}),
        (TypeError, "niche", 3, {}),
        (ValueError, "n_cells", "D1", {"n_cells": 0}),
        (ValueError, "key_added", "D1", {"key_added": "stage"}),
    ]:
        with pytest.raises(error, match=match):
            explain(labelled, niche, **{"model": model, **given})
    for change, match in [
        (lambda a: a.uns.pop("stage_graph"), "build_graph"),
        (lambda a: a.uns.pop("stage"), "stage_niches"),
        (lambda a: a.obsm.pop("X_stage"), "embeddings"),
    ]:
        adata = labelled.copy()
        change(adata)
        with pytest.raises(KeyError, match=match):
            explain(adata, largest(labelled), model=model)
    changed = labelled.copy()
    changed.X = changed.X[:, ::-1].tocsr()
    with pytest.raises(ValueError, match="has changed"):
        explain(changed, largest(labelled), model=model, n_cells=20)
    with pytest.raises(ValueError, match="cannot be found again"):
        explain(changed, "D1", model=model, n_cells=20)
    with pytest.raises(KeyError, match="explain_niche"):
        st.pl.explain_niche(labelled)


def test_picture(labelled, model):
    adata = st.tl.explain_niche(labelled, "D3", model=model, n_cells=30, cell_type_key="cell_type", copy=True)
    result = adata.uns[KEY]
    genes, neighbors = st.pl.explain_niche(adata, n_genes=5, show=False)
    drawn = {bar.get_y() + bar.get_height() / 2: 0.0 for bar in genes.patches}
    for bar in genes.patches:
        drawn[bar.get_y() + bar.get_height() / 2] += bar.get_width()
    assert np.allclose([drawn[y] for y in sorted(drawn)], result["table"]["contribution"][:5])
    first = genes.get_yticklabels()[0].get_text()
    higher = result["table"]["niche_mean"][0] > result["table"]["reference_mean"][0]
    assert first == f"{result['table']['names'][0]} {'↑' if higher else '↓'}"
    texts = [text.get_text() for text in genes.figure.texts]
    assert (
        any(text.startswith("Score difference") for text in texts)
        and neighbors.get_title(loc="left") == "Cells, by cell_type"
    )


def test_muscle_and_t_cells_of_a_breast(dev_data):
    """Niches of the bundled model with most of a known marker are explained by it and by its partners."""
    adata = ad.read_h5ad(next((dev_data / "xenium_breast_idc").glob("*.h5ad")))
    st.pp.build_graph(adata)
    st.tl.stage_niches(adata)
    labels = adata.obs["stage_l2"]
    often = labels.isin(labels.value_counts()[lambda count: count > 40].index).to_numpy()
    for gene, partners in (("MYH11", ["ACTA2", "MYLK"]), ("CD3E", ["TRAC", "IL7R"])):
        means = pd.Series(adata[often, gene].X.toarray().ravel()).groupby(labels[often].astype(str).to_numpy()).mean()
        table = explain(adata, means.idxmax(), reference=means.idxmin(), n_cells=40)["table"]
        rank = table.set_index("names")["contribution"].rank(ascending=False)
        assert rank[[gene, *partners]].min() <= 10, rank[[gene, *partners]]
