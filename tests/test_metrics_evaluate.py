"""The table of all metrics: its form, what is undefined, bad input, and experts' labels of real sections."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial import Delaunay

import stage_sc.metrics as m

GRAPH = "spatial_connectivities"
SIX = ["ARI", "NMI", "FIDE", "JSD", "PAS", "ASW"]


def delaunay_graph(xy: np.ndarray, longest: float) -> sparse.csr_matrix:
    """Symmetric graph of the Delaunay edges up to `longest`."""
    triangles = Delaunay(xy).simplices
    edges = np.vstack([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    length = np.linalg.norm(xy[edges[:, 0]] - xy[edges[:, 1]], axis=1)
    edges = edges[length <= longest]
    half = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(xy), len(xy)))
    return (half + half.T).tocsr()


def random_tissue() -> ad.AnnData:
    """Interleaved slides of 40, 55 and 30 cells with noisy stripes and unlabelled cells."""
    rng = np.random.default_rng(0)
    slide = rng.permutation(np.repeat(["s2", "s10", "s1"], [40, 55, 30]))
    n = len(slide)
    xy = rng.random((n, 2)) * 100
    truth = (xy[:, 0] // 34).astype(int).astype(str).astype(object)
    found = np.where(rng.random(n) < 0.3, "0", truth)
    truth[rng.random(n) < 0.1] = None
    found[rng.random(n) < 0.1] = None
    obs = pd.DataFrame(
        {"found": pd.Categorical(found), "truth": truth, "slide": slide}, index=[f"c{i}" for i in range(n)]
    )
    return ad.AnnData(obs=obs, obsm={"spatial": xy}, obsp={GRAPH: delaunay_graph(xy, 50.0)})


def line(labels: list, **columns: list) -> ad.AnnData:
    """Cells in a row at distance 1, each joined to the next."""
    n = len(labels)
    obs = pd.DataFrame({"domain": labels, **columns}, index=[f"c{i}" for i in range(n)])
    graph = sparse.csr_matrix(np.eye(n, k=1) + np.eye(n, k=-1))
    return ad.AnnData(obs=obs, obsm={"spatial": np.column_stack([np.arange(n), np.zeros(n)])}, obsp={GRAPH: graph})


# The table


def test_evaluate_is_the_single_metrics():
    adata = random_tissue()
    before = adata.copy()
    table = m.evaluate(adata, ["found", "truth"], reference="truth", library_key="slide")
    assert list(table.columns) == SIX
    assert (table.dtypes == np.float64).all()
    assert list(table.index) == [(key, slide) for key in ("found", "truth") for slide in ("s1", "s10", "s2", "mean")]
    assert table.index.names == ["key", "slide"]
    for key in ("found", "truth"):
        expected = [
            m.ari(adata, key, "truth", library_key="slide"),
            m.nmi(adata, key, "truth", library_key="slide"),
            m.fide(adata, key, library_key="slide"),
            m.jsd(adata, key, "slide"),
            m.pas(adata, key, library_key="slide"),
            m.asw(adata, key, library_key="slide"),
        ]
        np.testing.assert_allclose(table.loc[(key, "mean")], expected, atol=1e-12)
        slide = adata[adata.obs["slide"] == "s10"]
        alone = m.evaluate(slide, key, reference="truth").loc[key]
        pd.testing.assert_series_equal(table.loc[(key, "s10")], alone, check_names=False)
    assert_untouched(adata, before)


def test_evaluate_without_reference_or_slides():
    table = m.evaluate(random_tissue(), "found")
    assert list(table.index) == ["found"]
    assert table.index.name == "key"
    assert list(table.columns[table.notna().iloc[0]]) == ["FIDE", "PAS", "ASW"]


# What is undefined, and bad input


def test_undefined_becomes_nan_and_leaves_the_mean(caplog):
    """A second slide of three cells with one domain, no edges and no reference."""
    big, small = line(list("aaaaaabbbbbb"), truth=list("xxxxxyyyyyyy")), line(["a"] * 3, truth=[None] * 3)
    small.obsp[GRAPH] = sparse.csr_matrix((3, 3))
    adata = ad.concat({"big": big, "small": small}, label="slide", index_unique="-", pairwise=True)
    with caplog.at_level(logging.WARNING, logger="stage_sc"):
        table = m.evaluate(adata, "domain", reference="truth", library_key="slide").loc["domain"]
    assert table.loc["small"].isna().all()
    alone = ["ARI", "NMI", "FIDE", "PAS", "ASW"]
    pd.testing.assert_series_equal(table.loc["mean", alone], table.loc["big", alone], check_names=False)
    assert table.loc["big", alone].notna().all()
    assert table.loc["mean", "JSD"] > 0
    for name in alone:
        assert any(message.startswith(f"{name} is not defined") for message in caplog.messages)


def test_jsd_leaves_out_slides_without_labels(caplog):
    adata = line(["a", "b", "a", "b", None, None], slide=list("uuvvww"))
    with caplog.at_level(logging.WARNING, logger="stage_sc"):
        assert m.jsd(adata, "domain", "slide") == 0.0
    assert "['w']" in caplog.text


def test_evaluate_of_one_slide_has_no_jsd():
    table = m.evaluate(line(list("aaaaaabbbbbb"), slide=["only"] * 12), "domain", library_key="slide")
    assert table["JSD"].isna().all()


def assert_untouched(adata: ad.AnnData, before: ad.AnnData) -> None:
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    np.testing.assert_array_equal(adata.obsm["spatial"], before.obsm["spatial"])
    assert (adata.obsp[GRAPH] != before.obsp[GRAPH]).nnz == 0
    assert list(adata.uns) == list(before.uns)
    assert list(adata.obsp) == list(before.obsp)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda a: m.fide(a, "nope"), KeyError, "'nope' in adata.obs, which has .*found", id="no label column"
        ),
        pytest.param(lambda a: m.ari(a, "found", "nope"), KeyError, "'nope'", id="no reference column"),
        pytest.param(lambda a: m.pas(a, "found", library_key="nope"), KeyError, "'nope'", id="no slide column"),
        pytest.param(lambda a: m.fide(a, "found", "nope"), KeyError, "build_graph", id="no graph"),
        pytest.param(lambda a: m.asw(a, "found", "nope"), KeyError, "'nope'.*spatial", id="no coordinates"),
        pytest.param(lambda a: m.pas(a, "score"), TypeError, "continuous numbers", id="scores for labels"),
        pytest.param(lambda a: m.pas(a, "empty"), ValueError, "no label for any of the 125", id="no labels"),
        pytest.param(lambda a: m.pas(a, "found", library_key="truth"), ValueError, "have no slide", id="unnamed slide"),
        pytest.param(lambda a: m.asw(a, "found", "holes"), ValueError, "1 of 125 cells have NaN", id="NaN coordinate"),
        pytest.param(lambda a: m.asw(a, "found", "wide"), ValueError, r"got \(125, 4\)", id="not coordinates"),
        pytest.param(lambda a: m.pas(a, "found", "point"), ValueError, "for all 125 cells", id="one place"),
        pytest.param(lambda a: m.asw(a, "found", max_cells=2), ValueError, "`max_cells` is 2", id="tiny sample"),
        pytest.param(lambda a: m.nmi(a, "left", "right"), ValueError, "nothing to compare", id="no cell in common"),
        pytest.param(
            lambda a: m.evaluate(a, "left", reference="right"), ValueError, "nothing to compare", id="none, table"
        ),
        pytest.param(lambda a: m.jsd(a, "found", "one"), ValueError, "labels on 1 of the 1", id="one slide"),
        pytest.param(lambda a: m.evaluate(a, []), ValueError, "`keys` is empty", id="no keys"),
        pytest.param(lambda a: m.evaluate(a, ["found", "nope"]), KeyError, "'nope'", id="one key wrong"),
        pytest.param(
            lambda a: m.evaluate(a, "found", library_key="mean"), ValueError, "called 'mean'", id="slide 'mean'"
        ),
    ],
)
def test_bad_input_teaches_and_changes_nothing(call, error, message):
    adata = random_tissue()
    n = adata.n_obs
    adata.obs["score"] = np.linspace(0, 1, n)
    adata.obs["empty"] = np.full(n, np.nan)
    adata.obs["one"] = "one"
    adata.obs["mean"] = "mean"
    adata.obs["left"] = pd.Categorical(np.where(np.arange(n) < 9, "a", None))
    adata.obs["right"] = pd.Categorical(np.where(np.arange(n) < 9, None, "a"))
    adata.obsm["holes"] = adata.obsm["spatial"].copy()
    adata.obsm["holes"][3, 1] = np.nan
    adata.obsm["wide"] = np.ones((n, 4))
    adata.obsm["point"] = np.ones((n, 2))
    before = adata.copy()
    with pytest.raises(error, match=message):
        call(adata)
    np.testing.assert_array_equal(adata.obsm["holes"], before.obsm["holes"])
    assert_untouched(adata, before)


# Real sections: the experts' own labels


def expert(folder: Path, longest_in_medians: float) -> pd.Series:
    """Mean row for `obs["domain"]`, on Delaunay graphs cut at a multiple of each section's median edge."""
    sections = {path.stem: ad.read_h5ad(path) for path in sorted(folder.glob("*.h5ad"))}
    for section in sections.values():
        xy = section.obsm["spatial"]
        ends = delaunay_graph(xy, np.inf).nonzero()
        median = np.median(np.linalg.norm(xy[ends[0]] - xy[ends[1]], axis=1))
        section.obsp[GRAPH] = delaunay_graph(xy, longest_in_medians * median)
    adata = ad.concat(sections, label="section", index_unique="-", pairwise=True)
    return m.evaluate(adata, "domain", reference="domain", library_key="section").loc[("domain", "mean")]


@pytest.mark.parametrize(
    ("folder", "figures_known"),
    [
        ("starmap_mpfc", {"ARI": 1, "NMI": 1, "FIDE": 0.909, "JSD": 0.014, "PAS": 0.029, "ASW": 0.628}),
        ("osmfish_cortex", {"ARI": 1, "NMI": 1, "FIDE": 0.896, "PAS": 0.011, "ASW": 0.458}),
        ("xenium_breast_idc", {"ARI": 1, "NMI": 1, "FIDE": 0.894, "PAS": 0.022, "ASW": 0.545}),
    ],
)
def test_expert_labels(dev_data, folder, figures_known):
    row = expert(dev_data / folder, longest_in_medians=5)
    assert row[list(figures_known)].round(3).to_dict() == pytest.approx(figures_known)


def test_cells_without_expert_label_are_left_out(dev_data):
    section = ad.read_h5ad(dev_data / "dlpfc_visium" / "151673.h5ad")
    section.obsp[GRAPH] = delaunay_graph(section.obsm["spatial"], 150.0)
    labelled = section[section.obs["domain"].notna()]
    assert labelled.n_obs == section.n_obs - 28
    pd.testing.assert_frame_equal(
        m.evaluate(section, "domain", reference="domain"), m.evaluate(labelled, "domain", reference="domain")
    )
