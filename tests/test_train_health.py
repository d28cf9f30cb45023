"""Figures of health by loops, and when a training counts as collapsed."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from stage_sc.model import StageConfig
from stage_sc.train._health import Health, has_collapsed, warn_if_collapsed


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
            cosines.append(np.mean([float(a @ b) for one, a in enumerate(h) for b in h[:one]]))
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


def test_a_cell_alone_is_like_no_other():
    health = Health(4)
    health.update({}, torch.tensor([[0.6, 0.8]]), torch.eye(4)[:1])
    assert health.summary()["cosine"] == pytest.approx(0, abs=1e-6)


def row(cosine: float = 0.5, used: int = 100) -> dict[str, float]:
    return {"cosine": cosine, "used": used}


GOOD, ALIKE, UNUSED = row(), row(cosine=0.99), row(used=4)


@pytest.mark.parametrize(
    ("figures", "collapsed"),
    [
        (row(), False),
        (row(cosine=0.98), False),
        (row(cosine=0.981), True),
        (row(used=5), False),
        (row(used=4), True),
        (row(used=1), True),
        (row(cosine=float("nan")), True),
    ],
)
def test_one_epoch(figures, collapsed, caplog):
    history = [GOOD, figures]
    assert has_collapsed(history, 100, patience=1) is collapsed
    warn_if_collapsed(history, StageConfig(levels=(100,), epochs=7, warmup_epochs=2))
    assert bool(caplog.records) is collapsed
    if collapsed:
        assert caplog.records[0].levelno == logging.WARNING
        assert f"after 2 of 7 epochs: two cells have a cosine of {figures['cosine']:.3f} on average" in caplog.text
        assert f"{figures['used']} of 100 leaves" in caplog.text


@pytest.mark.parametrize(
    ("history", "ends"),
    [
        ([], False),
        ([ALIKE], False),
        ([ALIKE, UNUSED], True),
        ([GOOD, ALIKE, ALIKE], True),
        ([ALIKE, GOOD, ALIKE], False),
        ([ALIKE, ALIKE, GOOD], False),
    ],
)
def test_training_ends_after_two_collapsed_epochs_in_a_row(history, ends):
    assert has_collapsed(history, 100) is ends


@pytest.mark.parametrize(("n_leaves", "used", "collapsed"), [(4, 2, False), (4, 1, True), (1, 1, False)])
def test_small_trees(n_leaves, used, collapsed):
    assert has_collapsed([row(used=used)], n_leaves, patience=1) is collapsed


def test_nothing_trained(caplog):
    warn_if_collapsed([], StageConfig())
    assert not caplog.records
