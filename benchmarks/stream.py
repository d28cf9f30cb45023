"""Train from disk on more cells than memory should hold: speed and peak memory of building a store and of training.

    python benchmarks/stream.py SECTION.h5ad [--slides 10] [--cells 500000] [--epochs 3] [--out stream.json]

SECTION has counts in X and coordinates in µm in obsm["spatial"]; it is tiled with jitter to every slide, with chance of
its own. Every step is a process of its own, whose peak memory is that of the step: writing the files, building the
store from them (killed once in the middle, and started again), checking it, and training from it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Measure every step, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("--slides", type=int, default=10)
    parser.add_argument("--cells", type=int, default=500_000, help="of every slide")
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--cells-per-epoch", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        STEPS[options.step[0]](options, Path(options.step[1]))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = {name: measure(name, Path(folder)) for name in STEPS}
    total = options.slides * options.cells
    print(f"{total:,} cells on {options.slides} slides, {options.genes} genes\n")
    print("| step | wall s | CPU s | peak RSS, GB | |", "|---|---|---|---|---|", sep="\n")
    for name, row in rows.items():
        note = ", ".join(f"{key} {value:,.4g}" for key, value in row.items() if key not in ("wall", "cpu", "rss"))
        print(f"| {name} | {row['wall']:.0f} | {row['cpu']:.0f} | {row['rss']:.2f} | {note} |")
    if options.out:
        options.out.write_text(json.dumps({"cells": total, "steps": rows}, indent=1))


def measure(name: str, folder: Path) -> dict[str, float]:
    """Run a step in a process of its own; the build is killed once and goes on."""
    command = [sys.executable, *sys.argv, "--step", name, str(folder)]
    if name == "store":
        process = subprocess.Popen(command)
        while not list((folder / "store").glob("*/file.json")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    row = {"wall": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime}
    figures = folder / f"{name}.json"
    more: dict[str, float] = json.loads(figures.read_text()) if figures.exists() else {}
    return {**row, "rss": usage.ru_maxrss * unit / 1e9, **more}


def write_files(options: argparse.Namespace, folder: Path) -> None:
    """Tile the section."""
    import anndata as ad
    from speed_workers import tile

    section = ad.read_h5ad(options.section)
    for number in range(options.slides):
        tile(section, options.cells, options.genes, seed=number).write_h5ad(folder / f"slide{number}.h5ad")


def build(options: argparse.Namespace, folder: Path) -> None:
    """Build the store."""
    import stage_sc as st

    store = st.data.build_store(sorted(folder.glob("*.h5ad")), folder / "store", progress=False)
    size = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
    report(folder, "store", cells=store.n_cells, gigabytes=size / 1e9)


def verify(options: argparse.Namespace, folder: Path) -> None:
    """Read all files of the store."""
    import stage_sc as st

    st.data.Store(folder / "store").verify()


def train(options: argparse.Namespace, folder: Path) -> None:
    """Train; the speed is without set-up, which is timed by itself."""
    import stage_sc as st

    config = st.model.StageConfig(
        epochs=options.epochs,
        warmup_epochs=0,
        learning_rate=1e-3,
        cells_per_epoch=options.cells_per_epoch,
        cells_per_slide=max(16_384, options.cells_per_epoch // options.slides),
    )
    store, times = st.data.Store(folder / "store"), [time.perf_counter()]
    for epochs in (0, options.epochs):
        model = st.tl.fit(store, config=config, epochs=epochs, patience=None, device="cpu", progress=False)
        times.append(time.perf_counter())
    set_up = times[1] - times[0]
    seconds = times[2] - times[1] - set_up
    rate = options.epochs * options.cells_per_epoch / seconds
    report(folder, "training", set_up=set_up, seed_cells_per_second=rate, loss=model.history["loss"].iloc[-1])


def report(folder: Path, name: str, **figures: Any) -> None:
    """Leave figures for the process that measures."""
    (folder / f"{name}.json").write_text(json.dumps({key: float(value) for key, value in figures.items()}))


STEPS: dict[str, Any] = {"files": write_files, "store": build, "check": verify, "training": train}


if __name__ == "__main__":
    main()
