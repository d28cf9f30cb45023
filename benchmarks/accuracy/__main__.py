"""Run the methods of a config on its scenarios, one line of results for each run.

    python -m benchmarks.accuracy CONFIG.toml --data FOLDER [--out LINES.jsonl] [--environments FOLDER]

A run that has a line already is not repeated, so that an interrupted benchmark goes on where it was; --retry repeats
those that failed or were skipped. Every method runs in an environment of its own, made when it is first needed, on one
thread and for at most --time-limit seconds per group of sections; when a run took longer, its other seeds are skipped.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from .execute import METHODS, execute
from .runs import Line, Run, append, missing, read_config, read_lines

HERE = Path(__file__).parent
TOO_LONG = "TimeoutError"
logger = logging.getLogger("benchmarks.accuracy")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sections")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "accuracy.jsonl")
    parser.add_argument("--environments", type=Path, default=HERE.parent / "environments")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds")
    parser.add_argument("--retry", action="store_true", help="repeat what failed or was skipped")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the method that runs is ended too
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    logging.getLogger("stage_sc").setLevel(logging.ERROR)  # what it says of sections is the same in every run
    benchmark(
        read_config(options.config),
        options.data,
        options.out,
        environments=options.environments,
        time_limit=options.time_limit,
        retry=options.retry,
    )


def benchmark(
    runs: list[Run],
    data: Path,
    out: Path,
    *,
    environments: Path,
    time_limit: float = 600.0,
    retry: bool = False,
    methods: Path = METHODS,
) -> None:
    """Run what has no line yet."""
    lines = read_lines(out)
    pending = missing(runs, lines, retry=retry)
    logger.info("%d runs, %d of them to do", len(runs), len(pending))
    hopeless = {line["task"] for line in lines if not retry and line.get("error", "").startswith(TOO_LONG)}
    for number, run in enumerate(pending, start=1):
        if run.task in hopeless:
            line = run.line | {"skipped": "takes too long, as with another seed"}
        else:
            line = execute(run, data, environments, time_limit, methods)
        if line.get("error", "").startswith(TOO_LONG):
            hopeless.add(run.task)
        append(out, line)
        logger.info("%d/%d %s", number, len(pending), summary(line))


def summary(line: Line) -> str:
    """One line for the log."""
    what = f"{line['scenario']} {line['method']} {line['options'] or ''} seed {line['seed']}"
    if "scores" not in line:
        return f"{what}: {line.get('error') or 'skipped: ' + line['skipped']}"
    figures = line["scores"].get("mean", {}) | {
        f"joint {name}": value for name, value in line["scores"].get("joint", {}).items()
    }
    listed = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
    refused = [name for name, said in line.get("refused", {}).items() if said]
    return f"{what}: {listed or f'refused {refused}'}; {line.get('wall_s', 0):.0f} s"


if __name__ == "__main__":
    main()
