"""Outlines of labels: polygons against cells, measures, files of other programs, SpatialData, regions read back."""

from __future__ import annotations

import csv
import json
import warnings

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

import stage_sc as st

STEP = 10.0


def place(xy: np.ndarray, labels: list[str] | np.ndarray, **obs: object) -> ad.AnnData:
    table = pd.DataFrame({"kind": labels, **obs}, index=[f"c{i}" for i in range(len(xy))])
    return ad.AnnData(np.ones((len(xy), 1), np.float32), obs=table, obsm={"spatial": np.asarray(xy, float)})


def grid(columns: int, rows: int) -> np.ndarray:
    return STEP * np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)


def outline(adata: ad.AnnData, **arguments: object) -> gpd.GeoDataFrame:
    return st.tl.outline_niches(adata, groupby="kind", **{"min_cells": 1, **arguments})


@pytest.fixture(scope="module")
def patches() -> ad.AnnData:
    """Labels in patches, with a ring, a hole in the tissue and a far cell."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 400, (1500, 2))
    xy = np.concatenate([xy[np.linalg.norm(xy - [300, 300], axis=1) > 50], [[900.0, 900.0]]])
    radius = np.linalg.norm(xy - [150, 150], axis=1)
    labels = np.where(radius < 40, "core", np.where(radius < 90, "ring", np.where(xy[:, 0] < 200, "left", "right")))
    return place(xy, labels)


def test_cells_lie_in_the_outline_of_their_label(patches):
    outlines = outline(patches).set_index("label")
    for label, rows in patches.obs.groupby("kind").indices.items():
        inside = shapely.contains_xy(outlines.loc[label, "geometry"], patches.obsm["spatial"])
        assert np.flatnonzero(inside).tolist() == sorted(rows)
    assert outlines["n_cells"].sum() == patches.n_obs
    assert shapely.is_valid(outlines.geometry).all()


def test_outlines_tile_the_tissue(patches):
    outlines = outline(patches)
    whole = outline(place(patches.obsm["spatial"], ["all"] * patches.n_obs))
    assert outlines["area"].sum() == pytest.approx(whole["area"].sum(), rel=1e-9)
    assert shapely.area(shapely.union_all(outlines.geometry)) == pytest.approx(outlines["area"].sum(), rel=1e-9)
    # Without the circle that has no cells.
    assert not shapely.contains_xy(whole.geometry[0], 300, 300)
    assert shapely.contains_xy(outline(patches, max_gap=1000.0).union_all(), 300, 300)


def test_ring_keeps_its_hole(patches):
    ring = outline(patches).set_index("label").loc["ring"]
    assert ring["n_components"] == 1
    assert [len(part.interiors) for part in ring.geometry.geoms] == [1]
    assert ring["area"] == pytest.approx(np.pi * (90**2 - 40**2), rel=0.1)
    assert ring["depth"] == pytest.approx(25, abs=6)


def test_measures_of_a_rectangle():
    strip = outline(place(grid(20, 4), ["a"] * 80)).iloc[0]
    assert strip["area"] == pytest.approx(200 * 40, rel=0.01)
    assert strip["perimeter"] == pytest.approx(480, rel=0.03)
    assert strip["elongation"] == pytest.approx(1 - 40 / 200, abs=0.01)
    assert strip["depth"] == pytest.approx(20, abs=1)


def test_cells_of_a_grid_that_meet_in_a_corner_are_apart():
    xy = grid(8, 8)
    labels = np.where(xy.sum(axis=1) / STEP % 2 == 0, "black", "white")
    for turn in (0.0, 0.3):
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        outlines = outline(place((xy @ rotation).astype(np.float32), labels))
        assert outlines["n_components"].tolist() == [32, 32]
        assert outlines["area"].tolist() == pytest.approx([3200, 3200], rel=0.02)


def test_order_of_cells_and_place_do_not_matter(patches):
    expected = outline(patches)
    shuffled = outline(patches[np.random.default_rng(1).permutation(patches.n_obs)].copy())
    assert shapely.equals(expected.geometry, shuffled.geometry).all()
    moved = patches.copy()
    moved.obsm["spatial"] = 3 * moved.obsm["spatial"] + [1e5, -2e4]
    moved = outline(moved)
    np.testing.assert_allclose(moved["area"], 9 * expected["area"], rtol=1e-6)
    np.testing.assert_allclose(moved["perimeter"], 3 * expected["perimeter"], rtol=1e-6)


def test_small_pieces_missing_labels_and_cells_at_one_place():
    xy = np.concatenate([grid(10, 10), grid(10, 10)[:30]])
    labels = np.array(["a"] * 100 + ["b"] * 30, dtype=object)
    labels[[0, 55]] = ["b", None]
    adata = place(xy, labels)
    outlines = outline(adata, min_cells=3).set_index("label")
    # At the places with both, the first label counts; the single b and the cell without a label are holes.
    assert outlines.index.tolist() == ["a"]
    assert outlines.loc["a", "n_cells"] == 98
    assert len(outlines.loc["a", "geometry"].geoms[0].interiors) == 1
    assert len(outline(adata, min_cells=200)) == 0


def test_simpler_lines_keep_common_borders(patches):
    rough, smooth = outline(patches, min_cells=5), outline(patches, min_cells=5, simplify=10.0)
    points = [shapely.get_num_coordinates(one.geometry).sum() for one in (rough, smooth)]
    assert points[1] < 0.7 * points[0]
    assert smooth["perimeter"].sum() < rough["perimeter"].sum()
    assert shapely.area(shapely.union_all(smooth.geometry)) == pytest.approx(smooth["area"].sum(), rel=1e-9)


def test_slides_levels_colours_and_micrometres(slides, small_model):
    one = slides[slides.obs["slide"] == "slide1"].copy()
    two = slides[slides.obs["slide"] == "slide2"].copy()
    st.tl.stage_niches([one, two], model=small_model, n_domains=3)
    with pytest.raises(KeyError, match="'slide9'"):
        st.tl.write_outlines(st.tl.outline_niches([one, two], min_cells=1), "a.csv", slide="slide9")
    outlines = st.tl.outline_niches({"a": one, "b": two}, min_cells=1)
    assert outlines["slide"].unique().tolist() == ["a/slide1", "b/slide2"]
    assert outlines.groupby("slide")["n_cells"].sum().tolist() == [one.n_obs, two.n_obs]
    st.pl.spatial_domains({"a": one, "b": two}, keys="stage_domain", show=False)
    shades = dict(zip(one.obs["stage_domain"].cat.categories, one.uns["stage_domain_colors"], strict=True))
    assert dict(zip(outlines["label"], outlines["color"], strict=True)).items() <= shades.items()
    level = st.tl.outline_niches(one, groupby="stage_l1", min_cells=1)
    assert set(level["label"]) == set(one.obs["stage_l1"])
    tenth = one.copy()
    tenth.obsm["spatial"] = tenth.obsm["spatial"] / 10
    st.pp.build_graph(tenth, scale=10.0, library_key="slide")
    micrometres = st.tl.outline_niches(tenth, min_cells=1, micrometres=True)
    np.testing.assert_allclose(micrometres["area"], st.tl.outline_niches(one, min_cells=1)["area"])


def test_geojson_and_selections_come_back_as_labels(patches, tmp_path):
    outlines = outline(patches)
    content = json.loads(st.tl.write_outlines(outlines, tmp_path / "o.geojson").read_text())
    properties = content["features"][0]["properties"]
    assert (content["type"], properties["objectType"]) == ("FeatureCollection", "annotation")
    assert properties["classification"]["name"] == properties["name"] == "core"
    assert all(0 <= value <= 255 for value in properties["classification"]["color"])
    assert gpd.read_file(tmp_path / "o.geojson").geometry.area.tolist() == pytest.approx(outlines["area"].tolist())
    for source in (outlines, tmp_path / "o.geojson", content):
        adata = patches.copy()
        st.tl.label_regions(adata, source)
        assert (adata.obs["annotation"].astype(str) == patches.obs["kind"]).all()
        assert adata.uns["annotation_regions"]["n_cells"].sum() == patches.n_obs
    doubled = st.tl.write_outlines(outlines, tmp_path / "pixels.geojson", scale=2.0)
    st.tl.label_regions(adata, doubled, scale=0.5)
    assert (adata.obs["annotation"].astype(str) == patches.obs["kind"]).all()

    lines = st.tl.write_outlines(outlines, tmp_path / "o.csv").read_text().splitlines()
    pieces = outlines["n_components"].sum()
    assert lines[0].startswith("#Selection names: core, ") and lines[1].startswith("#Areas (µm^2): ")
    assert len(lines[0].split(", ")) == len(lines[1].split(", ")) == pieces
    rows = list(csv.DictReader(lines[2:]))
    assert list(rows[0]) == ["Selection", "X", "Y"] and len({row["Selection"] for row in rows}) == pieces
    st.tl.label_regions(adata, tmp_path / "o.csv", key_added="drawn")
    # Selections have no holes: the core lies in both, and the smaller one counts.
    found = adata.obs["drawn"].astype(str).str.replace(r" \d+$", "", regex=True)
    assert (found == patches.obs["kind"]).all()


def test_results_survive_files(patches, tmp_path):
    adata = patches.copy()
    st.tl.label_regions(adata, outline(patches))
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for read in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        assert read.obs["annotation"].tolist() == adata.obs["annotation"].tolist()
        pd.testing.assert_frame_equal(
            read.uns["annotation_regions"], adata.uns["annotation_regions"], check_dtype=False, check_index_type=False
        )
        st.tl.label_regions(read, outline(patches))  # again


def test_nested_regions_and_borders():
    adata = place(grid(5, 5), ["a"] * 25)
    drawn = gpd.GeoDataFrame(
        {"name": ["big", "small", "big"]},
        geometry=[shapely.box(0, 0, 40, 20), shapely.box(0, 0, 10, 10), shapely.box(40, 40, 50, 50)],
    )
    st.tl.label_regions(adata, drawn)
    counts = adata.obs["annotation"].value_counts()
    assert counts.to_dict() == {"big": 12, "small": 4}
    assert adata.obs["annotation"].isna().sum() == 9


def test_regions_of_one_slide_leave_the_others(patches):
    two = ad.concat({"a": patches, "b": patches}, label="slide", index_unique="-")
    box = gpd.GeoDataFrame({"label": ["left"]}, geometry=[shapely.box(0, 0, 100, 400)])
    with pytest.raises(ValueError, match="`slide`"):
        st.tl.label_regions(two, box, library_key="slide")
    st.tl.label_regions(two, box, library_key="slide", slide="a")
    st.tl.label_regions(two, box.assign(label="west"), library_key="slide", slide="b")
    assert two.obs.groupby("slide", observed=True)["annotation"].unique().map(set).to_dict() == {
        "a": {"left", np.nan},
        "b": {"west", np.nan},
    }


@pytest.mark.parametrize(
    ("regions", "error", "match"),
    [
        ("none.geojson", FileNotFoundError, "none.geojson"),
        ({"type": "FeatureCollection", "features": []}, ValueError, "no features"),
        (gpd.GeoDataFrame({"label": ["p"]}, geometry=[shapely.Point(0, 0)]), ValueError, "no polygons"),
        (gpd.GeoDataFrame({"label": ["p"]}, geometry=[shapely.box(1e6, 0, 2e6, 1)]), ValueError, "`scale`"),
        (3, TypeError, "`regions`"),
    ],
)
def test_bad_regions(patches, unchanged, regions, error, match):
    with unchanged(patches), pytest.raises(error, match=match):
        st.tl.label_regions(patches, regions)


def test_files_that_are_none(patches, tmp_path):
    (tmp_path / "a.geojson").write_text("no json")
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    for name in ("a.geojson", "a.csv"):
        with pytest.raises(ValueError, match="no GeoJSON and no CSV"):
            st.tl.label_regions(patches, tmp_path / name)
    with pytest.raises(ValueError, match="'kind'"):
        st.tl.label_regions(patches, outline(patches), key_added="kind")
    with pytest.raises(ValueError, match=r"\.geojson"):
        st.tl.write_outlines(outline(patches), tmp_path / "a.shp")


def test_cell_groups(patches, tmp_path):
    adata = patches.copy()
    adata.obs["cell_id"] = [f"aaaa{i}-1" for i in range(adata.n_obs)]
    adata.obs.loc["c0", "kind"] = None
    table = pd.read_csv(st.tl.write_cell_groups(adata, tmp_path / "g.csv", groupby="kind"))
    assert table.columns.tolist() == ["cell_id", "group", "color"]
    assert table["cell_id"].tolist() == adata.obs["cell_id"].tolist()[1:]
    assert table["group"].tolist() == adata.obs["kind"].tolist()[1:]
    assert table.groupby("group")["color"].nunique().tolist() == [1] * 4
    adata.obs["cell_id"] = "same"
    with pytest.raises(ValueError, match="repeated"):
        st.tl.write_cell_groups(adata, tmp_path / "g.csv", groupby="kind")


def spatial_data(adata: ad.AnnData, coordinates: np.ndarray) -> object:
    """Circles in µm, drawn at twice the size and shifted, with the table that annotates them."""
    import spatialdata as sd
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Affine

    move = Affine([[2, 0, 5], [0, 2, 7], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    circles = ShapesModel.parse(adata.obsm["spatial"], geometry=0, radius=3.0, transformations={"global": move})
    table = adata.copy()
    table.obsm["spatial"] = coordinates
    table.obs["region"], table.obs["instance"] = pd.Categorical(["cells"] * adata.n_obs), np.arange(adata.n_obs)
    table = TableModel.parse(table, region="cells", region_key="region", instance_key="instance")
    return sd.SpatialData(shapes={"cells": circles}, tables={"table": table})


@pytest.mark.filterwarnings("ignore")
def test_spatial_data(patches, tmp_path):
    import spatialdata as sd
    from spatialdata import transform

    expected = outline(patches)
    for coordinates in (patches.obsm["spatial"], 2 * patches.obsm["spatial"] + [5, 7]):
        sdata = spatial_data(patches, coordinates)
        st.tl.outline_niches(sdata, groupby="kind", min_cells=1, shapes_key="niches")
        st.tl.outline_niches(sdata, groupby="kind", min_cells=1, shapes_key="niches")  # replaced
        in_system = transform(sdata.shapes["niches"], to_coordinate_system="global")
        np.testing.assert_allclose(in_system.geometry.area, 4 * expected["area"], rtol=1e-6)
        inside = shapely.contains_xy(in_system.geometry["core"], 2 * patches.obsm["spatial"] + [5, 7])
        assert (inside == (patches.obs["kind"] == "core")).all()
        with pytest.raises(ValueError, match="'cells' exists"):
            st.tl.outline_niches(sdata, groupby="kind", shapes_key="cells")
    sdata.write(tmp_path / "s.zarr")
    read = sd.read_zarr(tmp_path / "s.zarr").shapes["niches"]
    assert read["label"].astype(str).tolist() == expected["label"].astype(str).tolist()
    assert shapely.equals_exact(read.geometry, sdata.shapes["niches"].geometry, 1e-9).all()
    drawn = gpd.GeoDataFrame({"label": ["left"]}, geometry=[shapely.box(0, 0, 300, 900)])
    st.tl.label_regions(sdata, drawn)
    assert (
        sdata.tables["table"].obs["annotation"].notna() == (sdata.tables["table"].obsm["spatial"][:, 0] <= 300)
    ).all()


def test_lines_over_cells(patches):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = st.pl.spatial_domains(patches, keys="kind", show=False)
        lined = st.pl.spatial_domains(patches, keys="kind", outlines=outline(patches), show=False)
    assert len(lined.collections) == len(plain.collections) + 2
    rings = shapely.get_num_interior_rings(shapely.get_parts(outline(patches).geometry)) + 1
    assert len(lined.collections[-1].get_paths()) == rings.sum()


def test_lines_of_an_element_need_a_slide(patches):
    """Elements of a SpatialData have no column with the slide."""
    element = outline(patches).drop(columns="slide")
    with pytest.raises(ValueError, match="no column 'slide'"):
        st.pl.spatial_domains(patches, keys="kind", outlines=element, show=False)
    lined = st.pl.spatial_domains(patches, keys="kind", outlines=element.assign(slide=""), show=False)
    plain = st.pl.spatial_domains(patches, keys="kind", show=False)
    assert len(lined.collections) == len(plain.collections) + 2
