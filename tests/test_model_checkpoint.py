"""Checkpoints: what comes back, what a digest covers, what is refused."""

from __future__ import annotations

import copy
import json
import struct
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import stage_sc as st
from stage_sc.model import Stage, StageConfig, load_checkpoint, resolve_model, save_checkpoint
from stage_sc.nn import content_digest

OTHER = {
    **{"scaling": "none", "swav_levels": "leaves", "linkage": "cosine", "selection": "slide", "assignment": "top-down"},
    **{"levels": (2, 4), "whiten": False, "cells_per_slide": 1, "cells_per_epoch": 1, "warmup_epochs": 1},
}
# Present names and those of format 3; fields that were constants then.
FORMAT_3 = {
    **{"constant_component": "lift", "swav_levels": "swap_levels", "swav_weight": "swap_weight"},
    **{"reconstruction_weight": "anchor_weight", "path_weight": "global_weight", "min_fraction": "min_share"},
    **{"initial_vectors": "basis", "init_node": "before", "init_share": "shared"},
}
NOT_IN_3 = {
    *("min_sd", "context_hops", "axes_cells", "whitening_ridge", "prior_weight", "settle_cells"),
    *("domain_cells", "domain_starts", "domain_refined", "domain_shrinkage"),
}
GENES = ["alb", "cd3e", "gfap", "h2-k1", "mki67", "ünïcode"]


def build(seed: int = 0, **changes: object) -> Stage:
    """A small model of which no tensor is at its start."""
    torch.manual_seed(seed)
    config = StageConfig(**{"dim": 8, "levels": (2, 5, 11), "queue_length": 3, "constant_component": 0.5, **changes})
    model = Stage(config, GENES, ["lung", "liver"], name="test", version="0.0.1")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    rng = np.random.default_rng(seed)
    n_leaves = config.levels[-1]
    leaf = torch.from_numpy(rng.integers(0, n_leaves, 100))
    model.tree.grow(torch.randn(n_leaves, 8), leaf, torch.randn(100, 8), "context")
    model.queue.push(torch.zeros(20).long(), torch.rand(20, model.tree.n_nodes), 3)  # the rest stays infinite
    return model.eval()


def header(path: Path) -> dict[str, object]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["stage_sc"])


def rewritten(path: Path, target: Path, **changes: object) -> Path:
    """The same tensors under another header; ``None`` removes an entry."""
    values = {key: value for key, value in {**header(path), **changes}.items() if value is not None}
    save_file(load_file(path), target, metadata={"stage_sc": json.dumps(values)})
    return target


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return save_checkpoint(model, tmp_path_factory.mktemp("model") / "test")


class TestRoundTrip:
    @pytest.mark.parametrize(
        "changes", [{}, {"levels": (3,)}, {"n_layers": 0}, {"whiten": False, "persistence": 0.25}], ids=str
    )
    def test_same_state_to_the_bit(self, changes, tmp_path):
        model = build(**changes)
        back = load_checkpoint(save_checkpoint(model, tmp_path / "model"))
        assert back.config == model.config
        assert (back.genes, back.slides, back.name, back.version) == (GENES, ["lung", "liver"], "test", "0.0.1")
        expected = model.state_dict()
        assert back.state_dict().keys() == expected.keys()
        assert {
            "tree.parent",
            "tree.prototypes",
            "queue.scores",
            "initial_vectors",
            "embedder.vectors",
        } <= expected.keys()
        for name, value in back.state_dict().items():
            assert torch.equal(value, expected[name]), name
            assert value.dtype == expected[name].dtype, name
        assert torch.isinf(back.queue.scores).any()
        assert not back.training

    def test_saving_and_loading_leaves_the_model_and_chance_alone(self, model, tmp_path):
        before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
        load_checkpoint(save_checkpoint(model, tmp_path / "model", half=True))
        assert torch.equal(torch.get_rng_state(), state)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])

    def test_twice(self, saved, tmp_path):
        again = save_checkpoint(load_checkpoint(saved), tmp_path / "again")
        assert again.read_bytes() == saved.read_bytes()


class TestNames:
    def test_suffix(self, model, tmp_path):
        assert save_checkpoint(model, tmp_path / "one").name == "one.safetensors"
        assert save_checkpoint(model, str(tmp_path / "one.safetensors")) == tmp_path / "one.safetensors"
        assert save_checkpoint(model, tmp_path / "v1.2").name == "v1.2.safetensors"

    def test_a_model_without_a_name_gets_that_of_its_file(self, tmp_path):
        model = build()
        model.name = "custom"
        assert load_checkpoint(save_checkpoint(model, tmp_path / "lung_atlas")).name == "lung_atlas"


class TestHalf:
    def test_close(self, model, saved, tmp_path):
        path = save_checkpoint(model, tmp_path / "half", half=True)
        size, full = (
            sum(v.nbytes for v in load_file(file).values() if v.is_floating_point()) for file in (path, saved)
        )
        assert 2 * size == full
        back = load_checkpoint(path)
        assert header(path)["digest"] == back.digest != model.digest
        assert {value.dtype for value in back.state_dict().values()} == {torch.float32, torch.int64}
        for name, value in back.state_dict().items():
            assert torch.allclose(value.float(), model.state_dict()[name].float(), rtol=2e-3, atol=1e-4), name
        assert torch.equal(back.tree.parent, model.tree.parent)


class TestDigest:
    def test_same_for_the_file_and_the_model(self, model, saved):
        assert header(saved)["digest"] == model.digest == load_checkpoint(saved).digest

    def test_every_tensor_counts(self):
        model = build()
        seen = {model.digest}
        for value in model.state_dict().values():
            flat = value.view(-1)
            flat[-1] = 1 if torch.isinf(flat[-1].float()) else flat[-1] + 1
            seen.add(model.digest)
        assert len(seen) == len(model.state_dict()) + 1

    def test_smallest_change(self):
        model = build()
        before = model.digest
        with torch.no_grad():
            model.embedder.vectors[0, 0] = torch.nextafter(model.embedder.vectors[0, 0], torch.tensor(9.0))
        assert model.digest != before

    @pytest.mark.parametrize("name", ["genes", "slides"])
    def test_names_count(self, name):
        model = build()
        before = model.digest
        setattr(model, name, getattr(model, name)[::-1])
        assert model.digest != before

    def test_every_field_of_the_configuration_counts(self):
        model = build()
        config, seen = model.config, {model.digest}
        for name in config.to_dict():
            value = getattr(config, name)
            other = OTHER[name] if name in OTHER else value * 2 if isinstance(value, int) else value / 2
            model.config = config.replace(**{name: other})
            seen.add(model.digest)
        assert len(seen) == 1 + len(config.to_dict())

    def test_same_in_another_process(self, saved):
        code = "import sys; from stage_sc.model import load_checkpoint; print(load_checkpoint(sys.argv[1]).digest)"
        told = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
        assert told.stdout.strip() == header(saved)["digest"]


class TestFile:
    def test_replaces_at_once(self, saved, tmp_path, monkeypatch):
        path = tmp_path / "model.safetensors"
        path.write_bytes(saved.read_bytes())

        def fails(self, target):
            raise OSError("power cut")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fails)
            with pytest.raises(OSError, match="power cut"):
                save_checkpoint(build(1), path)
        assert path.read_bytes() == saved.read_bytes()  # whatever happens before the last step, the old file is whole
        save_checkpoint(build(1), path)
        assert header(path)["digest"] == build(1).digest
        assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]

    def test_a_loaded_model_survives_its_file(self, model, tmp_path):
        path = save_checkpoint(model, tmp_path / "model")
        back = load_checkpoint(path)
        path.write_bytes(b"\0" * path.stat().st_size)
        assert back.digest == model.digest


class TestRefused:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
            load_checkpoint(tmp_path / "nowhere.safetensors")
        with pytest.raises(FileNotFoundError):
            load_checkpoint(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"\x80\x04 no checkpoint", np.random.default_rng(0).bytes(5000)])
    def test_other_bytes(self, content, tmp_path):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="model.safetensors.*cannot be read"):
            load_checkpoint(path)

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
    def test_foreign_safetensors(self, metadata, tmp_path):
        save_file({"weight": torch.ones(3)}, tmp_path / "other.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match="no model of stage_sc"):
            load_checkpoint(tmp_path / "other.safetensors")

    @pytest.mark.parametrize("version", [None, 2, 5, "3"])
    def test_other_formats(self, version, saved, tmp_path):
        path = rewritten(saved, tmp_path / "other.safetensors", format_version=version, package_version="7.3")
        with pytest.raises(ValueError, match=rf"format {version}\b.*3.*4.*stage_sc 7\.3"):
            load_checkpoint(path)

    def test_flipped_bits_in_the_numbers(self, saved, tmp_path):
        content = saved.read_bytes()
        start = 8 + struct.unpack("<Q", content[:8])[0]
        for position in np.random.default_rng(0).integers(start, len(content), 20):
            damaged = bytearray(content)
            damaged[position] ^= 1
            path = tmp_path / "damaged.safetensors"
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged.*digest"):
                load_checkpoint(path)

    @pytest.mark.parametrize(
        "changes",
        [
            *({"genes": GENES[::-1]}, {"slides": ["a", "b"]}, {"digest": "0" * 16}),
            *({name: None} for name in ("config", "digest", "genes", "name", "package_version", "slides")),
        ],
        ids=str,
    )
    def test_changed_header(self, changes, saved, tmp_path):
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(rewritten(saved, tmp_path / "changed.safetensors", **changes))

    @pytest.mark.parametrize("content", ["no json", "[]", "3"])
    def test_header_that_is_no_header(self, content, tmp_path):
        save_file({"weight": torch.ones(3)}, tmp_path / "odd.safetensors", metadata={"stage_sc": content})
        with pytest.raises(ValueError, match="odd.safetensors"):
            load_checkpoint(tmp_path / "odd.safetensors")

    def test_cut_short(self, saved, tmp_path):
        for length in (4, 100, saved.stat().st_size - 1):
            (tmp_path / "short.safetensors").write_bytes(saved.read_bytes()[:length])
            with pytest.raises(ValueError, match="cannot be read"):
                load_checkpoint(tmp_path / "short.safetensors")


class TestFormat3:
    """Files of version 0.1 before its fields and tensors had their present names."""

    @pytest.fixture
    def present(self, small_model) -> Stage:
        model, defaults = copy.deepcopy(small_model), StageConfig()
        model.config = model.config.replace(**{name: getattr(defaults, name) for name in NOT_IN_3})
        return model

    @pytest.fixture
    def written(self, present, tmp_path) -> Path:
        path = save_checkpoint(present, tmp_path / "now")
        head, tensors = header(path), load_file(path)
        config = {FORMAT_3.get(name, name): head["config"][name] for name in head["config"] if name not in NOT_IN_3}
        head |= {"format_version": 3, "config": {**config, "linkage": "content"}}
        tensors = {FORMAT_3.get(name, name): value for name, value in tensors.items()}
        head["digest"] = content_digest(head, tensors)
        save_file(tensors, tmp_path / "before.safetensors", metadata={"stage_sc": json.dumps(head)})
        return tmp_path / "before.safetensors"

    def test_same_model_and_labels(self, written, present, tissue):
        model = load_checkpoint(written)
        assert set(header(written)["config"]) & set(FORMAT_3) == set()
        assert model.config == present.config
        assert model.digest == present.digest
        one, other = (st.tl.stage_niches(tissue, model=it, n_domains=3, copy=True) for it in (present, model))
        assert one.obs.equals(other.obs)
        assert (one.obsm["X_stage"] == other.obsm["X_stage"]).all()

    def test_damaged(self, written, tmp_path):
        with pytest.raises(ValueError, match="damaged.*digest"):
            load_checkpoint(rewritten(written, tmp_path / "a.safetensors", slides=["another"]))


def test_the_model_card_tells_of_the_bundled_model():
    model = resolve_model(None)
    card = resources.files("stage_sc.weights").joinpath("MODEL_CARD.md").read_text(encoding="utf-8")
    config = model.config
    for told in (
        f"`{model.digest}`",
        f"{config.epochs} epochs, {config.warmup_epochs} of them warm-up",
        f"At most {config.cells_per_slide:,} cells",
        f"{len(model.genes):,} genes",
        f"{len(model.slides)} public sections",
    ):
        assert told in card
    recipe = tomllib.loads((Path(__file__).parents[1] / "recipes" / "stage-v1.toml").read_text())
    assert {name: getattr(config, name) for name in recipe["config"]} == recipe["config"]
