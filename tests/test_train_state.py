"""A training that is interrupted, at any step and by any means, ends as if it had not been: to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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


def new_model(parts: list[Slide], config: StageConfig, *, vectors: bool = True) -> Stage:
    genes = sorted({gene for slide in parts for gene in slide.genes})
    model = Stage(config, genes, [slide.name for slide in parts])
    if vectors:
        model.set_vectors(torch.from_numpy(coexpression_vectors(parts, genes, config.dim)))
    return model


def assert_same(one: Stage, other: Stage, *histories: pd.DataFrame) -> None:
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        assert value.equal(states[1][name]), name
    if histories:
        pd.testing.assert_frame_equal(*histories, check_exact=True)


class Interrupted(Exception):
    """Instead of a signal."""


class TestAnyStep:
    """A new model each time, without even its gene vectors."""

    def run(self, parts, config: StageConfig, path: Path, monkeypatch, n_steps: int, **arguments: object):
        """Train in pieces of `n_steps`; return model, history and number of pieces."""
        true_step, model, pieces = _train.embed_pairs, new_model(parts, config), 0
        while True:
            left, pieces = [n_steps], pieces + 1

            def step(*arguments: object, left: list[int] = left) -> object:
                left[0] -= 1
                if left[0] < 0:
                    raise Interrupted
                return true_step(*arguments)

            monkeypatch.setattr(_train, "embed_pairs", step)
            try:
                rng = np.random.default_rng(pieces - 1)  # the first counts
                history = train(model, parts, rng, checkpoint=path, progress=False, **arguments)
            except Interrupted:
                model = new_model(parts, config, vectors=False)
            else:
                return model, history, pieces

    @pytest.mark.parametrize(("every", "n_steps"), [(1, 1), (2, 3), (3, 7), (1000, 9)])
    def test_same_result(self, parts, small_config, tmp_path, monkeypatch, every, n_steps):
        """Four epochs of eight steps, with a new tree after two."""
        config = small_config.replace(batch_size=50)
        plain = new_model(parts, config)
        expected = train(plain, parts, np.random.default_rng(0), progress=False)
        model, history, pieces = self.run(parts, config, tmp_path / "a", monkeypatch, n_steps, every=every)
        assert pieces == {1: 32, 3: 16, 7: 6, 9: 4}[n_steps]
        assert_same(plain, model, expected, history)
        assert not model.training
        assert all(parameter.requires_grad for parameter in model.parameters())

    @pytest.mark.parametrize(
        "changes",
        [
            {"slides_per_batch": 2},
            {"reconstruction_weight": 0.0, "selection": "slide"},
            {"warmup_epochs": 0},
            {"warmup_epochs": 4},
        ],
        ids=str,
    )
    def test_variants(self, parts, small_config, tmp_path, monkeypatch, changes):
        config = small_config.replace(batch_size=70, **changes)
        plain = new_model(parts, config)
        expected = train(plain, parts, np.random.default_rng(0), progress=False)
        model, history, pieces = self.run(parts, config, tmp_path / "a", monkeypatch, 5, every=2)
        assert pieces > 3
        assert_same(plain, model, expected, history)

    def test_stages_that_end_early(self, parts, small_config, tmp_path, monkeypatch):
        config = small_config.replace(epochs=24, warmup_epochs=12, learning_rate=1e-9)
        plain = new_model(parts, config)
        expected = train(plain, parts, np.random.default_rng(0), patience=2, progress=False)
        assert len(expected) < 24
        model, history, _ = self.run(parts, config, tmp_path / "a", monkeypatch, 5, every=2, patience=2)
        assert_same(plain, model, expected, history)

    def test_the_start_is_not_made_again(self, parts, small_config, tmp_path, monkeypatch):
        made = []
        for name in ("initialize_network", "grow_tree"):
            true = getattr(_train, name)
            monkeypatch.setattr(_train, name, lambda *a, true=true, name=name: made.append(name) or true(*a))
        self.run(parts, small_config, tmp_path / "a", monkeypatch, 2, every=1)
        assert made == ["initialize_network", "grow_tree", "grow_tree"]


DRIVER = """
import os, signal, sys
import anndata as ad
import stage_sc as st

left, replace = [3], os.replace
def kill(*paths):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = kill
config = st.model.StageConfig(
    dim=16, n_layers=1, levels=(2, 6, 18), epochs=4, warmup_epochs=2, learning_rate=1e-3, batch_size=128,
    domain_starts=9, domain_refined=2,
)
st.tl.fit(ad.read_h5ad(sys.argv[1]), config=config, checkpoint=sys.argv[2], progress=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_sigkill(finished, slides, small_config, tmp_path):
    """A process that is killed between writing and replacing the file for the third time."""
    slides.copy().write_h5ad(tmp_path / "slides.h5ad")
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, tmp_path / "slides.h5ad", tmp_path / "state"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert driver.returncode == -signal.SIGKILL, driver.stderr
    assert torch.load(tmp_path / "state", weights_only=True)["state"]["epoch"] == 2
    assert len(list(tmp_path.glob(".state.*.part"))) == 1
    again = st.tl.fit(slides, config=small_config, checkpoint=tmp_path / "state", progress=False)
    assert_same(finished[1], again, finished[1].history, again.history)
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))


@pytest.fixture(scope="module")
def finished(slides, small_config, tmp_path_factory) -> tuple[Path, Stage]:
    path = tmp_path_factory.mktemp("finished") / "state"
    return path, st.tl.fit(slides, config=small_config, checkpoint=path, progress=False)


class TestFinished:
    def test_is_returned_without_training(self, finished, slides, small_config, monkeypatch):
        path, model = finished
        before = path.read_bytes(), path.stat().st_mtime_ns
        for name in ("embed_pairs", "initialize_network", "grow_tree"):
            monkeypatch.setattr(_train, name, None)
        monkeypatch.setattr(_start, "coexpression_vectors", None)
        again = st.tl.fit(slides, config=small_config, checkpoint=str(path), progress=False)
        assert_same(model, again, model.history, again.history)
        assert not again.training
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before

    def test_equals_a_training_without_checkpoint(self, finished, slides, small_config):
        plain = st.tl.fit(slides, config=small_config, progress=False)
        assert_same(plain, finished[1], plain.history, finished[1].history)

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
        plain = st.tl.fit(slides, init=small_model, epochs=3, progress=False)

        def interrupt(history: pd.DataFrame) -> None:
            if len(history) == 2:
                raise Interrupted

        with pytest.raises(Interrupted):
            st.tl.fit(slides, init=small_model, epochs=3, checkpoint=tmp_path / "a", progress=False, callback=interrupt)
        assert torch.load(tmp_path / "a", weights_only=True)["state"]["epoch"] == 1
        again = st.tl.fit(slides, init=small_model, epochs=3, checkpoint=tmp_path / "a", progress=False)
        assert_same(plain, again, plain.history, again.history)
        with pytest.raises(ValueError, match="another training.*`init`"):
            st.tl.fit(slides, init=again, epochs=3, checkpoint=tmp_path / "a", progress=False)


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

    def test_other_configuration(self, finished, slides, small_config):
        config = small_config.replace(learning_rate=2e-3, dim=8)
        message = r"`dim` \(16 in the file, 8 here\), `learning_rate` \(0.001 in the file, 0.002 here\)"
        self.refused(slides, finished[0], message, config=config)

    def test_other_slides(self, finished, slides, tissue, small_config):
        self.refused(slides[slides.obs["slide"] == "slide1"].copy(), finished[0], "`slides`", config=small_config)
        self.refused({"slide1": slides, "more": tissue}, finished[0], "`slides`", config=small_config)

    def test_other_counts(self, finished, slides, small_config):
        slides = slides.copy()
        slides.layers["other"] = slides.X.copy()
        slides.layers["other"].data = np.random.default_rng(0).permutation(slides.X.data)
        self.refused(slides, finished[0], "`slides`", config=small_config, layer="other")

    @pytest.mark.parametrize("how", [{"scale": 1.2}, {"local": 40.0}, {"view": 60.0}], ids=str)
    def test_another_graph(self, finished, slides, small_config, how):
        slides = slides.copy()
        st.pp.build_graph(slides, library_key="slide", **how)
        self.refused(slides, finished[0], "`slides`", config=small_config)

    def test_other_genes(self, finished, slides, small_config):
        few = slides[:, :-3].copy()
        self.refused(few, finished[0], r"differs in `genes` \('\w+' in the file, '\w+' here\)", config=small_config)

    @pytest.mark.parametrize("kind", ["model", "text", "nothing", "code", "other numbers", "list"])
    def test_files_of_something_else(self, slides, small_config, small_model, tmp_path, kind):
        path = tmp_path / "a"
        if kind == "model":
            st.model.save_checkpoint(small_model, path).rename(path)
        elif kind in ("text", "nothing"):
            path.write_text("Dear diary" if kind == "text" else "")
        else:
            torch.save({"code": Runs(), "other numbers": {"x": torch.ones(3)}, "list": [1]}[kind], path)
        self.refused(slides, path, "no training of this version", config=small_config)

    def test_damaged(self, finished, slides, small_config, tmp_path):
        content = finished[0].read_bytes()
        for length in (10, 1000, len(content) // 2, len(content) - 1):
            (tmp_path / "a").write_bytes(content[:length])
            self.refused(slides, tmp_path / "a", "damaged", config=small_config)
        flipped, weights = bytearray(content), finished[1].decoder.weight.detach().numpy().tobytes()
        flipped[content.index(weights) + 70] ^= 1
        (tmp_path / "a").write_bytes(flipped)
        self.refused(slides, tmp_path / "a", "damaged", config=small_config)

    def test_another_format(self, finished, slides, small_config, tmp_path):
        content = torch.load(finished[0], weights_only=True)
        torch.save({**content, "format": "stage_sc training 99"}, tmp_path / "a")
        self.refused(slides, tmp_path / "a", "training 99", config=small_config)

    def test_places(self, slides, small_config, tmp_path):
        self.refused(slides, tmp_path, "is a folder", IsADirectoryError)
        self.refused(slides, tmp_path / "no" / "a", "There is no folder .*no'", FileNotFoundError)
        with pytest.raises(TypeError, match="`checkpoint` must be a path, got 3"):
            st.tl.fit(slides, checkpoint=3)
