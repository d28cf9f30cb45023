"""Pretraining with one command: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import anndata as ad
import pandas as pd
import pytest

import stage_sc as st
from stage_sc.model._checkpoint import model_digest
from stage_sc.train import _corpus, _health
from stage_sc.train.__main__ import main
from stage_sc.train._log import EpochLog

RECIPE = """
seed = 3

[model]
name = "small"

[data]
library_key = "slide"

[config]
dim = 16
n_layers = 1
levels = [2, 6, 18]
epochs = 4
warmup_epochs = 2
learning_rate = 1e-3
batch_size = 128
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A file with two slides, two files with one."""
    folder = tmp_path_factory.mktemp("corpus")
    for study in ("one", "other/deep"):
        (folder / study).mkdir(parents=True)
    st.datasets.simulate_tissue(150, n_slides=2, rng=1).write_h5ad(folder / "one" / "two.h5ad")
    for name, seed in (("one/single", 2), ("other/deep/single", 3)):
        adata = st.datasets.simulate_tissue(120, rng=seed)
        del adata.obs["slide"]
        adata.obsm["spatial"][0] = float("nan")
        adata.write_h5ad(folder / f"{name}.h5ad")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(autouse=True)
def small_panels(monkeypatch):
    monkeypatch.setattr(_corpus, "MIN_CELLS", 130)


@pytest.fixture(autouse=True)
def no_trace():
    """Logging is left as it was."""
    logger = logging.getLogger("stage_sc.train")
    before = logger.level, list(logger.handlers)
    yield
    assert (logger.level, logger.handlers) == before


@pytest.fixture(scope="module")
def done(corpus, recipe, tmp_path_factory) -> tuple[Path, str]:
    """Results of the command in a process of its own, and what it said."""
    out = tmp_path_factory.mktemp("out") / "new"
    command = [sys.executable, "-m", "stage_sc.train", recipe, "--data", corpus, "--out", out]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert said.returncode == 0, said.stderr
    return out, said.stdout


class TestResults:
    def test_same_as_fit(self, done, corpus):
        out, _ = done
        config = st.model.StageConfig(
            dim=16, n_layers=1, levels=(2, 6, 18), epochs=4, warmup_epochs=2, learning_rate=1e-3, batch_size=128
        )
        data = {}
        for name in ("one/single", "one/two", "other/deep/single"):
            data["/".join(name.split("/")[-2:])] = adata = ad.read_h5ad(corpus / f"{name}.h5ad")
            st.pp.filter_cells(adata)
            st.pp.build_graph(adata, library_key="slide" if "slide" in adata.obs else None)
        expected = st.tl.fit(data, config=config, patience=None, name="small", rng=3, progress=False)
        model = st.model.load_checkpoint(out / "small.safetensors")
        assert model_digest(model) == model_digest(expected)
        assert model.slides == ["one/single", "one/two/slide1", "one/two/slide2", "deep/single"]
        history = pd.read_csv(out / "history.csv", index_col="epoch")
        pd.testing.assert_frame_equal(history, expected.history, rtol=1e-5)

    def test_summary(self, done):
        out, said = done
        digest = model_digest(st.model.load_checkpoint(out / "small.safetensors"))
        n_genes = len(st.model.load_checkpoint(out / "small.safetensors").genes)
        assert re.search(rf"small\.safetensors: 4 slides, 538 cells, {n_genes} genes, \d+ s, digest {digest}\n", said)

    def test_files(self, done):
        out, _ = done
        names = [
            "curves.png",
            "history.csv",
            "small-3.training",
            "small.safetensors",
        ]  # slides are too small for panels
        assert sorted(path.name for path in out.iterdir()) == names
        assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    def test_panels(self, corpus, recipe, done, tmp_path):
        """Of the slides with enough cells; the same as from the function."""
        main([str(recipe), "--data", str(corpus), "--out", str(shutil.copytree(done[0], tmp_path / "out"))])
        table = pd.read_csv(tmp_path / "out" / "panels.csv", index_col=["slide", "split", "labels"])
        assert table.index.unique("slide").tolist() == ["one/two/slide1", "one/two/slide2"]
        slide = ad.read_h5ad(corpus / "one" / "two.h5ad")
        slide = slide[slide.obs["slide"] == "slide2"].copy()
        st.pp.build_graph(slide)
        expected = st.metrics.panel_agreement(slide, tmp_path / "out" / "small.safetensors", rng=3)
        pd.testing.assert_frame_equal(table.loc["one/two/slide2"], expected, atol=1e-4, rtol=0)

    def test_half(self, corpus, tmp_path):
        text = RECIPE.replace('"small"', '"half"\nhalf = true').replace("epochs = 4", "epochs = 2")
        (tmp_path / "half.toml").write_text(text)
        main([str(tmp_path / "half.toml"), "--data", str(corpus), "--out", str(tmp_path), "--leave-out", "two"])
        model = st.model.load_checkpoint(tmp_path / "half.safetensors")
        assert all(value.equal(value.half().float()) for value in model.parameters())
        assert not (tmp_path / "panels.csv").exists()  # no slide is large enough

    def test_without_training(self, corpus, tmp_path):
        text = RECIPE.replace("epochs = 4", "epochs = 0", 1).replace("warmup_epochs = 2", "warmup_epochs = 0")
        (tmp_path / "none.toml").write_text(text)
        main([str(tmp_path / "none.toml"), "--data", str(corpus), "--out", str(tmp_path / "out")])
        model = st.model.load_checkpoint(tmp_path / "out" / "small.safetensors")
        assert model.config.epochs == 0
        assert not (tmp_path / "out" / "curves.png").exists()


class TestResume:
    def test_history_is_complete(self, corpus, recipe, done, tmp_path, monkeypatch, caplog):
        """Interrupted after the second epoch, whose row is there by then; the same command does the other two."""
        arguments = [str(recipe), "--data", str(corpus), "--out", str(tmp_path)]
        emit, rows = EpochLog.emit, []

        def interrupted(log: EpochLog, record: logging.LogRecord) -> None:
            emit(log, record)
            rows.append(len(pd.read_csv(tmp_path / "history.csv")))
            if rows == [1, 2]:
                raise KeyboardInterrupt

        monkeypatch.setattr(EpochLog, "emit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(arguments)
        assert not (tmp_path / "small.safetensors").exists()
        main(arguments)
        assert rows == [1, 2, 3, 4]
        for name in ("history.csv", "small.safetensors"):
            assert (tmp_path / name).read_bytes() == (done[0] / name).read_bytes(), name

    def test_finished(self, corpus, recipe, done, tmp_path, monkeypatch):
        """Nothing is trained again, and a table that was lost is there again."""
        out = shutil.copytree(done[0], tmp_path / "out")
        (out / "history.csv").unlink()
        monkeypatch.setattr("stage_sc.train._train.embed_pairs", None)
        main([str(recipe), "--data", str(corpus), "--out", str(out)])
        assert (out / "history.csv").read_bytes() == (done[0] / "history.csv").read_bytes()

    def test_another_seed_is_another_training(self, corpus, recipe, done, tmp_path):
        out = shutil.copytree(done[0], tmp_path / "out")
        main([str(recipe), "--data", str(corpus), "--out", str(out), "--seed", "4"])
        assert (out / "history.csv").read_bytes() != (done[0] / "history.csv").read_bytes()
        assert (out / "small-3.training").read_bytes() == (done[0] / "small-3.training").read_bytes()


def test_collapse(corpus, recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(_health, "MAX_COSINE", -1.0)
    with pytest.raises(SystemExit) as stopped:
        main([str(recipe), "--data", str(corpus), "--out", str(tmp_path)])
    assert isinstance(stopped.value.code, str)  # is printed, and the process ends with 1
    assert "`learning_rate` (it is 0.001)" in stopped.value.code
    assert "have collapsed after 2 of 4 epochs" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "history.csv", "small-3.training"]
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2


class TestStore:
    def test_without_panels(self, corpus, recipe, tmp_path, capsys):
        st.data.build_store(corpus.glob("*/*.h5ad"), tmp_path / "store", progress=False)
        main([str(recipe), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")])
        assert "2 slides, 419 cells" in capsys.readouterr().out
        assert not (tmp_path / "out" / "panels.csv").exists()

    def test_leave_out(self, recipe, tmp_path):
        with pytest.raises(ValueError, match="build the store without them"):
            main([str(recipe), "--store", str(tmp_path), "--out", str(tmp_path), "--leave-out", "one"])

    def test_either_or(self, recipe, tmp_path, capsys):
        for source in ([], ["--data", ".", "--store", "."]):
            with pytest.raises(SystemExit) as stopped:
                main([str(recipe), "--out", str(tmp_path), *source])
            assert stopped.value.code == 2


def test_other_processes_write_nothing(corpus, recipe, done, tmp_path, monkeypatch):
    (tmp_path / "small-3.training").write_bytes((done[0] / "small-3.training").read_bytes())
    monkeypatch.setenv("RANK", "1")
    main([str(recipe), "--data", str(corpus), "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["small-3.training"]


class TestTensorBoard:
    @pytest.fixture
    def board(self, monkeypatch) -> dict[tuple[str, int], float]:
        """What is shown, instead of a file."""
        shown: dict[tuple[str, int], float] = {}

        class SummaryWriter:
            def __init__(self, folder: Path, *, purge_step: int) -> None:
                assert folder.name == "tensorboard"
                assert purge_step == 0
                shown.clear()

            def add_scalar(self, name: str, value: float, epoch: int) -> None:
                assert (name, epoch) not in shown
                shown[name, epoch] = value

            def flush(self) -> None:
                shown.setdefault(("flushed", 0), 1.0)

            def close(self) -> None:
                assert shown.pop(("flushed", 0))

        module = ModuleType("tensorboard")
        module.SummaryWriter = SummaryWriter
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
        return shown

    def test_every_epoch(self, corpus, recipe, board, tmp_path):
        arguments = [str(recipe), "--data", str(corpus), "--out", str(tmp_path), "--tensorboard"]
        for _ in range(2):  # the second call trains nothing, and shows all
            main(arguments)
            history = pd.read_csv(tmp_path / "history.csv", index_col="epoch")
            expected = history.drop(columns="stage").stack().dropna().swaplevel().to_dict()
            assert board == pytest.approx(expected, rel=1e-5)

    def test_not_installed(self, corpus, recipe, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(ImportError, match="pip install tensorboard"):
            main([str(recipe), "--data", str(corpus), "--out", str(tmp_path), "--tensorboard"])


class TestFiles:
    def read(self, folder: Path, *leave_out: str, **arguments: object) -> list[str]:
        return list(_corpus.read_files([folder], leave_out, "slide", **arguments))

    def test_leave_out(self, corpus):
        everything = ["one/single", "one/two", "deep/single"]
        assert self.read(corpus) == everything
        assert self.read(corpus, "one/") == ["deep/single"]
        assert self.read(corpus, "two", "deep") == ["one/single"]
        assert list(_corpus.read_files([corpus / "one", corpus], [], None)) == everything  # each once

    def test_the_path_to_the_folders_does_not_matter(self, corpus):
        with pytest.raises(ValueError, match=re.escape(f"`--leave-out {corpus.parent.name}` is in no path")):
            self.read(corpus, corpus.parent.name)

    def test_slides(self, corpus):
        data = _corpus.read_files([corpus], [], "slide")
        assert [adata.n_obs for adata in data.values()] == [119, 300, 119]
        assert [adata.uns["stage_graph"]["params"]["library_key"] or "" for adata in data.values()] == ["", "slide", ""]

    def test_smallest_slides(self, corpus, monkeypatch):
        monkeypatch.setattr(_corpus, "MIN_CELLS", 100)
        monkeypatch.setattr(_corpus, "MAX_SLIDES", 3)
        data = _corpus.read_files([corpus], [], "slide")
        found = dict(_corpus.small_slides(data, "slide"))
        assert {name: adata.n_obs for name, adata in found.items()} == {
            "deep/single": 119,
            "one/single": 119,
            "one/two/slide1": 150,
        }
        assert found["deep/single"] is data["deep/single"]
        assert set(found["one/two/slide1"].obs["slide"]) == {"slide1"}

    def test_bad_input(self, corpus, tmp_path):
        with pytest.raises(FileNotFoundError, match="no .h5ad file below"):
            self.read(tmp_path)
        with pytest.raises(ValueError, match="`--leave-out typo` is in no path, such as"):
            self.read(corpus, "one", "typo")
        with pytest.raises(ValueError, match="leaves no file"):
            self.read(corpus, "h5ad")
        for study in ("a", "b"):
            (tmp_path / study / "same").mkdir(parents=True)
            shutil.copy(corpus / "one" / "single.h5ad", tmp_path / study / "same" / "slide.h5ad")
        with pytest.raises(ValueError, match="Several files are called 'same/slide'"):
            self.read(tmp_path)
