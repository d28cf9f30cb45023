"""Training: losses from their parts, schedule, batches, M-step, where it starts, and how a collapse is told."""

from __future__ import annotations

import logging
import math
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import stage_sc as st
import stage_sc.train._prior as prior
from stage_sc.data._batch import draw_partners, make_batch, slide_panel
from stage_sc.data._slide import Slide, read_data
from stage_sc.model import Stage, StageConfig
from stage_sc.model._augment import draw_view
from stage_sc.model._sinkhorn import sinkhorn
from stage_sc.train import _train
from stage_sc.train._adapt import CELLS_PER_LEAF, adapt
from stage_sc.train._encode import encode_slide
from stage_sc.train._health import Health, warn_if_collapsed
from stage_sc.train._prior import gene_prior, kmeans_leaves
from stage_sc.train._train import _average_step, _batches, _rate, _stalled, grow_tree, set_start, step, train


@pytest.fixture(scope="module")
def parts(slides) -> list[Slide]:
    common = [set(part.genes) for part in read_data(slides, scaling="standardize")]
    use = slides.var_names.str.casefold().isin(set.intersection(*common))
    return read_data(slides[:, use].copy(), scaling="standardize")


@pytest.fixture(scope="module")
def vocabulary(parts) -> dict[str, int]:
    return {gene: number for number, gene in enumerate(parts[0].genes)}


@pytest.fixture
def new_model(parts, small_config):
    """Make a model with gene vectors and a tree, not yet trained; the same each time."""

    def make(**changes: object) -> Stage:
        config = small_config.replace(**changes)
        model = Stage(config, parts[0].genes, [slide.name for slide in parts])
        model.set_vectors(torch.from_numpy(gene_prior(parts, model.genes, config.dim)))
        set_start(model, parts)
        grow_tree(model, parts, np.random.default_rng(0))
        return model

    return make


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class TestStep:
    """All numbers again from embeddings, prototypes and sampled paths, with numpy."""

    def run(self, parts, vocabulary, model: Stage, *, joint: bool, number: int = 1):
        slide, rng = parts[number], np.random.default_rng(0)
        panel = slide_panel(slide, vocabulary)
        centres = rng.permutation(slide.n_cells)[:60]
        batches = tuple(
            make_batch(slide, panel, model.config.n_layers, centres=cells, number=number)
            for cells in (centres, draw_partners(slide, centres, rng))
        )
        views = tuple(
            draw_view(len(slide.genes), rng, panel_fraction=0.8, noise_rate=8.0, noise_scale=0.05) for _ in range(2)
        )
        content = torch.from_numpy(rng.normal(size=(60, model.config.dim)).astype(np.float32))
        with torch.no_grad():
            h = [model(batch, view).numpy().astype(float) for batch, view in zip(batches, views, strict=True)]
        queue = model.queue.scores.clone()
        active = model.active(number).numpy()
        generator = torch.Generator().manual_seed(5)
        losses, embedding, scores = step(model, batches, views, content, generator, joint=joint)
        np.testing.assert_allclose(embedding.detach().numpy(), h[0], atol=1e-6)
        return losses, scores, h, content.numpy(), active, queue

    def cosines(self, model: Stage, h: np.ndarray, active: np.ndarray) -> list[np.ndarray]:
        prototypes = model.tree.prototypes.detach().numpy().astype(float)
        cosine = h @ (prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)).T
        cosine[:, ~active] = -np.inf
        return np.split(cosine, np.cumsum(model.config.levels)[:-1], axis=1)

    def swapped(self, model: Stage, one: np.ndarray, other: np.ndarray) -> float:
        config, total = model.config, 0.0
        for target, source in ((one, other), (other, one)):
            q = sinkhorn(torch.from_numpy(target), config.epsilon, config.sinkhorn_iterations).numpy()
            log_p = np.log(np.maximum(softmax(source / config.temperature), 1e-300))
            total -= 0.5 * (q * log_p).sum() / len(q)
        return total

    @pytest.mark.parametrize("joint", [False, True])
    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({}, id="default"),
            pytest.param({"anchor_weight": 0.0, "swap_levels": "leaves"}, id="leaves alone, no anchor"),
            pytest.param({"anchor_weight": 3.0, "global_weight": 0.7, "temperature": 0.2}, id="weights"),
            pytest.param({"levels": (9,)}, id="one level"),
        ],
    )
    def test_losses(self, parts, vocabulary, new_model, changes, joint):
        model = new_model(**changes)
        config, n_levels = model.config, len(model.config.levels)
        losses, scores, h, content, active, _ = self.run(parts, vocabulary, model, joint=joint)
        assert active.all()
        one, other = (self.cosines(model, part, active) for part in h)
        for got, expected in zip(scores, one, strict=True):
            assert not got.requires_grad
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
        levels = range(n_levels) if config.swap_levels == "all" else [n_levels - 1]
        expected = {"swapped": np.mean([self.swapped(model, one[level], other[level]) for level in levels])}
        total = expected["swapped"]
        if config.anchor_weight:
            weight, bias = (part.detach().numpy() for part in (model.decoder.weight, model.decoder.bias))
            expected["anchor"] = ((h[0] @ weight.T + bias - content) ** 2).sum() / (content**2).sum()
            total += config.anchor_weight * expected["anchor"]
        if joint and n_levels > 1:
            paths = model.tree.sample_paths(
                [torch.from_numpy(level.astype(np.float32)) for level in one],
                torch.Generator().manual_seed(5),
                epsilon=config.epsilon,
                n_iterations=config.sinkhorn_iterations,
            ).numpy()
            expected["path"] = self.path(model, one, paths)
            total += config.global_weight * expected["path"]
        assert set(losses) == {"loss", *expected}
        for name, value in {**expected, "loss": total}.items():
            assert float(losses[name].detach()) == pytest.approx(value, rel=2e-4), name

    def path(self, model: Stage, scores: list[np.ndarray], paths: np.ndarray) -> float:
        parent, offsets, total = model.tree.parent.numpy(), np.cumsum([0, *model.config.levels]), 0.0
        for cell, path in enumerate(paths):
            for level in range(1, len(path)):
                children = np.flatnonzero(parent == path[level - 1] + offsets[level - 1])
                assert path[level] + offsets[level] in children
                odds = {node: np.exp(scores[level][cell, node - offsets[level]] / model.config.temperature)
                        for node in children}  # fmt: skip
                total -= math.log(odds[path[level] + offsets[level]] / sum(odds.values()))
        return total / len(paths)

    def test_remembers_the_batch(self, parts, vocabulary, new_model):
        model = new_model(queue_rank=4)
        _, _, h, _, _, before = self.run(parts, vocabulary, model, joint=False)
        cosine = np.concatenate(self.cosines(model, h[0], np.ones(26, bool)), axis=1)
        np.testing.assert_allclose(model.queue.scores[1, 0].numpy(), np.sort(cosine, axis=0)[-4], atol=1e-5)
        assert model.queue.scores[1, 1].equal(before[1, 0])
        assert model.queue.scores[0].equal(before[0])

    def test_a_slide_compares_with_its_own_prototypes_alone(self, parts, vocabulary, new_model):
        model = new_model(selection_threshold=1.0)
        model.queue.scores[:] = torch.linspace(0.1, 0.9, 26)
        model.queue.scores[0, :, ::2] += 1  # every other prototype belongs to slide 0
        losses, scores, h, _, active, _ = self.run(parts, vocabulary, model, joint=True)
        assert 0 < active.sum() < 26
        cosine = np.concatenate([level.numpy() for level in scores], axis=1)
        assert (np.isneginf(cosine) == ~active).all()
        one, other = (self.cosines(model, part, active) for part in h)
        expected = np.mean([self.swapped(model, a, b) for a, b in zip(one, other, strict=True)])
        assert float(losses["swapped"].detach()) == pytest.approx(expected, rel=2e-4)
        assert np.isfinite(float(losses["loss"].detach()))

    def test_gradients(self, parts, vocabulary, new_model):
        for joint in (False, True):
            model = new_model()
            losses, *_ = self.run(parts, vocabulary, model, joint=joint)
            losses["loss"].backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert "score.bias" in name or parameter.grad.abs().max() > 0, name  # a softmax ignores a constant


class TestTrain:
    def prototypes(self, model: Stage) -> np.ndarray:
        return torch.nn.functional.normalize(model.tree.prototypes.detach(), dim=1).numpy().copy()

    def trained(self, model: Stage, parts: list[Slide], **arguments: object) -> pd.DataFrame:
        return train(model, parts, np.random.default_rng(0), **{"progress": False, "keep_tree": True, **arguments})

    @pytest.mark.parametrize(("warmup", "moves"), [(2, False), (0, True)])
    @pytest.mark.parametrize("m_step", ["gradient", "average"])
    def test_prototypes_move_in_joint_training_alone(self, parts, new_model, warmup, moves, m_step):
        model = new_model(epochs=2, warmup_epochs=warmup, m_step=m_step)
        before, vectors = self.prototypes(model), model.embedder.vectors.detach().clone()
        history = self.trained(model, parts)
        assert history["stage"].tolist() == ["joint" if moves else "warm-up"] * 2
        distance = np.abs(self.prototypes(model) - before).max()
        assert distance > 1e-3 if moves else distance < 1e-6
        assert (model.embedder.vectors - vectors).abs().max() > 1e-4
        assert model.tree.prototypes.requires_grad
        assert not model.training

    def test_tree_is_grown_twice_and_kept_when_asked(self, parts, new_model, monkeypatch):
        grown = []
        monkeypatch.setattr(_train, "grow_tree", lambda *arguments: grown.append(grow_tree(*arguments)))
        for keep_tree, times in ((True, 0), (False, 2)):
            grown.clear()
            model = new_model()
            parents = model.tree.parent.clone()
            self.trained(model, parts, keep_tree=keep_tree)
            assert len(grown) == times
            assert model.tree.parent.equal(parents) or not keep_tree

    def test_queue_is_emptied_when_the_tree_is_new(self, parts, new_model):
        """One batch of each slide per epoch: of four that would fit, two of the joint stage are left."""
        model = new_model(queue_length=4, batch_size=500)
        self.trained(model, parts, keep_tree=False)
        assert torch.isinf(model.queue.scores).all(dim=2).sum(dim=1).tolist() == [2, 2]

    def test_schedule(self, parts, new_model, monkeypatch):
        """Learning rates as the optimiser sees them: one step for each batch of all epochs."""
        rates = []

        class Recorder(torch.optim.Adam):
            def step(self, *arguments, **named):
                rates.append(self.param_groups[0]["lr"])
                return super().step(*arguments, **named)

        monkeypatch.setattr(torch.optim, "Adam", Recorder)
        self.trained(new_model(epochs=5, warmup_epochs=3, batch_size=30, learning_rate=0.02), parts)
        n_steps = 5 * 2 * 7  # 200 cells in batches of 30 at most
        np.testing.assert_allclose(rates, [0.02 * _rate(number, n_steps) for number in range(n_steps)])

    def test_cells_per_slide_shortens_the_epochs(self, parts, new_model, monkeypatch):
        drawn = []

        def recorded(*arguments):
            drawn.append(list(_batches(*arguments)))
            return iter(drawn[-1])

        monkeypatch.setattr(_train, "_batches", recorded)
        self.trained(new_model(cells_per_slide=50, batch_size=30, epochs=3, warmup_epochs=1), parts)
        assert [sum(len(cells) for _, cells in epoch) for epoch in drawn] == [100] * 3
        assert sorted(np.concatenate([c for _, c in drawn[0]])) != sorted(np.concatenate([c for _, c in drawn[1]]))

    def test_no_epochs(self, parts, new_model):
        model = new_model(epochs=0, warmup_epochs=0)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert len(self.trained(model, parts)) == 0
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)

    def test_prototypes_end_with_length_one(self, parts, new_model):
        model = new_model(epochs=1, warmup_epochs=0, learning_rate=0.1)
        self.trained(model, parts)
        np.testing.assert_allclose(model.tree.prototypes.detach().norm(dim=1).numpy(), 1, atol=1e-6)

    @pytest.mark.parametrize("loss", ["stalled", "falling"])
    def test_patience(self, parts, new_model, monkeypatch, loss):
        """Each stage ends by itself, and the joint one begins where the warm-up ends early."""
        monkeypatch.setattr(_train, "_stalled", lambda history, patience: loss == "stalled" and len(history) % 3 == 0)
        history = self.trained(new_model(epochs=12, warmup_epochs=7), parts, patience=2)
        expected = ["warm-up"] * 3 + ["joint"] * 3 if loss == "stalled" else ["warm-up"] * 7 + ["joint"] * 5
        assert history["stage"].tolist() == expected
        assert history.index.tolist() == list(range(len(expected)))


@pytest.mark.parametrize(
    ("losses", "patience", "stalled"),
    [
        ([3, 2, 1], 1, False),
        ([3, 3], 1, True),
        ([3, 3], 2, False),
        ([3, 3, 3], 2, True),
        ([3, 2, 2.5, 2.4], 2, True),
        ([3, 2, 2.5, 1.9], 2, False),
        ([3, 3 - 1e-6, 3 - 2e-6], 2, True),  # less than a thousandth is no progress
        ([1], 1, False),
        ([2, 1, 5, 6], 3, False),
    ],
)
def test_stalled(losses, patience, stalled):
    before = [{"stage": "warm-up", "loss": 0.1}] * 9  # another stage does not count
    history = before + [{"stage": "joint", "loss": float(loss)} for loss in losses]
    assert _stalled(history, patience) is stalled


@pytest.mark.parametrize("n_steps", [1, 2, 19, 20, 400])
def test_rate(n_steps):
    rates = [_rate(number, n_steps) for number in range(n_steps)]
    rise = max(1, n_steps // 20)
    np.testing.assert_allclose(rates[:rise], np.arange(1, rise + 1) / rise)
    assert max(rates) == 1
    falling = rates[rise - 1 :]
    assert all(later <= earlier for earlier, later in pairwise(falling))
    middle = rise + (n_steps - rise) / 2
    if n_steps > 1:
        assert _rate(middle, n_steps) == pytest.approx(0.505)
        assert _rate(n_steps, n_steps) == _rate(2 * n_steps, n_steps) == pytest.approx(0.01)


class TestBatches:
    def deal(self, parts, rng=0, **changes):
        config = StageConfig(**{"batch_size": 64, **changes})
        return list(_batches(parts, config, np.random.default_rng(rng)))

    @pytest.mark.parametrize("batch_size", [1, 7, 64, 199, 200, 5000])
    def test_every_cell_once(self, parts, batch_size):
        batches = self.deal(parts, batch_size=batch_size)
        for number, slide in enumerate(parts):
            cells = [part for slide_number, part in batches if slide_number == number]
            assert sorted(np.concatenate(cells)) == list(range(slide.n_cells))
            assert len(cells) == math.ceil(slide.n_cells / batch_size)
            sizes = [len(part) for part in cells]
            assert max(sizes) <= batch_size
            assert max(sizes) - min(sizes) <= 1

    @pytest.mark.parametrize("limit", [1, 50, 130, 1000])
    def test_cells_per_slide(self, parts, limit):
        batches = self.deal(parts, cells_per_slide=limit)
        for number in range(2):
            cells = np.concatenate([part for slide_number, part in batches if slide_number == number])
            assert len(cells) == len(set(cells)) == min(limit, 200)

    def test_chance(self, parts):
        one, same, other = (self.deal(parts, rng, batch_size=20) for rng in (0, 0, 1))
        numbers = [number for number, _ in one]
        assert numbers != sorted(numbers)
        assert all(a == b and (c == d).all() for (a, c), (b, d) in zip(one, same, strict=True))
        assert any(a != b or (c != d).any() for (a, c), (b, d) in zip(one, other, strict=True))


def test_average_step_by_loops(new_model):
    model = new_model(average_rate=0.3)
    with torch.no_grad():
        model.tree.prototypes *= torch.linspace(0.5, 2, 26)[:, None]  # of any length
    before = torch.nn.functional.normalize(model.tree.prototypes.detach(), dim=1).numpy().copy()
    rng = np.random.default_rng(0)
    h = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(12, 16)).astype(np.float32)), dim=1)
    scores = [h @ torch.from_numpy(before[model.tree.nodes(level)]).T for level in range(3)]
    _average_step(model, h, scores)
    after = model.tree.prototypes.detach().numpy()
    untouched = 0
    for level in range(3):
        for position, node in enumerate(range(26)[model.tree.nodes(level)]):
            cells = [h[cell].numpy() for cell in range(12) if int(scores[level][cell].argmax()) == position]
            expected = before[node]
            if cells:
                expected = 0.7 * before[node] + 0.3 * np.mean(cells, axis=0)
            untouched += not cells
            np.testing.assert_allclose(after[node], expected / np.linalg.norm(expected), atol=1e-6)
    assert 0 < untouched < 20


def dense_covariance(slide: Slide) -> np.ndarray:
    """Of the mean over two hops, after scaling; traces as large as the number of genes."""
    near = (slide.graph.toarray() > 0).astype(float) + np.eye(slide.n_cells)
    near /= near.sum(axis=1, keepdims=True)
    around = near @ near @ slide.expression.toarray().astype(float)
    scaled = (around - around.mean(axis=0)) / slide.scale
    covariance = scaled.T @ scaled / len(scaled)
    return covariance * len(covariance) / np.trace(covariance)


def assert_prior(vectors: np.ndarray, covariance: np.ndarray) -> None:
    """Principal axes over the fourth root of their variance, up to sign."""
    dim = vectors.shape[1]
    values, axes = np.linalg.eigh(covariance)
    values, axes = values[::-1][:dim], axes[:, ::-1][:, :dim]
    gaps = np.abs(np.diff(np.linalg.eigvalsh(covariance)[::-1][: dim + 1])) / values[: len(vectors)]
    for column in range(dim):
        if gaps[column] > 1e-3 and (column == 0 or gaps[column - 1] > 1e-3):  # others can be any mixture
            expected = axes[:, column] * values[column] ** -0.25
            cosine = vectors[:, column] @ expected / (expected @ expected)
            assert abs(cosine) == pytest.approx(1, abs=2e-3), column
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=0), values**-0.25, rtol=1e-3)


class TestGenePrior:
    def test_one_slide(self, parts):
        vectors = gene_prior(parts[:1], parts[0].genes, 12)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(parts[0].genes), 12)
        assert_prior(vectors, dense_covariance(parts[0]))
        assert (vectors.sum(axis=0) > 0).all()

    def test_slides_have_the_same_weight(self, parts):
        louder = parts[1]._replace(expression=sp.csr_matrix(7 * parts[1].expression))
        mean = (dense_covariance(parts[0]) + dense_covariance(parts[1])) / 2
        assert_prior(gene_prior([parts[0], louder], parts[0].genes, 8), mean)

    def test_two_panels_are_merged(self, parts):
        genes = parts[0].genes
        columns = [np.arange(100), np.arange(60, len(genes) - 2)]
        slides = [
            slide._replace(
                expression=slide.expression[:, here], genes=[genes[g] for g in here], scale=slide.scale[here]
            )
            for slide, here in zip(parts, columns, strict=True)
        ]
        vocabulary = ["a gene of neither", *genes]
        covariances = [dense_covariance(slide) for slide in slides]
        merged = np.zeros((len(vocabulary), len(vocabulary)))
        for row, one in enumerate(vocabulary):
            for column, other in enumerate(vocabulary):
                found = [
                    covariance[slide.genes.index(one), slide.genes.index(other)]
                    for slide, covariance in zip(slides, covariances, strict=True)
                    if one in slide.genes and other in slide.genes
                ]
                merged[row, column] = np.mean(found) if found else 0
        vectors = gene_prior(slides, vocabulary, 10)
        assert_prior(vectors, merged)
        seen = np.array([gene in slides[0].genes + slides[1].genes for gene in vocabulary]) & (merged.any(axis=0))
        assert seen.sum() > 140
        assert np.abs(vectors[seen]).max(axis=1).min() > 1e-4
        assert np.abs(vectors[~seen]).max() < 1e-4

    def test_zero_beyond_the_rank(self, parts):
        few = parts[0]._replace(
            expression=parts[0].expression[:, :5], genes=parts[0].genes[:5], scale=parts[0].scale[:5]
        )
        vectors = gene_prior([few], few.genes, 16)
        assert (vectors[:, 5:] == 0).all()
        assert (np.abs(vectors[:, :5]).max(axis=0) > 0).all()
        copies = few._replace(  # five genes, each of them four times
            expression=sp.hstack([few.expression] * 4, format="csr"),
            genes=[f"{gene}{number}" for number in range(4) for gene in few.genes],
            scale=np.tile(few.scale, 4),
        )
        vectors = gene_prior([copies], copies.genes, 16)
        assert (vectors[:, 5:] == 0).all()
        np.testing.assert_allclose(vectors[:5], vectors[15:], atol=1e-3)

    def test_many_genes(self, parts):
        """More than are decomposed at once: fewer cells than genes, so that the Gram matrix tells the answer."""
        rng, n = np.random.default_rng(0), parts[0].n_cells
        pattern = rng.gamma(2.0, size=(n, 6)) * [9, 7, 5.5, 4, 3, 2]
        x = sp.csr_matrix((pattern @ rng.normal(size=(6, 4100))).astype(np.float32))
        slide = parts[0]._replace(
            expression=x, genes=[f"g{number:04}" for number in range(4100)], scale=np.ones(4100, np.float32)
        )
        vectors, again = (gene_prior([slide], slide.genes, 8) for _ in range(2))
        assert (vectors == again).all()
        around = slide.surroundings().toarray().astype(float) @ x.toarray()
        around -= around.mean(axis=0)
        left, singular, right = np.linalg.svd(around, full_matrices=False)
        values = singular**2 / (singular**2).sum() * 4100
        for column in range(6):
            expected = right[column] * values[column] ** -0.25
            assert abs(vectors[:, column] @ expected) / (expected @ expected) == pytest.approx(1, abs=1e-3)
        assert (vectors[:, 6:] == 0).all()

    def test_large_slides_are_thinned(self, parts, monkeypatch):
        monkeypatch.setattr(prior, "MAX_CELLS", 70)
        near = (parts[0].graph.toarray() > 0).astype(float) + np.eye(200)
        near /= near.sum(axis=1, keepdims=True)
        around = (near @ near @ parts[0].expression.toarray())[::2]  # 200 // 70
        scaled = (around - around.mean(axis=0)) / parts[0].scale
        covariance = scaled.T @ scaled
        assert_prior(gene_prior(parts[:1], parts[0].genes, 6), covariance * len(covariance) / np.trace(covariance))


class TestKMeansLeaves:
    @pytest.fixture
    def h(self):
        rng = np.random.default_rng(0)
        middle = rng.normal(size=(5, 8))
        h = torch.from_numpy((middle[rng.integers(0, 5, 400)] + 0.1 * rng.normal(size=(400, 8))).astype(np.float32))
        return torch.nn.functional.normalize(h, dim=1)

    def test_leaves(self, h):
        leaves, leaf = kmeans_leaves(h, 5, np.random.default_rng(0))
        assert leaves.dtype == torch.float32
        np.testing.assert_allclose(leaves.norm(dim=1).numpy(), 1, atol=1e-6)
        assert (leaf == (h @ leaves.T).argmax(dim=1)).all()
        assert sorted(leaf.unique().tolist()) == [0, 1, 2, 3, 4]
        for number in range(5):
            mean = torch.nn.functional.normalize(h[leaf == number].mean(dim=0), dim=0)
            torch.testing.assert_close(leaves[number], mean, atol=1e-4, rtol=0)

    def test_deterministic(self, h):
        np.random.seed(1)
        state = np.random.get_state()[1].copy()
        results = [kmeans_leaves(h, 9, np.random.default_rng(3)) for _ in range(2)]
        assert results[0][0].equal(results[1][0])
        assert results[0][1].equal(results[1][1])
        assert (np.random.get_state()[1] == state).all()
        assert not kmeans_leaves(h, 9, np.random.default_rng(4))[0].equal(results[0][0])

    def test_samples_many_cells(self, h, monkeypatch):
        monkeypatch.setattr(prior, "KMEANS_CELLS", 100)
        leaves, leaf = kmeans_leaves(h, 5, np.random.default_rng(0))
        assert len(leaf) == 400
        assert leaf.equal(kmeans_leaves(h, 5, np.random.default_rng(0))[1])


class TestStart:
    def test_decoder_is_fitted(self, parts, vocabulary, new_model):
        model = new_model()
        encoded = [encode_slide(model, slide) for slide in parts]
        h, content = (np.concatenate([getattr(part, name) for part in encoded]) for name in ("h", "content"))
        with torch.no_grad():
            predicted = model.decoder(torch.from_numpy(h)).numpy()
        inputs = np.c_[h, np.ones(len(h))].astype(float)
        best = inputs @ np.linalg.lstsq(inputs, content.astype(float))[0]
        left, least = (((guess - content) ** 2).sum() / (content**2).sum() for guess in (predicted, best))
        assert least <= left < least + 0.02
        assert left < 0.9

    def test_lift(self, parts, vocabulary, new_model):
        """The last component is a constant as large as the root mean square of the others together."""
        lifted, flat = new_model(), new_model(lift=0.0)
        assert (lifted.embedder.vectors[:, -1] == 0).all()
        assert (lifted.basis[:, -1] == 0).all()
        assert (flat.basis[:, -1] != 0).any()
        h = np.concatenate([encode_slide(lifted, slide).h for slide in parts]).astype(float)
        square = (1 - h[:, -1] ** 2) / h[:, -1] ** 2  # of the others, in units of the constant
        assert square.mean() == pytest.approx(1, rel=0.5)
        assert (h[:, -1] > 0).all()

    def test_content_is_the_mean_over_four_hops(self, parts, vocabulary, new_model):
        model, slide = new_model(), parts[0]
        got = encode_slide(model, slide)
        near = (slide.graph.toarray() > 0).astype(float) + np.eye(slide.n_cells)
        near /= near.sum(axis=1, keepdims=True)
        scaled = (slide.expression.toarray() - slide.mean) / slide.scale
        vectors = model.basis.numpy().astype(float)
        cells = scaled @ vectors / np.linalg.norm(vectors)
        np.testing.assert_allclose(got.content.numpy(), near @ near @ near @ near @ cells, atol=1e-5)
        np.testing.assert_allclose(got.h.norm(dim=1).numpy(), 1, atol=1e-5)
        assert not got.h.requires_grad


class TestAdapt:
    def test_large_data_as_published(self, caplog):
        with caplog.at_level(logging.INFO):
            assert adapt(StageConfig(), 1_000_000) == StageConfig()
        assert not caplog.records

    @pytest.mark.parametrize("n_cells", [4, 10, 41, 79, 100, 300, 1000, 3190, 5119, 5120, 60_000])
    def test_small_data(self, n_cells, caplog):
        with caplog.at_level(logging.INFO):
            config = adapt(StageConfig(), n_cells)
        assert config.levels[-1] == max(4, min(512, n_cells // CELLS_PER_LEAF))
        assert len(config.levels) == 3 or config.levels[-1] < 8
        assert all(lower >= 2 * upper for upper, lower in pairwise(config.levels))
        assert config.epochs < StageConfig().epochs
        assert config.warmup_epochs < config.epochs
        (record,) = caplog.records
        assert record.name == "stage_sc.train"
        for name in ("epochs", "warmup_epochs", "learning_rate", *(["levels"] if config.levels[-1] < 512 else [])):
            assert f"{name}={getattr(config, name)}" in record.getMessage()
        assert f"{n_cells} training cells" in record.getMessage()

    def test_only_what_is_listed_changes(self):
        config = StageConfig(dim=8, linkage="cosine", batch_size=7, levels=(2, 4))
        adapted = adapt(config, 300)
        assert adapted.replace(epochs=60, warmup_epochs=33, learning_rate=1e-4) == config

    def test_tuning_keeps_the_tree(self):
        config = adapt(StageConfig(), 100, tuning=True)
        assert config.levels == StageConfig().levels
        assert (config.epochs, config.warmup_epochs) == (5, 0)


class TestHealth:
    def test_figures(self):
        rng = np.random.default_rng(0)
        health, counts, cosines = Health(5), np.zeros(5), []
        for size in (4, 7):
            h = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(size, 3))), dim=1)
            scores = torch.from_numpy(rng.normal(size=(size, 5)))
            scores[:, 2] = -5
            health.update({"loss": torch.tensor(float(size)), "swapped": torch.tensor(1.0)}, h, scores)
            for row in scores:
                counts[int(row.argmax())] += 1
            cosines.append(np.mean([float(a @ b) for a in h for b in h]))
        figures = health.summary()
        share = counts[counts > 0] / 11
        assert figures["loss"] == 5.5
        assert figures["swapped"] == 1
        assert figures["cosine"] == pytest.approx(np.mean(cosines))
        assert figures["entropy"] == pytest.approx(-(share * np.log(share)).sum() / np.log(5))
        assert figures["used"] == (counts > 0).sum() < 5

    def test_even_use(self):
        health = Health(4)
        health.update({"loss": torch.tensor(1.0)}, torch.eye(4), torch.eye(4))
        assert health.summary()["entropy"] == pytest.approx(1)

    @pytest.mark.parametrize(
        ("cosine", "used", "warned"),
        [
            (0.5, 100, False),
            (0.97, 100, False),
            (0.99, 100, True),
            (0.5, 5, False),
            (0.5, 4, True),
            (0.5, 1, True),
            (float("nan"), 1, True),
        ],
    )
    def test_warning(self, cosine, used, warned, caplog):
        warn_if_collapsed({"cosine": cosine, "used": used}, 100)
        assert bool(caplog.records) is warned
        if warned:
            assert caplog.records[0].levelno == logging.WARNING
            assert f"{used} of 100 leaves" in caplog.text

    def test_small_trees(self, caplog):
        warn_if_collapsed({"cosine": 0.5, "used": 2}, 4)
        assert not caplog.records
        warn_if_collapsed({"cosine": 0.5, "used": 1}, 4)
        assert caplog.records


def test_starts_with_four_cells():
    adata = ad.AnnData(
        np.random.default_rng(0).poisson(3.0, (4, 6)).astype(np.float32),
        var=pd.DataFrame(index=list("abcdef")),
        obsm={"spatial": np.array([[0.0, 0], [10, 0], [0, 10], [12, 11]])},
    )
    st.pp.build_graph(adata)
    slides = read_data(adata, scaling="standardize")
    model = Stage(StageConfig(dim=4, levels=(2, 4)), slides[0].genes, ["one"])
    model.set_vectors(torch.from_numpy(gene_prior(slides, model.genes, 4)))
    set_start(model, slides)
    grow_tree(model, slides, np.random.default_rng(0))
    assert sorted(model.tree.parent.tolist()) == [-1, -1, 0, 0, 1, 1]
    assert model.tree.prototypes.isfinite().all()
