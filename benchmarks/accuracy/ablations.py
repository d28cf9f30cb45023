"""What one choice is worth: runs of ``fit`` in which one parameter was changed, or two together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

import stage_sc as st

from .runs import Line

SCORES = ("ARI", "FIDE", "JSD")
NICHES = ("NMI", "FIDE", "PAS", "JSD")  # of the leaves
COLUMNS = [*SCORES, *(f"{score} of leaves" for score in NICHES)]
OTHERS = {"graph": "Delaunay", "vectors": "co-expression"}  # what is no field of the configuration
LEAVES = 64  # of the runs that vary the depth


def ablations(lines: Iterable[Line]) -> pd.DataFrame:
    """One row per run of ``fit`` in which one parameter was changed, or two, or none: `parameter`, `value` and scores.

    Of runs with `settle` false, that is of the tree as training left it.

    The runs without change stand under every field of the configuration that was varied, with its default. Length and
    rate of training have no default here, as ``st.tl.fit`` chooses them by the size of the data.
    """
    fits = [line for line in lines if line["options"].get("mode") == "fit" and "scores" in line]
    fits = [line for line in fits if line["options"].get("settle") is False and "variant" not in line["options"]]
    default = st.model.StageConfig().to_dict()
    base, changed = [], []
    for line in fits:
        config = line["options"].get("config", {})
        scores = {**line["scores"]["mean"], "JSD": line["scores"].get("joint", {}).get("JSD")}
        leaves = list(line.get("levels", {}).values())[-1:] or [{}]
        row = {"scenario": line["scenario"], **{score: scores.get(score) for score in SCORES}}
        row |= {f"{score} of leaves": leaves[0].get(score) for score in NICHES}
        if others := {name: in_words(line["options"][name]) for name in OTHERS if name in line["options"]}:
            changed += [{"parameter": name, "value": value, "default": False, **row} for name, value in others.items()]
        elif not config:
            base.append(row)
        elif len(config) == 1:
            ((name, value),) = config.items()
            changed += [{"parameter": key, "value": one, "default": False, **row} for key, one in series(name, value)]
        elif len(config) == 2:
            both = {"parameter": " and ".join(config), "value": ", ".join(map(str, config.values()))}
            changed.append({**both, "default": False, **row})
    varied = {row["parameter"] for row in changed} & (set(default) | set(OTHERS))
    default |= OTHERS
    scenarios = {row["scenario"] for row in changed}
    used = [row for row in base if row["scenario"] in scenarios]
    rows = changed + [
        {"parameter": name, "value": default[name], "default": True, **row} for name in sorted(varied) for row in used
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(COLUMNS, float)) if changed else pd.DataFrame()


def in_words(value: Any) -> str:
    """Value of an option as text."""
    return " ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)


def series(name: str, value: Any) -> list[tuple[str, Any]]:
    """Parameter and value of a change; levels are of the series of depths, of leaves in three levels, or of both."""
    if name != "levels":
        return [(name, value)]
    depth = [("depth", len(value))] if value[-1] == LEAVES else []
    return depth + ([("leaves", value[-1])] if len(value) == 3 else [])


def ordered(values: pd.Series) -> list[Any]:
    """Different values, numbers by size and before text."""
    return sorted(values.unique(), key=lambda value: (isinstance(value, str), value))
