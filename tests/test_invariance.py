"""The same tissue gets the same labels: on every run, in another process, in any order and position, in any company."""

from __future__ import annotations

import os
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import stage_sc as st
from stage_sc.model import Stage


def relocated(
    adata: ad.AnnData, angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0), mirror: int = 1, unit: float = 1.0
) -> ad.AnnData:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    adata.obsm["spatial"] = unit * (adata.obsm["spatial"] * [mirror, 1] @ turn + shift)
    return adata


def shuffled(adata: ad.AnnData, seed: int, *, cells: bool = True, genes: bool = True) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    rows, columns = (
        rng.permutation(n) if do else np.arange(n) for n, do in zip(adata.shape, (cells, genes), strict=True)
    )
    return adata[rows, columns].copy()


def labels(adata: ad.AnnData, model: Stage | None, **arguments: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All that is written for the cells, by the names of the cells."""
    adata = st.tl.stage_niches(adata, model=model, n_domains=4, copy=True, **arguments)
    columns = [name for name in adata.obs if name.startswith("stage_")]
    assert len(columns) == 7
    return adata.obs[columns].sort_index(), pd.DataFrame(adata.obsm["X_stage"], adata.obs_names).sort_index()


def assert_same(one: tuple[pd.DataFrame, ...], other: tuple[pd.DataFrame, ...]) -> None:
    """To the bit: names, order of the categories, confidences, embeddings."""
    for a, b in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(a, b, check_exact=True)


VARIANTS = [
    pytest.param(lambda adata: adata.copy(), id="same"),
    pytest.param(lambda adata: shuffled(adata, 1, genes=False), id="cells shuffled"),
    pytest.param(lambda adata: shuffled(adata, 2, cells=False), id="genes shuffled"),
    pytest.param(lambda adata: shuffled(adata, 3), id="both shuffled"),
]
PLACES = [
    pytest.param({"angle": 0.3, "shift": (5000.0, -70_000.0)}, id="moved"),
    pytest.param({"angle": 1.0, "shift": (3e7, -4e7)}, id="far away"),
    pytest.param({"mirror": -1}, id="mirrored"),
]
UNIT = pytest.param({"unit": 8}, id="other unit")


@pytest.fixture(scope="module")
def expected(tissue, small_model):
    return labels(tissue, small_model)


class TestLabelling:
    @pytest.mark.parametrize("change", VARIANTS)
    @pytest.mark.parametrize("rebuild", [False, True], ids=["graph kept", "graph rebuilt"])
    def test_order(self, tissue, small_model, expected, change, rebuild):
        other = change(tissue)
        if rebuild:
            st.pp.build_graph(other)
        assert_same(labels(other, small_model), expected)

    @pytest.mark.parametrize("place", [*PLACES, UNIT])
    def test_position(self, raw_tissue, small_model, expected, place):
        other = relocated(raw_tissue.copy(), **place)
        st.pp.build_graph(other, scale=0.125 if "unit" in place else None)
        assert_same(labels(other, small_model), expected)

    def test_bundled_model(self, tissue):
        other = relocated(shuffled(tissue, 4), 2.0, (77.0, 12_345.6))
        st.pp.build_graph(other)
        assert_same(labels(other, None), labels(tissue, None))

    def test_names_of_cells_and_other_columns_do_not_matter(self, tissue, small_model, expected):
        other = tissue.copy()
        other.obs = pd.DataFrame({"more": np.arange(300)}, index=[f"x{number:03}" for number in range(300)])
        found = labels(other, small_model)
        back = [frame.set_index(tissue.obs_names).sort_index() for frame in found]
        assert_same(tuple(back), expected)

    @pytest.mark.parametrize("n_threads", [1, 2, 3])
    def test_number_of_threads(self, tissue, small_model, expected, n_threads):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(n_threads)
            assert_same(labels(tissue, small_model), expected)
            assert torch.get_num_threads() == n_threads
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("layout", ["hexagonal", "square"])
    def test_grids(self, raw_tissue, small_model, layout):
        """Spots, whose neighbourhoods are counted in steps, in any order and place."""
        row, column = np.divmod(np.arange(300), 20)
        hexagonal = np.c_[100 * (column + 0.5 * (row % 2)), 100 * np.sqrt(0.75) * row]
        plain, found = raw_tissue.copy(), []
        plain.obsm["spatial"] = hexagonal if layout == "hexagonal" else 8.0 * np.c_[column, row]
        for seed in (None, 8, 9):
            adata = plain if seed is None else relocated(shuffled(plain, seed), 0.1 * seed, (300.0, -70.0 * seed))
            st.pp.build_graph(adata)
            assert adata.uns["stage_graph"]["slides"]["mode"].iloc[0] == "hops"
            found.append(labels(adata, small_model))
        assert_same(found[1], found[0])
        assert_same(found[2], found[0])

    def test_precision_of_coordinates(self, dev_data):
        """Of 32 and 64 bits: weights differ in their last bits, and with them the order of spots inside."""
        adata, found = ad.read_h5ad(dev_data / "her2st_breast" / "A1.h5ad"), []
        turned = relocated(adata, 0.7).obsm["spatial"]
        for precision in (np.float64, np.float32):
            adata.obsm["spatial"] = turned.astype(precision)
            st.pp.build_graph(adata)
            st.tl.stage_niches(adata, n_domains=7)
            found.append(adata.obs[["stage_path", "stage_domain"]].astype(str))
        pd.testing.assert_frame_equal(*found)


class TestCompany:
    def test_a_slide_alone_or_with_others(self, slides, small_model):
        """Domains are cut over all together, and the tree settles on all; everything else is the slide's own."""
        together, embedding = labels(slides, small_model, settle=False)
        parts = [slides[slides.obs["slide"] == name].copy() for name in ("slide2", "slide1")]
        for part in parts:
            st.pp.build_graph(part)
        listed = st.tl.stage_niches(parts, model=small_model, settle=False, copy=True)
        columns = ["stage_l1", "stage_l2", "stage_l3", "stage_path", "stage_flag", "stage_confidence"]
        for part, other in zip(parts, listed, strict=True):
            alone, h = labels(part, small_model, settle=False)
            for frame in (together, other.obs):
                assert alone[columns].values.tolist() == frame.loc[alone.index, columns].values.tolist()
            pd.testing.assert_frame_equal(h, embedding.loc[h.index], check_exact=True)

    def test_slides_in_another_order(self, slides, small_model):
        other, expected = slides[::-1].copy(), labels(slides, small_model)
        assert_same(labels(other, small_model), expected)
        other.obs["slide"] = other.obs["slide"].astype(str).map({"slide1": "b", "slide2": "a"})
        other.obsm["spatial"][other.obs["slide"] == "b"] += 10_000  # slides are never neighbours
        st.pp.build_graph(other, library_key="slide")
        assert_same(labels(other, small_model), expected)


@pytest.mark.parametrize("change", [VARIANTS[0], VARIANTS[3], *PLACES[1:]])
def test_whole_chain(raw_tissue, small_config, expected, change):
    adata = change(raw_tissue) if callable(change) else relocated(shuffled(raw_tissue, 6), **change)
    st.pp.build_graph(adata)
    assert_same(labels(adata, st.tl.fit(adata, config=small_config, progress=False)), expected)


def test_whole_chain_on_several_slides(slides, small_config):
    results = []
    for adata in (slides.copy(), relocated(shuffled(slides, 7), 1.0, (99.0, -99.0))):
        st.pp.build_graph(adata, library_key="slide")
        results.append(labels(adata, st.tl.fit(adata, config=small_config, progress=False)))
    assert_same(*results)


SCRIPT = """
import hashlib
import stage_sc as st

adata = st.datasets.simulate_tissue(200, n_slides=2, rng=3)
st.pp.build_graph(adata, library_key="slide")
config = st.model.StageConfig(dim=16, levels=(2, 5, 12), epochs=2, warmup_epochs=1, learning_rate=1e-3)
model = st.tl.fit(adata, config=config, progress=False)
st.tl.stage_niches(adata, model=model, n_domains=4)
digest = hashlib.sha256(adata.obs.to_csv().encode() + adata.obsm["X_stage"].tobytes()).hexdigest()
result = f"{digest} {adata.uns['stage']['model']['digest']}"
"""


def test_another_process():
    """With other hash seeds and numbers of threads."""
    environment = {**os.environ, "PYTHONHASHSEED": "12", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", SCRIPT + "print(result)"]
    other = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    here: dict[str, object] = {}
    exec(SCRIPT, here)
    assert other.stdout.split()[-2:] == str(here["result"]).split()
