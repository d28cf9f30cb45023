"""Pretraining with one command: files written, resumption, recipes, bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock, call

import anndata as ad
import pandas as pd
import pytest

import stage_sc as st
from stage_sc.model import StageConfig
from stage_sc.train import __main__ as command
from stage_sc.train import _health
from stage_sc.train.__main__ import Recipe, main, read_corpus, read_recipe, small_slides

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))

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
    return written(tmp_path_factory.mktemp("recipe"), RECIPE)


def written(folder: Path, text: str) -> Path:
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder / "recipe.toml"


def train(recipe: Path, corpus: Path, out: Path, *options: str) -> Path:
    main([str(recipe), "--data", str(corpus), "--out", str(out), *options])
    return out


@pytest.fixture(autouse=True)
def small_panels(monkeypatch):
    monkeypatch.setattr(command, "MIN_CELLS", 130)


@pytest.fixture(scope="module")
def done(corpus, recipe, tmp_path_factory) -> tuple[Path, str]:
    """Results of the command in a process of its own, and what it said."""
    out = tmp_path_factory.mktemp("out") / "new"
    command = [sys.executable, "-m", "stage_sc.train", recipe, "--data", corpus, "--out", out]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert said.returncode == 0, said.stderr
    return out, said.stdout


class TestResults:
    def test_same_as_fit(self, done, corpus, recipe):
        out, said = done
        config, data = read_recipe(recipe).config, {}
        for name in ("one/single", "one/two", "other/deep/single"):
            data["/".join(name.split("/")[-2:])] = adata = ad.read_h5ad(corpus / f"{name}.h5ad")
            st.pp.filter_cells(adata)
            st.pp.build_graph(adata, library_key="slide" if "slide" in adata.obs else None)
        expected = st.tl.fit(data, config=config, patience=None, name="small", rng=3, progress=False)
        model = st.model.load_checkpoint(out / "small.safetensors")
        assert model.digest == expected.digest
        assert f"4 slides, 538 cells, {len(model.genes)} genes" in said
        assert f"digest {model.digest}\n" in said
        assert model.slides == ["one/single", "one/two/slide1", "one/two/slide2", "deep/single"]
        history = pd.read_csv(out / "history.csv", index_col="epoch")
        pd.testing.assert_frame_equal(history, expected.history, rtol=1e-5)
        names = ["curves.png", "history.csv", "small-3.training", "small.safetensors"]
        assert sorted(path.name for path in out.iterdir()) == names  # slides are too small for panels
        assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    def test_panels_of_a_finished_training(self, corpus, recipe, done, tmp_path, monkeypatch):
        """Of the slides with enough cells; the same as from the function. Nothing is trained again, lost tables are."""
        out = shutil.copytree(done[0], tmp_path / "out")
        (out / "history.csv").unlink()
        monkeypatch.setattr("stage_sc.train._train.embed_pairs", None)
        train(recipe, corpus, out)
        assert (out / "history.csv").read_bytes() == (done[0] / "history.csv").read_bytes()
        table = pd.read_csv(out / "panels.csv", index_col=["slide", "split", "labels"])
        assert table.index.unique("slide").tolist() == ["one/two/slide1", "one/two/slide2"]
        slide = ad.read_h5ad(corpus / "one" / "two.h5ad")
        slide = slide[slide.obs["slide"] == "slide2"].copy()
        st.pp.build_graph(slide)
        expected = st.tl.panel_agreement(slide, out / "small.safetensors", rng=3)
        pd.testing.assert_frame_equal(table.loc["one/two/slide2"], expected, atol=1e-4, rtol=0)

    def test_half_and_without_training(self, corpus, tmp_path):
        text = RECIPE.replace('"small"', '"half"\nhalf = true').replace("epochs = 4\nwarmup_epochs = 2", "epochs = 0")
        train(written(tmp_path, text), corpus, tmp_path, "--leave-out", "two")
        model = st.model.load_checkpoint(tmp_path / "half.safetensors")
        assert all(value.equal(value.half().float()) for value in model.parameters())
        assert model.config.epochs == 0
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".safetensors", ".toml", ".training"]


class TestResume:
    def test_history_is_complete(self, corpus, recipe, done, tmp_path, monkeypatch):
        """Interrupted after the second epoch, whose row is there by then; the same command does the other two."""
        make, rows = command.history_writer, []

        def interrupted(*args: object, **kwargs: object) -> Callable[[pd.DataFrame], None]:
            write = make(*args, **kwargs)

            def both(history: pd.DataFrame) -> None:
                write(history)
                rows.append(len(pd.read_csv(tmp_path / "history.csv")))
                if rows == [1, 2]:
                    raise KeyboardInterrupt

            return both

        monkeypatch.setattr(command, "history_writer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, corpus, tmp_path)
        assert not (tmp_path / "small.safetensors").exists()
        train(recipe, corpus, tmp_path)
        assert rows == [1, 2, 2, 3, 4, 4]
        for name in ("history.csv", "small.safetensors"):
            assert (tmp_path / name).read_bytes() == (done[0] / name).read_bytes(), name

    def test_another_seed_is_another_training(self, corpus, recipe, done, tmp_path):
        out = train(recipe, corpus, shutil.copytree(done[0], tmp_path / "out"), "--seed", "4")
        assert (out / "history.csv").read_bytes() != (done[0] / "history.csv").read_bytes()
        assert (out / "small-3.training").read_bytes() == (done[0] / "small-3.training").read_bytes()


def test_collapse(corpus, recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(_health, "MAX_COSINE", -1.0)
    with pytest.raises(SystemExit) as stopped:
        train(recipe, corpus, tmp_path)
    assert isinstance(stopped.value.code, str)  # is printed, and the process ends with 1
    assert "`learning_rate`" in stopped.value.code
    assert "collapsed" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "history.csv", "small-3.training"]
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2


class TestStore:
    def test_without_panels(self, corpus, recipe, tmp_path, capsys):
        st.data.build_store(corpus.glob("*/*.h5ad"), tmp_path / "store", progress=False)
        main([str(recipe), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")])
        assert "2 slides, 419 cells" in capsys.readouterr().out
        assert not (tmp_path / "out" / "panels.csv").exists()

    def test_bad_arguments(self, recipe, tmp_path):
        with pytest.raises(ValueError, match="`--leave-out`"):
            main([str(recipe), "--store", str(tmp_path), "--out", str(tmp_path), "--leave-out", "one"])
        for source in ([], ["--data", ".", "--store", "."]):  # either, or
            with pytest.raises(SystemExit, match="2"):
                main([str(recipe), "--out", str(tmp_path), *source])


def test_other_processes_write_nothing(corpus, recipe, done, tmp_path, monkeypatch):
    (tmp_path / "small-3.training").write_bytes((done[0] / "small-3.training").read_bytes())
    monkeypatch.setenv("RANK", "1")
    train(recipe, corpus, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["small-3.training"]


def test_tensorboard(corpus, recipe, tmp_path, monkeypatch):
    board = Mock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    for _ in range(2):  # the second call trains nothing, and shows all
        board.reset_mock()
        train(recipe, corpus, tmp_path, "--tensorboard")
        assert board.SummaryWriter.call_args_list == [call(tmp_path / "tensorboard", purge_step=0)]
        *shown, last = board.SummaryWriter.return_value.method_calls
        values = {(name, epoch): value for _, (name, value, epoch), _ in (one for one in shown if one != call.flush())}
        history = pd.read_csv(tmp_path / "history.csv", index_col="epoch")
        expected = history.drop(columns="stage").stack().dropna().swaplevel().to_dict()
        assert values == pytest.approx(expected, rel=1e-5)
        assert last == call.flush()
        assert sum(one != call.flush() for one in shown) == len(expected)  # each once
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        train(recipe, corpus, tmp_path, "--tensorboard")


class TestFiles:
    def read(self, folder: Path, *leave_out: str, **arguments: object) -> list[str]:
        return list(read_corpus([folder], leave_out, "slide", **arguments))

    def test_leave_out(self, corpus):
        everything = ["one/single", "one/two", "deep/single"]
        assert self.read(corpus) == everything
        assert self.read(corpus, "one/") == ["deep/single"]
        assert self.read(corpus, "two", "deep") == ["one/single"]
        assert list(read_corpus([corpus / "one", corpus], [], None)) == everything  # each once
        data = read_corpus([corpus], [], "slide")
        assert [adata.n_obs for adata in data.values()] == [119, 300, 119]
        assert [adata.uns["stage_graph"]["params"]["library_key"] or "" for adata in data.values()] == ["", "slide", ""]

    def test_smallest_slides(self, corpus, monkeypatch):
        monkeypatch.setattr(command, "MIN_CELLS", 100)
        monkeypatch.setattr(command, "MAX_SLIDES", 3)
        data = read_corpus([corpus], [], "slide")
        found = dict(small_slides(data, "slide"))
        sizes = {name: adata.n_obs for name, adata in found.items()}
        assert sizes == {"deep/single": 119, "one/single": 119, "one/two/slide1": 150}
        assert found["deep/single"] is data["deep/single"]
        assert set(found["one/two/slide1"].obs["slide"]) == {"slide1"}

    def test_bad_input(self, corpus, tmp_path):
        with pytest.raises(FileNotFoundError, match="h5ad"):
            self.read(tmp_path)
        for part in ("typo", corpus.parent.name):  # the path to the folders does not matter
            with pytest.raises(ValueError, match=f"`--leave-out {part}`"):
                self.read(corpus, "one", part)
        with pytest.raises(ValueError, match="`--leave-out`"):
            self.read(corpus, "h5ad")
        for study in ("a", "b"):
            (tmp_path / study / "same").mkdir(parents=True)
            shutil.copy(corpus / "one" / "single.h5ad", tmp_path / study / "same" / "slide.h5ad")
        with pytest.raises(ValueError, match="'same/slide'"):
            self.read(tmp_path)


def test_recipe(tmp_path):
    """With every field of the configuration, written the same in JSON and TOML."""
    config = StageConfig(levels=(2, 4), learning_rate=1e-2, cells_per_slide=100, cells_per_epoch=1000)
    text = 'seed = 7\n[model]\nname = "ätlas"\nhalf = true\n[data]\nlibrary_key = "section"\n[config]\n'
    text += "\n".join(f"{key} = {json.dumps(value)}" for key, value in config.to_dict().items())
    assert read_recipe(written(tmp_path, '[model]\nname = "a"')) == Recipe("a", StageConfig())
    assert read_recipe(written(tmp_path, text)) == Recipe("ätlas", config, half=True, library_key="section", seed=7)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_of_the_repository(path):
    assert read_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('[model]\nname = "a"\n[config]\nlearning_rat = 1', ValueError, r"\[config\].* learning_rat\b.*learning_rate"),
        ('[model]\nname = "a"\nsize = 1', ValueError, r"\[model\].* size\b.*name, half"),
        ('[model]\nname = "a"\n[training]', ValueError, "training.*seed, model, data, config"),
        ('seed = 1.5\n[model]\nname = "a"', TypeError, "`seed`.*int.*1.5"),
        ('seed = true\n[model]\nname = "a"', TypeError, "`seed`.*int.*True"),
        ('model = "a"', TypeError, "`model`.*dict"),
        ('[model]\nname = "a"\nhalf = 1', TypeError, "`half`.*bool.*1"),
        ('[model]\nname = "a"\n[data]\nlibrary_key = ["a"]', TypeError, "`library_key`.*str"),
        ("[config]", KeyError, "`name`"),
        ('[model]\nname = "a/b"', ValueError, "'a/b'"),
        ('[model]\nname = ""', ValueError, "''"),
        ('[model]\nname = "a"\n[config]\nlevels = [8, 9]', ValueError, "two children"),
        ("name: a", ValueError, "TOML"),
    ],
)
def test_refused(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        read_recipe(written(tmp_path, text))
