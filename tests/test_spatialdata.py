"""SpatialData in and out: regions, coordinates of elements, transformations, files, readers, drawing, errors."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from shapely import Point
from spatialdata.models import Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

import stage_sc as st

vendors = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("vendors.py"))))
LABELS = ["stage_l1", "stage_l3", "stage_path", "stage_domain", "stage_flag"]
NAMES = ["one", "two"]
PIXEL = 0.25
TO_MICRONS = Scale([PIXEL, PIXEL], axes=("x", "y"))
TURNED = Sequence(
    [
        Scale([3.7, 3.7], axes=("x", "y")),
        Affine(
            [[math.cos(1), -math.sin(1), 90.0], [math.sin(1), math.cos(1), -7.0], [0, 0, 1]],
            input_axes=("x", "y"),
            output_axes=("x", "y"),
        ),
    ]
)


def labels(adata: ad.AnnData) -> pd.DataFrame:
    return adata.obs[LABELS].astype(str).reset_index(drop=True)


@pytest.fixture(scope="module")
def slides() -> dict[str, ad.AnnData]:
    made = {name: st.datasets.simulate_tissue(150, batch_effect=0.3, rng=number) for number, name in enumerate(NAMES)}
    for name, adata in made.items():
        adata.obs_names = [f"{name}{number}" for number in range(adata.n_obs)]
        adata.obsm["spatial"] = np.round(adata.obsm["spatial"] * 8) / 8  # exact in pixels
    return made


@pytest.fixture(scope="module")
def want(slides, small_model) -> pd.DataFrame:
    """Labels of the dictionary of AnnData."""
    made = {name: adata.copy() for name, adata in slides.items()}
    label(made, small_model)
    return pd.concat([labels(adata) for adata in made.values()], ignore_index=True)


def label(data: object, model: st.model.Stage, **arguments: object) -> None:
    st.pp.build_graph(data, **arguments)
    st.tl.stage_niches(data, model=model, n_domains=3, table_key=arguments.get("table_key"))


def circles(xy: np.ndarray, transformations: dict[str, object]) -> object:
    return ShapesModel.parse(xy, geometry=0, radius=1.0, index=np.arange(len(xy)) + 5, transformations=transformations)


def polygons(xy: np.ndarray, transformations: dict[str, object]) -> object:
    frame = gpd.GeoDataFrame(geometry=[Point(*place).buffer(1.0, 2) for place in xy], index=np.arange(len(xy)) + 5)
    return ShapesModel.parse(frame, transformations=transformations)


def raster(xy: np.ndarray, transformations: dict[str, object]) -> object:
    """One pixel a cell, with its centre at the place."""
    column, row = np.floor(xy).astype(int).T
    image = np.zeros((row.max() + 2, column.max() + 2), np.int32)
    image[row, column] = np.arange(len(xy)) + 5
    return Labels2DModel.parse(image, dims=("y", "x"), transformations=transformations)


def tables_of(slides: dict[str, ad.AnnData], *, keep: bool = False) -> dict[str, ad.AnnData]:
    """Annotated tables, without coordinates unless `keep`."""
    made = {}
    for name, adata in slides.items():
        table = adata.copy()
        table.obs["cell"] = np.arange(table.n_obs) + 5
        table.obs["region"] = pd.Categorical([f"cells_{name}"] * table.n_obs)
        if not keep:
            del table.obsm["spatial"]
        made[name] = table
    return made


def parse(table: ad.AnnData) -> ad.AnnData:
    regions = table.obs["region"].unique().tolist()
    table.uns.pop("simulation", None)
    return TableModel.parse(table, region=regions, region_key="region", instance_key="cell")


def build(
    slides: dict[str, ad.AnnData],
    *,
    joined: bool = True,
    keep: bool = False,
    element: Callable[..., object] = circles,
    transformations: dict[str, object] | None = None,
    factor: float = 1.0,
) -> sd.SpatialData:
    """SpatialData of the slides; their elements are stored in units of 1 / `factor` µm."""
    transformations = {"global": Identity()} if transformations is None else transformations
    elements = {
        f"cells_{name}": element(part.obsm["spatial"] * factor, transformations) for name, part in slides.items()
    }
    made = tables_of(slides, keep=keep)
    if joined:
        made = {"table": ad.concat(made.values())}
    return sd.SpatialData.init_from_elements({**elements, **{name: parse(table) for name, table in made.items()}})


class TestRegions:
    @pytest.mark.parametrize("keep", [True, False], ids=["obsm", "centroids"])
    @pytest.mark.parametrize("joined", [True, False], ids=["one table", "a table a region"])
    def test_labels_are_those_of_objects(self, joined, keep, slides, want, small_model):
        sdata = build(slides, joined=joined, keep=keep)
        label(sdata, small_model)
        found = pd.concat([labels(table) for table in sdata.tables.values()], ignore_index=True)
        pd.testing.assert_frame_equal(found, want)
        for table in sdata.tables.values():
            regions = table.obs["region"].astype(str).to_numpy()
            edges = table.obsp["spatial_connectivities"].tocoo()
            assert (regions[edges.row] == regions[edges.col]).all()
        assert np.allclose(np.concatenate([table.obsm["spatial"] for table in sdata.tables.values()]), places(slides))

    def test_names_of_slides(self, slides, small_model):
        sdata = build(slides)
        before = st.pp.summarize(sdata)
        assert before["slide"].tolist() == ["cells_one", "cells_two"] and (before["unit"] == "µm").all()
        assert "spatial" not in sdata["table"].obsm  # nothing is written
        assert st.pp.summarize(build(slides, joined=False))["object"].tolist() == NAMES
        label(sdata, small_model)
        assert list(sdata["table"].uns["stage"]["slides"].index) == ["cells_one", "cells_two"]

    def test_one_of_several_tables(self, slides, small_model):
        sdata = build(slides, joined=False)
        other = sdata["two"].copy()
        label(sdata, small_model, table_key="one")
        assert "stage_l1" in sdata["one"].obs and list(sdata["two"].obs) == list(other.obs) and not sdata["two"].obsp

    def test_plots_and_metrics(self, slides, small_model):
        sdata, made = build(slides), {f"cells_{name}": part.copy() for name, part in slides.items()}
        for data in (sdata, made):
            label(data, small_model)
        one, other = (st.metrics.evaluate(data, "stage_domain", reference="domain") for data in (sdata, made))
        pd.testing.assert_frame_equal(one, other)
        assert st.metrics.jsd(sdata, "stage_l1") == st.metrics.jsd(made, "stage_l1")
        axes = st.pl.spatial_domains(sdata, keys="stage_l1", show=False)
        assert [ax.get_title() for ax in axes] == list(made)
        assert st.pl.niche_tree(sdata, show=False) is not None
        both = build(slides, joined=False)
        label(both, small_model)
        assert st.metrics.pas(both, "stage_l1", table_key="one") == st.metrics.pas(made["cells_one"], "stage_l1")
        assert st.pl.spatial_domains(both, keys="stage_l1", table_key="two", show=False) is not None

    def test_lists_and_training(self, slides, want, small_model, small_config):
        mixed = {"one": build({"one": slides["one"]}), "two": slides["two"].copy()}
        label(mixed, small_model)
        found = pd.concat([labels(mixed["one"]["table"]), labels(mixed["two"])], ignore_index=True)
        pd.testing.assert_frame_equal(found, want)
        model = st.tl.fit(mixed, config=small_config, epochs=0, progress=False)
        plain = {"one": mixed["one"]["table"], "two": mixed["two"]}
        assert model.digest == st.tl.fit(plain, config=small_config, epochs=0, progress=False).digest


def places(slides: dict[str, ad.AnnData]) -> np.ndarray:
    return np.concatenate([part.obsm["spatial"] for part in slides.values()])


SYSTEMS = {
    "µm": (1.0, {"global": Identity()}, None),
    "pixels and microns": (1 / PIXEL, {"global": Identity(), "microns": TO_MICRONS}, None),
    "pixels by name": (1 / PIXEL, {"global": Identity(), "um": TO_MICRONS}, "global"),
    "rotated": (1 / PIXEL, {"global": Identity(), "µm": TO_MICRONS, "turned": TURNED}, "turned"),
    "shifted": (1.0, {"aligned": Translation([500, -40], axes=("x", "y"))}, None),
}


class TestTransformations:
    @pytest.mark.parametrize("element", [circles, polygons], ids=lambda one: one.__name__)
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_labels_are_those_in_micrometres(self, system, element, slides, want, small_model):
        factor, transformations, name = SYSTEMS[system]
        sdata = build(slides, element=element, transformations=transformations, factor=factor)
        label(sdata, small_model, coordinate_system=name)
        pd.testing.assert_frame_equal(labels(sdata["table"]), want)
        table = sdata["table"].uns["stage_graph"]["slides"]
        spread = np.ptp(sdata["table"].obsm["spatial"][:150], axis=0).max()
        if system != "rotated":
            assert table["scale"].iloc[0] * spread == pytest.approx(np.ptp(slides["one"].obsm["spatial"], axis=0).max())

    def test_raster(self, slides, small_model):
        """Centres of pixels; the labels are those of the same places in µm."""
        transformations = {"global": Identity(), "microns": TO_MICRONS}
        sdata = build(slides, element=raster, transformations=transformations, factor=1 / PIXEL)
        label(sdata, small_model)
        made = {name: part.copy() for name, part in slides.items()}
        for part in made.values():
            part.obsm["spatial"] = (np.floor(part.obsm["spatial"] / PIXEL) + 0.5) * PIXEL
        label(made, small_model)
        assert np.allclose(sdata["table"].obsm["spatial"], places(made))
        found = pd.concat([labels(part) for part in made.values()], ignore_index=True)
        pd.testing.assert_frame_equal(labels(sdata["table"]), found)

    def test_stored_coordinates_stay(self, slides):
        transformations = {"global": Identity(), "turned": TURNED}
        sdata = build(slides, keep=True, transformations=transformations)
        st.pp.build_graph(sdata, coordinate_system="turned", scale=1 / 3.7)
        table = sdata["table"]
        assert (table.obsm["spatial"] == places(slides)).all()
        assert table.uns["stage_graph"]["params"]["spatial_key"] == "spatial_turned"
        turned = sd.get_centroids(sdata["cells_two"], coordinate_system="turned").compute().to_numpy()
        assert np.allclose(table.obsm["spatial_turned"][150:], turned)

    def test_instances_in_another_order(self, slides, small_model, want):
        sdata = build(slides)
        for name in NAMES:
            sdata[f"cells_{name}"] = sdata[f"cells_{name}"].iloc[::-1]
        label(sdata, small_model)
        pd.testing.assert_frame_equal(labels(sdata["table"]), want)


class TestFiles:
    def test_round_trips(self, slides, want, small_model, tmp_path):
        sdata = build(slides)
        label(sdata, small_model)
        sdata.write(tmp_path / "new.zarr")
        build(slides).write(tmp_path / "old.zarr")
        opened = sd.read_zarr(tmp_path / "old.zarr")
        label(opened, small_model)
        opened.tables["labelled"] = opened.tables["table"].copy()
        opened.write_element("labelled")
        for path, key in (("new.zarr", "table"), ("old.zarr", "labelled")):
            back = sd.read_zarr(tmp_path / path)
            table = back[key]
            pd.testing.assert_frame_equal(labels(table), want)
            assert table.uns["spatialdata_attrs"]["instance_key"] == "cell" and "cell" in table.obs
            assert list(table.uns["stage_l1_colors"]) == sdata["table"].uns["stage_l1_colors"]
            drawn = st.pl.spatial_domains(back, table_key=key, keys="stage_l1", show=False)
            assert len(drawn) == 2

    def test_from_the_path(self, slides, want, small_model, tmp_path):
        build(slides).write(tmp_path / "slides.zarr")
        made = st.tl.stage_niches(tmp_path / "slides.zarr", model=small_model, n_domains=3)
        assert isinstance(made, sd.SpatialData)
        pd.testing.assert_frame_equal(labels(made["table"]), want)
        assert "stage_l1" not in sd.read_zarr(tmp_path / "slides.zarr")["table"].obs

    def test_all_tables_of_a_folder_are_labelled(self, slides, want, small_model, tmp_path):
        """In one call, with a result for each table, and written back one after the other."""
        path, options = tmp_path / "slides.zarr", {"model": small_model, "n_domains": 3}
        build(slides, joined=False).write(path)
        for scheduler in (None, "threads"):
            results = st.tl.label_files([path], tmp_path / "out", write_back=True, scheduler=scheduler, **options)
            assert [result.name for result in results] == [f"slides-{name}.h5ad" for name in NAMES]
        summary = pd.read_csv(tmp_path / "out" / "summary.csv")
        assert summary["table"].tolist() == NAMES and summary["labelled"].tolist() == [150, 150]
        back = sd.read_zarr(path)
        for found in ([back[name] for name in NAMES], map(ad.read_h5ad, results)):
            pd.testing.assert_frame_equal(pd.concat(map(labels, found), ignore_index=True), want)
        (two,) = st.tl.label_files([path], tmp_path / "some", table_key=["two"], **options)
        assert two.name == "slides-two.h5ad" and ad.read_h5ad(two).n_obs == 150

    def test_tables_of_a_folder_that_are_no_slides(self, slides, small_model, tmp_path):
        """The same cells twice; names that are not there; without any work."""
        path, out = tmp_path / "slides.zarr", tmp_path / "out"
        sdata = build({"one": slides["one"]})
        sdata["again"] = sdata["table"].copy()
        sdata.write(path)
        for key, error, text in (
            (None, ValueError, "annotate the same element, 'cells_one'"),
            ("none", KeyError, "no table 'none'"),
            ([], ValueError, "`table_key` is an empty list"),
            (3, TypeError, "`table_key`"),
        ):
            with pytest.raises(error, match=text):
                st.tl.label_files([path], out, model=small_model, table_key=key)
            assert not out.exists() or not list(out.iterdir())

    def test_copy(self, slides, small_model, unchanged):
        sdata = build(slides)
        sdata.attrs["study"] = "cortex"
        with unchanged(sdata["table"]):
            made = st.pp.build_graph(sdata, copy=True)
            made = st.tl.stage_niches(made, model=small_model, copy=True)
        assert "stage_l1" in made["table"].obs and set(made.shapes) == set(sdata.shapes)
        assert made.attrs["study"] == "cortex"


class TestReaders:
    @pytest.mark.parametrize("vendor", vendors.WRITERS)
    def test_labels_are_those_in_micrometres(self, vendor, small_model, tmp_path):
        io = pytest.importorskip("spatialdata_io")
        plain = st.datasets.simulate_tissue(200, rng=7)
        technology, key = None, None
        if vendor == "visium":
            row, column = np.divmod(np.arange(300), 20)
            plain = vendors.on_places(plain, np.c_[column * 100 + row % 2 * 50.0, row * 50 * np.sqrt(3)])
        made = vendors.WRITERS[vendor](tmp_path, plain)
        sdata = getattr(io, vendor)(tmp_path, **vendors.READING[vendor])
        if vendor == "visium_hd":
            technology, key, plain = "visium_hd", "square_016um", made[16]
            with pytest.raises(ValueError, match=r"`table_key='square_008um'`"):
                st.pp.build_graph(sdata)
        stored = {name: value.copy() for name, value in sdata[key or "table"].obsm.items()}
        label(sdata, small_model, table_key=key)
        label(plain, small_model, scale=1.0, technology=technology)
        table = sdata[key or "table"]
        pd.testing.assert_frame_equal(labels(table), labels(plain))
        row = table.uns["stage_graph"]["slides"].iloc[0]
        assert len(table.uns["stage_graph"]["slides"]) == 1 and row["scale_source"] in ("µm", "pixels", "grid")
        assert row["sigma"] == pytest.approx(plain.uns["stage_graph"]["slides"]["sigma"].iloc[0], rel=1e-3)
        assert all(np.array_equal(value, table.obsm[name]) for name, value in stored.items())

    def test_pixels_of_xenium(self, small_model, tmp_path):
        """Centroids of the raster in the coordinate system in pixels."""
        io = pytest.importorskip("spatialdata_io")
        plain = st.datasets.simulate_tissue(150, rng=7)
        vendors.xenium(tmp_path, plain)
        sdata = io.xenium(tmp_path, **vendors.READING["xenium"])
        st.pp.build_graph(sdata, coordinate_system="global")
        row = sdata["table"].uns["stage_graph"]["slides"].iloc[0]
        assert row["scale"] == pytest.approx(0.2125, rel=1e-3)
        assert sdata["table"].uns["stage_graph"]["params"]["spatial_key"] == "spatial_global"
        assert np.abs(sdata["table"].obsm["spatial_global"] * 0.2125 - plain.obsm["spatial"]).max() < 0.3


def test_drawn_by_spatialdata_plot_in_our_colours(slides, small_model):
    """Without a call of `st.pl` first."""
    pytest.importorskip("spatialdata_plot")
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_hex

    sdata = build({"one": slides["one"]})
    label(sdata, small_model)
    table = sdata["table"]
    ax = sdata.pl.render_shapes("cells_one", color="stage_l1").pl.show(return_ax=True)
    drawn = {to_hex(color) for collection in ax.collections for color in collection.get_facecolor()}
    used = dict(zip(table.obs["stage_l1"].cat.categories, table.uns["stage_l1_colors"], strict=True))
    plt.close("all")
    assert drawn == set(used.values())
    ours = table.copy()
    for key in LABELS[:-1]:
        ours.uns.pop(f"{key}_colors")
    st.pl.spatial_domains(ours, keys=LABELS[:-1], show=False)
    plt.close("all")
    assert all(list(table.uns[f"{key}_colors"]) == ours.uns[f"{key}_colors"] for key in LABELS[:-1])


def shared(sdata: sd.SpatialData) -> None:
    sdata.tables["again"] = sdata["table"].copy()


def other_type(sdata: sd.SpatialData) -> None:
    sdata["table"].obs["cell"] = sdata["table"].obs["cell"].astype(str)


def fewer_shapes(sdata: sd.SpatialData) -> None:
    sdata["cells_two"] = sdata["cells_two"].iloc[3:]


def repeated(sdata: sd.SpatialData) -> None:
    frame = sdata["cells_one"]
    sdata["cells_one"] = frame.set_axis(np.r_[5, frame.index[:-1]])


def missing_element(sdata: sd.SpatialData) -> None:
    del sdata["cells_one"]


def missing_column(sdata: sd.SpatialData) -> None:
    del sdata["table"].obs["cell"]


def no_link(sdata: sd.SpatialData) -> None:
    del sdata["table"].uns["spatialdata_attrs"]


def no_table(sdata: sd.SpatialData) -> None:
    del sdata.tables["table"]


def no_region(sdata: sd.SpatialData) -> None:
    sdata["table"].obs["region"] = sdata["table"].obs["region"].where(np.arange(300) > 1)


ERRORS = [
    (shared, {}, ValueError, "'table', 'again'.*same element, 'cells_one'.*`table_key='table'`"),
    (other_type, {}, TypeError, r"obs\['cell'\] holds text \('5'\).*integers \(5\).*astype\(int\)"),
    (
        fewer_shapes,
        {},
        ValueError,
        r"3 of 150 cells have no shape in 'cells_two': obs\['cell'\] 5, 6, 7\.",
    ),
    (repeated, {}, ValueError, "'cells_one' has several shapes of one instance, e.g. 5"),
    (missing_element, {}, KeyError, r"annotates 'cells_one', which.*elements: 'cells_two'"),
    (missing_column, {}, KeyError, "names 'cell'"),
    (no_link, {}, KeyError, "annotates no element.*TableModel.parse"),
    (no_table, {}, ValueError, "without tables.*'cells_one'.*aggregate"),
    (no_region, {}, ValueError, "2 cells have no region"),
    (None, {"table_key": "cells"}, KeyError, "no table 'cells'; tables are 'table'"),
    (None, {"table_key": 3}, TypeError, "`table_key`.*3"),
    (None, {"coordinate_system": "px"}, KeyError, "'cells_one' is not in 'px'; it is in global"),
    (None, {"coordinate_system": 3}, TypeError, "`coordinate_system`"),
]


@pytest.mark.parametrize(("change", "arguments", "error", "match"), ERRORS)
def test_errors(change, arguments, error, match, slides, unchanged):
    sdata = build(slides)
    if change:
        change(sdata)
    with unchanged(*sdata.tables.values()), pytest.raises(error, match=match):
        st.pp.build_graph(sdata, **arguments)


def test_remedy_for_cells_without_shape(slides):
    sdata = build({"one": slides["one"]})
    sdata["cells_one"] = sdata["cells_one"].iloc[3:]
    sdata.tables["table"] = sd.match_table_to_element(sdata, "cells_one", "table")
    st.pp.build_graph(sdata)
    assert sdata["table"].n_obs == 147


def test_several_coordinate_systems(slides):
    sdata = build(slides, transformations={"a": Identity(), "b": TURNED})
    with pytest.raises(ValueError, match=r"several coordinate systems \(a, b\)"):
        st.pp.build_graph(sdata)
    with pytest.raises(ValueError, match="there is only AnnData"):
        st.pp.build_graph(slides["one"].copy(), coordinate_system="a")
    with pytest.raises(ValueError, match="there is only AnnData"):
        st.pp.build_graph(slides["one"].copy(), table_key="a")


def test_bad_table_of_several(slides, small_model, tmp_path):
    sdata = build(slides, joined=False)
    del sdata["cells_two"]
    label(sdata, small_model)
    assert "stage_l1" in sdata["one"].obs and "stage_l1" not in sdata["two"].obs
    assert "cells_two" in st.pp.summarize(sdata).loc["two", "problem"]
    with pytest.raises(KeyError, match="cells_two"):
        st.pp.build_graph(sdata, errors="raise")


def test_path_is_a_folder_of_something_else(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        st.pp.build_graph(tmp_path / "empty")
