"""Checkpoints: what comes back, what a digest covers, what is refused."""

from __future__ import annotations

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

from stage_sc.model import Stage, StageConfig, load_checkpoint, resolve_model, save_checkpoint

OTHER = {
    **{"scaling": "none", "swav_levels": "leaves", "linkage": "cosine", "selection": "slide", "assignment": "top-down"},
    **{"levels": (2, 4), "whiten": False, "cells_per_slide": 1, "cells_per_epoch": 1, "warmup_epochs": 1},
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
    n_leaves = config.levels[-1]
    model.tree.grow(torch.randn(n_leaves, 8), torch.randint(n_leaves, (100,)), torch.randn(100, 8), "context")
    model.init_node.copy_(torch.arange(model.tree.n_nodes))
    model.init_share.copy_(torch.rand(model.tree.n_nodes))
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
        "changes", [{}, {"levels": (3,)}, {"n_layers": 0}, {"whiten": False, "power": 0.25}], ids=str
    )
    def test_same_state_to_the_bit(self, changes, tmp_path):
        """From memory: not from the file, which may change."""
        model, path = build(**changes), tmp_path / "model.safetensors"
        back = load_checkpoint(save_checkpoint(model, tmp_path / "model"))
        path.write_bytes(b"\0" * path.stat().st_size)
        assert back.config == model.config
        assert (back.genes, back.slides, back.name, back.version) == (GENES, ["lung", "liver"], "test", "0.0.1")
        expected = model.state_dict()
        assert back.state_dict().keys() == expected.keys()
        assert {"tree.parent", "tree.prototypes", "queue.scores", "initial_vectors"} <= expected.keys()
        for name, value in back.state_dict().items():
            assert torch.equal(value, expected[name]), name
            assert value.dtype == expected[name].dtype, name
        assert torch.isinf(back.queue.scores).any()
        assert not back.training

    def test_saving_and_loading_leaves_the_model_and_chance_alone(self, model, tmp_path):
        before, state = model.digest, torch.get_rng_state()
        load_checkpoint(save_checkpoint(model, tmp_path / "model", half=True))
        assert torch.equal(torch.get_rng_state(), state)
        assert model.digest == before

    def test_twice(self, model, saved, tmp_path):
        back = load_checkpoint(saved)
        assert header(saved)["digest"] == model.digest == back.digest
        assert save_checkpoint(back, tmp_path / "again").read_bytes() == saved.read_bytes()

    def test_names(self, model, tmp_path):
        for name in ("one", "one.safetensors", "v1.2"):
            path = save_checkpoint(model, str(tmp_path / name))
            assert path == tmp_path / f"{name.removesuffix('.safetensors')}.safetensors"
        unnamed = build()
        unnamed.name = "custom"  # gets the name of its file
        assert load_checkpoint(save_checkpoint(unnamed, tmp_path / "lung_atlas")).name == "lung_atlas"

    def test_half(self, model, saved, tmp_path):
        path = save_checkpoint(model, tmp_path / "half", half=True)
        files = [load_file(file).values() for file in (path, saved)]
        size, full = (sum(value.nbytes for value in file if value.is_floating_point()) for file in files)
        assert 2 * size == full
        back = load_checkpoint(path)
        assert header(path)["digest"] == back.digest != model.digest
        assert {value.dtype for value in back.state_dict().values()} == {torch.float32, torch.int64}
        for name, value in back.state_dict().items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=2e-3, atol=1e-4, msg=name)
        assert torch.equal(back.tree.parent, model.tree.parent)


class TestDigest:
    def test_every_tensor_counts(self):
        """And the smallest change of it."""
        model = build()
        seen = {model.digest}
        for value in model.state_dict().values():
            flat = value.view(-1)
            last = torch.nextafter(flat[-1], torch.tensor(0.0)) if flat.is_floating_point() else flat[-1] + 1
            flat[-1] = torch.where(flat[-1] == 0, 1, last)
            seen.add(model.digest)
        assert len(seen) == len(model.state_dict()) + 1

    def test_names_and_every_field_of_the_configuration_count(self):
        model = build()
        seen = {model.digest}
        for name in ("genes", "slides"):
            setattr(model, name, getattr(model, name)[::-1])
            seen.add(model.digest)
        config = model.config
        for name in config.to_dict():
            value = getattr(config, name)
            other = OTHER[name] if name in OTHER else value * 2 if isinstance(value, int) else value / 2
            model.config = config.replace(**{name: other})
            seen.add(model.digest)
        assert len(seen) == 3 + len(config.to_dict())

    def test_same_in_another_process(self, saved):
        code = "import sys; from stage_sc.model import load_checkpoint; print(load_checkpoint(sys.argv[1]).digest)"
        told = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
        assert told.stdout.strip() == header(saved)["digest"]


def test_replaces_at_once(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", None)  # as a power cut
        with pytest.raises(TypeError):
            save_checkpoint(build(1), path)
    assert path.read_bytes() == saved.read_bytes()  # whatever happens before the last step, the old file is whole
    save_checkpoint(build(1), path)
    assert header(path)["digest"] == build(1).digest
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


class TestRefused:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
            load_checkpoint(tmp_path / "nowhere.safetensors")
        with pytest.raises(FileNotFoundError):
            load_checkpoint(tmp_path)

    def test_other_bytes_and_files_cut_short(self, saved, tmp_path):
        path, whole = tmp_path / "model.safetensors", saved.read_bytes()
        other = (b"", b"\x80\x04 no checkpoint", np.random.default_rng(0).bytes(5000))
        for content in (*other, *(whole[:length] for length in (4, 100, len(whole) - 1))):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="model.safetensors.*cannot be read"):
                load_checkpoint(path)

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            *[(metadata, "no model of stage_sc") for metadata in (None, {"format": "pt"})],
            *[({"stage_sc": content}, "other.safetensors") for content in ("no json", "[]", "3")],
        ],
    )
    def test_foreign_safetensors(self, metadata, message, tmp_path):
        save_file({"weight": torch.ones(3)}, tmp_path / "other.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / "other.safetensors")

    @pytest.mark.parametrize("version", [None, 2, 7, "6"])
    def test_other_formats(self, version, saved, tmp_path):
        path = rewritten(saved, tmp_path / "other.safetensors", format_version=version, package_version="7.3")
        with pytest.raises(ValueError, match=rf"format {version}\b.*format 6\b.*stage_sc 7\.3"):
            load_checkpoint(path)

    def test_flipped_bits_in_the_numbers(self, saved, tmp_path):
        content, path = saved.read_bytes(), tmp_path / "damaged.safetensors"
        start = 8 + struct.unpack("<Q", content[:8])[0]
        for position in np.random.default_rng(0).integers(start, len(content), 20):
            damaged = bytearray(content)
            damaged[position] ^= 1
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


@pytest.mark.parametrize("version", [3, 4, 5])
def test_formats_of_before(version, saved, tmp_path):
    """Contexts were computed in another way: refused by name, with the way out."""
    before = rewritten(saved, tmp_path / "before.safetensors", format_version=version, package_version="0.1.0")
    with pytest.raises(
        ValueError, match=rf"before.safetensors.* format {version}.*Train it again, or install stage_sc 0.1.0"
    ):
        load_checkpoint(before)


def test_the_model_card_tells_of_the_bundled_model():
    model = resolve_model(None)
    card = resources.files("stage_sc.weights").joinpath("MODEL_CARD.md").read_text(encoding="utf-8")
    config = model.config
    for told in (
        *(f"`{model.digest}`", f"{config.epochs} epochs, {config.warmup_epochs} of them warm-up"),
        *(f"At most {config.cells_per_slide:,} cells", f"{len(model.genes):,} genes"),
        f"{len(model.slides)} public sections",
    ):
        assert told in card
    recipe = tomllib.loads((Path(__file__).parents[1] / "recipes" / "stage-v2.toml").read_text())
    assert {name: getattr(config, name) for name in recipe["config"]} == recipe["config"]
