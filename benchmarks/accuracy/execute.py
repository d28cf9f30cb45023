"""One run: the method in a process of its own, then the scores of its labels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import anndata as ad
import pandas as pd

from .environments import Requirements, interpreter, last_line, requirements
from .runs import Line, Run
from .scenarios import SHUFFLED, common_genes, expert
from .scores import score

METHODS = Path(__file__).with_name("methods")
KNOWN = ("platform", "tissue", "species", "spatial_unit")  # of `uns`: what a user knows of a slide
MIN_GENES = 5
OF_ALL = {"JSD": "JSD", "NMI": "NMI, joint", "between": "ARI between halves"}  # joint scores of niches
T = TypeVar("T")
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB", "NUMEXPR")} | {
    "NUMBA_THREADING_LAYER": "workqueue",
    "PYTHONHASHSEED": "0",
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "Agg",
}


class Skipped(Exception):
    """A run that cannot be asked of a method."""


def execute(run: Run, data: Path, environments: Path, time_limit: float, methods: Path = METHODS) -> Line:
    """Return the line of a run, with scores, or with the reason why it was skipped, or with the error."""
    try:
        groups = run.scenario.load(data, run.seed)
        results = [call(run, group, environments, time_limit, methods) for group in groups]
        labels, levels = ([result.pop(name, {}) for result in results] for name in ("labels", "levels"))
        line = run.line | totals(results)
        if "refused" in results[0]:
            line["refused"] = dict(zip(names(groups), flat([one["refused"] for one in results]), strict=True))
        if run.scenario.kind in SHUFFLED:
            return line | {"scores": {}}
        line["scores"] = score(run.scenario, groups, labels)
        if levels[0]:
            shared = [name for name in levels[0] if all(name in one for one in levels)]  # small sections have fewer
            line["levels"] = {name: score_level(run, groups, [one[name] for one in levels]) for name in shared}
        return line
    except Skipped as reason:
        return run.line | {"skipped": str(reason)}
    except Exception as error:  # noqa: BLE001 - whatever a method or an installation does, the other runs go on
        return run.line | {"error": f"{type(error).__name__}: {error}"}


def call(run: Run, group: Sequence[ad.AnnData], environments: Path, time_limit: float, methods: Path) -> dict[str, Any]:
    """Labels of a group of sections, and what they cost."""
    n_domains = run.scenario.number(group)
    if run.method == "expert":
        labels = [expert(section) for section in group]
        if all(part.isna().all() for part in labels):
            raise Skipped("no expert labels")
        return {"labels": labels, "n_domains": n_domains}
    method = methods / f"{run.method}.py"
    needed = requirements(method)
    if needed.needs and not (needed.needs in run.options and Path(run.options[needed.needs]).exists()):
        raise Skipped(f"{needed.needs} not there")
    handed = handed_over(group, needed)
    python = interpreter(method, environments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, section in enumerate(handed):
            section.write_h5ad(folder / f"{number}.h5ad")
        asked = {"n_domains": n_domains, "seed": run.seed, "options": run.options, "packages": needed.packages}
        (folder / "call.json").write_text(json.dumps(asked))
        command = [python, METHODS / "_shared" / "_call.py", method.absolute(), folder, folder / "result.json"]
        run_limited([str(part) for part in command], time_limit)
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    result["labels"] = by_cell(result["labels"], group)
    result["levels"] = {name: by_cell(labels, group) for name, labels in result["levels"].items()}
    return result | {"n_domains": n_domains}


def by_cell(labels: list[list[str | None]], group: Sequence[ad.AnnData]) -> list[pd.Series]:
    """Labels of sections under the names of the cells."""
    return [pd.Series(part, index=section.obs_names) for part, section in zip(labels, group, strict=True)]


def score_level(
    run: Run, groups: Sequence[Sequence[ad.AnnData]], labels: Sequence[Sequence[pd.Series]]
) -> dict[str, Any]:
    """Scores of niches: their number, means over sections, and of all sections together.

    Unlike domains, niches have the same names in all calls, so those of sections that were labelled one by one are
    compared too.
    """
    number = max(pd.concat(parts).nunique() for parts in labels)
    scenario = run.scenario
    if scenario.kind == "one-by-one":
        scenario, groups, labels = replace(scenario, kind="joint"), [flat(groups)], [flat(labels)]
    scores = score(scenario, groups, labels)
    joint = scores.get("joint", {})
    return {"number": number, **scores["mean"]} | {title: joint.get(name) for name, title in OF_ALL.items()}


def flat(groups: Sequence[Sequence[T]]) -> list[T]:
    """All sections in one list."""
    return [section for group in groups for section in group]


def names(groups: Sequence[Sequence[ad.AnnData]]) -> list[str]:
    """Names of all sections."""
    return [str(section.uns["section"]) for section in flat(groups)]


def handed_over(group: Sequence[ad.AnnData], needed: Requirements) -> list[ad.AnnData]:
    """Sections without anything that an expert said, with common genes alone where the method needs that."""
    genes = None if needed.panels == "any" else common_genes(group)
    if genes is not None and len(genes) < MIN_GENES:
        raise Skipped(f"needs common genes, the sections have {len(genes)}")
    handed = []
    for section in group:
        part = section if genes is None or len(group) == 1 else section[:, genes]
        known = {name: str(section.uns[name]) for name in KNOWN if name in section.uns}
        obs, var = pd.DataFrame(index=part.obs_names), pd.DataFrame(index=part.var_names)
        handed.append(ad.AnnData(part.X.copy(), obs, var, uns=known, obsm={"spatial": part.obsm["spatial"].copy()}))
    return handed


def run_limited(command: list[str], time_limit: float) -> None:
    """Run a command on one thread; when it takes too long, end it with all that it started."""
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | ONE_THREAD, start_new_session=True
        ) as process,
    ):
        try:
            process.wait(time_limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"not done after {time_limit:g} s") from None
            raise
        if process.returncode:
            output.seek(0)
            raise RuntimeError(last_line(output.read()))


def totals(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Time and memory of all calls of a run."""
    numbers = [result["n_domains"] for result in results]
    line: dict[str, Any] = {"n_domains": numbers if len(set(numbers)) > 1 else numbers[0]}
    if "wall_s" in results[0]:
        line |= {name: round(sum(result[name] for result in results), 2) for name in ("wall_s", "cpu_s")}
        line |= {"peak_mb": max(result["peak_mb"] for result in results), "versions": results[0]["versions"]}
    return line
