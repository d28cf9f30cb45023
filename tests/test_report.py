"""Report: the arrays in the page, decoded here, are those of the object; text cannot break out of its element."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stage_sc as st

HOSTILE = [
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "{{SCRIPT}} &amp; \u2028 <!--",
    "ü/µ",
]


class Elements(HTMLParser):
    """Scripts of a page as a browser separates them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, Any], str]] = []
        self.tags: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self.tags.append(tag)
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data


class Decoded:
    """Facts and arrays of a page."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        self.elements = Elements(self.text)
        by_id = {attributes.get("id"): text for attributes, text in self.elements.scripts}
        self.facts = json.loads(by_id["facts"])
        self.packed = {name.removeprefix("array-"): text for name, text in by_id.items() if name and "array-" in name}
        self.layers = {layer["key"]: layer for layer in self.facts["layers"]}

    def array(self, name: str) -> np.ndarray:
        stored = np.frombuffer(gzip.decompress(b64decode(self.packed[name])), np.uint8).astype(np.int64)
        n = self.facts["n"]
        values = stored if len(stored) == n else stored[:n] + 256 * stored[n:]
        return np.cumsum(values) % 65536 if name in "xy" else values

    def coordinates(self) -> pd.DataFrame:
        """Slide and place of every cell."""
        steps = np.c_[self.array("x"), self.array("y")]
        parts = []
        for slide in self.facts["slides"]:
            rows = slice(slide["start"], slide["start"] + slide["n"])
            x, y = (np.array(slide["origin"]) + slide["step"] * steps[rows]).T
            parts.append(pd.DataFrame({"slide": slide["name"], "x": x, "y": y}))
        return pd.concat(parts, ignore_index=True)

    def labels(self, key: str) -> np.ndarray:
        layer = self.layers[key]
        codes, names = self.array(f"layer{layer['base']}"), [group["name"] for group in layer["groups"]]
        if layer["map"] is not None:
            ends = len(layer["map"]) - 1
            codes = np.array(layer["map"])[np.minimum(codes, ends)]
        return np.array([*names, None], dtype=object)[np.where((codes < 0) | (codes >= len(names)), len(names), codes)]


@pytest.fixture(scope="module")
def cohort(slides) -> ad.AnnData:
    adata = slides.copy()
    st.tl.stage_niches(adata, n_domains=3)
    adata.obs["condition"] = np.where(adata.obs["slide"] == "slide1", "case", "control")
    expert = adata.obs["domain"].astype(object)
    expert[::7] = np.nan
    adata.obs["expert"] = expert
    return adata


@pytest.fixture(scope="module")
def page(cohort, tmp_path_factory, unchanged) -> Decoded:
    options = {"keys": "expert", "condition_key": "condition", "cell_type_key": "cell_type"}
    with unchanged(cohort):
        return Decoded(st.report(cohort, tmp_path_factory.mktemp("report") / "cohort.html", **options))


def by_place(decoded: Decoded, adata: ad.AnnData) -> np.ndarray:
    """Row of the nearest cell of the object, on the same slide, for every cell of the page."""
    from scipy.spatial import cKDTree

    found = np.full(decoded.facts["n"], -1)
    places = decoded.coordinates()
    for slide in decoded.facts["slides"]:
        own = np.flatnonzero(adata.obs["slide"] == slide["name"]) if slide["name"] else np.arange(adata.n_obs)
        here = np.flatnonzero(places["slide"] == slide["name"])
        away, near = cKDTree(adata.obsm["spatial"][own]).query(places.loc[here, ["x", "y"]].to_numpy())
        assert away.max() <= slide["step"]  # half a step in x and in y
        found[here] = own[near]
    assert sorted(found) == list(range(adata.n_obs))
    return found


class TestPayload:
    @pytest.mark.parametrize("key", ["stage_l1", "stage_l2", "stage_l3", "stage_domain", "expert", "cell_type"])
    def test_labels_and_places_are_those_of_the_object(self, cohort, page, key):
        rows = by_place(page, cohort)
        given = cohort.obs[key].astype(object).to_numpy()[rows]
        assert [name if isinstance(name, str) else None for name in given] == page.labels(key).tolist()

    def test_levels_above_are_read_from_the_deepest(self, page):
        bases = [page.layers[f"stage_l{level}"]["base"] for level in (1, 2, 3)]
        assert bases == [2, 2, 2] and "layer0" not in page.packed

    def test_confidence(self, cohort, page):
        given = cohort.obs["stage_confidence"].to_numpy()[by_place(page, cohort)]
        np.testing.assert_allclose(page.array("confidence") / 254, given, atol=0.5 / 254 + 1e-6)

    def test_genes_are_log_normalised_in_15_grades(self, cohort, page):
        counts = cohort.X.toarray()
        totals = counts.sum(axis=1, keepdims=True)
        values = np.log1p(counts * np.median(totals) / np.maximum(totals, 1))
        rows = by_place(page, cohort)
        assert page.facts["genes"]
        for number, gene in enumerate(page.facts["genes"]):
            own, grades = values[rows, cohort.var_names.get_loc(gene["name"])], page.array(f"gene{number}")
            assert ((grades == 0) == (own == 0)).all()
            expected = np.minimum(own, gene["top"])
            np.testing.assert_allclose(grades * gene["top"] / 15, expected, atol=gene["top"] / 15 + 1e-3)

    def test_counts_of_groups(self, cohort, page):
        for group in page.layers["stage_l2"]["groups"]:
            own = cohort.obs[cohort.obs["stage_l2"] == group["name"]]
            slides = {page.facts["slides"][i]["name"]: n for i, n in group["slides"]}
            conditions = {page.facts["conditions"][i]: n for i, n in group["conditions"]}
            types = {page.facts["types"][i]: n for i, n in group["types"]}
            for found, column in ((slides, "slide"), (conditions, "condition"), (types, "cell_type")):
                assert found == {str(name): n for name, n in own[column].value_counts().items() if n}
            assert group["n"] == len(own) == sum(group["confidence"]["bins"])
            assert group["confidence"]["mean"] == pytest.approx(own["stage_confidence"].mean(), abs=1e-4)

    def test_markers_and_neighbours_against_a_slow_reference(self, cohort, page):
        counts = cohort.X.toarray()
        totals = counts.sum(axis=1, keepdims=True)
        values = np.log1p(counts * np.median(totals) / np.maximum(totals, 1))
        edges = cohort.obsp["spatial_connectivities"].tocoo()
        groups = page.layers["stage_l2"]["groups"]
        labels = cohort.obs["stage_l2"].to_numpy().astype(object)
        checked = 0
        for group in groups:
            own = labels == group["name"]
            difference = values[own].mean(axis=0) - values[~own].mean(axis=0)
            for gene, found, inside, outside in group["markers"]:
                at = cohort.var_names.get_loc(gene)
                assert found == pytest.approx(difference[at], abs=1e-3) and found > 0
                assert inside == pytest.approx((values[own, at] > 0).mean(), abs=1e-3)
                assert outside == pytest.approx((values[~own, at] > 0).mean(), abs=1e-3)
            if group["markers"]:
                often = difference[(values[own] > 0).mean(axis=0) >= 0.1]
                assert group["markers"][0][1] == pytest.approx(often.max(), abs=1e-3)
            leaving = own[edges.row] & ~own[edges.col]
            for other, share, ratio in group["neighbors"]:
                to = labels == groups[other]["name"]
                assert share == pytest.approx((leaving & to[edges.col]).sum() / leaving.sum(), abs=1e-3)
                expected = to[edges.row].sum() / (~own)[edges.row].sum()
                assert ratio == pytest.approx(share / expected, rel=2e-2)
                checked += 1
        assert checked > 3

    def test_any_order_of_cells_and_genes_gives_the_same_file(self, cohort, page, tmp_path):
        rng = np.random.default_rng(0)
        shuffled = cohort[rng.permutation(cohort.n_obs), rng.permutation(cohort.n_vars)].copy()
        options = {"keys": "expert", "condition_key": "condition", "cell_type_key": "cell_type"}
        assert Decoded(st.report(shuffled, tmp_path / "cohort.html", **options)).text == page.text

    def test_dictionary_of_slides(self, cohort, tmp_path):
        parts = {name: cohort[cohort.obs["slide"] == name].copy() for name in cohort.obs["slide"].cat.categories}
        parts["slide1"] = parts["slide1"][:, :-3].copy()  # another panel
        found = Decoded(st.report(parts, tmp_path / "parts.html", genes=list(cohort.var_names[-3:])))
        assert [slide["name"] for slide in found.facts["slides"]] == ["slide1/slide1", "slide2/slide2"]
        n = found.facts["slides"][0]["n"]
        assert (found.array("gene0")[:n] == 255).all() and (found.array("gene0")[n:] < 16).all()
        np.testing.assert_array_equal(
            pd.Series(found.labels("stage_l3")).value_counts().sort_index(),
            cohort.obs["stage_l3"].astype(str).value_counts().sort_index(),
        )


def without_arrays(page: Decoded) -> str:
    return re.sub(r'(id="array-\w+">)[A-Za-z0-9+/=]+', r"\1", page.text)


class TestPage:
    def test_loads_and_runs_nothing_else(self, page):
        assert re.findall(r"https?:|//[a-z]|\bsrc=|\burl\(|@import|innerHTML|eval\(", without_arrays(page)) == []
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page.text)
        script = page.elements.scripts[-1][1]
        digest = b64encode(sha256(script.encode()).digest()).decode()
        assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy

    def test_hostile_names_stay_text(self, cohort, tmp_path):
        adata = cohort.copy()
        adata.obs["expert"] = pd.Categorical(np.resize(HOSTILE, adata.n_obs))
        adata.obs["slide"] = adata.obs["slide"].cat.rename_categories(
            dict(zip(["slide1", "slide2"], HOSTILE, strict=False))
        )
        adata.var_names = [*HOSTILE, *adata.var_names[len(HOSTILE) :]]
        st.tl.annotate_niches(adata, {adata.obs["stage_l1"].cat.categories[0]: HOSTILE[0]})
        found = Decoded(st.report(adata, tmp_path / "a.html", keys="expert", genes=HOSTILE, title=HOSTILE[1]))
        plain = Decoded(st.report(cohort, tmp_path / "b.html", keys="expert", n_genes=4))
        assert found.elements.tags == plain.elements.tags
        assert found.facts["title"] == HOSTILE[1] and [gene["name"] for gene in found.facts["genes"]] == HOSTILE
        assert {group["name"] for group in found.layers["expert"]["groups"]} == set(HOSTILE)
        assert {slide["name"] for slide in found.facts["slides"]} == set(HOSTILE[:2])
        assert found.elements.scripts[-1] == plain.elements.scripts[-1]

    def test_methods_and_warnings(self, cohort, tmp_path):
        adata = cohort.copy()
        adata.uns["stage_graph"]["slides"]["scale_source"] = "guess"
        facts = Decoded(st.report(adata, tmp_path / "a.html")).facts
        model = adata.uns["stage"]["model"]
        for text in (model["name"], model["digest"], st.__version__, "settle = True", "n_domains = 3", "radius"):
            assert text in facts["methods"]
        assert any("'slide1', 'slide2'" in text and "scale" in text for text in facts["warnings"])

    def test_results_of_other_tools_are_shown(self, cohort, tmp_path):
        adata = cohort.copy()
        genes = adata.var_names[::2]
        net = pd.DataFrame({"source": "even", "target": genes})
        st.tl.rank_niche_genes(adata, groupby="stage_l1")
        st.tl.pathways(adata, net, groupby="stage_l1")
        ranked = adata.uns["rank_niche_genes"]["table"].set_index("group")
        scores = adata.uns["pathways"]["table"].set_index("group")["score"]
        first = adata.obs["stage_l1"].cat.categories[0]
        st.tl.annotate_niches(adata, {first: "named later"})
        layers = Decoded(st.report(adata, tmp_path / "a.html")).layers
        for group in layers["stage_l1"]["groups"]:
            table = ranked.loc[group["id"]].head(12)
            assert [name for name, _ in group["ranked"]] == table["names"].tolist()
            assert group["pathways"] == [["even", pytest.approx(scores[group["id"]], abs=1e-4)]]
        assert all("ranked" not in group for group in layers["stage_l2"]["groups"])

    def test_columns_instead_of_niches(self, raw_tissue, tmp_path):
        found = Decoded(st.report(raw_tissue, tmp_path / "a.html", groupby="domain"))
        rows = by_place(found, raw_tissue)
        assert found.labels("domain").tolist() == raw_tissue.obs["domain"].astype(str).to_numpy()[rows].tolist()
        assert not found.facts["confidence"] and "domain" in found.facts["methods"]

    def test_scaled_expression_gives_a_page_without_genes(self, cohort, tmp_path, caplog):
        adata = cohort.copy()
        adata.X = adata.X.toarray() - 1.0
        found = Decoded(st.report(adata, tmp_path / "a.html"))
        assert found.facts["genes"] == [] and "negative" in " ".join(found.facts["warnings"])
        assert "negative" in caplog.text
        with pytest.raises(ValueError, match="negative"):
            st.report(adata, tmp_path / "b.html", genes=[adata.var_names[0]])
        assert not (tmp_path / "b.html").exists()

    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"key_added": "other"}, KeyError, "stage_niches"),
            ({"keys": "nothing"}, KeyError, "`keys`"),
            ({"condition_key": "nothing"}, KeyError, "`condition_key`"),
            ({"groupby": "stage_confidence"}, TypeError, "adata.obs"),
            ({"genes": ["no gene"]}, KeyError, "no gene"),
            ({"genes": []}, ValueError, "n_genes=0"),
            ({"n_genes": -1}, ValueError, "n_genes"),
            ({"layer": "nothing"}, KeyError, "nothing"),
            ({"title": ""}, TypeError, "title"),
        ],
    )
    def test_bad_options(self, cohort, tmp_path, options, error, text, unchanged):
        with unchanged(cohort), pytest.raises(error, match=re.escape(text)):
            st.report(cohort, tmp_path / "a.html", **options)
        assert not list(tmp_path.iterdir())

    def test_bad_path(self, cohort, tmp_path):
        with pytest.raises(ValueError, match=r"\.html"):
            st.report(cohort, tmp_path / "slide.h5ad")
        with pytest.raises(FileNotFoundError, match="path"):
            st.report(cohort, tmp_path / "none" / "a.html")
