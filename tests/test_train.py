"""The schedule: stages, learning rates, trees, patience, an end where training has collapsed; health metrics."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import torch

from stage_sc.model import Stage, StageConfig
from stage_sc.slides import Slide
from stage_sc.train import _train, train
from stage_sc.train._epoch import epoch_batches, n_batches
from stage_sc.train._health import Health, has_collapsed, warn_if_collapsed
from stage_sc.train._start import calibrate_slides, grow_tree
from stage_sc.train._train import _rate, _stalled


class TestTrain:
    def prototypes(self, model: Stage) -> np.ndarray:
        return torch.nn.functional.normalize(model.tree.prototypes.detach(), dim=1).numpy().copy()

    def trained(self, model: Stage, parts: list[Slide], **arguments: object) -> pd.DataFrame:
        return train(model, parts, np.random.default_rng(0), **{"progress": False, "keep_tree": True, **arguments})

    @pytest.mark.parametrize(("warmup", "moves"), [(2, False), (0, True)])
    def test_prototypes_move_in_joint_training_alone(self, parts, new_model, warmup, moves):
        model = new_model(epochs=2, warmup_epochs=warmup)
        before, vectors = self.prototypes(model), model.embedder.vectors.detach().clone()
        history = self.trained(model, parts)
        assert history["stage"].tolist() == ["joint" if moves else "warm-up"] * 2
        distance = np.abs(self.prototypes(model) - before).max()
        assert distance > 1e-3 if moves else distance < 1e-6
        assert (model.embedder.vectors - vectors).abs().max() > 1e-4
        np.testing.assert_allclose(model.tree.prototypes.detach().norm(dim=1).numpy(), 1, atol=1e-6)
        assert model.tree.prototypes.requires_grad
        assert not model.training

    def test_gene_vectors_stay_where_cells_enter_by_the_axes_of_their_slide(self, parts, new_model):
        model = new_model(epochs=2, warmup_epochs=0)
        vectors = model.initial_vectors.clone()
        vectors[:, model.config.dim // 2 :] = 0
        model.set_vectors(vectors)
        assert model.by_axes
        weight = model.encoder.project.weight.detach().clone()
        self.trained(model, parts)
        assert model.embedder.vectors.equal(vectors)
        assert (model.encoder.project.weight - weight).abs().max() > 1e-4

    def test_tree_is_grown_twice_or_kept(self, parts, new_model, monkeypatch):
        """Whitening is computed once, and the queue emptied when the tree is new."""
        grown = []
        monkeypatch.setattr(_train, "grow_tree", lambda *arguments: grown.append(grow_tree(*arguments)))
        calls = []
        monkeypatch.setattr(_train, "calibrate_slides", lambda *a: calls.append(1) or calibrate_slides(*a))
        for keep_tree, times in ((True, 0), (False, 2)):
            grown.clear()
            calls.clear()
            model = new_model(queue_length=4, batch_size=500)
            parents = model.tree.parent.clone()
            self.trained(model, parts, keep_tree=keep_tree)
            assert len(grown) == times
            assert model.tree.parent.equal(parents) or not keep_tree
            assert calls == [1]
        # One batch of each slide per epoch: of four that would fit, two of the joint stage are left.
        assert torch.isinf(model.queue.scores).all(dim=2).sum(dim=1).tolist() == [2, 2]

    def test_schedule(self, parts, new_model, monkeypatch):
        """Learning rates as the optimiser sees them: one step for each batch of all epochs."""
        rates = []

        class Recorder(torch.optim.Adam):
            def step(self, *arguments, **named):
                rates.append(self.param_groups[0]["lr"])
                return super().step(*arguments, **named)

        monkeypatch.setattr(torch.optim, "Adam", Recorder)
        self.trained(new_model(epochs=5, warmup_epochs=3, batch_size=60, learning_rate=0.02), parts)
        n_steps = 5 * 2 * 4  # 200 cells in batches of 60 at most
        np.testing.assert_allclose(rates, [0.02 * _rate(number, n_steps) for number in range(n_steps)])

    @pytest.mark.parametrize("slides_per_batch", [1, 2])
    def test_every_epoch_is_dealt_anew(self, parts, new_model, monkeypatch, slides_per_batch):
        """From the root seed of the run, its number, and as many steps as the schedule counts on."""
        drawn = []

        def recorded(*arguments, **named):
            drawn.append((arguments[2], list(epoch_batches(*arguments, **named))))
            return iter(drawn[-1][1])

        monkeypatch.setattr(_train, "epoch_batches", recorded)
        model = new_model(cells_per_slide=50, batch_size=30, slides_per_batch=slides_per_batch)
        self.trained(model, parts)
        root = int(np.random.default_rng(0).integers(2**62))
        assert [seed for seed, _ in drawn] == [(root, epoch) for epoch in range(4)]
        assert [len(batches) for _, batches in drawn] == [n_batches(parts, model.config)] * 4
        assert [sum(batch.size for batch in batches) for _, batches in drawn] == [100] * 4
        assert max(len(batch.parts) for _, batches in drawn for batch in batches) == slides_per_batch
        assert len({str([part.centres for batch in batches for part in batch.parts]) for _, batches in drawn}) == 4

    @pytest.mark.parametrize("loss", ["stalled", "falling"])
    def test_patience(self, parts, new_model, monkeypatch, loss):
        """Each stage ends by itself, and the joint one begins where the warm-up ends early."""
        monkeypatch.setattr(_train, "_stalled", lambda history, patience: loss == "stalled" and len(history) % 3 == 0)
        history = self.trained(new_model(epochs=12, warmup_epochs=7, batch_size=500), parts, patience=2)
        expected = ["warm-up"] * 3 + ["joint"] * 3 if loss == "stalled" else ["warm-up"] * 7 + ["joint"] * 5
        assert history["stage"].tolist() == expected
        assert history.index.tolist() == list(range(len(expected)))

    def test_ends_when_collapsed(self, parts, new_model, caplog):
        """All embeddings the same: two epochs, and no tree is grown from them."""
        model = new_model(epochs=12, warmup_epochs=7, learning_rate=1e-12)
        with torch.no_grad():
            model.encoder.project.weight.zero_()
        parents = model.tree.parent.clone()
        history = self.trained(model, parts)
        assert history["stage"].tolist() == ["warm-up"] * 2
        assert history["cosine"].min() > 0.999
        assert "collapsed" in caplog.text
        assert model.tree.parent.equal(parents)
        assert not model.training


@pytest.mark.parametrize(
    ("losses", "patience", "stalled"),
    [
        *[([3, 2, 1], 1, False), ([3, 3], 1, True), ([3, 3], 2, False), ([3, 3, 3], 2, True), ([1], 1, False)],
        *[([3, 2, 2.5, 2.4], 2, True), ([3, 2, 2.5, 1.9], 2, False), ([2, 1, 5, 6], 3, False)],
        ([3, 3 - 1e-6, 3 - 2e-6], 2, True),  # less than a thousandth is no progress
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
    assert (np.diff(rates[rise - 1 :]) <= 0).all()
    if n_steps > 1:
        assert _rate((rise + n_steps) / 2, n_steps) == pytest.approx(0.505)
        assert _rate(n_steps, n_steps) == _rate(2 * n_steps, n_steps) == pytest.approx(0.01)


def test_health_by_loops():
    rng = np.random.default_rng(0)
    health, counts, cosines = Health(5), np.zeros(5), []
    for size in (4, 7, 1):
        h = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(size, 3))), dim=1)
        scores = torch.from_numpy(rng.normal(size=(size, 5)))
        scores[:, 2] = -5
        health.update({"loss": torch.tensor(float(size)), "swav": torch.tensor(1.0)}, h, scores)
        for row in scores:
            counts[int(row.argmax())] += 1
        pairs = [float(a @ b) for one, a in enumerate(h) for b in h[:one]]
        cosines.append(np.mean(pairs or 0))
    share = counts[counts > 0] / 12
    assert len(share) < 5
    expected = {"loss": 4, "swav": 1, "cosine": np.mean(cosines), "used": len(share)}
    expected["entropy"] = -(share * np.log(share)).sum() / np.log(5)
    assert health.summary() == pytest.approx(expected)


def row(cosine: float = 0.5, used: int = 100) -> dict[str, float]:
    return {"cosine": cosine, "used": used}


GOOD, ALIKE, UNUSED = row(), row(cosine=0.99), row(used=4)


@pytest.mark.parametrize(
    ("metrics", "collapsed"),
    [
        *[(row(), False), (row(cosine=0.98), False), (row(cosine=0.981), True), (row(cosine=float("nan")), True)],
        *[(row(used=5), False), (row(used=4), True), (row(used=1), True)],
    ],
)
def test_one_epoch(metrics, collapsed, caplog):
    history = [GOOD, metrics]
    assert has_collapsed(history, 100, patience=1) is collapsed
    warn_if_collapsed(history, StageConfig(levels=(100,), epochs=7, warmup_epochs=2))
    assert bool(caplog.records) is collapsed
    warn_if_collapsed([], StageConfig())
    assert len(caplog.records) == collapsed
    if collapsed:
        assert caplog.records[0].levelno == logging.WARNING
        for told in ("2 of 7 epochs", f"{metrics['cosine']:.3f}", f"{metrics['used']} of 100 leaves"):
            assert told in caplog.text


@pytest.mark.parametrize(
    ("history", "ends"),
    [
        *[([], False), ([ALIKE], False), ([ALIKE, UNUSED], True), ([GOOD, ALIKE, ALIKE], True)],
        *[([ALIKE, GOOD, ALIKE], False), ([ALIKE, ALIKE, GOOD], False)],
    ],
)
def test_training_ends_after_two_collapsed_epochs_in_a_row(history, ends):
    assert has_collapsed(history, 100) is ends
    for n_leaves, used, collapsed in ((4, 2, False), (4, 1, True), (1, 1, False)):  # small trees
        assert has_collapsed([row(used=used)], n_leaves, patience=1) is collapsed
