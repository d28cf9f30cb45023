"""The package as a whole: what importing it costs, what is documented, what the wheel holds."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

import stage_sc as st

ROOT = Path(__file__).parents[1]
NAMESPACES = ["pp", "tl", "pl", "metrics", "datasets", "model", "data"]
PUBLIC = {
    f"{space}.{name}": getattr(getattr(st, space), name) for space in NAMESPACES for name in getattr(st, space).__all__
}
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}


def loaded_by(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after running the code."""
    code = f"import sys; {code}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def sections(thing: Any) -> dict[str, str]:
    """Text of each section of a numpydoc docstring, by its title."""
    parts = re.split(r"^(\w[\w ]*)\n-+$", inspect.getdoc(thing) or "", flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class TestImport:
    def test_package_alone_loads_nothing_heavy(self):
        loaded = loaded_by("import stage_sc; dir(stage_sc)")
        assert "stage_sc" in loaded
        assert not loaded & {"anndata", "lightning", "matplotlib", "numpy", "pandas", "scanpy", "squidpy", "torch"}

    def test_without_a_model_torch_and_squidpy_stay_out(self):
        loaded = loaded_by("import stage_sc as st; st.pp, st.pl, st.metrics, st.datasets")
        assert "stage_sc.graph" in loaded
        assert not loaded & {"lightning", "squidpy", "torch"}

    def test_names(self):
        assert set(dir(st)) == {*NAMESPACES, "__version__"}
        assert all(getattr(st, name) is not None for name in st.__all__)
        with pytest.raises(AttributeError, match="'stage_sc' has no attribute 'gr'"):
            st.gr  # noqa: B018

    def test_version_is_the_one_in_pyproject(self):
        assert st.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


class TestDocumentation:
    @pytest.mark.parametrize("name", PUBLIC)
    def test_is_described(self, name):
        thing = PUBLIC[name]
        assert thing.__doc__
        assert inspect.isfunction(thing) or all(
            inspect.getdoc(member)
            for attribute, member in vars(thing).items()
            if attribute[0] != "_" and (callable(member) or isinstance(member, property))
        )

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_parameters(self, name):
        entries = re.findall(r"^(\w+(?:, \w+)*)$", sections(FUNCTIONS[name])["Parameters"], flags=re.MULTILINE)
        documented = [parameter for entry in entries for parameter in entry.split(", ")]
        assert documented == list(inspect.signature(FUNCTIONS[name]).parameters)

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_sections_and_annotations(self, name):
        assert {"Returns", "Raises", "Examples"} <= set(sections(FUNCTIONS[name]))
        signature = inspect.signature(FUNCTIONS[name])
        annotations = [parameter.annotation for parameter in signature.parameters.values()]
        assert inspect.Signature.empty not in [*annotations, signature.return_annotation]

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_example_runs(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # some write files
        (example,) = doctest.DocTestFinder(recurse=False).find(FUNCTIONS[name], name, globs={})
        said: list[str] = []
        result = doctest.DocTestRunner().run(example, out=said.append)
        assert result.attempted > 1
        assert result.failed == 0, "".join(said)

    def test_api_page_lists_everything(self):
        listed = re.findall(r"^   (\w+\.\w+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
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
