"""Metrics and their table: loops over cells, examples by hand, invariances, containers, real sections, bad input."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial import Delaunay
from scipy.spatial.distance import cdist

import stage_sc.metrics as m

GRAPH = "spatial_connectivities"
ALL = ["ARI", "NMI", "FIDE", "JSD", "PAS", "ASW"]


def random_tissue(seed: int = 0) -> ad.AnnData:
    """Three interleaved slides of 40, 55 and 30 cells: noisy stripes, unlabelled cells, isolated cells, self-loops."""
    rng, n = np.random.default_rng(seed), 125
    slide = rng.permutation(np.repeat(["s2", "s10", "s1"], [40, 55, 30]))
    xy = rng.random((n, 2)) * 100
    truth = np.array(["pia", "deep", "white matter"])[(xy[:, 0] // 34).astype(int)].astype(object)
    found = np.where(rng.random(n) < 0.3, rng.integers(0, 4, n), xy[:, 0] // 30).astype(int).astype(str).astype(object)
    truth[rng.random(n) < 0.1] = None
    found[rng.random(n) < 0.1] = None
    adjacency = (rng.random((n, n)) < 0.08 * rng.random((n, 1))) | np.eye(n, dtype=bool)  # directed, unequal degrees
    adjacency[:5] = adjacency[:, :5] = False  # isolated
    graph = sparse.csr_matrix(adjacency.astype(float))
    graph.data[::7] = 0.0  # stored zeros are no edges
    obs = pd.DataFrame({"found": pd.Categorical(found), "truth": truth, "slide": pd.Categorical(slide)})
    return ad.AnnData(obs=obs.set_index("c" + obs.index.astype(str)), obsm={"spatial": xy}, obsp={GRAPH: graph})


def loop_fide(adata: ad.AnnData, key: str) -> float:
    adata = adata[adata.obs[key].notna()]
    label, scores = adata.obs[key].to_numpy(), []
    pairs = [(label[i], label[j]) for i, j in np.argwhere(adata.obsp[GRAPH].toarray() > 0) if i != j]
    for domain in {end for pair in pairs for end in pair}:
        hit = sum(a == domain and b == domain for a, b in pairs)
        wrong = sum((a == domain) != (b == domain) for a, b in pairs)
        scores.append(2 * hit / (2 * hit + wrong))
    return sum(scores) / len(scores)


def loop_pas(adata: ad.AnnData, key: str) -> float:
    """Cells as far as the tenth share the places that nearer ones leave."""
    label, distance = labels_and_distances(adata, key)
    out_of_place = 0
    for i, row in enumerate(distance.round(9)):
        others, differs = np.delete(row, i), np.delete(label != label[i], i)
        tenth = np.sort(others)[9]
        nearer, tied = differs[others < tenth], differs[others == tenth]
        out_of_place += sum(nearer) + Fraction(int(sum(tied)) * (10 - len(nearer)), len(tied)) >= 6
    return out_of_place / len(label)


def labels_and_distances(adata: ad.AnnData, key: str) -> tuple[np.ndarray, np.ndarray]:
    adata = adata[adata.obs[key].notna()]
    return adata.obs[key].to_numpy(), cdist(adata.obsm["spatial"], adata.obsm["spatial"])


def loop_asw(adata: ad.AnnData, key: str) -> float:
    label, distance = labels_and_distances(adata, key)
    widths = []
    for i, row in enumerate(distance):
        own = [d for j, d in enumerate(row) if j != i and label[j] == label[i]]
        b = min(row[label == domain].mean() for domain in set(label) - {label[i]})
        widths.append((b - np.mean(own)) / max(np.mean(own), b) if own else 0.0)
    return (np.mean(widths) + 1) / 2


def loop_ari(adata: ad.AnnData, key: str, reference: str) -> float:
    """The pair counts of the definition, one by one."""
    both = adata.obs[[key, reference]].dropna().to_numpy()
    same = Counter((p == q, t == u) for (p, t), (q, u) in itertools.combinations(both, 2))
    tp, fp, fn, tn = (same[one, other] for one in (True, False) for other in (True, False))
    expected = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / same.total()
    return (tp + tn - expected) / (same.total() - expected)


def loop_nmi(adata: ad.AnnData, key: str, reference: str) -> float:
    both = adata.obs[[key, reference]].dropna()

    def information(columns: list[str]) -> float:
        return -sum(p * math.log(p) for p in both.astype(str).value_counts(columns, normalize=True))

    p, t = information([key]), information([reference])
    return (p + t - information([key, reference])) / math.sqrt(p * t)


def loop_jsd(adata: ad.AnnData, key: str) -> float:
    """Mean divergence of the slides from their mean, in bits."""
    table = pd.crosstab(adata.obs["slide"], adata.obs[key], normalize="index").to_numpy()
    middle = table.mean(axis=0)
    return sum(p * math.log2(p / q) for row in table for p, q in zip(row, middle, strict=True) if p) / len(table)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("metric", "loop"),
    [(m.fide, loop_fide), (m.pas, loop_pas), (m.asw, loop_asw), (m.ari, loop_ari), (m.nmi, loop_nmi)],
)
def test_equals_loops(metric, loop, seed):
    adata, keys = random_tissue(seed), ["found", "truth"][: 2 if metric in (m.ari, m.nmi) else 1]
    whole = loop(adata, *keys)
    assert metric(adata, *keys) == pytest.approx(whole, abs=1e-12)
    labelled = adata[adata.obs["found"].notna()]
    slides = [labelled[labelled.obs["slide"] == name] for name in ("s1", "s10", "s2")]
    per_slide = np.mean([loop(slide, *keys) for slide in slides])
    assert metric(adata, *keys, library_key="slide") == pytest.approx(per_slide, abs=1e-12)
    assert abs(per_slide - whole) > 1e-4  # the slides do make a difference
    assert m.jsd(adata, "found", "slide") == pytest.approx(loop_jsd(adata, "found"), abs=1e-12)


def line(labels: list, **columns: list) -> ad.AnnData:
    """Cells in a row at distance 1, each joined to the next."""
    n = len(labels)
    obs = pd.DataFrame({"domain": labels, **columns}, index=[f"c{i}" for i in range(n)])
    graph = sparse.csr_matrix(np.eye(n, k=1) + np.eye(n, k=-1))
    return ad.AnnData(obs=obs, obsm={"spatial": np.column_stack([np.arange(n), np.zeros(n)])}, obsp={GRAPH: graph})


def test_fide_by_hand():
    assert m.fide(line(list("aaabc")), "domain") == pytest.approx((4 / 5 + 0 + 0) / 3)  # 4 of 5, 0 of 2, 0 of 1
    assert m.fide(line(list("aaaa")), "domain") == m.fide(line(["a", "a", None, "b", "b"]), "domain") == 1
    assert m.fide(line(list("abab")), "domain") == 0


def test_asw_by_hand():
    """Cells at 0, 1 and 9: the pair has a = 1, b = 9 and 8; the lone cell counts 0."""
    adata = line(list("aab"))
    adata.obsm["spatial"][2, 0] = 9.0
    assert m.asw(adata, "domain") == pytest.approx(((8 / 9 + 7 / 8 + 0) / 3 + 1) / 2)


@pytest.mark.parametrize(("labels", "expected"), [("aaaaabbbbbb", 5 / 11), ("aaaabbbbbbb", 4 / 11), ("a" * 11, 0.0)])
def test_pas_needs_six_of_ten_others(labels, expected):
    """Eleven cells are each other's ten nearest: a minority of five has six others, a minority of six has five."""
    assert m.pas(line(list(labels)), "domain") == pytest.approx(expected)


@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_pas_shares_the_last_places_among_ties(turn):
    """Inside a grid eight cells are nearer and four tie for two places; rounding in a turned grid breaks no tie."""
    grid = np.argwhere(np.ones((12, 11))).astype(float)
    adata = line(list(np.random.default_rng(0).choice(list("ab"), len(grid), p=[0.7, 0.3])))
    adata.obsm["spatial"] = grid @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    assert m.pas(adata, "domain") == pytest.approx(loop_pas(adata, "domain"), abs=1e-12)


def test_pas_counts_coincident_cells():
    """Of 100 coincident cells, all of which tie, 30 % of the others differ for a, 70 % for b; c lies far off."""
    adata = line(["a"] * 70 + ["b"] * 30 + ["c"] * 20)
    adata.obsm["spatial"][:100] = 0.0
    adata.obsm["spatial"][100:, 0] += 1000.0
    assert m.pas(adata, "domain") == pytest.approx(30 / 120)


def test_agreement_by_hand():
    columns = {"same": [7, 7, 3, 3] * 2, "one": ["x"] * 8, "truth": list("xxyyyyxx"), "slide": list("11112222")}
    adata = line(list("aabb") * 2, **columns)
    for metric in (m.ari, m.nmi):
        assert metric(adata, "domain", "same") == pytest.approx(1.0)
        assert metric(adata, "domain", "one") == pytest.approx(0.0)
        assert metric(adata, "domain", "truth", library_key="slide") == 1.0, "names may change between slides"
        assert metric(adata, "domain", "truth") < 0.01
    assert m.ari(line(list("aabb"), across=list("xyxy")), "domain", "across") == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("labels", "expected"), [(["abbbccc"] * 3, 0), (["aaaa", "bbbb"], 1), (["aa", "bb", "cc"], math.log2(3))]
)
def test_jsd_range(labels, expected):
    """Of slides that are alike, the difference of entropies is a rounding error below 0."""
    slide = np.repeat(np.arange(len(labels)), len(labels[0]))
    value = m.jsd(line(list("".join(labels)), slide=slide), "domain", "slide")
    assert value == pytest.approx(expected) and value >= 0


def test_jsd_of_slides_of_other_sizes_and_without_labels(caplog):
    adata = line([*"ab", *"aabb" * 50, None], slide=["few"] * 2 + ["many"] * 200 + ["none"])
    assert m.jsd(adata, "domain", "slide") == pytest.approx(0.0, abs=1e-12)
    assert "['none']" in caplog.text


def figures(adata: ad.AnnData, key: str = "found", **options) -> np.ndarray:
    return m.evaluate(adata, key, reference="truth", library_key="slide", **options).to_numpy()


RECODINGS = {
    "object": lambda s: s.astype(object),
    "string": lambda s: s.astype(object).astype("string"),
    "float with NaN": lambda s: s.astype(object).astype(float),
    "nullable integer": lambda s: s.astype(object).astype(float).astype("Int64"),
    "renamed": lambda s: s.cat.rename_categories(["z", "x", "w", "y"]),
    "unused": lambda s: s.cat.add_categories(["unused"]).cat.reorder_categories(["3", "1", "2", "0", "unused"]),
}


@pytest.mark.parametrize("kind", RECODINGS)
def test_same_for_any_names_and_kinds_of_labels(kind):
    adata = random_tissue()
    adata.obs["recoded"] = RECODINGS[kind](adata.obs["found"])
    np.testing.assert_allclose(figures(adata, "recoded"), figures(adata), atol=1e-12)


@pytest.mark.parametrize("max_cells", [None, 25])
def test_same_for_any_order_of_cells(max_cells):
    adata = random_tissue()
    adata.obsm["spatial"] = np.round(adata.obsm["spatial"] / 10)  # ties and coincident cells
    shuffled = adata[np.random.default_rng(1).permutation(adata.n_obs)]
    np.testing.assert_allclose(figures(shuffled, max_cells=max_cells), figures(adata, max_cells=max_cells), atol=1e-12)


@pytest.mark.parametrize("change", ["shift, rotation, scale", "flat third coordinate", "h5ad", "zarr"])
def test_same_for_other_coordinates_and_from_files(change, tmp_path):
    adata = random_tissue()
    moved, xy = adata.copy(), adata.obsm["spatial"]
    moved.obs["slide"] = adata.obs["slide"].cat.add_categories(["no cells"])
    if change in ("h5ad", "zarr"):
        getattr(adata, f"write_{change}")(tmp_path / change)
        moved = getattr(ad, f"read_{change}")(tmp_path / change)
    elif change == "flat third coordinate":
        moved.obsm["spatial"] = np.column_stack([xy, np.full(len(xy), 5.0)])
    else:
        moved.obsm["spatial"] = 3 * xy @ [[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]] + [1e8, -1e8]
    np.testing.assert_allclose(figures(moved), figures(adata), atol=1e-6)


def test_asw_sample():
    adata = random_tissue()
    full = m.asw(adata, "found")
    drawn = [m.asw(adata, "found", max_cells=60, rng=seed) for seed in range(40)]
    assert m.asw(adata, "found", max_cells=adata.n_obs) == full
    assert drawn[0] == m.asw(adata, "found", max_cells=60, rng=np.random.default_rng(0))
    assert len(set(drawn)) > 30 and np.mean(drawn) == pytest.approx(full, abs=0.02)


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
    alone = m.evaluate(adata, "found", library_key="slide").loc[("found", "s10")]
    pd.testing.assert_series_equal(table.loc["x/s10"], alone, check_names=False)


def test_evaluate_is_the_single_metrics(unchanged):
    adata, keys = random_tissue(), ["found", "truth"]
    with unchanged(adata):
        table = m.evaluate(adata, keys, reference="truth", library_key="slide")
    assert list(table.columns) == ALL and (table.dtypes == np.float64).all()
    assert list(table.index) == [(key, slide) for key in keys for slide in ("s1", "s10", "s2", "mean")]
    assert table.index.names == ["key", "slide"]
    slide = adata[adata.obs["slide"] == "s10"]
    for key in keys:
        arguments = {"ARI": (key, "truth"), "NMI": (key, "truth")}
        expected = [getattr(m, name.lower())(adata, *arguments.get(name, (key,)), library_key="slide") for name in ALL]
        np.testing.assert_allclose(table.loc[(key, "mean")], expected, atol=1e-12)
        alone = m.evaluate(slide, key, reference="truth").loc[key]
        pd.testing.assert_series_equal(table.loc[(key, "s10")], alone, check_names=False)
    plain = m.evaluate(adata, "found")
    assert list(plain.index) == ["found"] and plain.index.name == "key"
    assert list(plain.columns[plain.notna().iloc[0]]) == ["FIDE", "PAS", "ASW"]
    assert m.evaluate(slide.copy(), "found", library_key="slide")["JSD"].isna().all()


def test_undefined_becomes_nan_and_leaves_the_mean(caplog):
    """A second slide of three cells with one domain, no edges and no reference."""
    big, small = line(list("aaaaaabbbbbb"), truth=list("xxxxxyyyyyyy")), line(["a"] * 3, truth=[None] * 3)
    small.obsp[GRAPH] = sparse.csr_matrix((3, 3))
    adata = ad.concat({"big": big, "small": small}, label="slide", index_unique="-", pairwise=True)
    table = m.evaluate(adata, "domain", reference="truth", library_key="slide").loc["domain"]
    assert table.loc["small"].isna().all() and table.loc["mean", "JSD"] > 0
    alone = table[[name for name in ALL if name != "JSD"]]
    pd.testing.assert_series_equal(alone.loc["mean"], alone.loc["big"], check_names=False)
    assert alone.loc["big"].notna().all()
    assert all(any(message.startswith(f"{name} is not defined") for message in caplog.messages) for name in alone)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: m.fide(a, "nope"), KeyError, "'nope'.*found"),
        (lambda a: m.ari(a, "found", "nope"), KeyError, "'nope'"),
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
        (lambda a: m.evaluate({"x": 3}, "found"), TypeError, "x.*int"),
    ],
)
def test_bad_input_teaches_and_changes_nothing(call, error, message, unchanged):
    adata, few = random_tissue(), np.arange(125) < 9
    adata.obs = adata.obs.assign(score=np.linspace(0, 1, 125), empty=np.nan, one="one", mean="mean")
    adata.obs["left"], adata.obs["right"] = (pd.Categorical(np.where(which, "a", None)) for which in (few, ~few))
    adata.obsm["holes"] = np.where(np.arange(125)[:, None] == 3, np.nan, adata.obsm["spatial"])
    adata.obsm["wide"], adata.obsm["point"] = np.ones((125, 4)), np.ones((125, 2))
    with unchanged(adata), pytest.raises(error, match=message):
        call(adata)


@pytest.mark.parametrize(
    ("folder", "known"),
    [
        ("starmap_mpfc", {"ARI": 1, "NMI": 1, "FIDE": 0.909, "JSD": 0.014, "PAS": 0.029, "ASW": 0.628}),
        ("osmfish_cortex", {"ARI": 1, "NMI": 1, "FIDE": 0.896, "PAS": 0.011, "ASW": 0.458}),
        ("xenium_breast_idc", {"ARI": 1, "NMI": 1, "FIDE": 0.894, "PAS": 0.022, "ASW": 0.545}),
    ],
)
def test_expert_labels(dev_data, folder, known):
    """On Delaunay graphs cut at five times each section's median edge."""
    sections = {path.stem: ad.read_h5ad(path) for path in (dev_data / folder).glob("*.h5ad")}
    for section in sections.values():
        xy = section.obsm["spatial"]
        edges = np.vstack([Delaunay(xy).simplices[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
        edges = np.unique(np.sort(edges, axis=1), axis=0)
        length = np.linalg.norm(xy[edges[:, 0]] - xy[edges[:, 1]], axis=1)
        edges = edges[length <= 5 * np.median(length)]
        half = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(xy), len(xy)))
        section.obsp[GRAPH] = (half + half.T).tocsr()
    row = m.evaluate(sections, "domain", reference="domain").loc["domain"].iloc[-1]
    assert row[list(known)].round(3).to_dict() == pytest.approx(known)
