"""One step: pairs as whole slides give them, losses from their parts, gradients, running averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stage_sc.embed import ContextCache, encode_slide
from stage_sc.model import Stage
from stage_sc.nn import path_loss, swav_loss
from stage_sc.slides import Slide, sample_partners
from stage_sc.train._epoch import GlobalBatch, Part
from stage_sc.train._processes import Processes
from stage_sc.train._random import Purpose, generator_at
from stage_sc.train._start import calibrate_slides
from stage_sc.train._step import Pairs, embed_pairs, pair_losses, set_gradients

ALONE, PLACE = Processes(), (11, 2, 5)


def batch_of(parts: list[Slide], *counts: int) -> GlobalBatch:
    rng, chosen, size = np.random.default_rng(0), [], 0
    for number, (slide, count) in enumerate(zip(parts, counts, strict=False)):
        if count:
            rows, size = slice(size, size + count), size + count
            chosen.append(Part(number, slide, rng.permutation(slide.n_cells)[:count], rows))
    return GlobalBatch(size, chosen)


def pairs_of(model: Stage, parts: list[Slide], batch: GlobalBatch, place: tuple[int, ...] = PLACE) -> Pairs:
    return embed_pairs(model, batch, calibrate_slides(model, parts), place, ALONE, ContextCache())


class TestPairs:
    @pytest.mark.parametrize("counts", [(60, 0), (0, 60), (50, 30)], ids=str)
    @pytest.mark.parametrize("whiten", [True, False])
    def test_without_augmentation_they_are_those_of_whole_slides(self, parts, new_model, counts, whiten):
        model = new_model(panel_fraction=1.0, noise_scale=0.0, noise_rate=1e12, whiten=whiten)
        batch = batch_of(parts, *counts)
        pairs = pairs_of(model, parts, batch)
        draws = generator_at(Purpose.PARTNERS, *PLACE).random(batch.size)
        assert {len(values) for values in pairs} == {batch.size}
        for part in batch.parts:
            encoded = encode_slide(model, part.slide)
            partners = sample_partners(part.slide, part.centres, draws[part.rows])
            assert (partners != part.centres).mean() > 0.9
            expected = encoded.h[part.centres], encoded.h[partners], encoded.context[part.centres]
            for got, wanted in zip((pairs.h_i, pairs.h_j, pairs.context), expected, strict=True):
                torch.testing.assert_close(got[part.rows].detach(), wanted, atol=1e-5, rtol=0)
            assert (pairs.slides[part.rows] == part.number).all()

    def test_a_slide_has_one_view_for_its_cells_and_one_for_their_partners(self, parts, new_model):
        model = new_model(panel_fraction=0.5)
        batch = batch_of(parts, 40, 40)
        whole = pairs_of(model, parts, batch)
        for rows in (slice(0, 13), slice(13, 40), slice(40, 55), slice(55, 80)):
            (part,) = (part for part in batch.parts if part.rows.start <= rows.start < part.rows.stop)
            cut = slice(rows.start - part.rows.start, rows.stop - part.rows.start)
            alone = pairs_of(model, parts, GlobalBatch(80, [part._replace(centres=part.centres[cut], rows=rows)]))
            for got, expected in zip(alone, whole, strict=True):
                torch.testing.assert_close(got[rows], expected[rows], atol=1e-5, rtol=0)
                assert got[: rows.start].eq(0).all() and got[rows.stop :].eq(0).all()
        assert (whole.h_i[:40] - whole.h_j[:40]).abs().max() > 0.05

    @pytest.mark.parametrize("place", [(12, 2, 5), (11, 3, 5), (11, 2, 6)], ids=["root", "epoch", "step"])
    def test_chance_depends_on_the_place(self, parts, new_model, place):
        model, batch = new_model(), batch_of(parts, 30)
        one, same, other = (pairs_of(model, parts, batch, here) for here in (PLACE, PLACE, place))
        for name in ("h_i", "h_j"):
            assert getattr(one, name).equal(getattr(same, name))
            assert (getattr(one, name) - getattr(other, name)).abs().max() > 1e-3

    @pytest.mark.parametrize("weight", [0.0, 1.0])
    def test_contexts_only_where_they_are_predicted(self, parts, new_model, monkeypatch, weight):
        computed, plain = [], ContextCache.of
        monkeypatch.setattr(ContextCache, "of", lambda *arguments: computed.append(1) or plain(*arguments))
        pairs = pairs_of(new_model(reconstruction_weight=weight), parts, batch_of(parts, 30))
        assert (pairs.context is None) == (not computed) == (not weight)


def test_chance_tells_purposes_and_places_apart():
    places = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (2**61, 0, 1), (2**61 + 1, 0, 1)]
    keys = [(what, *place) for what in Purpose for place in places]
    assert len({tuple(generator_at(*key).random(3)) for key in keys}) == len(keys)
    assert all((generator_at(*key).random(5) == generator_at(*key).random(5)).all() for key in keys)


class TestLosses:
    def run(self, parts, model: Stage, *counts: int, joint: bool):
        pairs = pairs_of(model, parts, batch_of(parts, *counts))
        active = model.active(pairs.slides).numpy()
        losses, scores = pair_losses(model, pairs, PLACE, joint=joint)
        return losses, scores, pairs, active

    def cosines(self, model: Stage, h: torch.Tensor, active: np.ndarray) -> list[np.ndarray]:
        prototypes = model.tree.prototypes.detach().numpy().astype(float)
        cosine = h.detach().numpy().astype(float) @ (prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)).T
        return np.split(np.where(active, cosine, -np.inf), np.cumsum(model.config.levels)[:-1], axis=1)

    def swav(self, model: Stage, one: np.ndarray, other: np.ndarray) -> float:
        named = {"epsilon": model.config.epsilon, "n_iterations": model.config.sinkhorn_iterations}
        return float(swav_loss(*map(torch.from_numpy, (one, other)), temperature=model.config.temperature, **named))

    def path(self, model: Stage, scores: list[np.ndarray], paths: torch.Tensor) -> float:
        siblings = [torch.ones(len(paths), model.config.levels[0], dtype=torch.bool)]
        siblings += [model.tree.siblings(level, paths[:, level - 1]) for level in range(1, len(scores))]
        return float(path_loss([*map(torch.from_numpy, scores)], paths, siblings, temperature=model.config.temperature))

    @pytest.mark.parametrize("joint", [False, True])
    @pytest.mark.parametrize("counts", [(0, 60), (30, 40)], ids=["one slide", "two slides"])
    @pytest.mark.parametrize(
        "changes",
        [
            *[{}, {"reconstruction_weight": 0.0, "swav_levels": "leaves"}, {"levels": (9,)}],
            {"reconstruction_weight": 3.0, "path_weight": 0.7, "swav_weight": 0.3},
        ],
        ids=str,
    )
    def test_losses(self, parts, new_model, changes, counts, joint):
        model = new_model(**changes)
        config, n_levels = model.config, len(model.config.levels)
        losses, scores, pairs, active = self.run(parts, model, *counts, joint=joint)
        assert active.all()
        one, other = (self.cosines(model, h, active) for h in (pairs.h_i, pairs.h_j))
        for got, expected in zip(scores, one, strict=True):
            assert not got.requires_grad
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
        levels = range(n_levels) if config.swav_levels == "all" else [n_levels - 1]
        expected = {"swav": np.mean([self.swav(model, one[level], other[level]) for level in levels])}
        total = config.swav_weight * expected["swav"]
        if config.reconstruction_weight:
            weight, bias = (part.detach().numpy() for part in (model.decoder.weight, model.decoder.bias))
            context = pairs.context.numpy()
            error = pairs.h_i.detach().numpy() @ weight.T + bias - context
            expected["reconstruction"] = (error**2).sum() / (context**2).sum()
            total += config.reconstruction_weight * expected["reconstruction"]
        if joint and n_levels > 1:
            draws = generator_at(Purpose.PATHS, *PLACE).random((len(pairs.h_i), n_levels), dtype=np.float32)
            named = {"epsilon": config.epsilon, "n_iterations": config.sinkhorn_iterations}
            paths = model.tree.sample_paths(scores, torch.from_numpy(draws), **named)
            expected["path"] = self.path(model, one, paths)
            total += config.path_weight * expected["path"]
        assert set(losses) == {"loss", *expected}
        for name, value in {**expected, "loss": total}.items():
            assert float(losses[name].detach()) == pytest.approx(value, rel=2e-4), name

    def test_slides_remember_the_batch(self, parts, new_model):
        model = new_model(queue_rank=4)
        before = model.queue.scores.clone()
        *_, pairs, _ = self.run(parts, model, 25, 35, joint=False)
        cosine = np.concatenate(self.cosines(model, pairs.h_i, np.ones(26, bool)), axis=1)
        for slide, rows in ((0, slice(0, 25)), (1, slice(25, 60))):
            np.testing.assert_allclose(model.queue.scores[slide, 0], np.sort(cosine[rows], axis=0)[-4], atol=1e-5)
            assert model.queue.scores[slide, 1].equal(before[slide, 0])

    def test_cells_compare_with_prototypes_of_their_slide_alone(self, parts, new_model):
        model = new_model(selection_threshold=1.0)
        model.queue.scores[:] = torch.linspace(0.1, 0.9, 26)
        model.queue.scores[0, :, ::2] += 1  # every other prototype belongs to slide 0
        losses, scores, pairs, active = self.run(parts, model, 30, 40, joint=True)
        for rows in (slice(0, 30), slice(30, 70)):
            assert (active[rows] == active[rows.start]).all()
        assert active[:30].all()
        assert 0 < active[30].sum() < 26
        cosine = np.concatenate([level.numpy() for level in scores], axis=1)
        assert (np.isneginf(cosine) == ~active).all()
        one, other = (self.cosines(model, h, active) for h in (pairs.h_i, pairs.h_j))
        expected = np.mean([self.swav(model, a, b) for a, b in zip(one, other, strict=True)])
        assert float(losses["swav"].detach()) == pytest.approx(expected, rel=2e-4)
        assert np.isfinite(float(losses["loss"].detach()))


class TestGradients:
    @pytest.mark.parametrize("joint", [False, True])
    def test_reach_everything(self, parts, new_model, joint):
        model, found = new_model(), []
        for _ in range(2):  # gradients of the first time are gone
            losses, _ = pair_losses(model, pairs_of(model, parts, batch_of(parts, 40, 40)), PLACE, joint=joint)
            set_gradients(model, losses["loss"], ALONE)
            found.append([parameter.grad.clone() for parameter in model.parameters()])
        for (name, _), one, again in zip(model.named_parameters(), *found, strict=True):
            assert one.isfinite().all(), name
            assert "score.bias" in name or one.abs().max() > 0, name  # a softmax ignores a constant
            assert one.allclose(again), name

    def test_nothing_to_train(self, parts, new_model):
        """A process without rows, in a warm-up without reconstruction."""
        model = new_model(reconstruction_weight=0.0)
        model.tree.prototypes.requires_grad_(False)
        pairs = pairs_of(model, parts, GlobalBatch(30, []))
        assert pairs.h_i.shape == (30, 16)
        losses, _ = pair_losses(model, pairs, PLACE, joint=False)
        set_gradients(model, losses["loss"], ALONE)
        assert all(parameter.grad is None for parameter in model.parameters())
