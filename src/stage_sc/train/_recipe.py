"""How a model is trained, in a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stage_sc.model._config import StageConfig


@dataclass(frozen=True)
class Recipe:
    """All choices of a training but the data."""

    name: str
    """Name of the model, and of its file."""
    config: StageConfig
    half: bool = False
    """Store numbers in 16 bits."""
    library_key: str | None = None
    """Column of ``obs`` that names the slides, in the files that have it."""
    seed: int = 0


# Of every table, the fields and their types; the values of [config] are checked by StageConfig.
TABLES: dict[str, dict[str, type]] = {
    "model": {"name": str, "half": bool},
    "data": {"library_key": str},
    "config": {field.name: object for field in fields(StageConfig)},
}
TOP: dict[str, type] = {"seed": int, **dict.fromkeys(TABLES, dict)}


def read_recipe(path: Path) -> Recipe:
    """Read a file with the tables ``[model]``, ``[data]`` and ``[config]``, and the field ``seed``.

    Parameters
    ----------
    path
        A TOML file. ``name`` in ``[model]`` is needed; what else is left out is as in `Recipe` and `StageConfig`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If the model has no name.
    TypeError, ValueError
        If it is not TOML, or has fields or values that mean nothing.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{str(path)!r} cannot be read as TOML: {error}.") from error
    _check(content, TOP, str(path))
    tables = {name: content.get(name, {}) for name in TABLES}
    for name, table in tables.items():
        _check(table, TABLES[name], f"[{name}] of {str(path)!r}")
    if "name" not in tables["model"]:
        raise KeyError(f'[model] of {str(path)!r} has no `name`: add e.g. `name = "atlas"`.')
    name = tables["model"]["name"]
    if not name or name != Path(name).name:
        raise ValueError(
            f"`name` in [model] of {str(path)!r} names a file: it cannot be empty or have '/', got {name!r}."
        )
    config = StageConfig(**tables["config"])
    return Recipe(config=config, seed=content.get("seed", 0), **tables["model"], **tables["data"])


def _check(values: dict[str, Any], known: dict[str, type], where: str) -> None:
    """Raise unless all fields are known and have the right type."""
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{where} has the unknown fields {', '.join(unknown)}. Known are {', '.join(known)}.")
    for name, value in values.items():
        wanted = known[name]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise TypeError(f"`{name}` in {where} must be of type {wanted.__name__}, got {value!r}.")
