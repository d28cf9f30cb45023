"""Tutorials: executed where the real sections are at hand; stored outputs that are whole, small, and of no machine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
IDS = [path.stem for path in TUTORIALS]
MEGABYTE = 1_000_000


@pytest.fixture(scope="module", params=TUTORIALS[:1], ids=IDS[:1])
def executed(request, dev_data, tmp_path_factory):
    """Notebook as stored, and executed by a new kernel; the others, of minutes, are executed with the pages."""
    stored = nbformat.read(request.param, as_version=4)
    notebook = nbformat.from_dict(json.loads(json.dumps(stored)))
    place = {"metadata": {"path": tmp_path_factory.mktemp("tutorial")}}
    sections = {**os.environ, "STAGE_SC_DATA": str(dev_data.parent.resolve())}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute(env=sections)
    return stored, notebook


def figures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def said(cell):
    """Text of a cell, without addresses of objects and warnings."""
    outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    text = "".join(output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs)
    return re.sub(r"0x[0-9a-f]+", "", text)


def test_results_are_those_stored(executed):
    stored, notebook = executed
    assert [cell.source for cell in stored.cells] == [cell.source for cell in notebook.cells]
    for cell, again in zip(stored.cells, notebook.cells, strict=True):
        assert (said(cell), figures(cell)) == (said(again), figures(again)), cell.source


@pytest.mark.parametrize("path", TUTORIALS, ids=IDS)
def test_stored_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(map(figures, code)) >= 5 and path.stat().st_size < 1.5 * MEGABYTE
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not re.search(r"/(tmp|work|home|root|Users)/", "".join(map(said, code)))
