"""Ligands and receptors of niches: agreement with liana and slow references, invariances, containers, bad input."""

from __future__ import annotations

import logging
import sys

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st

KEYS = ["source", "target", "ligand_complex", "receptor_complex"]
GIVEN = {"groupby": "domain", "library_key": "slide", "min_cells": 5}


@pytest.fixture(scope="module")
def cohort() -> ad.AnnData:
    """Two slides with layers, cell types, a graph, and two cells without counts."""
    adata = st.datasets.simulate_tissue(300, n_slides=2, rng=3)
    counts = adata.X.tolil()
    counts[[0, 400]] = 0
    adata.X = sp.csr_matrix(counts, dtype=np.float32)
    adata.obs["kind"] = pd.Categorical(np.random.default_rng(0).choice(["a", "b/c"], adata.n_obs))
    st.pp.build_graph(adata, library_key="slide")
    return adata


@pytest.fixture(scope="module")
def resource(cohort) -> pd.DataFrame:
    """Pairs on the panel, one of them with a complex, and one that is not on it."""
    genes = list(cohort.var_names)
    pairs = [*zip(genes[:30], genes[60:90], strict=True), ("_".join(genes[3:5]), genes[7]), ("elsewhere", genes[0])]
    return pd.DataFrame(pairs, columns=["ligand", "receptor"])


def run(data: object, resource: object, **given: object) -> object:
    pytest.importorskip("liana")
    return st.tl.interactions(data, resource=resource, **{**GIVEN, **given})


def table(adata: ad.AnnData) -> pd.DataFrame:
    found = adata.uns["interactions"]["table"]
    return found.astype(dict.fromkeys(KEYS, str)).set_index(KEYS).sort_index()


def log_normalised(adata: ad.AnnData) -> np.ndarray:
    """Slide by slide."""
    result = np.zeros(adata.shape)
    for slide in adata.obs["slide"].unique():
        rows = (adata.obs["slide"] == slide).to_numpy()
        counts = adata.X[rows].toarray().astype(float)
        total = counts.sum(axis=1, keepdims=True)
        result[rows] = np.log1p(np.divide(counts, total, where=total > 0, out=0 * counts) * np.median(total[total > 0]))
    return result


def neighbours(adata: ad.AnnData) -> list[tuple[int, int]]:
    """Pairs of neighbouring cells with counts, in both directions."""
    filled = np.asarray(adata.X.sum(axis=1)).ravel() > 0
    edges = sp.coo_matrix(adata.obsp[next(key for key in adata.obsp if key.endswith("distances"))])
    return [(i, j) for i, j in zip(edges.row, edges.col, strict=True) if filled[i] and filled[j] and i != j]


@pytest.fixture(scope="module")
def done(cohort, resource) -> ad.AnnData:
    return run(cohort, resource, copy=True)


def test_ranks_are_those_of_liana_for_niches_that_touch(cohort, resource, done):
    li = pytest.importorskip("liana")
    domain, near = cohort.obs["domain"].astype(str).to_numpy(), {}
    for i, j in neighbours(cohort):
        near.setdefault((domain[i], domain[j]), set()).add(i)
    touching = [(a, b) for a, b in near if min(len(near[a, b]), len(near[b, a])) >= 5]
    assert 6 < len(touching) < 36
    filled = np.asarray(cohort.X.sum(axis=1)).ravel() > 0
    other = ad.AnnData(sp.csr_matrix(log_normalised(cohort)[filled]), cohort.obs[filled].copy(), cohort.var[[]].copy())
    methods = [li.mt.connectome, li.mt.logfc, li.mt.natmi, li.mt.singlecellsignalr]
    expected = li.mt.AggregateClass(li.mt.aggregate_meta, methods=methods)(
        other,
        groupby="domain",
        groupby_pairs=pd.DataFrame(touching, columns=["source", "target"]),
        resource=resource,
        min_cells=1,
        use_raw=False,
        n_perms=1,
        inplace=False,
    )
    found, expected = table(done), expected.astype(dict.fromkeys(KEYS, str)).set_index(KEYS)
    assert set(found.index) == set(expected.index)
    assert set(found.index.droplevel([2, 3])) <= set(touching) and ("L1", "L6") not in touching
    for name in ("expr_prod", "lr_logfc"):
        np.testing.assert_allclose(found[name], expected.loc[found.index, name], rtol=1e-3, atol=1e-5, err_msg=name)
    for name in ("magnitude_rank", "specificity_rank"):  # but for scores that differ in the last bits
        close = np.isclose(found[name], expected.loc[found.index, name], rtol=1e-6)
        assert close.mean() > 0.98 and np.allclose(found[name], expected.loc[found.index, name], atol=0.01)


def test_contacts_are_those_of_every_edge(cohort, done):
    values, domain = pd.DataFrame(log_normalised(cohort), columns=cohort.var_names), cohort.obs["domain"].astype(str)
    filled, slide = np.asarray(cohort.X.sum(axis=1)).ravel() > 0, cohort.obs["slide"].to_numpy()
    found, edges = table(done), neighbours(cohort)
    complexes = [key for key in found.index if "_" in key[2]]
    assert complexes
    for key in [complexes[0], *found.index[:: len(found) // 12]]:
        source, target, ligand, receptor = key
        left, right = (values[one.split("_")].min(axis=1).to_numpy() for one in (ligand, receptor))
        own = [(i, j) for i, j in edges if domain.iloc[i] == source and domain.iloc[j] == target]
        expected, both = 0.0, 0
        for name in np.unique(slide):
            cells = [np.flatnonzero(filled & (slide == name) & (domain == end).to_numpy()) for end in (source, target)]
            products = np.outer(left[cells[0]], right[cells[1]])[cells[0][:, None] != cells[1][None, :]]
            expected += sum(slide[i] == name for i, _ in own) * products.mean()
            both += (left[cells[0]] > 0).mean() >= 0.1 and (right[cells[1]] > 0).mean() >= 0.1
        row = found.loc[key]
        assert row["n_edges"] == len(own) and row["n_slides"] == 2 and row["n_expressed"] == both
        np.testing.assert_allclose(row["contact_ratio"], sum(left[i] * right[j] for i, j in own) / expected, rtol=1e-4)
        props = (left[filled & (domain == source)] > 0).mean(), (right[filled & (domain == target)] > 0).mean()
        assert (row["ligand_props"], row["receptor_props"]) == pytest.approx(props) or "_" in ligand


def test_a_planted_pair_is_found(cohort):
    adata = cohort.copy()
    domain, counts = adata.obs["domain"].to_numpy(), adata.X.toarray()
    ligand, receptor, *others = adata.var_names[:12]
    border = {(a, b): set() for a, b in (("L1", "L2/3"), ("L2/3", "L1"))}
    for i, j in neighbours(adata):
        if (domain[i], domain[j]) in border:
            border[domain[i], domain[j]].add(i)
    for gene, cells in ((0, border["L1", "L2/3"]), (1, border["L2/3", "L1"])):
        counts[:, gene] = 0
        counts[list(cells), gene] = 20
    adata.X = sp.csr_matrix(counts, dtype=np.float32)
    pairs = pd.DataFrame({"ligand": [ligand, *others[:5]], "receptor": [receptor, *others[5:]]})
    run(adata, pairs, expr_prop=0.01)
    found = table(adata)
    best = found["specificity_rank"].idxmin()
    assert best == ("L1", "L2/3", ligand, receptor) and found.loc[best, "contact_ratio"] > 2
    assert ("L2/3", "L1", ligand, receptor) not in found.index


def test_order_of_cells_genes_and_slides(cohort, resource, done):
    rng = np.random.default_rng(0)
    mixed = cohort[rng.permutation(cohort.n_obs), rng.permutation(cohort.n_vars)].copy()
    st.pp.build_graph(mixed, library_key="slide")
    run(mixed, resource.sample(frac=1, random_state=0))
    one, other = (table(part).drop(columns="contact_ratio") for part in (mixed, done))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    np.testing.assert_allclose(table(mixed)["contact_ratio"], table(done)["contact_ratio"], rtol=1e-9)
    assert mixed.uns["interactions"]["table"].equals(run(mixed, resource, copy=True).uns["interactions"]["table"])


def test_cell_types_are_compared_within_niches(cohort, resource):
    adata = run(cohort, resource, cell_type_key="kind", copy=True)
    found, domain, kind = adata.uns["interactions"]["table"], cohort.obs["domain"], cohort.obs["kind"]
    assert set(found["source"]) == set(found["target"]) == {"a", "b/c"} and set(found["group"]) == set(domain)
    row = found.iloc[0]
    values = pd.Series(log_normalised(cohort)[:, cohort.var_names.get_loc(row["ligand_complex"])], cohort.obs_names)
    filled = np.asarray(cohort.X.sum(axis=1)).ravel() > 0
    assert row["ligand_mean"] == pytest.approx(
        values[filled & (domain == row["group"]) & (kind == row["source"])].mean(), rel=1e-3
    )
    ax = st.pl.interactions(adata, n_pairs=3, n_columns=5, show=False)
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert len(names) <= 5 and all(": " in name and " → " in name for name in names)
    plt.close(ax.figure)


def test_containers_and_files(cohort, resource, done, tmp_path):
    parts = {slide: cohort[cohort.obs["slide"] == slide].copy() for slide in cohort.obs["slide"].unique()}
    for part in parts.values():
        st.pp.build_graph(part)
    run(parts, resource, library_key=None)
    for part in parts.values():
        np.testing.assert_allclose(
            table(part).drop(columns="n_slides"), table(done).drop(columns="n_slides"), rtol=1e-5
        )
    assert "interactions" not in cohort.uns
    done.write_h5ad(tmp_path / "a.h5ad")
    done.write_zarr(tmp_path / "a.zarr")
    for read in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        pd.testing.assert_frame_equal(read.uns["interactions"]["table"], done.uns["interactions"]["table"])
        run(read, resource)  # over a result of its own


def test_human_and_mouse_pairs(cohort, caplog):
    pytest.importorskip("liana")
    for names, resource in ((["CXCL12", "CXCR4"], "consensus"), (["Cxcl12", "Cxcr4"], "mouseconsensus")):
        adata = cohort[:, ~cohort.var_names.isin(["Cxcl12"])].copy()
        change = str.upper if resource == "consensus" else str
        adata.var_names = [*names, *map(change, adata.var_names[2:])]
        caplog.clear()
        st.tl.interactions(adata, **GIVEN, expr_prop=1e-6)
        params = adata.uns["interactions"]["params"]
        assert params["resource"] == resource and 1 <= params["n_pairs"] < 20 < params["n_pairs_resource"]
        assert "few pairs" in caplog.text and tuple(names) in {key[2:] for key in table(adata).index}
        other = {"consensus": "mouseconsensus", "mouseconsensus": "consensus"}[resource]
        with pytest.raises(ValueError, match="'mouseconsensus' for mouse"):
            st.tl.interactions(adata, **GIVEN, resource=other)


def test_bad_input(cohort, resource):
    pytest.importorskip("liana")
    adata = cohort.copy()
    for given, error in (
        ({"resource": 3}, TypeError),
        ({"resource": "none such"}, ValueError),
        ({"resource": resource.rename(columns={"ligand": "source"})}, ValueError),
        ({"resource": resource.iloc[:0]}, ValueError),
        ({"resource": resource.assign(ligand="elsewhere")}, ValueError),
        ({"expr_prop": 1.5}, ValueError),
        ({"expr_prop": 0}, ValueError),
        ({"min_cells": 0}, ValueError),
        ({"min_cells": 10**6}, ValueError),
        ({"cell_type_key": "none"}, KeyError),
        ({"groupby": "none"}, KeyError),
        ({"groupby": "slide", "min_cells": 300}, ValueError),
        ({"layer": "none"}, KeyError),
        ({"key_added": "a/b"}, ValueError),
        ({"copy": "no"}, TypeError),
    ):
        with pytest.raises(error) as raised:
            st.tl.interactions(adata, **{**GIVEN, "resource": resource, **given})
        named = "min_cells" if "min_cells" in given else next(iter(given))
        assert named in str(raised.value)
    with pytest.raises(ValueError, match="expr_prop"):
        rare = cohort.copy()
        rare.X = sp.csr_matrix(rare.X.toarray() * (np.arange(rare.n_vars) >= 90))
        st.tl.interactions(rare, **GIVEN, resource=resource)
    bare = cohort.copy()
    del bare.uns["stage_graph"]
    with pytest.raises(KeyError, match="build_graph"):
        st.tl.interactions(bare, **GIVEN, resource=resource)
    assert "interactions" not in adata.uns
    with pytest.raises(KeyError, match=r"st\.tl\.interactions"):
        st.pl.interactions(adata)


def test_without_liana(cohort, resource, monkeypatch):
    monkeypatch.setitem(sys.modules, "liana", None)
    with pytest.raises(ImportError, match=r"pip install 'stage-sc\[interactions\]'"):
        st.tl.interactions(cohort.copy(), **GIVEN, resource=resource)


def test_picture(done):
    before = plt.get_fignums()
    ax = st.pl.interactions(done, show=False, n_pairs=8, n_columns=9)
    columns = [text.get_text() for text in ax.get_xticklabels()]
    assert len(ax.get_yticklabels()) <= 8 and len(columns) == 9
    plt.close(ax.figure)
    ax = st.pl.interactions(done, show=False, groups="L1", between=False)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["L1"]
    plt.close(ax.figure)
    long = done.copy()
    found = long.uns["interactions"]["table"]
    for end in ("source", "target"):
        found[end] = found[end].cat.rename_categories(lambda name: f"{name} a layer with a long name")
    ax = st.pl.interactions(long, show=False)
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert any(name.startswith("L1 ") and "→ L2/3 " in name for name in names) and max(map(len, names)) <= 30
    plt.close(ax.figure)
    for given, error in (({"groups": ["L9"]}, ValueError), ({"n_pairs": 0}, ValueError), ({"between": 1}, TypeError)):
        with pytest.raises(error, match=next(iter(given))):
            st.pl.interactions(done, **given)
    assert plt.get_fignums() == before


def test_known_pair_of_real_tissue(dev_data, caplog):
    pytest.importorskip("liana")
    caplog.set_level(logging.ERROR)
    breast = ad.read_h5ad(dev_data / "xenium_breast_idc" / "IDC_crop.h5ad")
    st.pp.build_graph(breast)
    st.tl.interactions(breast, groupby="domain")
    rank = table(breast)["specificity_rank"].xs(("CXCL12", "CXCR4"), level=(2, 3))
    assert rank["Immune cells", "Immune cells"] < 0.01 and rank["Stroma", "Immune cells"] < 0.05
    assert rank["Immune cells", "Immune cells"] == rank.min()
    assert ("Immune cells", "DCIS") not in rank.index  # which do not touch
