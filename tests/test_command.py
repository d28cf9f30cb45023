"""The command ``stage-sc``: options are arguments, errors are one line, the exit status tells what happened."""

from __future__ import annotations

import inspect
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stage_sc as st
from stage_sc._command import main, read_parameters


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_model):
    """Two slides, files that cannot be labelled, and a model."""
    folder = tmp_path_factory.mktemp("files")
    adata = st.datasets.simulate_tissue(150, rng=3)
    for name in ("one", "two"):
        adata.write_h5ad(folder / f"{name}.h5ad")
    adata[:2].copy().write_h5ad(folder / "few.h5ad")
    adata[:0].copy().write_h5ad(folder / "empty.h5ad")
    whole = (folder / "one.h5ad").read_bytes()
    (folder / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    adata.var_names = [f"ENSDARG{number:011d}" for number in range(adata.n_vars)]
    adata.write_h5ad(folder / "fish.h5ad")
    st.model.save_checkpoint(small_model, folder / "model")
    return folder


BAD = ["few", "empty", "cut", "fish"]


def run(folder, names, *options):
    files = [str(folder / f"{name}.h5ad") for name in names]
    return main(["label", *files, "--model", str(folder / "model.safetensors"), *map(str, options)])


def test_label(folder, small_model, tmp_path, capsys):
    options = ["--out", tmp_path / "out", "--n-domains", 3, "--no-settle", "--key-added", "other"]
    assert run(folder, ["one", "two"], *options) == 0
    results = capsys.readouterr().out.split()
    files = [folder / "one.h5ad", folder / "two.h5ad"]
    expected = st.tl.label_files(
        files, tmp_path / "expected", model=small_model, n_domains=3, settle=False, key_added="other"
    )
    for result, other in zip(results, expected, strict=True):
        assert ad.read_h5ad(result).obs.equals(ad.read_h5ad(other).obs)


def test_files_that_are_left_out(folder, tmp_path, caplog):
    """One warning and a row of the summary for each; labels are those of a call without them."""
    assert run(folder, ["few", "one", "empty", "cut", "two", "fish"], "--out", tmp_path / "out") == 3
    (record,) = [record for record in caplog.records if "left out" in record.getMessage()]
    table = pd.read_csv(tmp_path / "out" / "summary.csv", index_col="file", keep_default_na=False)
    assert len(table) == 6
    for name in BAD:
        row = table.loc[str(folder / f"{name}.h5ad")]
        assert row["problem"] and not row["result"]
        assert f"{name}.h5ad" in record.getMessage() and row["problem"] in record.getMessage()
    good = table.loc[str(folder / "one.h5ad")]
    assert not good["problem"] and good["labelled"] == "150" and 9 * int(good["genes"]) < 10 * int(good["genes_used"])
    assert run(folder, ["one", "two"], "--out", tmp_path / "good") == 0
    for name in ("one", "two"):
        found, expected = (ad.read_h5ad(tmp_path / place / f"{name}.h5ad").obs for place in ("out", "good"))
        assert found.equals(expected)
    assert not (tmp_path / "out" / "few.h5ad").exists()


def test_a_wrong_unit(folder, tmp_path):
    """A slide in mm among slides in µm, where the scale is given; without it the unit is guessed."""
    adata = ad.read_h5ad(folder / "one.h5ad")
    adata.obsm["spatial"] = adata.obsm["spatial"] / 1000
    adata.write_h5ad(tmp_path / "mm.h5ad")
    files = [folder / "one.h5ad", tmp_path / "mm.h5ad"]
    for scale, status in ((1, 3), (None, 0)):
        options = ["--out", str(tmp_path / "out"), "--model", str(folder / "model.safetensors"), "--no-settle"]
        assert main(["label", *map(str, files), *options, *(["--scale", "1"] if scale else [])]) == status
        table = pd.read_csv(tmp_path / "out" / "summary.csv", keep_default_na=False)
        assert ("µm per unit" in table["problem"][1]) == (scale is not None)
    assert table["unit"].tolist() == ["µm", "guess"]
    assert "the unit of the coordinates is unknown" in table["warnings"][1] and not table["problem"][1]


def test_all_are_left_out_or_errors_are_raised(folder, tmp_path, capsys):
    for options in (["--errors", "raise"], []):
        names = ["one", "few"] if options else ["few", "fish"]
        assert run(folder, names, "--out", tmp_path / "out", *options) == 1
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and captured.err.startswith("stage-sc: error: ")
        assert "few.h5ad" in captured.err and not captured.out


def test_write_back_of_the_good_ones(folder, tmp_path):
    copies = [tmp_path / name for name in ("one.h5ad", "cut.h5ad")]
    for path in copies:
        path.write_bytes((folder / path.name).read_bytes())
    assert run(tmp_path, [], *copies, "--out", tmp_path / "out", "--write-back") == 1  # the model is elsewhere
    before = copies[1].read_bytes()
    model = ["--model", folder / "model.safetensors", "--out", tmp_path / "out", "--write-back"]
    assert main(["label", *map(str, [*copies, *model])]) == 3
    assert "stage_path" in ad.read_h5ad(copies[0]).obs and copies[1].read_bytes() == before


def test_report(folder, tmp_path, capsys):
    """Of labelled files: the same page as of the function."""
    files = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    for path in files:
        path.write_bytes((folder / path.name).read_bytes())
    assert (
        run(tmp_path, [], *files, "--out", tmp_path / "out", "--model", folder / "model.safetensors", "--write-back")
        == 0
    )
    capsys.readouterr()
    options = ["--keys", "domain", "slide", "--n-genes", "3", "--title", "Both"]
    assert main(["report", *map(str, files), "--out", str(tmp_path / "a.html"), *options]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.html")
    st.report(files, tmp_path / "b.html", keys=["domain", "slide"], n_genes=3, title="Both")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert main(["report", str(folder / "one.h5ad"), "--out", str(tmp_path / "c.html")]) == 1
    assert "stage_niches" in capsys.readouterr().err and not (tmp_path / "c.html").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["label", "none.h5ad", "--out", "out"], 1, "There is no file 'none.h5ad'"),
        (["label", "none.h5ad", "--out", "out", "--workers", "0"], 1, "--workers"),
        (["label", "none.h5ad"], 2, "--out"),
        (["label", "none.h5ad", "--out", "out", "--errors", "hide"], 2, "--errors"),
        (["label", "none.h5ad", "--out", "out", "--n-domains", "many"], 2, "--n-domains"),
        (["draw"], 2, "draw"),
    ],
)
def test_errors(arguments, status, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        found = main(arguments)
    except SystemExit as error:
        found = error.code
    captured = capsys.readouterr()
    assert found == status and text in captured.err and "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())


def test_help(capsys):
    """All arguments of the function, with their description as plain text; the command loads no model for it."""
    with pytest.raises(SystemExit):
        main(["label", "--help"])
    text = capsys.readouterr().out
    for name in list(inspect.signature(st.tl.label_files).parameters)[1:]:
        assert f"--{name.replace('_', '-')}" in text
    assert "`" not in text and ":func:" not in text and "µm per unit of the coordinates" in text
    assert set(read_parameters(inspect.getdoc(st.tl.label_files))) == set(
        inspect.signature(st.tl.label_files).parameters
    )


def test_process():
    """As a process, which takes no time to tell its commands."""
    code = "import sys; sys.argv = ['stage-sc', '--help']; from stage_sc._command import main\ntry: main()\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "label" in done.stdout and "summary" in done.stdout
    done = subprocess.run([sys.executable, "-m", "stage_sc", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"stage-sc {st.__version__}\n"


def test_summary(folder, tmp_path, capsys):
    files = [str(folder / f"{name}.h5ad") for name in ("one", "few")]
    assert main(["summary", files[0]]) == 0
    assert "150" in capsys.readouterr().out
    assert main(["summary", *files, "--csv", str(tmp_path / "table.csv")]) == 3
    problems = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)["problem"]
    assert np.flatnonzero(problems != "").tolist() == [1]
