"""Curves of a training: values, boundary of the stages, files, and what is refused."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import stage_sc as st
from stage_sc.pl import training_curves


@pytest.fixture(autouse=True)
def _no_windows():
    backend = mpl.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.fixture
def history() -> pd.DataFrame:
    table = pd.DataFrame({"stage": ["warm-up"] * 3 + ["joint"] * 2, "loss": np.linspace(3, 2, 5)})
    table["swav"], table["cosine"] = table["loss"] - 0.5, np.linspace(0.1, 0.4, 5)
    table["entropy"], table["used"] = np.linspace(0.9, 0.8, 5), [10, 12, 11, 9, 9]
    table["path"] = [np.nan] * 3 + [0.4, 0.3]
    return table.rename_axis("epoch")


def lines(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in ax.get_lines() if line.get_linestyle() == "-"}


def boundaries(ax) -> list[float]:
    return [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == "--"]


@pytest.mark.parametrize("index", ["epoch", None])
def test_values_of_a_table_and_of_a_file(history, tmp_path, index):
    history.to_csv(tmp_path / "history.csv")
    before = history.copy()
    read = pd.read_csv(tmp_path / "history.csv", index_col=index)
    for fig in (training_curves(table, return_fig=True) for table in (history, read)):
        losses, entropy, used, cosine = fig.get_axes()
        assert list(lines(losses)) == ["loss", "swav", "path"]
        assert [list(lines(ax)) for ax in (entropy, used, cosine)] == [["entropy"], ["used"], ["cosine"]]
        for ax in fig.get_axes():
            assert boundaries(ax) == [2.5]
            for name, values in lines(ax).items():
                np.testing.assert_allclose(values, history[name], rtol=1e-12)
        assert [text.get_text() for text in fig.legends[0].get_texts()] == ["loss", "swav", "path", "joint training"]
    pd.testing.assert_frame_equal(history, before)


@pytest.mark.parametrize("stage", ["warm-up", "joint"])
def test_a_single_stage_has_no_boundary(history, stage):
    fig = training_curves(history[history["stage"] == stage], return_fig=True)
    assert [boundaries(ax) for ax in fig.get_axes()] == [[]] * 4


def test_a_model(small_model):
    fig = training_curves(small_model, return_fig=True)
    assert list(lines(fig.get_axes()[0])) == ["loss", "swav", "reconstruction", "path"]
    for name, values in (pair for ax in fig.get_axes() for pair in lines(ax).items()):
        np.testing.assert_array_equal(values, small_model.history[name])


def test_a_single_epoch_can_be_seen(history):
    fig = training_curves(history.iloc[:1], return_fig=True)
    assert all(line.get_marker() == "." for ax in fig.get_axes() for line in ax.get_lines())


def test_return_and_save(history, tmp_path):
    assert len(training_curves(history, show=False)) == 4
    assert training_curves(history, show=True) is None
    fig = training_curves(history, figsize=(3, 3), save=tmp_path / "curves.png", return_fig=True)
    assert isinstance(fig, Figure)
    assert fig.get_size_inches().tolist() == [3, 3]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_refused(history, small_model, tissue, tmp_path):
    with pytest.raises(KeyError, match="'used', 'cosine'"):
        training_curves(history.drop(columns=["used", "cosine"]))
    read = st.model.load_checkpoint(st.model.save_checkpoint(small_model, tmp_path / "model"))
    with pytest.raises(ValueError, match="no history"):
        training_curves(read)
    untrained = st.tl.fit(tissue, config=small_model.config, epochs=0, progress=False)
    for table in (history.iloc[:0], untrained):
        with pytest.raises(ValueError, match="no epoch"):
            training_curves(table)
