"""Data, a model and comparisons that several test files use."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st

if TYPE_CHECKING:  # torch takes seconds to import
    from stage_sc.model import Stage, StageConfig
    from stage_sc.slides import Slide

EMPTY, ISOLATED = 7, 9


SECTIONS = Path(__file__).parents[1] / ".." / "shared" / "data"
if SECTIONS.is_dir():
    os.environ.setdefault("STAGE_SC_DATA", str(SECTIONS.resolve()))


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """Folder of the real sections with expert labels; its tests are skipped where it is absent."""
    folder = SECTIONS / "dev"
    if not folder.is_dir():
        pytest.skip(f"no real sections at {folder}")
    return folder


@pytest.fixture(scope="session")
def raw_tissue() -> Iterator[ad.AnnData]:
    """A slide without graph; cell 7 has no counts, cell 9 no neighbour. Copy before writing to it."""
    adata = st.datasets.simulate_tissue(300, rng=2)
    counts = adata.X.tolil()
    counts[EMPTY] = 0
    adata.X = sp.csr_matrix(counts, dtype=np.float32)
    adata.obsm["spatial"][ISOLATED] = adata.obsm["spatial"].max(axis=0) + 300
    with _unchanged(adata):
        yield adata


@pytest.fixture(scope="session")
def tissue(raw_tissue) -> Iterator[ad.AnnData]:
    """The slide with its graph. Copy before writing to it."""
    adata = raw_tissue.copy()
    st.pp.build_graph(adata)
    with _unchanged(adata):
        yield adata


@pytest.fixture(scope="session")
def slides() -> Iterator[ad.AnnData]:
    """Two slides with a graph, named in ``obs["slide"]``. Copy before writing to it."""
    adata = st.datasets.simulate_tissue(200, n_slides=2, batch_effect=0.3, rng=4)
    st.pp.build_graph(adata, library_key="slide")
    with _unchanged(adata):
        yield adata


@pytest.fixture(scope="session")
def small_config() -> StageConfig:
    """Small network and tree, few epochs of both stages, few K-means runs for the domains."""
    training = {"epochs": 4, "warmup_epochs": 2, "learning_rate": 1e-3, "batch_size": 128}
    return st.model.StageConfig(dim=16, n_layers=1, levels=(2, 6, 18), domain_starts=9, domain_refined=2, **training)


@pytest.fixture(scope="session")
def small_model(tissue, small_config) -> Iterator[Stage]:
    """Trained on `tissue`. Do not change it."""
    model = st.tl.fit(tissue, config=small_config, progress=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yield model
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory) -> Callable[[Slide], Slide]:
    """Writes a slide as it is to files, and gives the same slide on disk."""

    def write(slide: Slide) -> Slide:
        from stage_sc.slides import MatrixWriter, StoredArray, boxes_of

        folder, n = tmp_path_factory.mktemp("slide"), slide.n_cells
        matrices = {"expression": slide.take(np.arange(n)), "graph": slide.graph, "local": slide.local}
        stored: dict[str, Any] = {}
        for name, matrix in matrices.items():
            writer = MatrixWriter(folder / name, matrix.shape[1])
            for start in range(0, n, 100):
                writer.append(matrix[start : start + 100])
            stored[name] = writer.finish()
        for name, dtype in (("xy", "<f8"), ("cells", "<i8"), ("empty", "|b1"), ("isolated", "|b1")):
            np.ascontiguousarray(getattr(slide, name), dtype).tofile(folder / name)
            stored[name] = StoredArray(folder / name, dtype, 2 if name == "xy" else None)
        return replace(slide, **stored, rows=None, boxes=boxes_of(slide.xy))

    return write


@pytest.fixture(scope="session")
def put_in_order() -> Callable[[Slide, np.ndarray], Slide]:
    """The same slide with its cells in another order."""

    def reorder(slide: Slide, order: np.ndarray) -> Slide:
        arrays = ("cells", "xy", "empty", "isolated", "identity")
        parts: dict[str, Any] = {name: getattr(slide, name)[order] for name in arrays}
        for name in ("graph", "local"):
            parts[name] = getattr(slide, name)[order][:, order].sorted_indices()
        return replace(slide, rows=order if slide.rows is None else slide.rows[order], **parts)

    return reorder


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Any, Any], None]:
    """Comparison of nested containers, to the bit."""
    return _assert_same


@pytest.fixture(scope="session")
def unchanged() -> Callable[..., Any]:
    """Context in which the given AnnData objects must stay as they are."""
    return _unchanged


@contextmanager
def _unchanged(*objects: ad.AnnData) -> Iterator[None]:
    before = [copy.deepcopy(_contents(adata)) for adata in objects]
    yield
    for was, adata in zip(before, objects, strict=True):
        _assert_same(was, _contents(adata))


def _contents(adata: ad.AnnData) -> dict[str, Any]:
    parts = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "obsp", "varp", "layers", "uns")}
    return {"X": adata.X, "obs": adata.obs, "var": adata.var, "view": adata.is_view, **parts}


def _assert_same(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            _assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True, obj=where)
    elif sp.issparse(one):
        for name in ("shape", "data", "indices", "indptr"):
            _assert_same(getattr(one, name), getattr(other, name), f"{where}.{name}")
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        assert one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes(), where
    elif isinstance(one, list | tuple):
        _assert_same(dict(enumerate(one)), dict(enumerate(other)), where)
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def parts(slides):
    """The slides of `slides` as the network reads them."""
    from stage_sc.slides import read_slides

    return read_slides(slides, st.model.StageConfig())


@pytest.fixture
def new_model(parts, small_config):
    """Make a model with gene vectors and a tree, not yet trained; the same each time."""
    import torch

    from stage_sc.embed import coexpression_vectors
    from stage_sc.train._start import grow_tree, initialize_network

    def make(**changes: object) -> st.model.Stage:
        genes = sorted({gene for slide in parts for gene in slide.genes})
        model = st.model.Stage(small_config.replace(**changes), genes, [slide.name for slide in parts])
        model.set_vectors(torch.from_numpy(coexpression_vectors(parts, genes, model.config.dim)))
        initialize_network(model, parts)
        grow_tree(model, parts, np.random.default_rng(0))
        return model

    return make
