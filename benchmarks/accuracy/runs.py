"""Which runs a config asks for, and which of them have a line already."""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stage_sc.model import resolve_model

from .scenarios import Scenario, read_scenarios

Line = dict[str, Any]
KEYS = {"methods", "scenarios", "seeds", "options", "vary"}
OF_A_MODEL = ("zero-shot", "fine-tune")  # modes that begin with a trained model


@dataclass(frozen=True)
class Run:
    """One method with its options on one scenario with one seed."""

    scenario: Scenario
    method: str
    options: dict[str, Any]
    seed: int

    @property
    def id(self) -> str:
        """Digest of all that the result depends on."""
        return digest(self.scenario.identity, self.method, self.options, self.seed, *self.model.values())

    @property
    def task(self) -> str:
        """Digest of the same without the seed."""
        return digest(self.scenario.identity, self.method, self.options)

    @property
    def model(self) -> Line:
        """Digest of the model that it begins with; nothing where there is none."""
        if self.options.get("mode") not in OF_A_MODEL:
            return {}
        return {"model": digest_of(self.options.get("checkpoint"))}

    @property
    def line(self) -> Line:
        """What a line says besides the result."""
        what = {"id": self.id, "task": self.task, "scenario": self.scenario.name, "roles": list(self.scenario.roles)}
        return what | {"method": self.method, "options": self.options, "seed": self.seed} | self.model


@cache
def digest_of(checkpoint: str | None) -> str | None:
    """Digest of a checkpoint, or of the bundled model; None where the file is not there, as its run will say."""
    try:
        return resolve_model(checkpoint).digest
    except FileNotFoundError:
        return None


def digest(*parts: Any) -> str:
    """First digits of the SHA-256 of the parts as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_config(path: Path) -> list[Run]:
    """Read the runs of a config, each once, in its order: blocks, seeds, scenarios, methods, options.

    A block ``[[runs]]`` has lists of `methods`, `scenarios` and `seeds`, a table of `options`, and a table `vary` whose
    entries ("config.temperature" = [0.05, 0.2]) each replace one option by the listed values, one after the other.
    """
    config = tomllib.loads(path.read_text())
    scenarios = read_scenarios(config.get("scenarios"))
    runs: dict[str, Run] = {}
    for block in config["runs"]:
        if unknown := set(block) - KEYS:
            raise ValueError(f"{path.name}: unknown entries {sorted(unknown)} in a block, known are {sorted(KEYS)}")
        if unknown := set(block["scenarios"]) - set(scenarios):
            raise ValueError(f"{path.name}: no scenario {sorted(unknown)}, there are {sorted(scenarios)}")
        choices = list(variants(block.get("options", {}), block.get("vary")))
        order = itertools.product(block.get("seeds", [0]), block["scenarios"], block["methods"], choices)
        for seed, scenario, method, options in order:
            run = Run(scenarios[scenario], method, options, seed)
            runs.setdefault(run.id, run)
    return list(runs.values())


def variants(options: dict[str, Any], vary: dict[str, list[Any]] | None) -> Iterator[dict[str, Any]]:
    """Yield the options as they are, or with one of them replaced."""
    if vary is None:
        yield options
        return
    for path, values in vary.items():
        *tables, name = path.split(".")
        for value in values:
            changed = deepcopy(options)
            inner = changed
            for table in tables:
                inner = inner.setdefault(table, {})
            inner[name] = value
            yield changed


def read_lines(path: Path) -> list[Line]:
    """Read all lines, the last one of every run; a line that was cut off is left out."""
    lines: dict[str, Line] = {}
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        lines[line["id"]] = line
    return list(lines.values())


def missing(runs: Iterable[Run], lines: Iterable[Line], *, retry: bool = False) -> list[Run]:
    """Runs without a line; with `retry` also those that failed or were skipped."""
    done = {line["id"] for line in lines if not retry or "scores" in line}
    return [run for run in runs if run.id not in done]


def append(path: Path, line: Line) -> None:
    """Add a line, on a row of its own even after one that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            start = b"" if file.read(1) == b"\n" else b"\n"
        else:
            start = b""
        file.write(start + json.dumps(line).encode() + b"\n")
