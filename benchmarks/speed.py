"""Speed and memory of stage_sc, beside Novae and beside the Delaunay triangulation that both begin with.

    python benchmarks/speed.py SECTION.h5ad [--novae-python PATH] [--cells 10000 100000] [--repeat 3] [--out speed.json]

SECTION has counts in X and coordinates in µm in obsm["spatial"]. It is tiled, with jitter, to every number of cells;
every measurement on these slides is a process of its own, the tools in turn, so that what else the machine does is done
to all. PATH is an interpreter with Novae (`pip install novae==1.1.2`); without it its rows are left out. Novae labels
all cells where --novae-cells says so, elsewhere the first 40 batches, and the time of the others is extrapolated. The
table has medians and ranges over --repeat; the JSON file has every measurement.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

WORKERS = Path(__file__).with_name("speed_workers.py")
NOVAE_BATCHES, NOVAE_MOST, TRAINING_MOST, COLD = 40, 100_000, 100_000, 5_000


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path, help="h5ad file, or a folder with one")
    parser.add_argument("--novae-python", type=Path, help="interpreter that has Novae")
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--novae-cells", type=int, nargs="*", default=[10_000], help="where Novae labels all cells")
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    options = parser.parse_args()
    files = [options.section] if options.section.is_file() else sorted(options.section.glob("*.h5ad"))
    if len(files) != 1:
        parser.error(f"expected one h5ad file at {options.section}, found {len(files)}")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        slides = {n: f"{folder}/{n}.h5ad" for n in sorted({*options.cells, COLD})}
        for n, path in slides.items():
            run(sys.executable, "write_slide", 1, section=str(files[0]), n_cells=n, n_genes=options.genes, path=path)
        for repeat in range(options.repeat):
            for n, name, python, more in plan(options):
                result = run(python, name, options.threads, path=slides[n], **more)
                runs.append({"name": name, "cells": n, "repeat": repeat, **more, **result})
        imports = import_shares(slides[COLD], options.threads)
    versions = {one["name"].partition("_")[0]: one.pop("versions") for one in runs if "versions" in one}
    machine = {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.system(), "versions": versions}
    settings = {name: getattr(options, name) for name in ("cells", "novae_cells", "genes", "threads", "repeat")}
    summary = summarise(runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    everything = {"machine": machine, "settings": settings, "summary": summary, "import_shares": imports, "runs": runs}
    options.out.write_text(json.dumps(everything, indent=1))
    print(f"{machine['cpu']}, {machine['cores']} cores; {options.threads} threads, {options.genes} genes.\n")
    print(table(summary, sorted(options.cells)), notes(summary, imports, runs), sep="\n\n")


def plan(options: argparse.Namespace) -> list[tuple[int, str, str, dict[str, Any]]]:
    """List number of cells, measurement, interpreter and arguments of one repeat."""
    threads = {"threads": options.threads}
    steps: list[tuple[int, str, str, dict[str, Any]]] = [(COLD, "stage_cold", sys.executable, {})]
    for n in sorted(options.cells):
        steps.append((n, "triangulation", sys.executable, {}))
        steps += [(n, "stage_labels", sys.executable, {**threads, "n_domains": domains}) for domains in (None, 7)]
        if n <= TRAINING_MOST:
            steps.append((n, "stage_training", sys.executable, threads))
        if options.novae_python and n <= NOVAE_MOST:
            n_batches = None if n in options.novae_cells else NOVAE_BATCHES
            steps.append((n, "novae_labels", options.novae_python, {**threads, "n_batches": n_batches}))
            steps.append((n, "novae_training", options.novae_python, threads))
    return steps


def run(python: str, name: str, n_threads: int, **given: Any) -> dict[str, Any]:
    """Measure in a process of its own. This one stays small, since its memory would count as the other's peak."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "out"), Path(folder, "log")
        start = time.perf_counter()
        with log.open("w") as stream:
            process = subprocess.Popen(
                [str(python), str(WORKERS), name, json.dumps(given), str(out)],
                stdout=stream,
                stderr=stream,
                env=environment(n_threads),
            )
            _, status, usage = os.wait4(process.pid, 0)
        wall, code = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        result: dict[str, Any] = {"failed": code} if code else json.loads(out.read_text())
        if code:
            print(log.read_text()[-2000:], file=sys.stderr)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    result["process"] = {"cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": wall, "peak_mb": peak}
    rounded = {key: round(value, 1) for key, value in result["process"].items()}
    print(Path(given["path"]).stem, name, rounded, f"failed: {code}" if code else "", file=sys.stderr)
    return result


def environment(n_threads: int) -> dict[str, str]:
    """Variables of a process. Threads that wait sleep: if they spun, CPU time would have their waiting in it."""
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(variables, str(n_threads)), "OMP_WAIT_POLICY": "PASSIVE"}


def import_shares(path: str, n_threads: int) -> dict[str, float]:
    """Share of a cold process's time that goes into the modules of every package, greatest first."""
    start = time.perf_counter()
    command = [
        sys.executable,
        "-X",
        "importtime",
        str(WORKERS),
        "stage_cold",
        json.dumps({"path": path}),
        path + ".out",
    ]
    log = subprocess.run(command, stderr=subprocess.PIPE, env=environment(n_threads), text=True, check=True).stderr
    wall = time.perf_counter() - start
    seconds: dict[str, float] = defaultdict(float)
    for line in re.finditer(r"^import time: +(\d+) \| +\d+ \| +([^.\s]+)", log, re.MULTILINE):
        seconds[line[2]] += int(line[1]) / 1e6
    return {name: seconds[name] / wall for name in sorted(seconds, key=lambda name: -seconds[name])}


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor()


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[int, list[float]]]:
    """Values of every figure by number of cells, one per repeat: ratios are of measurements made in turn."""
    groups: dict[tuple[int, int], dict[str, Any]] = defaultdict(dict)
    for one in runs:
        groups[one["cells"], one["repeat"]][one["name"] + ("_domains" if one.get("n_domains") else "")] = one
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (n, _), group in sorted(groups.items()):
        for name, value in figures(group, n).items():
            if math.isfinite(value):
                found[name][n].append(value)
    return found


def figures(group: dict[str, Any], n: int) -> dict[str, float]:
    """Figures of `n` cells in one repeat, named as the rows of the table; NaN for what was not measured."""

    def spent(name: str, *phases: str, kind: str = "cpu_s") -> float:
        rows = group.get(name, {}).get("phases", {})
        return sum(rows[phase][kind] if phase in rows else math.nan for phase in phases)

    def process(name: str, kind: str) -> float:
        return float(group.get(name, {}).get("process", {}).get(kind, math.nan))

    def rate(name: str, seconds: float) -> float:
        return float(group.get(name, {}).get("seed_cells", math.nan)) / seconds

    floor = spent("triangulation", "triangulation")
    graph, labelling = spent("stage_labels", "graph"), spent("stage_labels", "labelling")
    ours = graph + labelling
    encoding = spent("novae_labels", "encoding") * n / group.get("novae_labels", {}).get("cells_encoded", n)
    novae = spent("novae_labels", "graph", "preparation") + encoding
    set_up = spent("stage_training", "one batch")
    our_rate = rate("stage_training", spent("stage_training", "batches") - set_up)
    novae_rate = rate("novae_training", spent("novae_training", "batches"))
    return {
        "triangulation alone": floor,
        "stage_sc: graph": graph,
        "stage_sc: labelling": labelling,
        "**stage_sc: graph and labelling**": ours,
        "the same with 7 domains": spent("stage_labels_domains", "graph", "labelling"),
        "the same over the triangulation": ours / floor,
        "CPU µs per cell": 1e6 * ours / n,
        "wall s": spent("stage_labels", "graph", "labelling", kind="wall_s"),
        "peak MB of the process": process("stage_labels", "peak_mb"),
        "**Novae: graph and representations**": novae,
        "Novae: CPU µs per cell": 1e6 * novae / n,
        "Novae: peak MB of the process": process("novae_labels", "peak_mb"),
        "Novae: new prototypes of the slide (not counted)": spent("novae_labels", "prototypes"),
        "**Novae over stage_sc**": novae / ours,
        "stage_sc: training, seed cells per CPU s": our_rate,
        "Novae: training, seed cells per CPU s": novae_rate,
        "**training, stage_sc over Novae**": our_rate / novae_rate,
        "stage_sc: set-up of a training": set_up,
        "stage_sc: peak MB of training": process("stage_training", "peak_mb"),
        "Novae: peak MB of training": process("novae_training", "peak_mb"),
        "cold": process("stage_cold", "cpu_s"),
    }


def shown(values: list[float]) -> str:
    """Write median and range."""
    texts = [
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (median(values), min(values), max(values))
    ]
    return texts[0] if len(values) == 1 else f"{texts[0]} ({texts[1]} – {texts[2]})"


def table(summary: dict[str, dict[int, list[float]]], sizes: list[int]) -> str:
    """Write a row for every figure, in markdown."""
    lines = ["| CPU s where no unit is named | " + " | ".join(f"{n:,} cells" for n in sizes) + " |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for name, by_size in summary.items():
        if name != "cold":
            lines.append(f"| {name} | " + " | ".join(shown(by_size[n]) if n in by_size else "–" for n in sizes) + " |")
    return "\n".join(lines)


def notes(summary: dict[str, dict[int, list[float]]], imports: dict[str, float], runs: list[dict[str, Any]]) -> str:
    """Say how cost grows, what was extrapolated, and what a cold process spends its time on."""
    cost = {n: median(values) for n, values in summary["CPU µs per cell"].items()}
    lines = []
    if len(cost) > 1:
        slope = linear_regression([math.log(n) for n in cost], [math.log(n * cost[n]) for n in cost]).slope
        steps = [f"{cost[b] / cost[a]:.2f} times from {a:,} to {b:,}" for a, b in pairwise(cost)]
        lines.append(f"Graph and labelling: (cells)^{slope:.2f}; cost per cell grows {', '.join(steps)}.")
    for n, encoded in sorted({(one["cells"], one["cells_encoded"]) for one in runs if "cells_encoded" in one}):
        rest = "." if encoded == n else "; the time of the others is extrapolated."
        lines.append(f"Novae encoded {encoded:,} of {n:,} cells{rest}")
    if "cold" in summary:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in list(imports.items())[:12])
        lines.append(
            f"A fresh process that labels {COLD:,} cells takes {shown(summary['cold'][COLD])} CPU s; "
            f"{sum(imports.values()):.0%} of it are imports: {shares} …"
        )
    return "\n".join(f"- {line}" for line in lines)


if __name__ == "__main__":
    main()
