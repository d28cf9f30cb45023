"""Niches on the tissue and in their tree, and curves of a training: colours, places, containers, files, bad input."""

from __future__ import annotations

import io
from functools import partial
from itertools import combinations

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import squidpy as sq
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy.spatial.distance import cdist, pdist
from skimage.color import rgb2lab

import stage_sc as st
from stage_sc import _palette
from stage_sc._palette import distinct_colors, tree_colors
from stage_sc.pl import _points, niche_tree, spatial_domains, training_curves

LEVELS = ["stage_l1", "stage_l2", "stage_l3"]


@pytest.fixture(autouse=True)
def _no_windows():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def make_tree(*branching: int) -> pd.DataFrame:
    """A full tree whose nodes are numbered level by level."""
    rows, above = [], [""]
    for level, width in enumerate(branching, start=1):
        parents = np.repeat(above, width)
        above = [f"N{len(rows) + i}" for i in range(len(parents))]
        rows += [(node, level, str(parent)) for node, parent in zip(above, parents, strict=True)]
    return pd.DataFrame(rows, columns=["node", "level", "parent"]).set_index("node").rename_axis(None)


def leaves_of(tree: pd.DataFrame) -> np.ndarray:
    return tree.index[tree["level"] == tree["level"].max()].to_numpy()


def label(adata: ad.AnnData, leaf: np.ndarray, tree: pd.DataFrame) -> ad.AnnData:
    """Write what `stage_niches` writes, for the given leaf of each cell."""
    columns = [pd.Series(leaf, adata.obs_names, dtype=object)]
    for _ in range(int(tree["level"].max()) - 1):
        columns.insert(0, columns[0].map(tree["parent"]))
    levels = LEVELS[: len(columns)]
    for name, nodes in zip(levels, columns, strict=True):  # within a level of a full tree, by number is depth-first
        adata.obs[name] = pd.Categorical(nodes, categories=[node for node in tree.index if node in set(nodes)])
    adata.obs["stage_path"] = pd.Categorical(pd.concat(columns, axis=1).agg(">".join, axis=1))
    params, model = {"library_key": ""}, {"name": "made", "digest": "0" * 16, "version": "0"}
    adata.uns["stage"] = {"params": params, "model": model, "levels": levels, "tree": tree.assign(n_cells=0)}
    return adata


@pytest.fixture
def adata() -> ad.AnnData:
    xy, tree = np.random.default_rng(0).uniform(0, 500, (400, 2)), make_tree(4, 3, 5)
    domain, expert = np.where(xy[:, 1] < 250, "D1", "D2"), np.where(xy[:, 0] < 200, "cortex", "white matter")
    obs = pd.DataFrame({"stage_domain": pd.Categorical(domain), "expert": expert, "depth": xy[:, 1]})
    adata = ad.AnnData(np.zeros((400, 1), np.float32), obs.set_index("cell" + obs.index.astype(str)))
    adata.obsm["spatial"] = xy
    return label(adata, leaves_of(tree)[[0, 1, 7, 20, 21, 40, 55, 59]][(xy[:, 0] // 62.5).astype(int)], tree)


@pytest.fixture
def slides(adata) -> ad.AnnData:
    adata.obs["slide"] = pd.Categorical(np.resize(["b", "a", "c"], 400), categories=["b", "a", "c", "unused"])
    adata.uns["stage"]["params"]["library_key"] = "slide"
    return adata


def circles(ax: Axes) -> dict[str, EllipseCollection]:
    return {str(c.get_label()): c for c in ax.collections if isinstance(c, EllipseCollection)}


def bars(ax: Axes) -> list[tuple[str, float]]:
    """Text and length, in units of the coordinates, of each scale bar."""
    found = [artist for artist in ax.artists if isinstance(artist, AnchoredSizeBar)]
    return [(bar.txt_label.get_text(), bar.size_bar.get_children()[0].get_width()) for bar in found]


def by_place(xy: np.ndarray) -> np.ndarray:
    return xy[np.lexsort(np.asarray(xy).T)]


def pixels(fig: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=60, format="raw")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def lab(colors) -> np.ndarray:
    return rgb2lab(np.array([mpl.colors.to_rgb(color) for color in colors]))


def nearest_two(colors) -> float:
    return pdist(lab(colors)).min()


@pytest.mark.parametrize("branching", [(8, 8, 8), (5, 4, 3), (16, 4), (30, 2), (2, 6, 6), (1, 6, 4), (3,)])
def test_every_node_has_a_colour_and_siblings_differ(branching):
    tree = make_tree(*branching)
    colors = tree_colors(tree)
    assert set(colors) == set(tree.index)
    for parent, family in tree.groupby("parent").groups.items():
        if 1 < len(family):
            assert nearest_two([colors[node] for node in family]) > (5 if parent or len(family) > 10 else 15)


def test_related_niches_look_related():
    tree = make_tree(8, 8, 8)
    leaves = leaves_of(tree)
    family = tree["parent"].reindex(tree["parent"].reindex(leaves)).to_numpy()
    colors = tree_colors(tree)
    hue = np.array([np.arctan2(b, a) for _, a, b in lab([colors[leaf] for leaf in leaves])])
    within = [abs(np.exp(1j * hue[family == root]).mean()) for root in np.unique(family)]
    assert min(within) > 0.9 and abs(np.exp(1j * hue).mean()) < 0.5


def test_distinct_colours_grow_without_changing():
    many = distinct_colors(40)
    assert distinct_colors(5) == many[:5] and distinct_colors(0) == [] and len(distinct_colors(2000)) == 2000
    assert nearest_two(many[:12]) > 15 and nearest_two(many) > 8
    assert cdist(lab(many), lab(["white", _palette.MISSING_COLOR])).min() > 15


def test_colours_are_remembered_in_category_order(adata):
    """Those of nodes and paths from the tree, those of domains by their number."""
    adata.obs["stage_domain"] = pd.Categorical(np.resize(["D2", "D10"], 400), categories=["D2", "D10"])
    spatial_domains(adata, keys=[*LEVELS, "stage_path", "stage_domain"], show=False)
    of_node = tree_colors(adata.uns["stage"]["tree"])
    for key in [*LEVELS, "stage_path"]:
        leaves = [name.rsplit(">")[-1] for name in adata.obs[key].cat.categories]
        assert adata.uns[f"{key}_colors"] == [of_node[node] for node in leaves]
    assert adata.uns["stage_domain_colors"] == [distinct_colors(10)[1], distinct_colors(10)[9]]


def test_a_niche_keeps_its_colour_in_a_subset_and_on_another_slide(adata):
    few = adata[adata.obsm["spatial"][:, 0] > 300].copy()
    everywhere, here = {}, {}
    for part, found in ((adata, everywhere), (few, here)):
        spatial_domains(part, keys="stage_l3", show=False)
        found.update(zip(part.obs["stage_l3"].cat.categories, part.uns["stage_l3_colors"], strict=True))
    assert 0 < len(here) < len(everywhere) and here.items() <= everywhere.items()
    niche_tree(few, show=False)
    assert few.uns["stage_l3_colors"] == list(here.values())


def test_stored_colours_of_the_right_length_are_kept_and_others_replaced(adata):
    """Renamed niches keep the colours of the tree."""
    adata.uns["stage_domain_colors"], adata.uns["expert_colors"] = np.array(["red", "blue"]), ["red"]
    adata.obs["stage_l1"] = adata.obs["stage_l1"].cat.rename_categories({"N0": "pia"})
    domain, expert, _ = spatial_domains(adata, keys=["stage_domain", "expert", "stage_l1"], show=False)
    assert list(adata.uns["stage_domain_colors"]) == ["red", "blue"]
    assert to_hex(circles(domain)["D1"].get_facecolor()[0]) == to_hex("red")
    assert adata.uns["expert_colors"] == distinct_colors(2)
    assert to_hex(circles(expert)["cortex"].get_facecolor()[0]) == distinct_colors(1)[0]
    of_node = tree_colors(adata.uns["stage"]["tree"])
    names = adata.obs["stage_l1"].cat.categories
    assert adata.uns["stage_l1_colors"] == [of_node["N0" if name == "pia" else name] for name in names]


def test_palette_changes_the_named_niches_only(adata):
    spatial_domains(adata, keys="stage_l1", show=False)
    expected = list(adata.uns["stage_l1_colors"])
    ax = spatial_domains(adata, keys="stage_l1", palette={"N1": "gold", "elsewhere": "red"}, show=False)
    expected[adata.obs["stage_l1"].cat.categories.get_loc("N1")] = to_hex("gold")
    assert adata.uns["stage_l1_colors"] == expected
    assert to_hex(circles(ax)["N1"].get_facecolor()[0]) == to_hex("gold")


def test_panels_titles_and_frames(adata):
    titles = ["level 1 · 4 niches", "level 2 · 5 niches", "level 3 · 8 niches", "2 domains"]
    assert [ax.get_title() for ax in spatial_domains(adata, show=False)] == titles
    del adata.obs["stage_domain"]
    assert len(spatial_domains(adata, show=False)) == 3
    del adata.uns["stage"]  # labels without niches can be drawn too
    plain = spatial_domains(adata, keys="expert", show=False)
    framed = spatial_domains(adata, keys="expert", title="mine", frameon=True, show=False)
    found = [(ax.get_title(), ax.spines["top"].get_visible()) for ax in (plain, framed)]
    assert found == [("expert", False), ("mine", True)]


@pytest.mark.parametrize("key", ["stage_l2", "expert"])
def test_each_category_is_drawn_where_its_cells_are(adata, key):
    adata.obs[key] = adata.obs[key].astype("category")
    ax = spatial_domains(adata, keys=key, show=False)
    drawn, xy = circles(ax), adata.obsm["spatial"]
    assert set(drawn) == set(adata.obs[key])
    for name, color in zip(adata.obs[key].cat.categories, adata.uns[f"{key}_colors"], strict=True):
        np.testing.assert_array_equal(by_place(drawn[name].get_offsets()), by_place(xy[adata.obs[key] == name]))
        assert to_hex(drawn[name].get_facecolor()[0]) == color
        assert drawn[name].get_rasterized()
    assert ax.get_aspect() == 1 and not ax.get_xticks().size and not ax.get_yticks().size
    theirs = sq.pl.spatial_scatter(adata, color=key, shape=None, library_id="x", return_ax=True)
    assert (ax.yaxis_inverted(), ax.xaxis_inverted()) == (theirs.yaxis_inverted(), theirs.xaxis_inverted())


def test_circles_touch_on_a_hexagonal_grid(adata):
    row, column = (grid.ravel() for grid in np.mgrid[:60, :60])
    xy = 100 * np.c_[column + 0.5 * (row % 2), row * np.sqrt(3) / 2]
    spacing = _points.cell_spacing(xy)
    assert spacing * np.sqrt(2 / np.sqrt(3)) == pytest.approx(100, rel=0.05)
    assert _points.cell_spacing(7 * xy[::-1] + 3) == pytest.approx(7 * spacing)
    apart = np.r_[xy, xy + 50_000]  # the empty space between two pieces does not count
    assert _points.cell_spacing(apart) == pytest.approx(spacing, rel=0.3)
    assert _points.cell_spacing(np.zeros((3, 2))) == 1 and _points.cell_spacing(np.c_[np.arange(5.0), np.zeros(5)]) == 1
    one, half = (circles(spatial_domains(adata, keys="expert", size=s, show=False))["cortex"] for s in (1, 0.5))
    assert half.get_widths()[0] == pytest.approx(one.get_widths()[0] / 2)
    assert one.get_widths()[0] == pytest.approx(np.sqrt(2 / np.sqrt(3)) * 25, rel=0.1)  # 400 cells on 500 x 500


@pytest.mark.parametrize("kind", ["circles", "picture", "tree"])
def test_plots_do_not_depend_on_the_order_of_cells(slides, monkeypatch, kind):
    if kind == "picture":
        monkeypatch.setattr(_points, "MOST_CIRCLES", 10)
        monkeypatch.setattr(_points, "PIXELS", 300)
    if kind != "tree":
        slides.obsm["spatial"][:40] = slides.obsm["spatial"][40:80]  # cells in the same place
        slides.obs.loc[slides.obs_names[:50], "stage_l3"] = np.nan
    shuffled = slides[np.random.default_rng(1).permutation(slides.n_obs)].copy()
    plot = niche_tree if kind == "tree" else partial(spatial_domains, keys=["stage_l3", "expert"])
    one, other = (pixels(plot(a, return_fig=True)) for a in (slides, shuffled))
    np.testing.assert_array_equal(one, other)


def test_picture_of_many_cells_shows_the_nearest_cell(adata, monkeypatch):
    monkeypatch.setattr(_points, "MOST_CIRCLES", 10)
    monkeypatch.setattr(_points, "PIXELS", 50)
    adata.obs.loc[adata.obs_names[:60], "stage_l1"] = np.nan
    ax = spatial_domains(adata, keys="stage_l1", show=False)
    (image,) = ax.images
    shown = image.get_array()
    left, right, bottom, top = image.get_extent()
    rows, columns = shown.shape[:2]
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = top + (np.arange(rows) + 0.5) * (bottom - top) / rows
    distance = cdist(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2), adata.obsm["spatial"])
    names = adata.obs["stage_l1"].astype(object).to_numpy()[distance.argmin(axis=1)]
    colors = dict(zip(adata.obs["stage_l1"].cat.categories, adata.uns["stage_l1_colors"], strict=True))
    near = distance.min(axis=1) <= 0.8 * _points.cell_spacing(adata.obsm["spatial"])
    filled = [f"{colors.get(name, _palette.MISSING_COLOR)}ff" for name in names]
    want = np.where(near, filled, "#ffffff00").tolist()
    assert [to_hex(rgba / 255, keep_alpha=True) for rgba in shown.reshape(-1, 4)] == want
    assert len(set(want)) == 6  # four niches, missing, nothing
    assert ax.yaxis_inverted()


def test_legend_lists_the_niches_in_use_in_tree_order(adata):
    """Missing labels are last there, and are drawn first, in grey."""
    adata.obs.loc[adata.obs_names[:50], "stage_l3"] = np.nan
    ax = spatial_domains(adata, keys="stage_l3", show=False)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [*adata.obs["stage_l3"].cat.categories, "missing"]
    colors = [*adata.uns["stage_l3_colors"], _palette.MISSING_COLOR]
    assert [to_hex(handle.get_color()) for handle in ax.get_legend().legend_handles] == colors
    (name, first), *_ = circles(ax).items()
    assert (name, len(first.get_offsets()), to_hex(first.get_facecolor()[0])) == ("missing", 50, colors[-1])
    assert spatial_domains(adata, keys="stage_l3", legend_loc=None, show=False).get_legend() is None
    tree = make_tree(8, 64)  # too many are counted instead
    one, two = spatial_domains(label(adata, leaves_of(tree)[np.arange(400)], tree), keys=LEVELS[:2], show=False)
    assert one.get_legend() is not None and two.get_legend() is None and two.get_title() == "level 2 · 400 niches"


def test_slides_are_rows_and_keys_are_columns(slides):
    """One key flows over the slides."""
    axes = spatial_domains(slides, keys=["stage_l1", "expert"], libraries=["c", "a"], show=False)
    assert [ax.get_ylabel() for ax in axes] == ["c", "", "a", ""]
    assert [ax.get_title() for ax in axes] == ["level 1 · 4 niches", "expert", "", ""]
    assert [ax.get_legend() is not None for ax in axes] == [True, True, False, False]
    for ax, name in zip(axes[1::2], ["c", "a"], strict=True):
        drawn = np.concatenate([c.get_offsets() for c in circles(ax).values()])
        want = slides.obsm["spatial"][slides.obs["slide"] == name]
        np.testing.assert_array_equal(by_place(drawn), by_place(want))
    axes = spatial_domains(slides, keys="stage_l1", ncols=2, show=False)
    assert [ax.get_title() for ax in axes] == ["b", "a", "c"] and len(axes[0].figure.axes) == 3
    assert [ax.get_legend() is not None for ax in axes] == [False, True, False]
    one = spatial_domains(slides, keys="stage_l1", libraries="a", show=False)
    assert axes[0].figure.get_suptitle() == one.get_title() == "level 1 · 4 niches"


def test_slide_key_given_beats_the_remembered_one(slides):
    """Slides may be numbers."""
    slides.obs["section"] = np.resize([10, 2], 400)
    axes = spatial_domains(slides, keys="expert", library_key="section", show=False)
    assert [ax.get_title() for ax in axes] == ["2", "10"]
    assert sum(len(c.get_offsets()) for c in circles(axes[0]).values()) == 200
    spatial_domains(slides, keys="expert", library_key="section", libraries=["10"], show=False)
    with pytest.raises(KeyError, match="3"):
        spatial_domains(slides, keys="expert", library_key="section", libraries=["3"], show=False)


def graph_of(spatial_key: str, *scales: float, names: str = "x") -> dict[str, object]:
    """What `build_graph` writes, as far as plots read it."""
    return {"slides": pd.DataFrame({"scale": scales}, index=list(names)), "params": {"spatial_key": spatial_key}}


def test_scale_bar(slides):
    """Each slide has its own, of each object too; cells of several slides in one panel have none."""
    draw = partial(spatial_domains, keys="expert", show=False)
    assert not bars(draw(slides, libraries="a")), "no graph, no scale"
    slides.uns["stage_graph"] = graph_of("spatial", 1.0, 0.1, 20.0, names="abc")
    found = [bars(ax) for ax in draw(slides, libraries=["b", "a", "c"])]
    assert found == [[(text, pytest.approx(100))] for text in ("10 µm", "100 µm", "2 mm")]
    slides.obsm["pixels"] = slides.obsm["spatial"] * 10
    assert not bars(draw(slides, libraries="b", spatial_key="pixels")), "other coordinates"
    slides.uns["stage_graph"] = graph_of("pixels", 1.0, 0.1, 20.0, names="abc")
    assert bars(draw(slides, libraries="b", spatial_key="pixels"))
    objects = parts_of(slides)
    slides.uns["stage"]["params"]["library_key"] = ""
    assert not bars(draw(slides, spatial_key="pixels"))
    for (name, part), scales in zip(objects.items(), [(1.0, 0.1), (20.0,), (1.0,)], strict=True):
        part.obs["half"] = np.resize(["x", "y"], part.n_obs) if name == "a" else "x"
        part.uns["stage_graph"] = graph_of("spatial", *scales, names="xy"[: len(scales)])
    found = {ax.get_title(): bars(ax)[0][0] for ax in draw(objects, library_key="half")}
    assert found == {"a/x": "100 µm", "a/y": "10 µm", "b/x": "2 mm", "c/x": "100 µm"}


@pytest.mark.parametrize("other", [14.5, {"of": "development"}], ids=str)
def test_something_else_is_called_stage(adata, other):
    adata.uns["stage"] = other
    assert set(circles(spatial_domains(adata, keys="expert", show=False))) == {"cortex", "white matter"}
    for plot in (niche_tree, spatial_domains):
        with pytest.raises(KeyError, match="st.tl.stage_niches"):
            plot(adata, show=False)


def nodes_of(ax: Axes) -> tuple[np.ndarray, PathCollection]:
    (nodes,) = (c for c in ax.collections if isinstance(c, PathCollection))
    return np.asarray(nodes.get_offsets()), nodes


def test_nodes_are_sized_coloured_and_placed_in_tree_order(adata):
    ax = niche_tree(adata, show=False)
    xy, nodes = nodes_of(ax)
    counts = np.concatenate([adata.obs[key].value_counts(sort=False).to_numpy() for key in LEVELS])
    assert [int((xy[:, 1] == y).sum()) for y in (0, -1, -2)] == [4, 5, 8]
    np.testing.assert_allclose(nodes.get_sizes() / nodes.get_sizes().max(), counts / counts.max())
    colors = [color for key in LEVELS for color in adata.uns[f"{key}_colors"]]
    assert [to_hex(color) for color in nodes.get_facecolors()] == colors
    texts = {text.get_text() for text in ax.texts}
    assert {"level 1\n4 of 4", "level 2\n5 of 12", "level 3\n8 of 60"} <= texts
    assert set(adata.obs["stage_l1"]) | set(adata.obs["stage_l3"]) <= texts
    names = [node for key in LEVELS for node in adata.obs[key].cat.categories]
    x, parent = dict(zip(names, xy[:, 0], strict=True)), adata.uns["stage"]["tree"]["parent"]
    assert [x[node] for node in names[-8:]] == list(range(8))
    for node in names[:-8]:  # above the middle of its children
        below = [x[child] for child in names if parent[child] == node]
        assert x[node] == pytest.approx((min(below) + max(below)) / 2)


def test_names_of_hundreds_of_leaves_do_not_overlap(adata):
    tree = make_tree(8, 8, 4)
    ax = niche_tree(label(adata, leaves_of(tree)[np.arange(400) * 256 // 400], tree), show=False)
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text().startswith("N")]
    assert 30 < len(boxes) < 300
    assert sum(a.overlaps(b) for a, b in combinations(boxes, 2)) <= 0.02 * len(boxes)


def test_max_level_and_min_cells_prune(adata):
    xy, _ = nodes_of(niche_tree(adata, max_level=2, show=False))
    assert len(xy) == 9 and "stage_l3_colors" not in adata.uns
    few = int(adata.obs["stage_l3"].value_counts().min()) + 1
    xy, _ = nodes_of(niche_tree(adata, min_cells=few, show=False))
    counts = pd.concat([adata.obs[key].value_counts() for key in LEVELS])
    assert len(xy) == (counts >= few).sum() < 17
    part = adata[adata.obsm["spatial"][:, 0] < 100]  # a subset shows its own use
    assert len(nodes_of(niche_tree(part, show=False))[0]) == sum(part.obs[key].nunique() for key in LEVELS) < 17
    one = label(adata, np.array(["N1"] * 400), make_tree(1, 1))
    assert len(nodes_of(niche_tree(one, show=False))[0]) == 2


@pytest.mark.parametrize("max_level", [None, 2])
def test_strip_shows_fractions_of_each_slide(slides, max_level):
    ax = niche_tree(slides, max_level=max_level, show=False)
    (strip,) = (np.asarray(c.get_array()) for c in ax.collections if isinstance(c, QuadMesh))
    key = f"stage_l{max_level or 3}"
    want = pd.crosstab(slides.obs["slide"], slides.obs[key], normalize="index") * 100
    want = want.loc[["b", "a", "c"], list(slides.obs[key].cat.categories)]
    np.testing.assert_allclose(strip.reshape(want.shape), want)
    assert {"b", "a", "c"} <= {text.get_text() for text in ax.texts}
    slides.uns["stage"]["params"]["library_key"] = ""
    assert not any(isinstance(c, QuadMesh) for c in niche_tree(slides, show=False).collections)


# ------------------------------------------------------------------------------------------------ any plot: containers

BOTH = pytest.mark.parametrize("plot", [partial(spatial_domains, keys=["stage_l1", "expert"]), niche_tree])
BOTH_ALONE = pytest.mark.parametrize("plot", [partial(spatial_domains, keys="stage_l1"), niche_tree])


def parts_of(slides: ad.AnnData) -> dict[str, ad.AnnData]:
    """An object for each slide, that names no slides itself."""
    parts = {name: slides[slides.obs["slide"] == name].copy() for name in ("a", "b", "c")}
    for part in parts.values():
        del part.obs["slide"]
        part.uns["stage"]["params"]["library_key"] = ""
    return parts


@BOTH
@pytest.mark.parametrize("kind", [dict, list])
def test_several_objects_are_drawn_like_one(slides, plot, kind):
    slides.obs["slide"] = slides.obs["slide"].cat.remove_unused_categories().cat.reorder_categories(["a", "b", "c"])
    given = parts_of(slides)
    if kind is list:
        given, slides.obs["slide"] = list(given.values()), slides.obs["slide"].cat.rename_categories(["0", "1", "2"])
    one, other = (pixels(plot(data, return_fig=True)) for data in (given, slides))
    np.testing.assert_array_equal(one, other)


@BOTH
def test_colours_agree_across_objects(slides, plot):
    """Also where objects lack categories, and where the first has colours of its own."""
    parts = parts_of(slides)
    parts["b"] = parts["b"][parts["b"].obs["stage_l1"].isin(["N1", "N3"])].copy()
    first = parts["a"].obs["stage_l1"].cat.categories
    parts["a"].uns["stage_l1_colors"] = ["#ff0000", *distinct_colors(len(first) - 1)]
    parts["c"].uns["stage_l1_colors"] = ["#000000"] * parts["c"].obs["stage_l1"].nunique()
    plot(parts, show=False)
    want = dict(zip(first, parts["a"].uns["stage_l1_colors"], strict=True))
    assert want[first[0]] == "#ff0000"
    for part in parts.values():
        assert part.uns["stage_l1_colors"] == [want[name] for name in part.obs["stage_l1"].cat.categories]


@BOTH_ALONE
def test_returned_shown_and_saved(adata, plot, monkeypatch, tmp_path):
    shown, before = [], sc.settings.autoshow
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()))
    assert isinstance(plot(adata, show=False), Axes) and not shown
    own = plt.figure().add_subplot()
    assert all(plot(adata, ax=own, show=show) is own for show in (None, False, True))
    assert plt.fignum_exists(own.figure.number)
    plt.close("all")
    shown.clear()
    assert isinstance(plot(adata, return_fig=True), Figure) and not plt.get_fignums() and not shown
    assert plot(adata, show=True) is None and len(shown) == 1 and not plt.get_fignums()
    try:
        for sc.settings.autoshow in (True, False):
            assert (plot(adata) is None) == sc.settings.autoshow and len(shown) == 2
    finally:
        sc.settings.autoshow = before
    assert plot(adata, save=tmp_path / "niches.png", show=False) is not None
    assert plt.imread(tmp_path / "niches.png").shape[1] > 600
    assert plot(adata, save=str(tmp_path / "niches.pdf"), show=True) is None
    assert (tmp_path / "niches.pdf").read_bytes().startswith(b"%PDF")


@BOTH
def test_nothing_but_colours_changes(slides, plot, unchanged):
    settings, keys, view = dict(mpl.rcParams), set(slides.uns), slides[slides.obs["slide"] == "a"]
    plot(view, show=False)
    assert view.is_view and set(view.uns) == keys and dict(mpl.rcParams) == settings
    plot(slides, show=False)
    added = set(slides.uns) - keys
    assert added and all(key.endswith("_colors") for key in added)
    with unchanged(slides):
        plot(slides, show=False)


@BOTH
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_files_give_the_same_picture(slides, plot, tmp_path, suffix):
    want = pixels(plot(slides, return_fig=True))
    getattr(slides, f"write_{suffix}")(tmp_path / f"slides.{suffix}")
    back = getattr(ad, f"read_{suffix}")(tmp_path / f"slides.{suffix}")
    np.testing.assert_array_equal(pixels(plot(back, return_fig=True)), want)
    assert list(back.uns["stage_l1_colors"]) == slides.uns["stage_l1_colors"]


def test_another_key_added_and_no_cells(adata):
    adata.uns["fine"] = adata.uns.pop("stage") | {"levels": ["fine_l1", "fine_l2", "fine_l3"]}
    adata.obs = adata.obs.rename(columns=lambda name: name.replace("stage", "fine"))
    assert len(spatial_domains(adata, key_added="fine", show=False)) == 4
    assert len(nodes_of(niche_tree(adata, key_added="fine", show=False))[0]) == 17
    with pytest.raises(ValueError, match="no cells"):
        spatial_domains(adata[:0].copy(), key_added="fine", show=False)


@pytest.mark.parametrize(
    ("plot", "kwargs", "error", "match"),
    [
        (spatial_domains, {"key_added": "x"}, KeyError, "st.tl.stage_niches.*'x'"),
        (spatial_domains, {"keys": "layer"}, KeyError, "'layer'.*expert"),
        (spatial_domains, {"keys": []}, ValueError, "`keys`"),
        (spatial_domains, {"keys": "depth"}, TypeError, "depth.*float64"),
        (spatial_domains, {"spatial_key": "xy"}, KeyError, "'xy'.*'spatial'"),
        (spatial_domains, {"spatial_key": "holes"}, ValueError, "1 of 400 cells"),
        (spatial_domains, {"library_key": "slide"}, KeyError, "'slide'"),
        (spatial_domains, {"library_key": "some"}, ValueError, "200 of 400"),
        (spatial_domains, {"library_key": "expert", "libraries": ["z"]}, KeyError, "'z'.*cortex"),
        (spatial_domains, {"library_key": "expert", "libraries": []}, ValueError, "`libraries`"),
        (spatial_domains, {"libraries": ["z"]}, ValueError, "library_key"),
        (spatial_domains, {"palette": ["red"]}, TypeError, "list"),
        (spatial_domains, {"palette": {"N0": "reddish"}}, ValueError, "reddish"),
        (spatial_domains, {"size": 0}, ValueError, "`size`"),
        (spatial_domains, {"ncols": 0}, ValueError, "`ncols`"),
        (spatial_domains, {"title": ["a", "b"]}, ValueError, "4 keys"),
        (spatial_domains, {"legend_loc": "left"}, ValueError, "left"),
        (spatial_domains, {"ax": "one"}, TypeError, "`ax`"),
        (niche_tree, {"key_added": "x"}, KeyError, "stage_niches"),
        (niche_tree, {"max_level": 4}, ValueError, "1 to 3.* 4"),
        (niche_tree, {"max_level": 0}, ValueError, "1 to 3.* 0"),
        (niche_tree, {"min_cells": 0}, ValueError, "`min_cells`"),
        (niche_tree, {"min_cells": 401}, ValueError, "401"),
        (niche_tree, {"palette": "tab10"}, TypeError, "str"),
    ],
    ids=str,
)
def test_bad_arguments_teach(adata, plot, kwargs, error, match):
    adata.obsm["holes"] = np.where(np.arange(400)[:, None] == 3, np.nan, adata.obsm["spatial"])
    adata.obs["some"] = pd.Categorical(["a", None] * 200)
    keys = set(adata.uns)
    with pytest.raises(error, match=match):
        plot(adata, show=False, **kwargs)
    assert set(adata.uns) == keys and not plt.get_fignums()


@pytest.fixture
def history() -> pd.DataFrame:
    loss = np.linspace(3, 2, 5)
    columns = {"stage": ["warm-up"] * 3 + ["joint"] * 2, "loss": loss, "swav": loss - 0.5, "cosine": loss / 10}
    columns |= {"entropy": loss / 4, "used": [10, 12, 11, 9, 9], "path": [np.nan] * 3 + [0.4, 0.3]}
    return pd.DataFrame(columns).rename_axis("epoch")


def curves_of(fig: Figure, style: str = "-") -> list[dict[str, np.ndarray]]:
    """Lines of a style in each panel, by name."""
    return [{line.get_label(): line for line in ax.get_lines() if line.get_linestyle() == style} for ax in fig.axes]


def boundaries(fig: Figure) -> list[list[float]]:
    return [[line.get_xdata()[0] for line in lines.values()] for lines in curves_of(fig, "--")]


@pytest.mark.parametrize("index", ["epoch", None])
def test_curves_of_a_table_and_of_a_file(history, tmp_path, index):
    history.to_csv(tmp_path / "history.csv")
    before = history.copy()
    read = pd.read_csv(tmp_path / "history.csv", index_col=index)
    for fig in (training_curves(table, return_fig=True) for table in (history, read)):
        assert [list(lines) for lines in curves_of(fig)] == [
            ["loss", "swav", "path"],
            ["entropy"],
            ["used"],
            ["cosine"],
        ]
        assert boundaries(fig) == [[2.5]] * 4
        for name, line in (pair for lines in curves_of(fig) for pair in lines.items()):
            np.testing.assert_allclose(line.get_ydata(), history[name], rtol=1e-12)
        assert [text.get_text() for text in fig.legends[0].get_texts()] == ["loss", "swav", "path", "joint training"]
    pd.testing.assert_frame_equal(history, before)


def test_curves_of_a_single_stage_or_epoch(history):
    """No boundary; a single point can be seen."""
    for part in (history.iloc[:3], history.iloc[3:], history.iloc[:1]):
        fig = training_curves(part, return_fig=True)
        assert boundaries(fig) == [[]] * 4
    assert all(line.get_marker() == "." for lines in curves_of(fig) for line in lines.values())


def test_curves_returned_and_saved(small_model, history, tmp_path):
    assert len(training_curves(history, show=False)) == 4 and training_curves(history, show=True) is None
    fig = training_curves(small_model, figsize=(3, 3), save=tmp_path / "curves.png", return_fig=True)
    assert isinstance(fig, Figure) and fig.get_size_inches().tolist() == [3, 3]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(curves_of(fig)[0]) == ["loss", "swav", "reconstruction", "path"]
    for name, line in (pair for lines in curves_of(fig) for pair in lines.items()):
        np.testing.assert_array_equal(line.get_ydata(), small_model.history[name])


def test_curves_refused(history, small_model, tissue, tmp_path):
    read = st.model.load_checkpoint(st.model.save_checkpoint(small_model, tmp_path / "model"))
    untrained = st.tl.fit(tissue, config=small_model.config, epochs=0, progress=False)
    for table, error, match in [
        (history.drop(columns=["used", "cosine"]), KeyError, "'used', 'cosine'"),
        (read, ValueError, "no history"),
        (history.iloc[:0], ValueError, "no epoch"),
        (untrained, ValueError, "no epoch"),
    ]:
        with pytest.raises(error, match=match):
            training_curves(table)
