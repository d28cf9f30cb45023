"""Tables under ``uns``: the same layout for all functions of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_name
from stage_sc._input import Tables
from stage_sc._messages import element_name


def check_key(tables: Tables, key_added: str, tool: str, *, copy: bool) -> None:
    """Raise unless ``uns[key_added]`` of every object is free or holds a table of the function `tool`.

    Without `copy`, also if objects were read from files, as the results would be lost.
    """
    if not copy:
        tables.check_in_memory()
    check_name(key_added, "key_added")
    if "/" in key_added:
        raise ValueError(f"`key_added` must not contain '/', which is a folder inside a file, got {key_added!r}.")
    for name, part in tables.by_name.items():
        if key_added in part.uns and not _is_table(part.uns[key_added], tool):
            raise ValueError(
                f"`key_added`: `uns[{key_added!r}]` of {element_name('data', name) or 'the object'} exists and is no "
                f"table of `st.tl.{tool}`: choose another name."
            )


def write_stored(
    tables: Tables,
    key_added: str,
    tool: str,
    table: pd.DataFrame,
    params: Mapping[str, Any],
    **more: pd.DataFrame | np.ndarray,
) -> None:
    """Write ``uns[key_added]`` of every object: ``"table"``, ``"params"`` (with the `tool`), and `more` entries.

    The table is about all objects, and every one gets a copy of its own. Values of `params` are strings, numbers or
    bools; ``None`` becomes "".
    """
    settings = {key: "" if value is None else value for key, value in params.items()}
    for part in tables.by_name.values():
        part.uns[key_added] = {
            "params": {"tool": tool, **settings},
            "table": table.copy(),
            **{key: value.copy() for key, value in more.items()},
        }


def read_stored(tables: Tables, key_added: str, tool: str) -> Mapping[str, Any]:
    """Return ``uns[key_added]`` of the first object with a table of `tool`; a KeyError that names the call without."""
    check_name(key_added, "key_added")
    if found := find_stored(tables.by_name.values(), key_added, tool):
        return found
    call = f"st.tl.{tool}(data" + (")" if key_added == tool else f", key_added={key_added!r})")
    raise KeyError(f"`key_added`: no table in uns[{key_added!r}]: run {call} first")


def find_stored(parts: Iterable[AnnData], key_added: str, tool: str) -> Mapping[str, Any]:
    """Find ``uns[key_added]`` of the first object with a table of `tool`; empty without."""
    return next((found for part in parts if _is_table(found := part.uns.get(key_added), tool)), {})


def _is_table(found: Any, tool: str) -> bool:
    if not isinstance(found, Mapping) or not isinstance(found.get("params"), Mapping):
        return False
    return str(found["params"].get("tool")) == tool and isinstance(found.get("table"), pd.DataFrame)
