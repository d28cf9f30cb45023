"""Curves of a training: what is drawn, and where the stages meet."""

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
    n = 5
    table = pd.DataFrame({"stage": ["warm-up"] * 3 + ["joint"] * 2, "loss": np.linspace(3, 2, n)})
    table["swapped"], table["cosine"] = table["loss"] - 0.5, np.linspace(0.1, 0.4, n)
    table["entropy"], table["used"] = np.linspace(0.9, 0.8, n), [10, 12, 11, 9, 9]
    table["path"] = [np.nan] * 3 + [0.4, 0.3]
    return table.rename_axis("epoch")


def lines(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in ax.get_lines() if line.get_linestyle() == "-"}


def boundaries(ax) -> list[float]:
    return [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == "--"]


def test_as_read_from_a_file(history, tmp_path):
    history.to_csv(tmp_path / "history.csv")
    fig = training_curves(pd.read_csv(tmp_path / "history.csv"), return_fig=True)
    assert list(lines(fig.get_axes()[0])) == ["loss", "swapped", "path"]


def test_values(history):
    fig = training_curves(history, return_fig=True)
    losses, entropy, used, cosine = fig.get_axes()
    assert list(lines(losses)) == ["loss", "swapped", "path"]
    for ax in fig.get_axes():
        for name, values in lines(ax).items():
            np.testing.assert_array_equal(values, history[name])
        assert boundaries(ax) == [2.5]
    assert [list(lines(ax)) for ax in (entropy, used, cosine)] == [["entropy"], ["used"], ["cosine"]]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "loss",
        "swapped",
        "path",
        "joint training",
    ]


@pytest.mark.parametrize("stage", ["warm-up", "joint"])
def test_a_single_stage_has_no_boundary(history, stage):
    fig = training_curves(history[history["stage"] == stage], return_fig=True)
    assert [boundaries(ax) for ax in fig.get_axes()] == [[]] * 4


def test_model_and_csv(small_model, tmp_path):
    small_model.history.to_csv(tmp_path / "history.csv")
    read = pd.read_csv(tmp_path / "history.csv", index_col="epoch")
    one, other = (training_curves(given, return_fig=True) for given in (small_model, read))
    for left, right in zip(one.get_axes(), other.get_axes(), strict=True):
        assert lines(left).keys() == lines(right).keys()
        for name, values in lines(left).items():
            np.testing.assert_allclose(values, lines(right)[name])


def test_a_single_epoch_can_be_seen(history):
    fig = training_curves(history.iloc[:1], return_fig=True)
    assert all(line.get_marker() == "." for ax in fig.get_axes() for line in ax.get_lines())


def test_the_table_is_left_alone(history):
    before = history.copy()
    training_curves(history, return_fig=True)
    pd.testing.assert_frame_equal(history, before)


def test_return_and_save(history, tmp_path):
    axes = training_curves(history, show=False)
    assert len(axes) == 4
    assert training_curves(history, show=True) is None
    fig = training_curves(history, figsize=(3, 3), save=tmp_path / "curves.png", return_fig=True)
    assert isinstance(fig, Figure)
    assert fig.get_size_inches().tolist() == [3, 3]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_refused(history, small_model, tmp_path):
    with pytest.raises(KeyError, match=r"lacks the columns \['used', 'cosine'\]"):
        training_curves(history.drop(columns=["used", "cosine"]))
    with pytest.raises(ValueError, match="no epoch"):
        training_curves(history.iloc[:0])
    read = st.model.load_checkpoint(st.model.save_checkpoint(small_model, tmp_path / "model"))
    with pytest.raises(ValueError, match="has no history"):
        training_curves(read)


def test_no_epoch(small_model, tissue):
    model = st.tl.fit(tissue, config=small_model.config, epochs=0, progress=False)
    with pytest.raises(ValueError, match="has no epoch"):
        training_curves(model)
