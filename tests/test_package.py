"""The package as a whole: what importing it costs, what is documented, what the wheel holds."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

import stage_sc as st

ROOT = Path(__file__).parents[1]
NAMESPACES = ["pp", "tl", "pl", "metrics", "datasets", "model", "data"]
PUBLIC = {
    f"{space}.{name}": getattr(getattr(st, space), name) for space in NAMESPACES for name in getattr(st, space).__all__
}
PUBLIC["report"] = st.report
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}
REAL = {f"datasets.{name}" for name in st.datasets.__all__ if not name.startswith("simulate")}
NEEDS = {"tl.interactions": "liana", "pl.interactions": "liana"}
HEAVY = {"lightning", "squidpy", "torch"}


class TestImport:
    @pytest.mark.parametrize(
        ("code", "own", "absent"),
        [
            (
                "import stage_sc; dir(stage_sc)",
                "stage_sc",
                {"anndata", "matplotlib", "numpy", "pandas", "scanpy", *HEAVY},
            ),
            ("import stage_sc as st; st.pp, st.pl, st.metrics, st.datasets", "stage_sc.graph", HEAVY),
        ],
    )
    def test_fresh_interpreter_loads_nothing_heavy(self, code, own, absent):
        """Without a model, torch and squidpy stay out."""
        command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
        loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        assert own in loaded and not loaded & absent

    def test_names(self):
        assert set(dir(st)) == {*NAMESPACES, "__version__", "report"}
        assert all(getattr(st, name) is not None for name in st.__all__)
        with pytest.raises(AttributeError, match="'stage_sc' has no attribute 'gr'"):
            st.gr  # noqa: B018

    def test_version_is_the_one_in_pyproject(self):
        assert st.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


class TestDocumentation:
    @pytest.mark.parametrize("name", PUBLIC)
    def test_is_described(self, name):
        members = [] if name in FUNCTIONS else vars(PUBLIC[name]).items()
        shown = [
            member for key, member in members if key[0] != "_" and (callable(member) or isinstance(member, property))
        ]
        assert all(inspect.getdoc(thing) for thing in [PUBLIC[name], *shown])

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_parameters_sections_and_annotations(self, name):
        parts = re.split(r"^(\w[\w ]*)\n-+$", inspect.getdoc(FUNCTIONS[name]), flags=re.MULTILINE)
        sections, signature = dict(zip(parts[1::2], parts[2::2], strict=True)), inspect.signature(FUNCTIONS[name])
        assert {"Returns", "Raises", "Examples"} <= set(sections)
        documented = ", ".join(re.findall(r"^(\w+(?:, \w+)*)$", sections.get("Parameters", ""), flags=re.MULTILINE))
        assert [part for part in documented.split(", ") if part] == list(signature.parameters)
        annotations = [parameter.annotation for parameter in signature.parameters.values()]
        assert inspect.Signature.empty not in [*annotations, signature.return_annotation]

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_example_runs(self, name, tmp_path, monkeypatch):
        if name in REAL and not os.environ.get("STAGE_SC_DATA"):
            pytest.skip("no real sections")
        if name in NEEDS:
            pytest.importorskip(NEEDS[name])
        monkeypatch.chdir(tmp_path)  # some write files
        (example,) = doctest.DocTestFinder(recurse=False).find(FUNCTIONS[name], name, globs={})
        said: list[str] = []
        result = doctest.DocTestRunner().run(example, out=said.append)
        assert result.attempted > 1
        assert result.failed == 0, "".join(said)

    def test_api_page_lists_everything(self):
        listed = re.findall(r"^   ((?:\w+\.)?\w+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
        assert len(listed) == len(set(listed))
        assert set(listed) == set(PUBLIC)

    @pytest.mark.parametrize("page", ["README.md", *sorted(path.name for path in (ROOT / "docs").glob("*.md"))])
    def test_pages_name_only_what_exists(self, page):
        text = ((ROOT if page == "README.md" else ROOT / "docs") / page).read_text()
        for space, name in re.findall(r"\bst\.(\w+)\.(\w+)", text):
            assert f"{space}.{name}" in PUBLIC


def test_wheel_holds_every_file(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in ZipFile(wheel).namelist() if name.startswith("stage_sc/")}
    sources = [path for path in (ROOT / "src" / "stage_sc").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert packed == {path.relative_to(ROOT / "src").as_posix() for path in sources}
    assert {"stage_sc/py.typed", "stage_sc/genes/genes.csv.gz"} <= packed
    assert any(re.fullmatch(r"stage_sc/weights/.*\.safetensors", name) for name in packed)
