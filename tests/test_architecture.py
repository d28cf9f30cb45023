"""Imports between the packages of stage_sc: an explicit table, no cycle, no private module of another package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import stage_sc

ROOT = Path(stage_sc.__file__).parent
# Packages, top modules and commands, with all of the package that each imports.
ALLOWED = {
    "_checks": "",
    "_compute": "_checks",
    "_coordinates": "",
    "_evidence": "_coordinates",
    "_matrix": "",
    "_files": "_messages",
    "_file_tables": "_containers _files _messages",
    "_messages": "",
    "_containers": "",
    "_tables": "_checks _containers _messages",
    "_elements": "_containers",
    "_stack": "",
    "_input": "_containers _coordinates _evidence _matrix _messages _stack _tables",
    "_palette": "",
    "_result": "_checks _messages _palette",
    "genes": "_checks _input",
    "graph": "_checks _containers _coordinates _elements _evidence _input _matrix _stack",
    "nn": "_checks",
    "slides": "_files _input _matrix _stack genes graph nn",
    "data": "_checks _file_tables _files _messages graph nn slides",
    "model": "_checks _files _messages nn",
    "embed": "nn slides",
    "niches": "_compute _result nn slides",
    "outlines": "_evidence _files _input _messages _palette _result",
    "train": "_files embed nn slides",
    "cohort": "_compute _evidence _file_tables _files _messages _result embed graph model niches nn slides",
    "explain": "_checks _compute _input _messages _result analysis embed genes model niches nn slides",
    "tl": "_checks _compute _files _input _matrix _messages _palette _result analysis cohort data embed explain genes "
    "graph metrics model niches nn outlines reports slides train",
    "pp": "_checks _input _matrix _messages _result genes graph",
    "pl": "_checks _evidence _input _matrix _palette _result _stack analysis",
    "reports": "_checks _files _input _matrix _messages _palette _result analysis pl",
    "analysis": "_checks _input _matrix _messages _palette _result genes graph slides",
    "metrics": "_checks _input _matrix",
    "datasets": "_checks _files",
    "stage_sc": "",
    "demo": "stage_sc",
    "_command": "stage_sc",
    "__main__": "_command",
    "data.__main__": "data",
    "train.__main__": "_files stage_sc train",
}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Modules of stage_sc that a module imports at run time, anywhere in it; names are modules too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports_of(node)


def owner(name: str) -> str:
    """Package, top module or command of a dotted name; the package as a whole is ``stage_sc``."""
    parts = name.split(".")
    if parts[-1] == "__main__":
        return ".".join(parts[1:])
    inside = len(parts) > 1 and ((ROOT / parts[1]).is_dir() or (ROOT / f"{parts[1]}.py").is_file())
    return parts[1] if inside else "stage_sc"


def read_imports() -> dict[str, set[str]]:
    """Modules and names of the package that each of its modules imports."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(("stage_sc", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        names = imports_of(ast.parse(path.read_text()))
        found[module] = {name for name in names if name.split(".")[0] == "stage_sc"}
    return found


IMPORTS = read_imports()


def reached_from(module: str) -> set[str]:
    """Modules that importing a module loads, function by function too: those named, and the packages they lie in."""
    reached, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name in IMPORTS and name not in reached:
            reached.add(name)
            for imported in IMPORTS[name]:
                parts = imported.split(".")
                pending += [".".join(parts[:n]) for n in range(2, len(parts) + 1)]
    return reached


def test_arrows_are_those_of_the_table():
    arrows: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        arrows.setdefault(owner(module), set()).update({owner(name) for name in names} - {owner(module)})
    assert {name: " ".join(sorted(targets)) for name, targets in arrows.items()} == ALLOWED


def test_no_cycle():
    order = list(TopologicalSorter({name: targets.split() for name, targets in ALLOWED.items()}).static_order())
    assert order.index("nn") < order.index("slides") < order.index("embed") < order.index("train") < order.index("tl")


def test_no_private_module_of_another_package():
    """Modules at the top are shared; those of a package are its own."""
    for module, names in IMPORTS.items():
        for name in names:
            inner = name.split(".")[2:] if (ROOT / owner(name)).is_dir() else []
            own = owner(name) == owner(module).split(".")[0]
            assert own or not any(part.startswith("_") for part in inner), (module, name)


@pytest.mark.parametrize("module", ["tl._stage_niches", "tl._label_files", "cohort", "niches", "embed", "slides"])
def test_labelling_needs_no_training(module):
    reached = reached_from(f"stage_sc.{module}")
    assert len(reached) > 10 and not any(name.startswith("stage_sc.train") for name in reached)


def test_the_network_knows_tensors_only():
    for path in (ROOT / "nn").glob("*.py"):
        imported = set(imports_of(ast.parse(path.read_text())))
        assert not {one.split(".")[0] for one in imported} & {"anndata", "scanpy", "squidpy"}, path.name


def test_metrics_compare_labels_only():
    reached = {owner(name) for name in reached_from("stage_sc.metrics")}
    assert "metrics" in reached and not reached & {"tl", "nn", "train", "niches", "embed", "model"}
