"""Plots: groups, names on the data, files, sizes of figures, renamed niches, scales, and objects left as they were."""

from __future__ import annotations

import logging

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from matplotlib.collections import EllipseCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

import stage_sc as st

LEVELS = ["stage_l1", "stage_l2"]


@pytest.fixture(autouse=True)
def _no_windows():
    plt.switch_backend("Agg")
    before, sc.settings.autoshow = sc.settings.autoshow, False
    yield
    plt.close("all")
    sc.settings.autoshow = before


def labelled(n_slides: int = 1, n: int = 300, n_leaves: int = 12, shapes=((600, 400),)) -> ad.AnnData:
    """What `stage_niches` writes, for patches of leaves of a tree with four niches at level 1."""
    rng, leaves = np.random.default_rng(0), np.arange(4, 4 + n_leaves)
    xy, leaf = [], []
    for slide in range(n_slides):
        xy.append(rng.uniform(0, 1, (n, 2)) * shapes[slide % len(shapes)])
        leaf.append(leaves[np.argsort(np.argsort(xy[-1][:, 0])) * n_leaves // n])
    nodes = np.concatenate(leaf)
    parent = (np.arange(n_leaves) * 4 // n_leaves)[nodes - 4]
    adata = ad.AnnData(np.zeros((len(nodes), 1), np.float32), obsm={"spatial": np.concatenate(xy)})
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    named = [f"N{node}" for node in range(4 + n_leaves)]
    adata.obs["stage_l1"] = pd.Categorical([f"N{node}" for node in parent], categories=named[:4])
    adata.obs["stage_l2"] = pd.Categorical([f"N{node}" for node in nodes], categories=named[4:])
    adata.obs["stage_path"] = pd.Categorical([f"N{a}>N{b}" for a, b in zip(parent, nodes, strict=True)])
    names = [f"s{i}" for i in range(n_slides)]
    adata.obs["slide"] = pd.Categorical(np.repeat(names, n), categories=names)
    tree = pd.DataFrame({"level": [1] * 4 + [2] * n_leaves}, index=named)
    tree["parent"] = [""] * 4 + [f"N{i * 4 // n_leaves}" for i in range(n_leaves)]
    tree["n_cells"] = np.bincount(np.r_[parent, nodes], minlength=len(named))
    params = {"library_key": "slide" if n_slides > 1 else "", "spatial_key": "spatial"}
    adata.uns["stage"] = {"params": params, "model": {"digest": "0"}, "levels": LEVELS, "tree": tree}
    return adata


def circles(ax) -> dict[str, np.ndarray]:
    return {str(c.get_label()): c.get_offsets() for c in ax.collections if isinstance(c, EllipseCollection)}


def bar(ax) -> str:
    return next((a.txt_label.get_text() for a in ax.artists if isinstance(a, AnchoredSizeBar)), "")


def said(caplog) -> str:
    return " ".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_groups_are_coloured_and_the_rest_is_grey_below():
    adata = labelled()
    ax = st.pl.spatial_domains(adata, keys="stage_l2", groups=["N5", "N9"])
    drawn = circles(ax)
    assert list(drawn)[0] == "missing" and set(drawn) == {"missing", "N5", "N9"}
    assert sum(map(len, drawn.values())) == adata.n_obs
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["N5", "N9", "other"]
    alone = labelled()
    st.pl.spatial_domains(alone, keys="stage_l2")
    assert adata.uns["stage_l2_colors"] == alone.uns["stage_l2_colors"]
    assert st.pl.spatial_domains(adata, groups="N5").get_title() == "level 2 · 12 niches"
    with pytest.raises(KeyError, match="`groups`.*pia"):
        st.pl.spatial_domains(adata, groups=["N5", "pia"])


@pytest.mark.parametrize("n", [12, 100])
def test_names_on_data_stand_on_their_niche_and_do_not_overlap(n):
    adata = labelled(n=1000, n_leaves=n)
    ax = st.pl.spatial_domains(adata, keys="stage_l2", legend_loc="on data" if n < 40 else "right margin")
    assert ax.get_legend() is None
    ax.figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert 10 <= len(boxes) <= n
    assert not any(a.overlaps(b) for one, a in boxes.items() for other, b in boxes.items() if one < other)
    for text in ax.texts:
        own = adata.obsm["spatial"][adata.obs["stage_l2"] == text.get_text()]
        assert np.hypot(*(own - text.get_position()).T).min() < 30 and text.get_path_effects()


def test_save_as_in_scanpy(tmp_path):
    adata, folder = labelled(), tmp_path / "figures"
    before = sc.settings.figdir, sc.settings.file_format_figs
    try:
        sc.settings.figdir, sc.settings.file_format_figs = folder, "png"
        st.pl.spatial_domains(adata, save=True, dpi=50)
        st.pl.niche_tree(adata, save=True, dpi=100, show=True)
    finally:
        sc.settings.figdir, sc.settings.file_format_figs = before
    assert sorted(path.name for path in folder.iterdir()) == ["niche_tree.png", "spatial_domains.png"]
    st.pl.niche_tree(adata, save=tmp_path / "tree.png", dpi=200, return_fig=True)
    few, many = (plt.imread(path).shape[0] for path in (folder / "niche_tree.png", tmp_path / "tree.png"))
    assert many == pytest.approx(2 * few, abs=4)


@pytest.mark.parametrize(
    ("n", "shapes", "kwargs"),
    [
        (100, ((600, 400),), {}),
        (30, ((600, 400),), {"keys": LEVELS}),
        (8, ((600, 400),) * 7 + ((100, 3000),), {"keys": "stage_l1"}),
        (4, ((100, 3000),), {}),
        (4, ((9000, 300),), {}),
        (30, ((600, 400),), {"ncols": 1}),
    ],
    ids=str,
)
def test_figures_have_a_sane_size_and_are_filled(n, shapes, kwargs, caplog):
    adata = labelled(n, 20, 4, shapes)
    fig = st.pl.spatial_domains(adata, library_key="slide", return_fig=True, **kwargs)
    width, height = fig.get_size_inches()
    assert width < 30.01 and height < 40.01
    fig.draw_without_rendering()
    area = sum(ax.get_position().width * ax.get_position().height for ax in fig.axes)
    assert area > (0.3 if "ncols" not in kwargs else 0.01)
    n_keys = (
        1 if n > 12 and not isinstance(kwargs.get("keys"), list) else len(np.atleast_1d(kwargs.get("keys", LEVELS)))
    )
    assert len(fig.axes) == n * n_keys
    assert ("`keys`" in said(caplog)) == (n > 12 and "keys" not in kwargs)
    assert max(st.pl.niche_tree(adata, library_key="slide", return_fig=True).get_size_inches()) < 40


def test_thousands_of_slides_are_cut_with_a_word(caplog, monkeypatch):
    monkeypatch.setattr("stage_sc.pl._spatial_domains.MOST_PANELS", 20)
    adata = labelled(n=900)
    adata.obs["one"] = np.arange(900) // 2
    fig = st.pl.spatial_domains(adata, keys="stage_l1", library_key="one", return_fig=True)
    assert len(fig.axes) == 20 and "`libraries`" in said(caplog) and "450" in said(caplog)


NEW = {"N0": "pia", "N1": "white matter", "N2": "a$b$c", "N3": "_x" * 50}


def nodes_of(ax) -> list[str]:
    (nodes,) = (c for c in ax.collections if isinstance(c, PathCollection))
    return [to_hex(color) for color in nodes.get_facecolors()]


@pytest.mark.parametrize("path", [True, False])
def test_renamed_niches_keep_colour_place_and_strip(path, caplog):
    adata, renamed = labelled(3), labelled(3)
    if not path:  # the order and the numbers of cells tell
        del renamed.obs["stage_path"]
    renamed.rename_categories("stage_l1", list(NEW.values()))
    want, ax = (st.pl.niche_tree(a) for a in (adata, renamed))
    assert nodes_of(ax) == nodes_of(want) and renamed.uns["stage_l1_colors"] == adata.uns["stage_l1_colors"]
    strips = [next(c.get_array() for c in one.collections if isinstance(c, QuadMesh)) for one in (want, ax)]
    np.testing.assert_array_equal(*strips)
    assert {"pia", "white matter", r"a\$b\$c"} <= {text.get_text() for text in ax.texts} and not said(caplog)
    del renamed.uns["stage_l1_colors"]
    fig = st.pl.spatial_domains(renamed, keys="stage_l1", return_fig=True)
    assert renamed.uns["stage_l1_colors"] == adata.uns["stage_l1_colors"]
    fig.draw_without_rendering()
    assert len(fig.axes[-1].get_legend().get_texts()) == 4


def test_joined_niches_are_counted_by_their_paths_or_drawn_without_strip(caplog):
    adata = labelled(3)
    adata.obs["stage_l1"] = adata.obs["stage_l1"].astype(str).replace(NEW | {"N1": "pia"}).astype("category")
    assert any(isinstance(c, QuadMesh) for c in st.pl.niche_tree(adata).collections) and not said(caplog)
    del adata.obs["stage_path"]
    ax = st.pl.niche_tree(adata)
    assert not any(isinstance(c, QuadMesh) for c in ax.collections) and "renamed or joined" in said(caplog)
    assert len(nodes_of(ax)) == 16
    st.pl.spatial_domains(adata, keys="stage_l1")
    assert len(adata.uns["stage_l1_colors"]) == 3


def with_graph(adata: ad.AnnData, scale: float, source: str = "given") -> ad.AnnData:
    """A graph of one slide with three edges, as `build_graph` writes it."""
    table = pd.DataFrame({"scale": [scale], "n_cells": [adata.n_obs], "scale_source": [source]}, index=[""])
    adata.uns["stage_graph"] = {"slides": table, "params": {"spatial_key": "spatial"}}
    length = np.hypot(*(adata.obsm["spatial"][:3] - adata.obsm["spatial"][3:6]).T) * scale
    adata.obsp["spatial_distances"] = sp.csr_matrix((length, ([0, 1, 2], [3, 4, 5])), shape=[adata.n_obs] * 2)
    return adata


def test_scale_bars_of_joined_slides_and_of_guessed_scales():
    parts = {"a": with_graph(labelled(), 1.0), "b": with_graph(labelled(), 20.0)}
    for pairwise, want in ((True, ["100 µm", "2 mm"]), (False, ["", ""])):
        both = ad.concat(parts, label="sample", index_unique="-", uns_merge="first", pairwise=pairwise)
        axes = st.pl.spatial_domains(both, keys="stage_l1", library_key="sample")
        assert [bar(ax) for ax in axes] == want
    assert bar(st.pl.spatial_domains(with_graph(labelled(), 1.0, "guess"), keys="stage_l1")) == "≈ 100 µm"


def test_slides_on_one_place_are_told(caplog):
    parts = {name: labelled() for name in ("a", "b")}
    both = ad.concat(parts, label="sample", index_unique="-", uns_merge="first")
    st.pl.spatial_domains(both, keys="stage_l1", library_key="")
    assert "library_key" in said(caplog) and "sample" in said(caplog)
    caplog.clear()
    st.pl.spatial_domains(both, keys="stage_l1", library_key="sample")
    assert not said(caplog)


BAD = [
    {"size": "big"},
    {"size": np.nan},
    {"size": np.inf},
    {"size": True},
    {"figsize": "big"},
    {"figsize": (3,)},
    {"figsize": (3, np.nan)},
    {"figsize": (1e6, 1e6)},
    {"figsize": (3, "4")},
    {"dpi": 0},
    {"dpi": "high"},
    {"dpi": 1e6},
    {"save": 3},
    {"save": ""},
    {"save": "x.xyz"},
    {"save": "/no/such/folder/x.png"},
    {"show": "yes"},
    {"return_fig": 1},
    {"ax": 3},
    {"ax": [None]},
    {"palette": "tab10"},
    {"palette": {"N0": "reddish"}},
    {"key_added": ["stage"]},
    {"key_added": None},
    {"library_key": ["slide"]},
    {"library_key": 3},
    {"spatial_key": ["spatial"]},
    {"keys": 3},
    {"keys": [None]},
    {"keys": [["stage_l1"]]},
    {"keys": ["stage_l1", "depth"]},
    {"libraries": 3.5},
    {"libraries": [None]},
    {"groups": 2.5},
    {"groups": []},
    {"groups": ["x"]},
    {"title": 3},
    {"title": [3, 4]},
    {"ncols": 1.5},
    {"ncols": "2"},
    {"frameon": "no"},
    {"legend_loc": ["right margin"]},
    {"legend_loc": 3},
    {"max_level": "1"},
    {"max_level": 1.5},
    {"min_cells": None},
    {"min_cells": "1"},
    {"min_cells": True},
    {"data": None},
    {"data": [1, 2]},
    {"data": {}},
    {"data": "x"},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_arguments_are_named_and_change_nothing(bad, unchanged):
    adata = labelled(2)
    adata.obs["depth"] = 0.5
    for plot in (st.pl.spatial_domains, st.pl.niche_tree):
        if not bad.keys() <= set(plot.__annotations__):
            continue
        with unchanged(adata), pytest.raises((TypeError, ValueError, KeyError, FileNotFoundError)) as error:
            plot(bad.get("data", adata), **{name: value for name, value in bad.items() if name != "data"})
        (name,) = bad
        assert f"`{name}" in str(error.value) or (name, bad[name]) == ("keys", ["stage_l1", "depth"])
        assert not plt.get_fignums()


@pytest.mark.parametrize("plot", [st.pl.spatial_domains, st.pl.niche_tree], ids=["cells", "tree"])
def test_failure_while_drawing_or_saving_leaves_no_trace(plot, unchanged, monkeypatch, tmp_path):
    adata, file = labelled(2), tmp_path / "figure.png"
    file.write_bytes(b"mine")

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(plt.Figure, "savefig", fail)
    with unchanged(adata), pytest.raises(OSError, match="no space"):
        plot(adata, save=file)
    assert not plt.get_fignums() and file.read_bytes() == b"mine"


def test_colours_of_another_kind_are_left_alone():
    adata = labelled()
    adata.uns["stage_l1_colors"] = {"of": "the user"}
    st.pl.spatial_domains(adata, keys="stage_l1")
    assert adata.uns["stage_l1_colors"] == {"of": "the user"}


@pytest.mark.parametrize("history", [None, "history.csv", [1, 2], 3.0], ids=str)
def test_curves_of_something_else(history):
    with pytest.raises(TypeError, match="`history`"):
        st.pl.training_curves(history)


def test_curves_that_cannot_be_drawn_leave_no_figure():
    table = pd.DataFrame({"stage": ["joint"] * 3, "loss": [3.0, 2, 1], "entropy": 1.0, "used": 3, "cosine": 0.1})
    for column, values in (("used", ["a", "b", "c"]), ("loss", [None, "x", 1])):
        with pytest.raises(TypeError, match=column):
            st.pl.training_curves(table.assign(**{column: values}))
    with pytest.raises(ValueError, match="loss"):
        st.pl.training_curves(pd.concat([table, table[["loss"]]], axis=1))
    assert not plt.get_fignums()
    st.pl.training_curves(table.assign(used=np.nan, cosine=np.inf), return_fig=True)
