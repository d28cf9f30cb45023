"""A training that is interrupted, at any step and by any means, ends as if it had not been: to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import stage_sc as st
from stage_sc.embed import coexpression_vectors
from stage_sc.model import Stage, StageConfig
from stage_sc.slides import Slide
from stage_sc.train import _start, _train, train


def new_model(parts: list[Slide], config: StageConfig, *, vectors: bool = True, rank: int | None = None) -> Stage:
    genes = sorted({gene for slide in parts for gene in slide.genes})
    model = Stage(config, genes, [slide.name for slide in parts])
    if vectors:
        found = torch.from_numpy(coexpression_vectors(parts, genes, config.dim))
        found[:, rank or config.dim :] = 0
        model.set_vectors(found)
    return model


def assert_same(one: Stage, other: Stage) -> None:
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        assert value.equal(states[1][name]), name
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)


class Interrupted(Exception): ...


class TestAnyStep:
    """A new model each time, without even its gene vectors."""

    @pytest.fixture
    def run(self, parts, tmp_path, monkeypatch):
        def run(
            config: StageConfig, n_steps: int, every: int, patience: int | None = None, rank: int | None = None
        ) -> int:
            """Train in pieces of `n_steps`, and compare with a training in one; return the number of pieces."""
            true_step, pieces, left = _train.embed_pairs, 0, [sys.maxsize]

            def step(*arguments: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    raise Interrupted
                return true_step(*arguments)

            monkeypatch.setattr(_train, "embed_pairs", step)
            named = {"progress": False, "patience": patience}
            plain, model = (new_model(parts, config, rank=rank) for _ in "ab")
            plain.history = train(plain, parts, np.random.default_rng(0), **named)
            while True:
                left[0], rng = n_steps, np.random.default_rng(pieces)  # the first counts
                pieces += 1
                try:
                    model.history = train(model, parts, rng, checkpoint=tmp_path / "a", every=every, **named)
                except Interrupted:
                    model = new_model(parts, config, vectors=False)
                else:
                    break
            assert_same(plain, model)
            assert model.by_axes == (rank is not None)
            assert not model.training
            assert all(parameter.requires_grad for parameter in model.parameters())
            return pieces

        return run

    @pytest.mark.parametrize(("every", "n_steps", "pieces"), [(1, 1, 32), (2, 3, 16), (1000, 9, 4)])
    def test_same_result(self, run, small_config, every, n_steps, pieces):
        """Four epochs of eight steps, with a new tree after two."""
        assert run(small_config.replace(batch_size=50), n_steps, every) == pieces

    @pytest.mark.parametrize(
        "changes",
        [
            *[{"warmup_epochs": 0}, {"warmup_epochs": 4}, {"slides_per_batch": 2}],
            *[{"reconstruction_weight": 0.0, "selection": "slide"}],
            {"epochs": 24, "warmup_epochs": 12, "learning_rate": 1e-9},  # both stages end early
        ],
        ids=str,
    )
    def test_variants(self, run, small_config, changes):
        assert run(small_config.replace(batch_size=70, **changes), 5, 2, 2 if "epochs" in changes else None) > 3

    def test_cells_by_axes_of_their_slide(self, run, small_config):
        assert run(small_config.replace(batch_size=70), 5, 2, rank=small_config.dim // 2) > 3

    def test_the_start_is_not_made_again(self, run, small_config, monkeypatch):
        made = []
        for name in ("initialize_network", "grow_tree"):
            true = getattr(_train, name)
            monkeypatch.setattr(_train, name, lambda *a, true=true, name=name: made.append(name) or true(*a))
        run(small_config, 2, 1)
        assert made == ["initialize_network", "grow_tree", "grow_tree"] * 2  # with the training in one


DRIVER = """
import json, os, signal, sys
import anndata as ad
import stage_sc as st

left, replace = [3], os.replace
def kill(*paths):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = kill
config = st.model.StageConfig.from_dict(json.loads(sys.argv[3]))
st.tl.fit(ad.read_h5ad(sys.argv[1]), config=config, checkpoint=sys.argv[2], progress=False)
"""


@pytest.fixture(scope="module")
def finished(slides, small_config, tmp_path_factory) -> tuple[Path, Stage]:
    path = tmp_path_factory.mktemp("finished") / "state"
    return path, st.tl.fit(slides, config=small_config, checkpoint=path, progress=False)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_sigkill(finished, slides, small_config, tmp_path):
    """A process that is killed between writing and replacing the file for the third time."""
    slides.copy().write_h5ad(tmp_path / "slides.h5ad")
    arguments = [tmp_path / "slides.h5ad", tmp_path / "state", json.dumps(small_config.to_dict())]
    command, env = [sys.executable, "-c", DRIVER, *arguments], {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = subprocess.run(command, env=env, capture_output=True, text=True)
    assert driver.returncode == -signal.SIGKILL, driver.stderr
    assert torch.load(tmp_path / "state", weights_only=True)["state"]["epoch"] == 2
    assert len(list(tmp_path.glob(".state.*.part"))) == 1
    again = st.tl.fit(slides, config=small_config, checkpoint=tmp_path / "state", progress=False)
    assert_same(finished[1], again)
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))


class TestFinished:
    def test_equals_one_without_a_file_and_is_returned(self, finished, slides, small_config, monkeypatch):
        path, model = finished
        assert_same(model, st.tl.fit(slides, config=small_config, progress=False))
        before = path.read_bytes(), path.stat().st_mtime_ns
        for name in ("embed_pairs", "initialize_network", "grow_tree"):
            monkeypatch.setattr(_train, name, None)
        monkeypatch.setattr(_start, "coexpression_vectors", None)
        again = st.tl.fit(slides, config=small_config, checkpoint=str(path), progress=False)
        assert_same(model, again)
        assert not again.training
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before

    def test_file(self, finished, parts):
        """Numbers and plain values, nothing that runs code; marked as finished; nothing else is left in the folder."""
        path, model = finished
        content = torch.load(path, weights_only=True)
        assert content["state"]["finished"] is True
        assert content["optimizer"] is None
        assert [one[:3] for one in content["run"]["slides"]] == [[it.name, 200, len(it.genes)] for it in parts]
        assert content["model"].keys() == model.state_dict().keys()
        assert [one.name for one in path.parent.iterdir()] == [path.name]
        with pytest.raises(ValueError, match="cannot be read"):
            st.model.load_checkpoint(path)


class TestInit:
    def test_same_result(self, slides, small_model, tmp_path):
        """Three epochs with the tree of another model, interrupted in the second."""
        named = {"epochs": 3, "progress": False}
        plain = st.tl.fit(slides, init=small_model, **named)

        def interrupt(history: pd.DataFrame) -> None:
            if len(history) == 2:
                raise Interrupted

        with pytest.raises(Interrupted):
            st.tl.fit(slides, init=small_model, checkpoint=tmp_path / "a", callback=interrupt, **named)
        assert torch.load(tmp_path / "a", weights_only=True)["state"]["epoch"] == 1
        again = st.tl.fit(slides, init=small_model, checkpoint=tmp_path / "a", **named)
        assert_same(plain, again)
        with pytest.raises(ValueError, match="another training.*`init`"):
            st.tl.fit(slides, init=again, checkpoint=tmp_path / "a", **named)


class Runs:
    """Would raise if a pickle of it were loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('code was run')",)


class TestRefused:
    def refused(self, data, path: Path, message: str, error: type[Exception] = ValueError, **arguments: object) -> None:
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(error, match=message):
            st.tl.fit(data, checkpoint=path, progress=False, **arguments)
        assert (path.read_bytes() if path.is_file() else None) == before

    def test_other_configuration_and_genes(self, finished, slides, small_config):
        self.refused(slides[:, :-3].copy(), finished[0], "`genes`", config=small_config)
        config = small_config.replace(learning_rate=2e-3, dim=8)
        message = r"`dim` \(16 .*8 .*`learning_rate` \(0.001 .*0.002 "
        self.refused(slides, finished[0], message, config=config)

    def test_other_slides_counts_and_graphs(self, finished, slides, tissue, small_config):
        refused = partial(self.refused, path=finished[0], message="`slides`", config=small_config)
        refused(slides[slides.obs["slide"] == "slide1"].copy())
        refused({"slide1": slides, "more": tissue})
        other = slides.copy()
        other.layers["other"] = slides.X.copy()
        other.layers["other"].data = np.random.default_rng(0).permutation(slides.X.data)
        refused(other, layer="other")
        for how in ({"scale": 1.2}, {"local": 40.0}, {"view": 60.0}):
            st.pp.build_graph(other, library_key="slide", **how)
            refused(other)

    def test_files_of_something_else(self, finished, slides, small_config, small_model, tmp_path):
        path, other = tmp_path / "a", st.model.save_checkpoint(small_model, tmp_path / "model")
        for content in (other.read_bytes(), b"Dear diary", b""):
            path.write_bytes(content)
            self.refused(slides, path, "no training of this version", config=small_config)
        for content in (Runs(), {"x": torch.ones(3)}, [1]):
            torch.save(content, path)
            self.refused(slides, path, "no training of this version", config=small_config)
        torch.save({**torch.load(finished[0], weights_only=True), "format": "stage_sc training 99"}, path)
        self.refused(slides, path, "training 99", config=small_config)

    def test_damaged(self, finished, slides, small_config, tmp_path):
        content = finished[0].read_bytes()
        flipped, weights = bytearray(content), finished[1].decoder.weight.detach().numpy().tobytes()
        flipped[content.index(weights) + 70] ^= 1
        for damaged in (flipped, *(content[:length] for length in (10, 1000, len(content) // 2, len(content) - 1))):
            (tmp_path / "a").write_bytes(damaged)
            self.refused(slides, tmp_path / "a", "damaged", config=small_config)

    def test_places(self, slides, small_config, tmp_path):
        self.refused(slides, tmp_path, "is a folder", IsADirectoryError)
        self.refused(slides, tmp_path / "no" / "a", "There is no folder .*no'", FileNotFoundError)
        with pytest.raises(TypeError, match="`checkpoint` must be a path, got 3"):
            st.tl.fit(slides, checkpoint=3)
