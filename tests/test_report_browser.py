"""Report in a browser: clicks, slider, search, names and regions, up to a million cells."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st

sys.path.insert(0, str(Path(__file__).parent))
Page, find_browser = (getattr(importlib.import_module("browser"), name) for name in ("Page", "find_browser"))
sys.path.pop(0)
pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium")
CORNER = "(box => [box.x, box.y])(byId('marks').getBoundingClientRect())"
NAME = "</script><b>T zone</b>"


def large(n: int) -> ad.AnnData:
    """Two levels of niches in stripes, on two slides, with one gene for the first stripe."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000 * np.sqrt(n / 10_000), (n, 2))
    stripe = np.minimum((8 * xy[:, 0] / xy[:, 0].max()).astype(int), 7)
    obs = pd.DataFrame(index=np.arange(n).astype(str))
    obs["stage_l1"] = pd.Categorical.from_codes(stripe // 4, ["N0", "N1"])
    obs["stage_l2"] = pd.Categorical.from_codes(stripe, [f"N{i + 2}" for i in range(8)])
    obs["stage_confidence"] = np.float32(0.75)
    obs["slide"] = pd.Categorical.from_codes((xy[:, 1] > xy[:, 1].max() / 2).astype(int), ["one", "two"])
    adata = ad.AnnData(sp.csr_matrix(np.c_[stripe == 0, np.ones(n)].astype(np.float32)), obs=obs, obsm={"spatial": xy})
    adata.var_names = ["FIRST", "ALL"]
    names = [f"N{i}" for i in range(10)]
    tree = pd.DataFrame({"level": [1, 1] + [2] * 8, "parent": ["", ""] + ["N0"] * 4 + ["N1"] * 4}, index=names)
    params = {"library_key": "slide", "spatial_key": "spatial"}
    adata.uns["stage"] = {"levels": ["stage_l1", "stage_l2"], "tree": tree, "params": params, "model": {}}
    return adata


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    return large(10_000)


@pytest.fixture
def page(adata, tmp_path):
    page = Page(st.report(adata, tmp_path / "small.html"), tmp_path)
    yield page
    faults = page.faults()
    page.close()
    assert faults == []


def place(page: Page, slide: int, x: float, y: float) -> tuple[float, float]:
    """Position in the window of a place on a slide."""
    px, py = page.run(f"toPixels(...fromSlide(slides[{slide}], {x}, {y}))")
    left, top = page.run(CORNER)
    return left + px, top + py


def color_at(page: Page, x: float, y: float) -> str:
    left, top = page.run(CORNER)
    page.run("drawNow()")
    color = page.run(f"[...cellContext.getImageData({x - left}, {y - top}, 1, 1).data]")
    return "#{:02x}{:02x}{:02x}".format(*color[:3])


def saved(folder: Path, ending: str) -> Path:
    for _ in range(200):
        if found := [path for path in folder.glob(f"*{ending}") if path.stat().st_size]:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(list(folder.iterdir()))


def test_click_slider_and_search(page, adata):
    cell = np.flatnonzero((adata.obs["stage_l2"] == "N4") & (adata.obs["slide"] == "two"))[50]
    xy = adata.obsm["spatial"][cell]
    page.click(*place(page, 1, *xy))
    page.wait("state.group === 0")  # of level 1
    assert page.run("byId('rename').value") == "N0"
    shown = page.run("byId('details').innerText")
    assert f"{(adata.obs['stage_l1'] == 'N0').sum():,} cells" in shown and "Confidence, mean 0.75" in shown
    page.run("byId('level').value = 2; byId('level').dispatchEvent(new Event('input'))")
    page.wait("state.layer === levels[1]")
    assert len(page.run("[...byId('list').querySelectorAll('.name')].map(e => e.textContent)")) == 8
    page.click(*place(page, 1, *xy))
    page.wait("state.group === 2")
    assert page.run("byId('list').querySelector('[aria-current]').title") == "N4"
    colors = {name: page.run(f"levels[1].groups[{i}].color") for i, name in enumerate(["N2", "N3", "N4"])}
    near = adata.obs["stage_l2"].to_numpy()
    assert color_at(page, *place(page, 1, *xy)) == colors["N4"]
    other = np.flatnonzero((near == "N2") & (adata.obs["slide"] == "two"))[50]
    assert color_at(page, *place(page, 1, *adata.obsm["spatial"][other])) not in colors.values()  # pale
    page.type("#search", "n2")
    page.wait("state.group === 0 && state.layer === levels[1]")
    page.type("#search", "first")
    page.wait("state.value !== null")
    assert "FIRST" in page.run("byId('legend').innerText")
    assert color_at(page, *place(page, 1, *adata.obsm["spatial"][other])) == page.run("facts.ramp.at(-1)")
    assert color_at(page, *place(page, 1, *xy)) == "#e4e4e4"


def test_zoom_and_drag_keep_the_place_under_the_pointer(page):
    before = page.run("toPlane(400, 300)")
    box = page.run(CORNER)
    page.mouse("mouseWheel", box[0] + 400, box[1] + 300, deltaX=0, deltaY=-500)
    page.wait(f"view.zoom > 0 && Math.abs(toPlane(400, 300)[0] - {before[0]}) < 1e-6")
    page.drag([(box[0] + 400, box[1] + 300), (box[0] + 450, box[1] + 330), (box[0] + 500, box[1] + 380)])
    after = page.run("toPlane(500, 380)")
    assert after == pytest.approx(before, abs=1e-6)
    assert page.run("state.group") == -1


def test_names_and_regions_come_back(page, adata, tmp_path):
    page.type("#search", "N3")
    page.wait("state.group === 1")
    page.type("#rename", NAME)
    page.wait("Object.keys(given).length === 1")
    assert page.run("document.querySelectorAll('b').length") == 0
    assert NAME in page.run("byId('list').innerText")
    page.press("#save-names")
    names = saved(tmp_path, ".names.json")
    assert json.loads(names.read_text())["names"] == {"N3": NAME}
    page.press("#draw")
    corners = [(100, 600), (400, 600), (400, 900), (100, 900)]
    path = [
        place(page, 1, *np.add(corners[i], np.multiply(np.subtract(corners[(i + 1) % 4], corners[i]), step / 10)))
        for i in range(4)
        for step in range(10)
    ]
    page.drag(path)
    page.wait("regions.length === 1")
    inside = ((adata.obsm["spatial"] > [100, 600]) & (adata.obsm["spatial"] < [400, 900])).all(axis=1)
    shown = page.run("countInside(regions[0]).n")
    assert shown == pytest.approx(inside.sum(), rel=0.05)
    page.press("#save-regions")
    regions = saved(tmp_path, ".regions.geojson")

    annotated = st.tl.annotate_niches(adata, regions, copy=True)
    assert NAME in annotated.obs["stage_l2"].cat.categories
    found = (annotated.obs["stage_region"] == "region 1").to_numpy()
    assert found.sum() == pytest.approx(shown, abs=3) and (found & inside).sum() > 0.95 * found.sum()
    assert st.tl.annotate_niches(adata, names, copy=True).obs["stage_l2"].equals(annotated.obs["stage_l2"])

    page.run("delete given.N3; regions.length = 0; 1")
    page.run(f"openFile(new File([{json.dumps(regions.read_text())}], 'a.geojson'))")
    assert page.run("given.N3") == NAME and page.run("countInside(regions[0]).n") == shown
    page.run("openFile(new File(['{'], 'a.json'))")
    assert "not a file" in page.run("byId('unsaved').textContent")


def test_hostile_names_run_nothing(tmp_path):
    hostile = ["</script><script>window.hit=1</script>", "<img src=x onerror='window.hit=1'>", "'\"&amp;"]
    adata = large(300)
    adata.var_names = hostile[:2]
    adata.obs["slide"] = adata.obs["slide"].cat.rename_categories(hostile[:2])
    adata.obs["kind"] = pd.Categorical(np.resize(hostile, adata.n_obs))
    page = Page(st.report(adata, tmp_path / "h.html", keys="kind", genes=hostile[:2], title=hostile[0]), tmp_path)
    try:
        for layer in range(3):
            page.run(f"choose(facts.layers[{layer}], 0)")
        page.type("#search", "img")
        page.press("#about")
        assert page.run("window.hit") is None and page.run("document.querySelectorAll('img').length") == 0
        assert page.run("document.title") == hostile[0] and hostile[0] in page.run("byId('title').innerText")
        assert page.faults() == []
    finally:
        page.close()


def test_a_million_cells_open_and_move(tmp_path):
    page = Page(st.report(large(1_000_000), tmp_path / "large.html"), tmp_path)
    try:
        assert page.load_seconds < 25  # 2 s on a free machine
        frames = page.run("(drawNow(), [1, 2, 3, 4, 5].map(() => drawNow()))")
        assert min(frames) < 250  # 35 ms on a free machine
        drawn = page.run("new Set(pixels).size")
        assert drawn > 2
        assert page.faults() == []
    finally:
        page.close()
