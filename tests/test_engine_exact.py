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
    """Domains from left to right, so that expression varies in space."""
    adata, xy = st.datasets.simulate_tissue(260, rng=6), xy[np.argsort(xy[:, 0], kind="stable")]
    adata = adata[np.argsort(adata.obs["domain"].cat.codes, kind="stable")].copy()
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
# Cells enter by the vectors of their genes, or by the axes of their slide where these have free components.
BY_AXES = pytest.mark.parametrize("by_axes", [False, True])


def network(slide: Slide, n_layers: int, *, sharp: float = 1.0, seed: int = 0, by_axes: bool = False) -> Stage:
    """All parameters far from their start; with `sharp`, attention has its weight on few cells."""
    config = StageConfig(dim=16, n_layers=n_layers, n_heads=4, levels=(2, 4))
    model = Stage(config, ["another", *reversed(slide.genes), "one more"], ["one"], version="0")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.4 * (sharp if ".att_" in name else 1)
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        model.initial_vectors.copy_(torch.randn(model.initial_vectors.shape, generator=generator))
        model.initial_vectors[:, 10 if by_axes else 16 :] = 0
    assert model.by_axes == by_axes
    return model.eval()


def hops_of(slide: Slide, reach: float) -> int:
    return max(2, round(reach / slide.edge))


def hop_mean(slide: Slide, hops: int) -> np.ndarray:
    mean = (slide.graph[:].toarray() > 0).astype(float)
    return np.linalg.matrix_power(mean / mean.sum(axis=1, keepdims=True), hops)


@torch.no_grad()
def reference(model: Stage, slide: Slide) -> tuple[np.ndarray, np.ndarray]:
    """Embedding from torch-geometric's layers, which hold all messages, and context from dense matrices."""
    panel, expression = calibrate(model, slide), slide.take(np.arange(slide.n_cells))
    cells = model.embed(Sparse(expression), panel)
    graph, local = slide.graph[:].tocoo(), torch.from_numpy(slide.local[:].toarray())
    edges, weights = torch.from_numpy(np.stack([graph.col, graph.row])).long(), torch.from_numpy(graph.data)[:, None]
    for layer in model.encoder.layers:
        cells = layer(cells, edges, weights)
    share = local * torch.exp(model.encoder.score(cells).clamp(-10, 10)).T
    h = normalize(model.encoder.project(share @ cells / share.sum(dim=1, keepdim=True)), dim=1)
    genes = [model.vocabulary[gene] for gene in slide.genes]
    vectors = (panel.axes if model.by_axes else model.initial_vectors[genes]).double().numpy()
    context = hop_mean(slide, hops_of(slide, 44.0)) @ ((expression.toarray() - slide.mean) / slide.scale @ vectors)
    return h.numpy(), context / np.linalg.norm(vectors) @ panel.whitening.double().numpy()


def assert_close(got: Encoded, h: np.ndarray, context: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(got.h.numpy(), h, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.context.numpy(), context, rtol=0, atol=tolerance)
    assert got.pooled.dtype == got.context.dtype == torch.float32


class TestWholeSlides:
    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize(("n_layers", "by_axes"), [(0, False), (1, False), (2, False), (2, True), (3, False)])
    @torch.no_grad()
    def test_like_the_layers(self, cases, name, n_layers, by_axes):
        """As is one batch of all cells; batches of some are in test_slides_batch."""
        slide = cases[name]
        model = network(slide, n_layers, seed=n_layers, by_axes=by_axes)
        h, context = reference(model, slide)
        assert_close(encode_slide(model, slide), h, context)
        batch = model(make_batch(slide, calibrate(model, slide), n_layers))
        np.testing.assert_allclose(batch, h, rtol=0, atol=TOLERANCE)
        assert len(np.unique(h.round(3), axis=0)) > 0.9 * slide.n_cells
        assert context.std() > 0.01

    @pytest.mark.parametrize("sharp", [30.0, 1000.0])
    @pytest.mark.parametrize("name", ["radius", "hexagonal"])
    @torch.no_grad()
    def test_large_attention_scores(self, cases, name, sharp):
        """Of some hundreds, whose exponentials float32 cannot hold."""
        slide = cases[name]
        model = network(slide, 1, sharp=sharp)
        batch = make_batch(slide, calibrate(model, slide), 1)
        layer, z = model.encoder.layers[0], model.embed(batch.expression, batch.panel)
        assert (layer.lin(z).view(-1, 4, 4) * layer.att_src).sum(dim=2).abs().max() > (89 if sharp == 1000 else 5)
        got, (h, context) = encode_slide(model, slide), reference(model, slide)
        assert np.isfinite(got.h.numpy()).all()
        assert_close(got, h, context)

    @torch.no_grad()
    def test_large_gates(self, cases):
        model = network(cases["radius"], 1)
        model.encoder.score.weight *= 1000
        assert_close(encode_slide(model, cases["radius"]), *reference(model, cases["radius"]))

    @BY_AXES
    @pytest.mark.parametrize("name", CASES)
    def test_any_order_of_the_cells_and_on_disk_and_any_size_of_blocks(
        self, cases, name, by_axes, on_disk, put_in_order
    ):
        slide = cases[name]
        model, order = network(slide, 2, by_axes=by_axes), np.random.default_rng(5).permutation(slide.n_cells)
        memory, expected = put_in_order(slide, order), encode_slide(model, slide)
        stored = on_disk(memory)
        assert stored.stored
        assert not slide.stored
        assert not expected.pooled.requires_grad
        for other, block in ((memory, 7), (memory, 260), (stored, 64), (stored, 259), (stored, 10**6)):
            got = encode_slide(model, other, block=block)
            assert_close(got, expected.h[order].numpy(), expected.context[order].numpy())
            np.testing.assert_allclose(got.pooled, expected.pooled[order], rtol=TOLERANCE, atol=TOLERANCE)

    @BY_AXES
    def test_reads_blocks_and_expression_twice(self, cases, on_disk, monkeypatch, by_axes):
        """Once more for the axes of the slide, where these are used: few cells at random places, here all."""
        stored, asked = on_disk(cases["radius"]), []
        plain = type(stored.graph).__getitem__

        def spy(matrix, rows):
            part = plain(matrix, rows)
            asked.append((matrix.indptr.path.stem, part.shape[0]))
            return part

        monkeypatch.setattr(type(stored.graph), "__getitem__", spy)
        encode_slide(network(stored, 2, by_axes=by_axes), stored, block=50)
        assert max(size for name, size in asked if name != "expression" or not by_axes) == 50
        rows = {name: sum(size for other, size in asked if other == name) for name, _ in asked}
        tested, hops = hops_of(stored, 22.0), hops_of(stored, 44.0)
        assert rows == {"expression": (2 + by_axes) * 260, "graph": (hops + 20 * tested + 2 + hops) * 260, "local": 260}

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("reach", [0.0, 1.0, 44.0, 90.0])
    def test_niches_are_read_from_the_mean_of_embeddings(self, cases, name, reach):
        slide = cases[name]
        model = network(slide, 1)
        model.config = model.config.replace(smoothing_reach=reach)
        encoded, hops = encode_slide(model, slide), hops_of(slide, reach) if reach else 0
        expected = normalize(torch.from_numpy(hop_mean(slide, hops)) @ encoded.h.double(), dim=1)
        np.testing.assert_allclose(encoded.niche, expected, rtol=0, atol=TOLERANCE)
        assert (encoded.niche - encoded.h).abs().max() > 0.01 or hops == 0


@pytest.mark.parametrize("how", ["path", "top-down"])
class TestAssign:
    """Paths and confidences by enumeration are in test_nn_tree."""

    @pytest.fixture
    def tree(self) -> PrototypeTree:
        torch.manual_seed(0)
        tree = PrototypeTree((3, 9, 40), 6)
        for level, size in ((1, 9), (2, 40)):
            tree.parent[tree.nodes(level)] = tree.offsets[level - 1] + torch.arange(size) % (3**level)
        return tree

    def test_any_number_of_cells(self, tree, how):
        """More than a block, in parts, and none."""
        h = normalize(torch.randn(3000, 6, generator=torch.Generator().manual_seed(3)), dim=1)
        nodes, confidence = tree.assign(h, how=how)
        assert nodes.dtype == torch.int64
        assert confidence.dtype == torch.float32
        assert len(nodes[:, 2].unique()) > 10
        for part in (slice(0, 1), slice(500, 2900), slice(0, 0)):
            other, sure = tree.assign(h[part], how=how)
            assert other.equal(nodes[part])
            assert torch.allclose(sure, confidence[part], atol=1e-6)

    @torch.no_grad()
    def test_equal_scores(self, tree, how):
        """Confidence stays finite with a temperature near 0."""
        tree.prototypes[:] = torch.eye(6)[0]
        nodes, confidence = tree.assign(normalize(torch.randn(5, 6), dim=1), how=how, temperature=1e-3)
        for level in (1, 2):
            assert (tree.parent[nodes[:, level]] == nodes[:, level - 1]).all()
        assert (confidence > 0.01).all()
        assert (confidence < 1).all()
