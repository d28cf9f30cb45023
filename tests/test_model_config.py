"""The configuration: the paper's values, what is refused, and its way through JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from stage_sc.model import StageConfig

FIELDS = dataclasses.fields(StageConfig)
ALSO_0 = ("n_layers", "epochs", "warmup_epochs")
POSITIVE_INTEGERS = [field.name for field in FIELDS if field.type == "int" and field.name not in ALSO_0]
POSITIVE = ("temperature", "epsilon", "learning_rate", "noise_rate", "test_reach", "context_reach", "domain_reach")
FRACTIONS = ("panel_fraction", "min_fraction", "selection_threshold")
NO_WEIGHTS = (*POSITIVE, *FRACTIONS, "domain_shrinkage")
WEIGHTS = [field.name for field in FIELDS if field.type == "float" and field.name not in NO_WEIGHTS]


class TestDefaults:
    def test_are_the_papers(self):
        config = StageConfig()
        assert (config.temperature, config.epsilon, config.sinkhorn_iterations) == (0.1, 0.05, 3)
        assert (config.path_weight, config.selection_threshold) == (0.1, 0.99)
        assert (config.warmup_epochs, config.epochs - config.warmup_epochs) == (33, 27)
        assert (config.batch_size, config.learning_rate) == (256, 1e-4)
        assert (len(config.levels), config.levels[-1]) == (3, 512)
        assert (config.panel_fraction, config.noise_rate, config.noise_scale) == (0.8, 8.0, 0.05)

    def test_printed_variant(self):
        paper = StageConfig.paper()
        assert paper.scaling == "none"  # "normalized and log-transformed", nothing else
        assert paper.swav_levels == "leaves"
        assert paper.reconstruction_weight == paper.constant_component == 0
        assert paper.selection == "slide"  # equation 12
        assert paper.linkage == "cosine"
        assert not paper.whiten
        for name in ("temperature", "epsilon", "levels", "epochs", "learning_rate", "path_weight"):
            assert getattr(paper, name) == getattr(StageConfig(), name)
        changes = {"levels": (2, 4), "scaling": "center"}
        assert StageConfig.paper(**changes) == paper.replace(**changes)


class TestValues:
    def test_frozen_and_hashable(self):
        config = StageConfig(levels=[4, 8])
        assert config.replace(dim=16).dim == 16
        assert config.dim == 32
        assert config.levels == (4, 8)
        assert hash(config) == hash(StageConfig(levels=(4, 8)))
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.dim = 3

    def test_nothing_where_nothing_means_something(self):
        names = (*ALSO_0, *WEIGHTS, "domain_shrinkage")
        assert len(names) > 12
        assert StageConfig(**dict.fromkeys(names, 0)).epochs == 0
        assert StageConfig().cells_per_slide is None

    @pytest.mark.parametrize("levels", [(1,), (7,), (1, 2), (4, 8, 16, 40), (8, 64, 512)])
    def test_levels(self, levels):
        assert StageConfig(levels=levels).levels == levels

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[("levels", value) for value in ((), (0,), (4, 7), (8, 64, 64))],
            *[(name, "best") for name in ("scaling", "swav_levels", "linkage", "selection", "assignment")],
            *[(name, value) for name in POSITIVE_INTEGERS for value in (0, -1)],
            *[(name, -1) for name in ("n_layers", "epochs", "warmup_epochs", "smoothing_reach", "cells_per_slide")],
            *[(name, value) for name in POSITIVE for value in (0.0, -1.0, float("nan"), float("inf"))],
            *[(name, value) for name in WEIGHTS for value in (-1.0, float("nan"), float("inf"))],
            *[(name, value) for name in FRACTIONS for value in (0.0, 1.1, float("nan"))],
            *[("domain_shrinkage", -0.1), ("domain_shrinkage", 1.1), ("cells_per_slide", 0), ("cells_per_epoch", 0)],
            *[("n_heads", 5), ("dim", 30), ("warmup_epochs", 61)],
        ],
    )
    def test_refused(self, name, value):
        with pytest.raises(ValueError, match=name):
            StageConfig(**{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[("levels", value) for value in (8, "8", (2.5, 8), (True, 8))],
            *[(name, 2.5) for name in (*POSITIVE_INTEGERS, "n_layers", "epochs", "cells_per_slide")],
            *[(name, "half") for name in (*POSITIVE, *WEIGHTS, *FRACTIONS, "domain_shrinkage")],
            *[("dim", 32.0), ("epochs", "60"), ("batch_size", True), ("whiten", "no")],
        ],
    )
    def test_wrong_types(self, name, value):
        with pytest.raises(TypeError, match=name):
            StageConfig(**{name: value})

    @pytest.mark.parametrize(
        ("changes", "told"),
        [({"levels": (4, 7)}, "7 below 4"), ({"linkage": "best"}, "`linkage` must be one of 'context'.*, got 'best'")],
        ids=str,
    )
    def test_message(self, changes, told):
        with pytest.raises(ValueError, match=told):
            StageConfig(**changes)


@pytest.mark.parametrize(
    "config", [StageConfig(), StageConfig.paper(), StageConfig(levels=(3, 9), dim=8, constant_component=0.5)]
)
def test_json(config):
    back = StageConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert isinstance(back.levels, tuple)


def test_unknown_fields_and_missing_ones():
    with pytest.raises(ValueError, match="'depth'.*another version"):
        StageConfig.from_dict({**StageConfig().to_dict(), "depth": 3})
    assert StageConfig.from_dict({"dim": 16}) == StageConfig(dim=16)
