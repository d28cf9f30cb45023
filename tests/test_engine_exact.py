"""Whole slides layer by layer over blocks, and batches of some centres: both give what torch-geometric's layers give.
And paths through the tree for any number of cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import stage_sc as st
from stage_sc.embed import Encoded, calibrate, encode_slide
from stage_sc.model import Stage, StageConfig
from stage_sc.nn import PrototypeTree, Sparse
from stage_sc.slides import Slide, make_batch, read_slides

TOLERANCE = 1e-5


def uneven() -> np.ndarray:
    """Cells of uneven density; some at one place, some far from all others."""
    rng = np.random.default_rng(1)
    xy = 250 * rng.uniform(0, 1, (260, 2)) ** [1.5, 1.0]
    xy[10:13], xy[13] = xy[0], xy[1]
    xy[14], xy[15] = [600, 600], [900, -300]
    return xy


def hexagonal() -> np.ndarray:
    row, column = np.divmod(np.arange(260), 20)
    return np.c_[100 * (column + 0.5 * (row % 2)), 100 * np.sqrt(0.75) * row]


def read(xy: np.ndarray, **arguments: object) -> list[Slide]:
    adata = st.datasets.simulate_tissue(260, rng=6)
    counts = adata.X.tolil()
    counts[7] = 0
    adata.X, adata.obsm["spatial"] = counts.tocsr(), xy
    st.pp.build_graph(adata, **arguments)
    return read_slides(adata, StageConfig())


@pytest.fixture(scope="module")
def cases() -> dict[str, Slide]:
    several = st.datasets.simulate_tissue(90, n_slides=3, batch_effect=0.3, rng=2)
    several = several[np.random.default_rng(0).permutation(270)].copy()
    st.pp.build_graph(several, library_key="slide")
    parts = {
        "radius": read(uneven())[0],
        "hops": read(uneven(), mode="hops", local=2, view=3)[0],
        "hexagonal": read(hexagonal())[0],
        "square": read(8.0 * np.stack(np.divmod(np.arange(260), 20), axis=1))[0],
        **{slide.name: slide for slide in read_slides(several, StageConfig(scaling="center"))},
    }
    assert [parts[name].sizes[0] for name in ("radius", "hops", "hexagonal", "square")] == ["radius", *["hops"] * 3]
    assert parts["radius"].isolated.sum() >= 2
    assert (parts["radius"].graph.data == 1).sum() > 260  # cells at one place
    return parts


CASES = ("radius", "hops", "hexagonal", "square", "slide1", "slide2", "slide3")


def network(slide: Slide, n_layers: int, *, sharp: float = 1.0, seed: int = 0) -> Stage:
    """All parameters far from their start; with `sharp`, attention looks at few cells."""
    genes = ["another", *reversed(slide.genes), "one more"]
    config = StageConfig(dim=16, n_layers=n_layers, n_heads=4, levels=(2, 4))
    model, generator = Stage(config, genes, ["one"], version="0"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
            if ".att_" in name:
                parameter *= sharp
        model.initial_vectors.copy_(torch.randn(model.initial_vectors.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def by_layers(model: Stage, slide: Slide, centres: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Embedding of a batch, or of the whole slide, and context from products of dense matrices."""
    panel = calibrate(model, slide)
    batch = make_batch(slide, panel, model.config.n_layers, centres=centres)
    vectors = model.initial_vectors[[model.vocabulary[gene] for gene in slide.genes]].double().numpy()
    cells = (slide.take(np.arange(slide.n_cells)).toarray() - slide.mean) / slide.scale @ vectors
    mean = (slide.graph[:].toarray() > 0).astype(float)
    mean /= mean.sum(axis=1, keepdims=True)
    context = np.linalg.matrix_power(mean, 6) @ cells / np.linalg.norm(vectors) @ panel.whitening.double().numpy()
    return model(batch).numpy(), context if centres is None else context[centres]


@torch.no_grad()
def by_torch_geometric(model: Stage, slide: Slide) -> np.ndarray:
    """Embedding from its layers, which hold all messages, and a dense mean."""
    cells = model.embed(Sparse(slide.take(np.arange(slide.n_cells))), calibrate(model, slide))
    graph, local = slide.graph[:].tocoo(), torch.from_numpy(slide.local[:].toarray())
    edges, weights = torch.from_numpy(np.stack([graph.col, graph.row])).long(), torch.from_numpy(graph.data)[:, None]
    for layer in model.encoder.layers:
        cells = layer(cells, edges, weights)
    share = local * torch.exp(model.encoder.score(cells).clamp(-10, 10)).T
    return normalize(model.encoder.project(share @ cells / share.sum(dim=1, keepdim=True)), dim=1).numpy()


def assert_close(got: Encoded, h: np.ndarray, context: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(got.h.numpy(), h, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.context.numpy(), context, rtol=0, atol=tolerance)
    assert got.pooled.dtype == got.context.dtype == torch.float32


class TestWholeSlides:
    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
    def test_like_the_layers(self, cases, name, n_layers):
        slide = cases[name]
        model = network(slide, n_layers, seed=n_layers)
        h, context = by_layers(model, slide)
        assert_close(encode_slide(model, slide), h, context)
        np.testing.assert_allclose(h, by_torch_geometric(model, slide), rtol=0, atol=TOLERANCE)
        assert len(np.unique(h.round(3), axis=0)) > 0.9 * slide.n_cells
        assert context.std() > 0.01

    @pytest.mark.parametrize("sharp", [30.0, 1000.0])
    @pytest.mark.parametrize("name", ["radius", "hexagonal"])
    def test_large_attention_scores(self, cases, name, sharp):
        """Of some hundreds, whose exponentials float32 cannot hold."""
        slide = cases[name]
        model = network(slide, 1, sharp=sharp)
        with torch.no_grad():
            batch = make_batch(slide, calibrate(model, slide), 1)
            layer, z = model.encoder.layers[0], model.embed(batch.expression, batch.panel)
            source = (layer.lin(z).view(-1, 4, 4) * layer.att_src).sum(dim=2)
        assert source.abs().max() > (89 if sharp == 1000 else 5)
        got, (h, context) = encode_slide(model, slide), by_layers(model, slide)
        assert np.isfinite(got.h.numpy()).all()
        assert_close(got, h, context)

    def test_large_gates(self, cases):
        model = network(cases["radius"], 1)
        with torch.no_grad():
            model.encoder.score.weight *= 1000
        assert_close(encode_slide(model, cases["radius"]), *by_layers(model, cases["radius"]))

    @pytest.mark.parametrize("name", ["radius", "square"])
    @pytest.mark.parametrize("block", [7, 64, 259, 260, 10**6])
    def test_any_size_of_the_blocks(self, cases, name, block):
        model = network(cases[name], 2)
        got, expected = (encode_slide(model, cases[name], block=size) for size in (block, 100))
        assert_close(got, expected.h.numpy(), expected.context.numpy(), 2e-6)
        np.testing.assert_allclose(got.pooled, expected.pooled, atol=TOLERANCE)

    @pytest.mark.parametrize("name", CASES)
    def test_on_disk(self, cases, name, on_disk, put_in_order):
        slide = cases[name]
        model, order = network(slide, 2), np.random.default_rng(5).permutation(slide.n_cells)
        stored = on_disk(put_in_order(slide, order))
        assert stored.stored
        assert not slide.stored
        expected = encode_slide(model, slide)
        for block in (64, 10**6):
            got = encode_slide(model, stored, block=block)
            assert_close(got, expected.h[order].numpy(), expected.context[order].numpy())

    def test_expression_on_disk_changes_no_bit(self, tmp_path):
        adata = st.datasets.simulate_tissue(200, rng=3)
        st.pp.build_graph(adata)
        (one,), (other,) = (read_slides(adata, StageConfig(), scratch=folder) for folder in (None, tmp_path))
        model = network(one, 2)
        got, expected = (encode_slide(model, slide, block=30) for slide in (other, one))
        assert got.pooled.equal(expected.pooled)
        assert got.context.equal(expected.context)

    @pytest.mark.parametrize("name", CASES)
    def test_any_order_of_the_cells(self, cases, name, put_in_order):
        slide = cases[name]
        model, order = network(slide, 2), np.random.default_rng(4).permutation(slide.n_cells)
        expected, got = encode_slide(model, slide), encode_slide(model, put_in_order(slide, order))
        assert_close(got, expected.h[order].numpy(), expected.context[order].numpy())

    def test_reads_blocks_and_expression_twice(self, cases, on_disk, monkeypatch):
        stored, asked = on_disk(cases["radius"]), []
        plain = type(stored.graph).__getitem__

        def spy(matrix, rows):
            part = plain(matrix, rows)
            asked.append((matrix.indptr.path.stem, part.shape[0]))
            return part

        monkeypatch.setattr(type(stored.graph), "__getitem__", spy)
        encode_slide(network(stored, 2), stored, block=50)
        assert max(size for _, size in asked) == 50
        rows = {name: sum(size for other, size in asked if other == name) for name, _ in asked}
        assert rows == {"expression": 2 * 260, "graph": (6 + 2 + 4) * 260, "local": 260}

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("hops", [0, 1, 4])
    def test_niches_are_read_from_the_mean_of_embeddings(self, cases, name, hops):
        slide = cases[name]
        model = network(slide, 1)
        model.config = model.config.replace(smoothing=hops)
        encoded = encode_slide(model, slide)
        mean = (slide.graph[:].toarray() > 0).astype(float)
        mean /= mean.sum(axis=1, keepdims=True)
        around = np.linalg.matrix_power(mean, hops) @ encoded.h.double().numpy()
        expected = around / np.linalg.norm(around, axis=1, keepdims=True)
        np.testing.assert_allclose(encoded.niche, expected, rtol=0, atol=TOLERANCE)
        assert (encoded.niche - encoded.h).abs().max() > 0.01 or hops == 0

    def test_no_gradient_and_nothing_changed(self, cases):
        model = network(cases["radius"], 1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        encoded = encode_slide(model, cases["radius"])
        assert not encoded.pooled.requires_grad
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())


class TestBatches:
    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("n_layers", [0, 1, 3])
    def test_any_centres(self, cases, name, n_layers):
        slide, rng = cases[name], np.random.default_rng(n_layers)
        model = network(slide, n_layers, seed=n_layers + 10)
        whole = encode_slide(model, slide)
        odd = [*np.flatnonzero(slide.isolated), *np.flatnonzero(slide.empty), 3, 3]
        draws = [rng.permutation(slide.n_cells)[:size] for size in (1, 1, 2, 5, 40, slide.n_cells)]
        for centres in (*draws, np.array(odd)):
            h, context = by_layers(model, slide, centres)
            assert_close(Encoded(*(part[centres] for part in whole)), h, context)

    def test_on_disk(self, cases, on_disk):
        """To the bit: the same rows are read."""
        slide = cases["hops"]
        model, stored = network(slide, 2), on_disk(slide)
        centres = np.random.default_rng(0).permutation(260)[:30]
        for one, other in zip(by_layers(model, slide, centres), by_layers(model, stored, centres), strict=True):
            np.testing.assert_array_equal(one, other)


class TestAssign:
    """Paths and confidences by enumeration are in test_nn_tree."""

    def grown(self, levels: tuple[int, int, int]) -> PrototypeTree:
        """Unbalanced: every node has a child at least, the others go to the first."""
        torch.manual_seed(0)
        tree = PrototypeTree(levels, 6)
        for level in (1, 2):
            place = torch.arange(levels[level])
            tree.parent[tree.nodes(level)] = tree.offsets[level - 1] + place * (place < levels[level - 1])
        return tree

    @pytest.mark.parametrize("how", ["path", "top-down"])
    def test_any_number_of_cells(self, how):
        """More than a block, in parts, and none."""
        tree = self.grown((3, 9, 40))
        h = normalize(torch.randn(3000, 6, generator=torch.Generator().manual_seed(3)), dim=1)
        nodes, confidence = tree.assign(h, how=how)
        assert nodes.dtype == torch.int64
        assert confidence.dtype == torch.float32
        assert len(nodes[:, 2].unique()) > 10
        for part in (slice(0, 1), slice(500, 2900), slice(0, 0)):
            other, sure = tree.assign(h[part], how=how)
            assert other.equal(nodes[part])
            assert torch.allclose(sure, confidence[part], atol=1e-6)
            assert other.shape == (len(h[part]), 3)

    @pytest.mark.parametrize("how", ["path", "top-down"])
    def test_equal_scores(self, how):
        """Confidence stays finite with a temperature near 0."""
        tree = self.grown((2, 4, 8))
        with torch.no_grad():
            tree.prototypes[:] = torch.eye(6)[0]
        nodes, confidence = tree.assign(normalize(torch.randn(5, 6), dim=1), how=how, temperature=1e-3)
        for level in (1, 2):
            assert (tree.parent[nodes[:, level]] == nodes[:, level - 1]).all()
        assert (confidence > 0.1).all()
        assert (confidence < 1).all()
