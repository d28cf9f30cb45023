"""Contexts, directions, embeddings and axes of slides against dense algebra; slides unlike those of the training."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import fields, replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.linalg import fractional_matrix_power, polar, sqrtm
from scipy.spatial import cKDTree

import stage_sc as st
from stage_sc.embed import ContextCache, calibrate, encode_slide, hops_within
from stage_sc.embed._axes import principal_axes, slide_axes
from stage_sc.embed._slide_context import slide_context
from stage_sc.embed._unlike import UNLIKE, coexpression_correlation
from stage_sc.model import Stage, StageConfig
from stage_sc.slides import Slide, load_window, mix, read_slides, slide_panel

N, DIM = 260, 8
# Rank of the gene vectors: all components, all but the constant, and common factors of fewer.
RANKS = pytest.mark.parametrize("rank", [DIM, DIM - 1, 6, 3])


@pytest.fixture(scope="module")
def slide() -> Slide:
    """One cell is empty, another has no neighbour."""
    adata = st.datasets.simulate_tissue(N, rng=6)
    adata.X, adata.obsm["spatial"][9] = sp.csr_matrix(adata.X.multiply(np.arange(N)[:, None] != 7)), [5000, 5000]
    st.pp.build_graph(adata)
    (slide,) = read_slides(adata, StageConfig())
    assert slide.isolated.sum() == slide.empty.sum() == 1
    return slide


def network(slide: Slide, seed: int = 0, genes: list[str] | None = None, rank: int = DIM, **changes: object) -> Stage:
    """Far from its start: the vectors that the genes started from, of some rank, are others than those they have."""
    config = StageConfig(**{"dim": DIM, "n_layers": 1, "levels": (2, 4), **changes})
    model, generator = Stage(config, genes or slide.genes, ["one"], version="0"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        model.initial_vectors.copy_(torch.randn(model.initial_vectors.shape, generator=generator))
        model.initial_vectors[:, rank:] = 0
    return model.eval()


def scaled(slide: Slide) -> np.ndarray:
    return (slide.take(np.arange(slide.n_cells)).toarray() - slide.mean) / slide.scale


def mean_over(slide: Slide, hops: int) -> np.ndarray:
    near = (slide.graph[:].toarray() > 0).astype(float)
    return np.linalg.matrix_power(near / near.sum(axis=1, keepdims=True), hops)


def start_of(model: Stage, slide: Slide) -> np.ndarray:
    return model.initial_vectors[[model.vocabulary[gene] for gene in slide.genes]].double().numpy()


def entry(model: Stage, slide: Slide) -> tuple[np.ndarray, np.ndarray | None]:
    """Vectors by which cells enter, those of their genes where these use all components (the last may be constant).

    Otherwise principal axes of the slide, and the gene vectors in terms of these.
    """
    vectors = start_of(model, slide)
    if not (vectors[:, :-1] == 0).all(axis=0).any():
        return vectors, None
    axes = slide_axes(slide, model.config).double().numpy()[:, :DIM]
    return axes, axes.T @ vectors


def hops_of(slide: Slide, reach: float) -> int:
    return max(2, round(reach / slide.edge))


def hop_mean(slide: Slide, vectors: np.ndarray, reach: float = 44.0) -> np.ndarray:
    """Means of cells embedded with these vectors, over hops that reach some µm; 0: the cells."""
    hops = hops_of(slide, reach) if reach else 0
    return mean_over(slide, hops) @ (scaled(slide) @ vectors / np.linalg.norm(vectors))


def directions(
    slide: Slide, vectors: np.ndarray, power: float = 1.0, reach: float = 44.0, frame: np.ndarray | None = None
) -> np.ndarray:
    """Map of cells to the directions that vary in space more than those of shuffled cells, scaled over a distance."""
    cells, near = hop_mean(slide, vectors, 0), mean_over(slide, hops_of(slide, 22.0))
    values, axes = np.linalg.eigh(np.cov(cells.T, bias=True))
    values, axes = values[used := values > 1e-6 * values[-1]], axes[:, used]
    root = axes / np.sqrt(values) @ axes.T
    if frame is not None:
        left, values, right = np.linalg.svd(axes * np.sqrt(values) @ axes.T @ frame)
        shared = values > 1e-4 * values[0]
        root = root @ left[:, shared] @ right[shared]
    unit, place, floor = cells @ root, np.argsort(mix(slide.identity), kind="stable"), []
    for number in range(1, 21):
        shuffled = np.empty_like(unit)
        shuffled[place] = unit[np.argsort(mix(slide.identity + np.uint64(number)), kind="stable")]
        floor.append(np.linalg.eigvalsh(np.cov((near @ shuffled).T, bias=True))[-1])
    values, axes = np.linalg.eigh(np.cov((near @ unit).T, bias=True))
    axes = axes[:, values > np.mean(floor)]
    spread = np.cov((mean_over(slide, hops_of(slide, reach)) @ unit @ axes).T, bias=True)
    return root @ axes @ fractional_matrix_power(np.atleast_2d(spread), (power - 1) / 2) @ axes.T


def contexts_of(model: Stage, slide: Slide) -> np.ndarray:
    vectors, frame = entry(model, slide)
    return hop_mean(slide, vectors) @ directions(slide, vectors, frame=frame)


class TestCalibrate:
    @RANKS
    @pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
    def test_equations(self, slide, power, rank):
        """From the vectors of the start alone: training changes nothing."""
        model = network(slide, power=power, rank=rank)
        vectors, frame = entry(model, slide)
        expected = directions(slide, vectors, power, frame=frame)
        panel = calibrate(model, slide)
        got = panel.whitening
        assert (panel.axes is None) == (frame is None) == (rank >= DIM - 1)
        assert frame is None or np.array_equal(panel.axes, vectors)
        assert not got.requires_grad
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    @pytest.mark.parametrize("n_layers", [0, 2])
    def test_from_a_window(self, slide, on_disk, n_layers):
        """From the same cells of a part of the slide: the same but for the noise floor, from the cells at hand."""
        model, cells = network(slide, n_layers=n_layers), np.arange(20, 160)
        window, places = load_window(on_disk(slide), cells, n_layers, 4, rings=False)
        assert window.n_cells < N
        both = (window, places), (slide, cells)
        got, expected = (calibrate(model, one, torch.from_numpy(chosen)).whitening for one, chosen in both)
        ranks = [int(torch.linalg.matrix_rank(one, rtol=1e-4)) for one in (got, expected)]
        assert abs(ranks[0] - ranks[1]) <= 2


class TestEncode:
    def test_panel_of_cells_and_contexts(self, slide):
        model = network(slide, genes=["another", *reversed(slide.genes)])
        assert encode_slide(model, slide, calibrate(model, slide)).pooled.equal(encode_slide(model, slide).pooled)
        plain = slide_panel(slide, model.vocabulary)
        twice = encode_slide(model, slide, plain._replace(whitening=2 * torch.eye(DIM)))
        once = encode_slide(model, slide, plain)
        torch.testing.assert_close(twice.context, 2 * once.context)
        assert (twice.h - once.h).abs().max() > 0.01

    @RANKS
    @pytest.mark.parametrize("whiten", [True, False])
    def test_context(self, slide, whiten, rank):
        model = network(slide, whiten=whiten, rank=rank)
        context = encode_slide(model, slide).context
        assert (calibrate(model, slide).whitening is None) == (not whiten)
        vectors = start_of(model, slide)
        expected = contexts_of(model, slide) if whiten else hop_mean(slide, vectors)
        np.testing.assert_allclose(context, expected, atol=1e-4)

    @RANKS
    def test_whitened_cells_enter_the_layers(self, slide, rank):
        """Without layers and with plain means: the pooled cells, in units of what varies."""
        model = network(slide, n_layers=0, rank=rank)
        model.encoder = Stage(model.config, ["gene"], ["one"]).encoder  # untrained
        model.embedder.vectors.data.copy_(model.initial_vectors)
        vectors, frame = entry(model, slide)
        cells = scaled(slide) @ vectors / np.linalg.norm(vectors) @ directions(slide, vectors, frame=frame)
        share = slide.local.toarray().astype(float)
        share /= share.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(encode_slide(model, slide).pooled, share @ cells, atol=1e-3)

    @pytest.mark.parametrize("factor", [0.1, 30.0])
    def test_cells_times_a_constant(self, slide, factor):
        louder = replace(slide, scale=slide.scale / np.float32(factor))
        for whiten in (True, False):
            model = network(slide, whiten=whiten)
            one, other = (encode_slide(model, it) for it in (slide, louder))
            for name in ("h", "context"):
                difference = (getattr(one, name) - getattr(other, name)).abs().max()
                assert difference < 1e-4 if whiten else difference > 0.05


class TestDistances:
    """Means are over µm, whatever the distance of cells, bins and spots."""

    @pytest.mark.parametrize(
        ("edge", "hops"),
        [
            *[(11.0, (2, 4, 7)), (7.0, (3, 6, 11)), (24.3, (2, 2, 3)), (2.0, (11, 22, 38)), (8.0, (3, 6, 10))],
            *[(16.0, (2, 3, 5)), (100.0, (2, 2, 2)), (200.0, (2, 2, 2)), (0.5, (44, 50, 50)), (0.0, (2, 2, 2))],
        ],
    )
    def test_hops(self, slide, edge, hops):
        assert tuple(hops_within(reach, replace(slide, edge=edge)) for reach in (22, 44, 77)) == hops
        assert hops_within(0, slide) == 0

    @pytest.mark.parametrize(("pitch", "hops"), [(4, 11), (8, 6), (16, 3)])
    def test_bins(self, pitch, hops):
        """Of the same tissue, in squares of any size."""
        tissue = st.datasets.simulate_tissue(1500, rng=2)
        low, high = tissue.obsm["spatial"].min(axis=0), tissue.obsm["spatial"].max(axis=0)
        sides = [np.arange(a, b, pitch) for a, b in zip(low, low + np.minimum(high - low, 40 * pitch), strict=True)]
        places = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
        near = cKDTree(tissue.obsm["spatial"]).query(places)[1]
        bins = ad.AnnData(tissue.X[near], var=tissue.var, obsm={"spatial": places})
        st.pp.build_graph(bins, scale=1.0)
        st.tl.stage_niches(bins, n_domains=3)
        assert bins.uns["stage_graph"]["slides"]["layout"].tolist() == ["square"]
        assert bins.uns["stage"]["slides"]["context_hops"].tolist() == [hops]


class TestContexts:
    def test_computed_once_for_every_slide(self, slide, put_in_order):
        seen = []

        class Watched(Slide):
            def blocks(self, size: int) -> Iterator[object]:
                seen.append(self)
                return super().blocks(size)

        both = slide, put_in_order(slide, np.arange(N)[::-1])
        one, other = (Watched(**{field.name: getattr(it, field.name) for field in fields(it)}) for it in both)
        model, contexts = network(slide), ContextCache()
        panel = calibrate(model, slide)
        first, again = ([contexts.of(model, it, panel) for it in (one, other)] for _ in range(2))
        assert seen == [one, other]
        assert all(a is b for a, b in zip(first, again, strict=True))
        torch.testing.assert_close(first[1], first[0].flip(0), rtol=0, atol=1e-5)  # each its own
        assert first[0].equal(encode_slide(model, slide).context)
        ContextCache().of(model, one, panel)  # another training
        assert len(seen) == 3

    def test_freed_with_the_slide(self, slide):
        model, contexts = network(slide), ContextCache()
        mine = replace(slide)
        kept, gone = weakref.ref(contexts.of(model, mine, calibrate(model, mine))), weakref.ref(mine)
        gc.collect()
        assert kept() is not None
        del mine
        gc.collect()
        assert gone() is None and kept() is None

    def test_of_windows(self, slide, on_disk):
        model, wanted = network(slide), np.arange(100, 140)
        panel = calibrate(model, slide)
        window, places = load_window(on_disk(slide), wanted, 1, 4)
        got, expected = (ContextCache().of(model, it, panel) for it in (window, slide))
        assert got[places].equal(expected[wanted])
        assert (got - expected[np.argsort(slide.cells)[window.cells]]).abs().max() > 0.01


def axes_of(cells: np.ndarray) -> np.ndarray:
    return np.linalg.svd(cells - cells.mean(axis=0))[2][:DIM].T


class TestAxes:
    @pytest.mark.parametrize("n_cells", [N, N // 3])
    def test_principal_axes_of_cells(self, slide, n_cells):
        chosen = np.sort(np.argsort(mix(slide.identity), kind="stable")[:n_cells])  # by their counts
        axes = principal_axes(slide, DIM, n_cells).numpy()
        expected = axes_of(scaled(slide)[chosen])
        assert axes.dtype == np.float32
        np.testing.assert_allclose(axes.T @ axes, np.eye(DIM), atol=1e-5)
        cells = scaled(slide)[chosen] - scaled(slide)[chosen].mean(axis=0)
        assert np.square(cells @ axes).sum() > 0.999 * np.square(cells @ expected).sum()

    def test_fewer_genes_than_axes(self, slide):
        x = slide.take(np.arange(N))[:, :5]
        few = replace(slide, expression=x, rows=None, genes=slide.genes[:5], mean=slide.mean[:5], scale=slide.scale[:5])
        axes = principal_axes(few, DIM, N).numpy()
        assert axes.shape == (5, DIM)
        np.testing.assert_allclose(axes @ axes.T, np.eye(5), atol=1e-5)

    def test_no_counts(self, slide):
        empty = replace(slide, expression=0 * slide.expression, mean=0 * slide.mean)
        got, found = slide_context(network(slide), empty, principal_axes(empty, DIM, N))
        assert found.number == 0 and not got.context.any()

    @pytest.mark.parametrize(("n_axes", "rank"), [(DIM, DIM), (20, DIM), (1000, DIM), (20, 3)])
    def test_equation_of_contexts(self, slide, n_axes, rank):
        """Directions that the vectors of the model span are turned, wherever these lie; others are put beside them."""
        model = network(slide, n_axes=n_axes)
        span = np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0][:, :rank]
        model.initial_vectors.copy_((model.initial_vectors.double() @ torch.from_numpy(span @ span.T)).float())
        axes = slide_axes(slide, model.config).double().numpy()
        assert axes.shape[1] == min(n_axes, max(DIM, N // 8))
        cells, means = (hop_mean(slide, axes, reach) for reach in (0, 77.0))
        root = sqrtm(np.cov(cells.T, bias=True))
        x = means @ np.linalg.inv(root) @ polar(root @ axes.T @ start_of(model, slide) @ span)[0] @ span.T
        own = means @ directions(slide, axes, power=0.0, reach=22.0)
        own -= own.mean(axis=0)
        left, shared, right = np.linalg.svd(own.T @ (x - x.mean(axis=0)), full_matrices=False)
        kept = shared > 1e-4 * shared[0]
        assert kept.sum() <= rank
        found, chosen = slide_context(model, slide, torch.from_numpy(axes).float())
        got = found.context
        assert got.dtype == torch.float32 and got.shape == (N, DIM) and 0 < chosen.number <= axes.shape[1]
        in_model = right[kept].T @ right[kept]
        np.testing.assert_allclose(got.numpy() @ in_model, own @ left[:, kept] @ right[kept], atol=2e-3)
        others = np.sort(np.linalg.eigvalsh(np.cov((own - own @ left[:, kept] @ left[:, kept].T).T, bias=True)))[::-1]
        beside = np.sort(np.linalg.eigvalsh(np.cov((got.numpy() @ (np.eye(DIM) - in_model)).T, bias=True)))[::-1]
        n_free = DIM - kept.sum()
        np.testing.assert_allclose(beside[:n_free], others[:n_free], atol=1e-3)  # the largest of the others
        again = hop_mean(slide, np.eye(len(slide.genes)), 77.0) * len(slide.genes) ** 0.5 @ found.vectors.numpy()
        np.testing.assert_allclose(again + found.constant.numpy(), got, atol=1e-3)


@pytest.fixture(scope="module")
def trained() -> tuple[ad.AnnData, Stage]:
    adata = st.datasets.simulate_tissue(1000, rng=5)
    st.pp.build_graph(adata)
    return adata, st.tl.fit(adata, epochs=0, progress=False)


class TestUnlike:
    def read(self, adata: ad.AnnData, model: Stage) -> Slide:
        return read_slides(adata, model.config, vocabulary=model.vocabulary.keys())[0]

    def of(self, adata: ad.AnnData, model: Stage) -> float:
        return coexpression_correlation(model, self.read(adata, model))

    def test_by_definition(self, trained):
        adata, model = trained
        one = self.read(adata, model)
        around = mean_over(one, 2) @ scaled(one)
        vectors = start_of(model, one)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        pairs = np.triu_indices(len(one.genes), 1)
        expected = np.corrcoef(np.corrcoef(around.T)[pairs], (vectors @ vectors.T)[pairs])[0, 1]
        assert coexpression_correlation(model, one) == pytest.approx(expected, abs=1e-3)
        assert expected > 0.1

    def test_other_names_for_genes_are_noticed(self, trained, caplog):
        """Whatever the name of the slide: those without a name are all called the same."""
        adata, model = trained
        assert self.of(adata, model) > 2 * UNLIKE
        other, noise = adata.copy(), adata.copy()
        other.var_names = np.random.default_rng(0).permutation(adata.var_names)
        noise.X = np.random.default_rng(1).poisson(1.0, adata.shape).astype(np.float32)
        for strange in (other, noise):
            assert abs(self.of(strange, model)) < UNLIKE
        for slides in (["elsewhere"], ["slide"]):
            model.slides = slides
            caplog.clear()
            st.tl.stage_niches(adata, model=model, copy=True)
            assert not caplog.records
            st.tl.stage_niches(noise, model=model, copy=True)
            assert "'slide' is unlike" in caplog.text

    def test_one_gene_or_none_that_varies(self, trained):
        adata, model = trained
        assert self.of(adata[:, :1].copy(), model) == 0
        one = self.read(adata, model)
        flat = replace(one, expression=one.expression * 0)
        assert abs(coexpression_correlation(model, flat)) < UNLIKE
