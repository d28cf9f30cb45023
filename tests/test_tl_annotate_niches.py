"""Names of niches: ids kept, used by plots and later calls, read from files, proposed; colours of an expert."""

from __future__ import annotations

import json
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stage_sc as st


@pytest.fixture(scope="module")
def labelled(slides) -> ad.AnnData:
    adata = slides.copy()
    st.tl.stage_niches(adata, n_domains=3)
    return adata


@pytest.fixture
def adata(labelled) -> ad.AnnData:
    return labelled.copy()


def largest(adata: ad.AnnData, level: int, n: int = 1) -> list[str]:
    return list(adata.obs[f"stage_l{level}"].value_counts().index[:n])


def test_names_are_categories_and_ids_are_kept(adata, labelled):
    first, second = largest(adata, 2, 2)
    st.tl.annotate_niches(adata, {first: "T zone", "D1": "core", largest(adata, 1)[0]: "T zone"})
    named = labelled.obs["stage_l2"].cat.rename_categories({first: "T zone"})
    pd.testing.assert_series_equal(adata.obs["stage_l2"], named)
    assert "T zone" in adata.obs["stage_l1"].cat.categories and "core" in adata.obs["stage_domain"].cat.categories
    pd.testing.assert_series_equal(adata.obs["stage_path"], labelled.obs["stage_path"])
    tree = adata.uns["stage"]["tree"]
    assert tree.index.equals(labelled.uns["stage"]["tree"].index)
    assert tree.loc[first, "name"] == "T zone" and tree.loc[second, "name"] == ""
    assert "name" not in labelled.uns["stage"]["tree"]


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_names_survive_files_and_can_be_changed(adata, labelled, tmp_path, kind):
    first, second, third = largest(adata, 2, 3)
    st.tl.annotate_niches(adata, {first: "T zone", second: "a/b > ü", "D2": "rim"})
    path = tmp_path / f"a.{kind}"
    getattr(adata, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    st.tl.annotate_niches(back, {"T zone": "paracortex", "a/b > ü": None, third: "x", "rim": "edge"})
    names = labelled.obs["stage_l2"].astype(str).replace({first: "paracortex", third: "x"})
    assert back.obs["stage_l2"].astype(str).tolist() == names.tolist()
    assert back.uns["stage"]["domain_names"] == {"D2": "edge"}
    st.tl.annotate_niches(back, {first: "", third: "", "D2": ""})
    assert back.obs["stage_l2"].tolist() == labelled.obs["stage_l2"].tolist()
    assert "domain_names" not in back.uns["stage"]


def test_same_names_do_not_join_niches(adata, labelled):
    first, second = largest(adata, 2, 2)
    st.tl.annotate_niches(adata, {first: "stroma", second: "stroma"})
    codes = adata.obs["stage_l2"].cat.codes
    assert (codes == labelled.obs["stage_l2"].cat.codes).all()
    assert {f"stroma ({first})", f"stroma ({second})"} <= set(adata.obs["stage_l2"].cat.categories)
    with pytest.raises(KeyError, match="stroma"):
        st.tl.annotate_niches(adata, {"stroma": "x"})
    st.tl.annotate_niches(adata, {first: "fat"})
    assert {"fat", "stroma"} <= set(adata.obs["stage_l2"].cat.categories)


def test_long_names_of_a_tree_overlap_neither_each_other_nor_the_legend(adata):
    import matplotlib.pyplot as plt

    ids = list(adata.obs["stage_l1"].cat.categories)
    names = {id_: f"{id_}: eL2/3 + Astro (Bgn, Aqp4)" for id_ in ids}
    st.tl.annotate_niches(adata, names)
    ax = st.pl.niche_tree(adata, max_level=1, show=False)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in names.values()]
    assert len(boxes) >= 3  # the largest; others do not fit
    boxes.append(ax.get_legend().get_window_extent())
    assert not [1 for number, box in enumerate(boxes) if box.count_overlaps(boxes[:number])]
    plt.close(ax.figure)


def test_plots_and_reports_show_names_in_the_colours_of_before(adata, labelled, tmp_path):
    import matplotlib.pyplot as plt

    (first,) = largest(adata, 2)
    before, fresh = labelled.copy(), adata
    st.tl.annotate_niches(fresh, {first: "T zone", "D1": "core"})
    for one in (before, fresh):
        st.pl.spatial_domains(one, keys=["stage_l2", "stage_domain"], show=False)
        ax = st.pl.niche_tree(one, show=False)
    texts = {text.get_text() for text in ax.texts}
    plt.close("all")
    assert "T zone" in texts and first not in texts
    for key in ("stage_l2_colors", "stage_domain_colors"):
        assert list(before.uns[key]) == list(fresh.uns[key])
    page = st.report(fresh, tmp_path / "a.html").read_text()
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', page, re.DOTALL)[1])
    found = {group["name"]: group["id"] for layer in facts["layers"] for group in layer["groups"]}
    assert found["T zone"] == first and found["core"] == "D1"


def test_names_by_hand_are_understood(adata):
    first, second = largest(adata, 2, 2)
    adata.obs["stage_l2"] = adata.obs["stage_l2"].cat.rename_categories({first: "mine"})
    st.tl.annotate_niches(adata, {second: "other"})
    assert {"mine", "other"} <= set(adata.obs["stage_l2"].cat.categories)
    assert adata.uns["stage"]["tree"].loc[first, "name"] == "mine"
    joined = adata.copy()
    joined.obs["stage_l2"] = (
        joined.obs["stage_l2"].astype(str).replace({"mine": "both", "other": "both"}).astype("category")
    )
    with pytest.raises(ValueError, match="by hand"):
        st.tl.annotate_niches(joined, {second: "x"})


def test_several_objects_and_subsets(adata):
    parts = {name: adata[adata.obs["slide"] == name].copy() for name in ("slide1", "slide2")}
    (first,) = largest(adata, 1)
    copies = st.tl.annotate_niches(parts, {first: "T zone"}, copy=True)
    whole = st.tl.annotate_niches(adata, {first: "T zone"}, copy=True)
    for name, part in copies.items():
        assert part.obs["stage_l1"].tolist() == whole.obs.loc[part.obs_names, "stage_l1"].tolist()
        assert "T zone" not in parts[name].obs["stage_l1"].cat.categories


def test_colours_match_an_expert(adata):
    adata.obs["expert"] = adata.obs["domain"].astype("category")
    names = list(adata.obs["expert"].cat.categories)
    adata.uns["expert_colors"] = ["#ff0000", "#00aa00", "#0000ff", "#ffaa00", "#00ffff", "#888888"]
    st.tl.annotate_niches(adata, match_to="expert")
    for key in ("stage_l1", "stage_l2", "stage_domain"):
        niches, colors = list(adata.obs[key].cat.categories), list(adata.uns[f"{key}_colors"])
        table = pd.crosstab(adata.obs[key], adata.obs["expert"]).loc[niches, names]
        for number, expert in enumerate(names):
            own = table.index[table.to_numpy().argmax(axis=1) == number]
            if len(own):
                best = table.loc[own, expert].idxmax()
                assert colors[niches.index(best)] == adata.uns["expert_colors"][number]
                assert len({colors[niches.index(name)] for name in own}) == len(own)
    assert list(adata.uns["expert_colors"])[0] == "#ff0000"


def test_regions_of_a_file(adata, tmp_path):
    path = tmp_path / "drawn.geojson"

    def write(slide: str) -> None:
        square = [[0, 0], [200, 0], [200, 200], [0, 200], [0, 0]]
        small = [[0, 0], [90, 0], [90, 90], [0, 90], [0, 0]]
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"name": name, "slide": slide},
            }
            for name, ring in (("inner", small), ("outer", square))
        ]
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))

    write("slide2")
    xy, here = adata.obsm["spatial"], (adata.obs["slide"] == "slide2").to_numpy()
    st.tl.annotate_niches(adata, path)
    inside = [here & ((xy >= 0) & (xy <= side)).all(axis=1) for side in (90, 200)]
    assert inside[0].any()
    expected = np.select([inside[0], inside[1]], ["inner", "outer"], "")
    assert adata.obs["stage_region"].astype(object).fillna("").tolist() == expected.tolist()
    write("none")
    with pytest.raises(KeyError, match="slide2"):
        st.tl.annotate_niches(adata, path)


def test_proposals(adata, unchanged):
    with unchanged(adata):
        table = st.tl.propose_names(adata, cell_type_key="cell_type")
    assert table["n_cells"].groupby(table["level"]).sum().to_dict() == dict.fromkeys((0, 1, 2, 3), adata.n_obs)
    domains = table[table["level"] == 0]
    assert domains["n_cells"].to_dict() == adata.obs["stage_domain"].value_counts().to_dict()
    counts = adata.X.toarray()
    totals = counts.sum(axis=1, keepdims=True)
    values = np.log1p(counts * np.median(totals) / np.maximum(totals, 1))
    for niche in largest(adata, 2, 3):
        own = (adata.obs["stage_l2"] == niche).to_numpy()
        difference = values[own].mean(axis=0) - values[~own].mean(axis=0)
        often = np.where((values[own] > 0).mean(axis=0) >= 0.1, difference, -1)
        assert table.loc[niche, "markers"].split(", ")[0] == adata.var_names[often.argmax()]
        share = adata.obs["cell_type"][own].value_counts(normalize=True)
        share = share[share > 0]
        score = share * np.log(share / adata.obs["cell_type"].value_counts(normalize=True))
        assert table.loc[niche, "proposal"].startswith(str(score.idxmax()))
    st.tl.annotate_niches(adata, table["proposal"])
    assert domains["proposal"]["D1"] in adata.obs["stage_domain"].cat.categories
    again = st.tl.propose_names(adata, cell_type_key="cell_type")
    pd.testing.assert_frame_equal(again.drop(columns="name"), table.drop(columns="name"))
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    pd.testing.assert_frame_equal(st.tl.propose_names(shuffled, cell_type_key="cell_type"), again)


@pytest.mark.parametrize(
    ("names", "error", "text"),
    [
        ({"N99999": "x"}, KeyError, "N99999"),
        ({"N0": "N1"}, ValueError, "id of another"),
        ({"N0": 3}, TypeError, "N0"),
        ({3: "x"}, TypeError, "3"),
        ({"N0": "a\nb"}, ValueError, "printed"),
        (["N0"], TypeError, "list"),
        (None, ValueError, "nothing"),
        ("no such file", FileNotFoundError, "no such file"),
    ],
)
def test_bad_names(adata, names, error, text, unchanged):
    with unchanged(adata), pytest.raises(error, match=text):
        st.tl.annotate_niches(adata, names)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"names": 3}', '{"features": [3]}', '{"features": [{}]}'])
def test_bad_files(adata, content, tmp_path, unchanged):
    (tmp_path / "a.json").write_text(content)
    with unchanged(adata), pytest.raises(ValueError, match="was not saved by a report"):
        st.tl.annotate_niches(adata, tmp_path / "a.json")
