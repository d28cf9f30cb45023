"""Text of the page: methods with versions and parameters, and what was warned about."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from platform import python_version
from typing import Any

import pandas as pd

from stage_sc._result import FLAGS, Columns
from stage_sc.pl import Cells

PACKAGES = ("stage-sc", "anndata", "numpy", "scanpy", "scipy", "squidpy", "torch")
FLAG_TEXT = {"empty": "without counts of genes known to the model", "isolated": "without neighbour"}


def describe_methods(cells: Cells, n_cells: int, source: str) -> str:
    """Paragraph for a manuscript; `source` is the labelled column of a report without niches."""
    n_slides = len(cells.slides)
    where = f"{n_cells:,} cells or spots of {n_slides} slide{'s' * (n_slides > 1)}"
    software = "Report: stage_sc {} (Python {}; {}).".format(
        version("stage-sc"), python_version(), ", ".join(f"{name} {version(name)}" for name in PACKAGES[1:])
    )
    if not cells.result:
        return f"Labels are those of the column {source!r}, for {where}. {software}"
    model, params = cells.result.get("model", {}), cells.result["params"]
    levels = ", ".join(f"{part} at level {number}" for number, part in enumerate(_niches_in_use(cells), start=1))
    text = [
        f"Spatial niches were assigned to {where} with stage_sc (model {model.get('name', 'unnamed')}, "
        f"digest {model.get('digest', 'unknown')}, trained with version {model.get('version', 'unknown')}): {levels}."
    ]
    text.append(
        "The tree of prototypes was settled on these cells before assignment."
        if params.get("settle", False)
        else "The tree of prototypes was used as trained."
    )
    if params.get("n_domains"):
        text.append(f"{params['n_domains']} domains were found over all slides by clustering the contexts of cells.")
    graph = next((_mapping(part.uns.get("stage_graph")) for part in cells.parts if "stage_graph" in part.uns), {})
    if graph:
        text.append(f"Neighbourhoods: Delaunay graph and Gaussian weights ({_list(_mapping(graph.get('params')))}).")
    text.append(f"Parameters of labelling: {_list(params)}.")
    return " ".join([*text, software])


def _niches_in_use(cells: Cells) -> list[int]:
    return [
        len(set().union(*(part.obs[key].dropna().unique() for part in cells.parts if key in part.obs)))
        for key in cells.result["levels"]
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(params: Mapping[str, Any]) -> str:
    """Parameters that are set."""
    return ", ".join(f"{name} = {value}" for name, value in params.items() if value is not None and f"{value}" != "")


def find_warnings(cells: Cells) -> list[str]:
    """Statements about the objects that a reader must know."""
    said: list[str] = []
    flag = Columns(cells.key_added).flag
    flags = pd.concat(
        [part.obs[flag].astype(str) for part in cells.parts if flag in part.obs] or [pd.Series(dtype=str)]
    )
    for name in FLAGS[1:]:
        if count := int((flags == name).sum()):
            said.append(f"Cells {FLAG_TEXT[name]} (flag {name!r}): {count:,}.")
    flat, guessed = [], []
    for name, (number, _, own) in cells.places.items():
        part = cells.parts[number]
        result, graph = _mapping(part.uns.get(cells.key_added)), _mapping(part.uns.get("stage_graph"))
        flat += [name] if _entry(result.get("slides"), own, "n_directions") == 0 else []
        guessed += [name] if _entry(graph.get("slides"), own, "scale_source") == "guess" else []
    if flat:
        said.append(
            f"{_slides(flat)}: no direction of expression varies in space beyond chance, so all cells have one niche."
        )
    if guessed:
        said.append(f"{_slides(guessed)}: the scale was estimated from the spacing of cells, lengths are uncertain.")
    if len({str(_mapping(part.uns.get(cells.key_added)).get("model")) for part in cells.parts}) > 1:
        said.append("The objects were labelled with different models: niches of one name are not the same.")
    return list(dict.fromkeys(said))


def _entry(table: Any, slide: str, column: str) -> Any:
    """Entry of a table of slides; that of the only row for a single slide, and None where there is none."""
    if not isinstance(table, pd.DataFrame) or column not in table:
        return None
    found = table[column].set_axis(table.index.astype(str))
    return found.iloc[0] if len(found) == 1 else found[slide] if slide in found and found.index.is_unique else None


def _slides(names: list[str]) -> str:
    """Beginning of a statement about slides."""
    known = [repr(name) for name in names if name]
    if not known:
        return "The slide"
    return f"Slide{'s' * (len(known) > 1)} {', '.join(known[:10])}{' …' * (len(known) > 10)}"
