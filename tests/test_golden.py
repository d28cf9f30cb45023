"""Labels of real sections are those of `golden.json`, which `golden.py` has written; skipped without the sections."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
# Of studies with several sections that differ little, one or two; none of more than 5,000 cells.
LEFT_OUT = {"dev/dlpfc_visium/151673", "dev/her2st_breast/B1", "dev/her2st_breast/C1", "dev/xenium_breast_idc/IDC_crop"}


@pytest.fixture(scope="module")
def golden() -> dict[str, object]:
    return runpy.run_path(str(Path(__file__).with_name("golden.py")))


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("dev/") and name not in LEFT_OUT])
def test_section_by_itself(golden, dev_data, name):
    assert golden["digest"](golden["section"](dev_data.parent / f"{name}.h5ad")) == GOLDEN[name]


def test_three_mice_together(golden, dev_data):
    name, found = next(golden["several"](dev_data.parent))
    assert found == GOLDEN[name]
