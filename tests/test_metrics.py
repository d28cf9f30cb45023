"""Metrics and their table: loops over cells, examples by hand, invariances, containers, real sections, bad input."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial import Delaunay
from scipy.spatial.distance import jensenshannon

import stage_sc.metrics as m

GRAPH = "spatial_connectivities"
ALL = ["ARI", "NMI", "FIDE", "JSD", "PAS", "ASW"]


def random_tissue(seed: int = 0) -> ad.AnnData:
    """Three interleaved slides of 40, 55 and 30 cells: noisy stripes, unlabelled cells, isolated cells, self-loops."""
    rng = np.random.default_rng(seed)
    slide = rng.permutation(np.repeat(["s2", "s10", "s1"], [40, 55, 30]))
    n = len(slide)
    xy = rng.random((n, 2)) * 100
    truth = np.array(["pia", "deep", "white matter"])[(xy[:, 0] // 34).astype(int)].astype(object)
    found = np.where(rng.random(n) < 0.3, rng.integers(0, 4, n), xy[:, 0] // 30).astype(int).astype(str).astype(object)
    truth[rng.random(n) < 0.1] = None
    found[rng.random(n) < 0.1] = None
    adjacency = rng.random((n, n)) < 0.08 * rng.random((n, 1))  # directed, unequal degrees
    adjacency = (adjacency | np.eye(n, dtype=bool)).astype(float)
    adjacency[:5] = adjacency[:, :5] = 0.0  # isolated
    graph = sparse.csr_matrix(adjacency)
    graph.data[::7] = 0.0  # stored zeros are no edges
    obs = pd.DataFrame({"found": pd.Categorical(found), "truth": truth, "slide": pd.Categorical(slide)})
    return ad.AnnData(obs=obs.set_index("c" + obs.index.astype(str)), obsm={"spatial": xy}, obsp={GRAPH: graph})


def parts(adata: ad.AnnData, key: str) -> list[ad.AnnData]:
    """Slides of the labelled cells."""
    adata = adata[adata.obs[key].notna()]
    return [adata[adata.obs["slide"] == name] for name in sorted(adata.obs["slide"].unique())]


def loop_fide(adata: ad.AnnData, key: str) -> float:
    label, adjacency = list(adata.obs[key]), adata.obsp[GRAPH].toarray()
    pairs = [
        (label[i], label[j])
        for i, j in itertools.permutations(range(len(label)), 2)
        if adjacency[i, j] > 0 and not pd.isna(label[i]) and not pd.isna(label[j])
    ]
    scores = []
    for domain in {end for pair in pairs for end in pair}:
        hit = sum(a == domain and b == domain for a, b in pairs)
        wrong = sum((a == domain) != (b == domain) for a, b in pairs)
        scores.append(2 * hit / (2 * hit + wrong))
    return sum(scores) / len(scores)


def loop_pas(adata: ad.AnnData, key: str) -> float:
    """Cells as far as the tenth share the places that nearer ones leave."""
    adata = adata[adata.obs[key].notna()]
    label, xy = list(adata.obs[key]), np.asarray(adata.obsm["spatial"])
    out_of_place = 0
    for i in range(len(label)):
        others = sorted((round(math.dist(xy[i], xy[j]), 9), label[j] != label[i]) for j in range(len(label)) if j != i)
        nearer = [differs for distance, differs in others if distance < others[9][0]]
        tied = [differs for distance, differs in others if distance == others[9][0]]
        different = sum(nearer) + Fraction(sum(tied) * (10 - len(nearer)), len(tied))
        out_of_place += different >= 6
    return out_of_place / len(label)


def loop_asw(adata: ad.AnnData, key: str) -> float:
    adata = adata[adata.obs[key].notna()]
    label, xy = list(adata.obs[key]), np.asarray(adata.obsm["spatial"])
    widths = []
    for i in range(len(label)):
        to = {domain: [] for domain in label}
        for j in range(len(label)):
            if j != i:
                to[label[j]].append(math.dist(xy[i], xy[j]))
        if not to[label[i]]:
            widths.append(0.0)
            continue
        a = np.mean(to[label[i]])
        b = min(np.mean(distances) for domain, distances in to.items() if domain != label[i])
        widths.append((b - a) / max(a, b))
    return (np.mean(widths) + 1) / 2


def shared(adata: ad.AnnData, key: str, reference: str) -> list[tuple]:
    both = adata.obs[[key, reference]].dropna()
    return list(zip(both[key], both[reference], strict=True))


def loop_ari(adata: ad.AnnData, key: str, reference: str) -> float:
    """The pair counts of the definition, one by one."""
    tp = tn = fn = fp = 0
    for (p, t), (q, u) in itertools.combinations(shared(adata, key, reference), 2):
        tp += p == q and t == u
        tn += p != q and t != u
        fn += p != q and t == u
        fp += p == q and t != u
    expected = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / (tp + tn + fp + fn)
    return (tp + tn - expected) / (tp + tn + fp + fn - expected)


def loop_nmi(adata: ad.AnnData, key: str, reference: str) -> float:
    pairs = shared(adata, key, reference)
    n = len(pairs)

    def information(counts: Counter) -> float:
        return -sum(c / n * math.log(c / n) for c in counts.values())

    p, t = information(Counter(a for a, _ in pairs)), information(Counter(b for _, b in pairs))
    return (p + t - information(Counter(pairs))) / math.sqrt(p * t)


def loop_jsd(adata: ad.AnnData, key: str) -> float:
    """Mean divergence of the slides from their mean, in bits."""
    slides = parts(adata, key)
    domains = sorted({label for slide in slides for label in slide.obs[key]})
    shares = [[sum(label == d for label in slide.obs[key]) / slide.n_obs for d in domains] for slide in slides]
    middle = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
    return sum(p * math.log2(p / q) for share in shares for p, q in zip(share, middle, strict=True) if p) / len(shares)


IN_SPACE = [
    pytest.param(m.fide, loop_fide, id="fide"),
    pytest.param(m.pas, loop_pas, id="pas"),
    pytest.param(m.asw, loop_asw, id="asw"),
]
AGREEMENT = [pytest.param(m.ari, loop_ari, id="ari"), pytest.param(m.nmi, loop_nmi, id="nmi")]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("metric", "loop"), IN_SPACE)
def test_in_space_equals_loops(metric, loop, seed):
    adata = random_tissue(seed)
    assert metric(adata, "found") == pytest.approx(loop(adata, "found"), abs=1e-12)
    per_slide = np.mean([loop(slide, "found") for slide in parts(adata, "found")])
    assert metric(adata, "found", library_key="slide") == pytest.approx(per_slide, abs=1e-12)
    assert abs(per_slide - loop(adata, "found")) > 1e-4  # the slides do make a difference


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("metric", "loop"), AGREEMENT)
def test_agreement_equals_loops(metric, loop, seed):
    adata = random_tissue(seed)
    assert metric(adata, "found", "truth") == pytest.approx(loop(adata, "found", "truth"), abs=1e-12)
    per_slide = np.mean([loop(slide, "found", "truth") for slide in parts(adata, "found")])
    assert metric(adata, "found", "truth", library_key="slide") == pytest.approx(per_slide, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_jsd_equals_loops(seed):
    adata = random_tissue(seed)
    assert m.jsd(adata, "found", "slide") == pytest.approx(loop_jsd(adata, "found"), abs=1e-12)
    two = adata[adata.obs["slide"] != "s1"]
    shares = pd.crosstab(two.obs["slide"], two.obs["found"], normalize="index").to_numpy()
    assert m.jsd(two, "found", "slide") == pytest.approx(jensenshannon(*shares, base=2) ** 2, abs=1e-12)


def line(labels: list, **columns: list) -> ad.AnnData:
    """Cells in a row at distance 1, each joined to the next."""
    n = len(labels)
    obs = pd.DataFrame({"domain": labels, **columns}, index=[f"c{i}" for i in range(n)])
    graph = sparse.csr_matrix(np.eye(n, k=1) + np.eye(n, k=-1))
    return ad.AnnData(obs=obs, obsm={"spatial": np.column_stack([np.arange(n), np.zeros(n)])}, obsp={GRAPH: graph})


def test_fide_by_hand():
    # a: 4 of 5 neighbours are a; b: 0 of 2; c: 0 of 1.
    assert m.fide(line(list("aaabc")), "domain") == pytest.approx((4 / 5 + 0 + 0) / 3)
    assert m.fide(line(list("aaaa")), "domain") == 1.0
    assert m.fide(line(list("abab")), "domain") == 0.0
    # An unlabelled cell takes its edges with it.
    assert m.fide(line(["a", "a", None, "b", "b"]), "domain") == 1.0


def test_asw_by_hand():
    # Ends at 0, 1 and 9: the pair has a = 1, b = 9 and 8; the lone cell counts 0.
    adata = line(list("aab"))
    adata.obsm["spatial"][2, 0] = 9.0
    assert m.asw(adata, "domain") == pytest.approx(((8 / 9 + 7 / 8 + 0) / 3 + 1) / 2)


def test_pas_needs_six_of_ten_others():
    """Eleven cells are each other's ten nearest: a minority of five has six others, a minority of six has five."""
    five, four = line(list("aaaaabbbbbb")), line(list("aaaabbbbbbb"))
    assert m.pas(five, "domain") == pytest.approx(5 / 11)  # b sees five a
    assert m.pas(four, "domain") == pytest.approx(4 / 11)
    assert m.pas(line(["a"] * 11), "domain") == 0.0


@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_pas_shares_the_last_places_among_ties(turn):
    """Inside a grid eight cells are nearer and four tie for two places; rounding in a turned grid breaks no tie."""
    grid = np.argwhere(np.ones((12, 11))).astype(float)
    labels = list(np.random.default_rng(0).choice(list("ab"), len(grid), p=[0.7, 0.3]))
    adata = line(labels)
    adata.obsm["spatial"] = grid @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    assert m.pas(adata, "domain") == pytest.approx(loop_pas(adata, "domain"), abs=1e-12)


def test_pas_counts_coincident_cells():
    """More coincident cells than one search finds: all tie for every place."""
    adata = line(["a"] * 70 + ["b"] * 30 + ["c"] * 20)
    adata.obsm["spatial"][:100] = 0.0
    # Among the coincident, 30 % of the others differ for a, 70 % for b; c lies far off in a row of its own.
    adata.obsm["spatial"][100:, 0] += 1000.0
    assert m.pas(adata, "domain") == pytest.approx(30 / 120)


def test_agreement_by_hand():
    adata = line(list("aabb"), same=[7, 7, 3, 3], across=list("xyxy"), one=["x"] * 4)
    for metric in (m.ari, m.nmi):
        assert metric(adata, "domain", "same") == pytest.approx(1.0)
        assert metric(adata, "domain", "one") == pytest.approx(0.0)
    assert m.ari(adata, "domain", "across") == pytest.approx(-0.5)
    assert m.nmi(adata, "domain", "across") == pytest.approx(0.0, abs=1e-12)
    adata = line(list("aabb") * 2, truth=list("xxyyyyxx"), slide=[1] * 4 + [2] * 4)
    assert m.ari(adata, "domain", "truth", library_key="slide") == 1.0, "names may change between slides"
    assert m.ari(adata, "domain", "truth") < 0.01


@pytest.mark.parametrize(
    ("labels", "n_slides", "expected"),
    [
        ("aabbaabb", 2, 0.0),
        ("abbbccc" * 3, 3, 0.0),  # the entropies' difference is a rounding error below 0
        ("aaaabbbb", 2, 1.0),
        ("aabbcc", 3, math.log2(3)),
    ],
)
def test_jsd_range(labels, n_slides, expected):
    slide = np.repeat(np.arange(n_slides), len(labels) // n_slides)
    value = m.jsd(line(list(labels), slide=slide), "domain", "slide")
    assert value == pytest.approx(expected)
    assert value >= 0


def test_jsd_of_slides_of_other_sizes_and_without_labels(caplog):
    few, many = list("ab"), list("ab") + list("aabb") * 50
    adata = line([*few, *many, None], slide=["few"] * len(few) + ["many"] * len(many) + ["none"])
    with caplog.at_level(logging.WARNING, logger="stage_sc"):
        assert m.jsd(adata, "domain", "slide") == pytest.approx(0.0, abs=1e-12)
    assert "['none']" in caplog.text


def figures(adata: ad.AnnData, key: str = "found", **options) -> np.ndarray:
    return m.evaluate(adata, key, reference="truth", library_key="slide", **options).to_numpy()


@pytest.mark.parametrize(
    "recode",
    [
        pytest.param(lambda s: s.astype(object), id="object"),
        pytest.param(lambda s: s.astype(object).astype("string"), id="string"),
        pytest.param(lambda s: s.astype(object).astype(float), id="float with NaN"),
        pytest.param(lambda s: s.astype(object).astype(float).astype("Int64"), id="nullable integer"),
        pytest.param(lambda s: s.cat.rename_categories(["z", "x", "w", "y"]), id="renamed"),
        pytest.param(
            lambda s: s.cat.add_categories(["unused"]).cat.reorder_categories(list("3120") + ["unused"]), id="unused"
        ),
    ],
)
def test_same_for_any_names_and_kinds_of_labels(recode):
    adata = random_tissue()
    adata.obs["recoded"] = recode(adata.obs["found"])
    np.testing.assert_allclose(figures(adata, "recoded"), figures(adata), atol=1e-12)


@pytest.mark.parametrize("max_cells", [None, 25])
def test_same_for_any_order_of_cells(max_cells):
    adata = random_tissue()
    adata.obsm["spatial"] = np.round(adata.obsm["spatial"] / 10)  # ties and coincident cells
    shuffled = adata[np.random.default_rng(1).permutation(adata.n_obs)]
    np.testing.assert_allclose(figures(shuffled, max_cells=max_cells), figures(adata, max_cells=max_cells), atol=1e-12)


TURN = np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda xy: 3 * xy @ TURN + [1e8, -1e8], id="shift, rotation, scale"),
        pytest.param(lambda xy: np.column_stack([xy, np.full(len(xy), 5.0)]), id="flat third coordinate"),
    ],
)
def test_same_for_other_coordinates(change):
    adata = random_tissue()
    moved = adata.copy()
    moved.obsm["spatial"] = change(adata.obsm["spatial"])
    moved.obs["slide"] = adata.obs["slide"].cat.add_categories(["no cells"])
    np.testing.assert_allclose(figures(moved), figures(adata), atol=1e-6)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_same_after_writing_and_reading(tmp_path, kind):
    adata = random_tissue()
    path = tmp_path / f"tissue.{kind}"
    getattr(adata, f"write_{kind}")(path)
    np.testing.assert_allclose(figures(getattr(ad, f"read_{kind}")(path)), figures(adata), atol=1e-12)


def test_asw_sample():
    adata = random_tissue()
    full = m.asw(adata, "found")
    drawn = [m.asw(adata, "found", max_cells=60, rng=seed) for seed in range(40)]
    assert m.asw(adata, "found", max_cells=adata.n_obs) == full
    assert drawn[0] == m.asw(adata, "found", max_cells=60, rng=np.random.default_rng(0))
    assert len(set(drawn)) > 30
    assert np.mean(drawn) == pytest.approx(full, abs=0.02)


@pytest.mark.parametrize("kind", [dict, list])
def test_several_objects_are_slides_of_one(kind):
    adata = random_tissue()
    names = ["s1", "s10", "s2"]
    data = {name: adata[adata.obs["slide"] == name].copy() for name in names}
    if kind is list:
        data, adata.obs["slide"] = list(data.values()), adata.obs["slide"].cat.rename_categories(["0", "1", "2"])
    expected = m.evaluate(adata, ["found", "truth"], reference="truth", library_key="slide")
    pd.testing.assert_frame_equal(m.evaluate(data, ["found", "truth"], reference="truth"), expected, rtol=1e-12)
    for metric in (m.fide, m.pas, m.asw):
        assert metric(data, "found") == pytest.approx(metric(adata, "found", library_key="slide"), abs=1e-12)
    for metric in (m.ari, m.nmi):
        assert metric(data, "found", "truth") == pytest.approx(metric(adata, "found", "truth"), abs=1e-12)
    assert m.jsd(data, "found") == pytest.approx(m.jsd(adata, "found", "slide"), abs=1e-12)


def test_objects_with_slides_of_their_own():
    adata = random_tissue()
    table = m.evaluate({"x": adata, "y": adata[:60].copy()}, "found", library_key="slide").loc["found"]
    assert list(table.index) == ["x/s1", "x/s10", "x/s2", "y/s1", "y/s10", "y/s2", "mean"]
    alone = m.evaluate(adata, "found", library_key="slide").loc["found"]
    pd.testing.assert_series_equal(table.loc["x/s10"], alone.loc["s10"], check_names=False)


def test_evaluate_is_the_single_metrics(unchanged):
    adata = random_tissue()
    with unchanged(adata):
        table = m.evaluate(adata, ["found", "truth"], reference="truth", library_key="slide")
    assert list(table.columns) == ALL
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


def test_evaluate_without_reference_or_slides():
    table = m.evaluate(random_tissue(), "found")
    assert list(table.index) == ["found"]
    assert table.index.name == "key"
    assert list(table.columns[table.notna().iloc[0]]) == ["FIDE", "PAS", "ASW"]
    one = m.evaluate(line(list("aaaaaabbbbbb"), slide=["only"] * 12), "domain", library_key="slide")
    assert one["JSD"].isna().all()


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: m.fide(a, "nope"), KeyError, "'nope'.*found"),
        (lambda a: m.ari(a, "found", "nope"), KeyError, "'nope'"),
        (lambda a: m.pas(a, "found", library_key="nope"), KeyError, "'nope'"),
        (lambda a: m.fide(a, "found", "nope"), KeyError, "build_graph"),
        (lambda a: m.asw(a, "found", "nope"), KeyError, "'nope'.*spatial"),
        (lambda a: m.pas(a, "score"), TypeError, "score"),
        (lambda a: m.pas(a, "empty"), ValueError, "empty.* 125 "),
        (lambda a: m.pas(a, "found", library_key="truth"), ValueError, "truth"),
        (lambda a: m.asw(a, "found", "holes"), ValueError, "1 of 125 cells"),
        (lambda a: m.asw(a, "found", "wide"), ValueError, r"\(125, 4\)"),
        (lambda a: m.pas(a, "found", "point"), ValueError, "point.*125 cells"),
        (lambda a: m.asw(a, "found", max_cells=2), ValueError, "`max_cells`.* 2"),
        (lambda a: m.nmi(a, "left", "right"), ValueError, "left.*right"),
        (lambda a: m.evaluate(a, "left", reference="right"), ValueError, "left.*right"),
        (lambda a: m.jsd(a, "found", "one"), ValueError, "1 of the 1"),
        (lambda a: m.evaluate(a, []), ValueError, "`keys`"),
        (lambda a: m.evaluate(a, ["found", "nope"]), KeyError, "'nope'"),
        (lambda a: m.evaluate(a, "found", library_key="mean"), ValueError, "'mean'"),
        (lambda a: m.evaluate([], "found"), ValueError, "empty"),
        (lambda a: m.evaluate({"x": 3}, "found"), TypeError, "x.*int"),
    ],
)
def test_bad_input_teaches_and_changes_nothing(call, error, message, unchanged):
    adata = random_tissue()
    n, few = adata.n_obs, np.arange(adata.n_obs) < 9
    adata.obs = adata.obs.assign(score=np.linspace(0, 1, n), empty=np.nan, one="one", mean="mean")
    adata.obs["left"], adata.obs["right"] = (pd.Categorical(np.where(which, "a", None)) for which in (few, ~few))
    adata.obsm["holes"] = adata.obsm["spatial"].copy()
    adata.obsm["holes"][3, 1] = np.nan
    adata.obsm["wide"] = np.ones((n, 4))
    adata.obsm["point"] = np.ones((n, 2))
    with unchanged(adata), pytest.raises(error, match=message):
        call(adata)


def delaunay_graph(xy: np.ndarray, longest: float) -> sparse.csr_matrix:
    """Symmetric graph of the Delaunay edges up to `longest`."""
    triangles = Delaunay(xy).simplices
    edges = np.vstack([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    length = np.linalg.norm(xy[edges[:, 0]] - xy[edges[:, 1]], axis=1)
    edges = edges[length <= longest]
    half = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(xy), len(xy)))
    return (half + half.T).tocsr()


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
