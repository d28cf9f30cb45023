"""A cohort of many slides, some of them broken: memory, time by one and two workers, and kills.

    python benchmarks/cohort.py DATA [--slides 200] [--parts speed,kills] [--kills 10] [--workers 2] [--seed 0]

DATA is a folder of sections as .h5ad files. They are replicated, rotated and cut to three panels (all genes, two
thirds, half) and three units (µm, pixels of 0.2125 µm, mm), as .h5ad files and zarr folders; five of the files are
broken: empty, cut off, two cells, genes without known names, no coordinates. `label_files` labels them on a cluster of
one and of two workers, and again on two workers that are killed, with the process that called, at random moments, and
writes the results back. Labels must be the same each time, in the results and in the files, and all else in the files
unchanged. Memory is the sum of the resident memory of all processes; pages of shared libraries are counted in each.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import psutil

UNITS = {"µm": 1.0, "pixels": 1 / 0.2125, "mm": 1e-3}
PANELS = (1.0, 2 / 3, 0.5)
# Seconds between two measurements of memory, and after which a call is taken to hang.
STEP, TIMEOUT = 0.1, 7200


def write_cohort(data: Path, folder: Path, number: int, seed: int) -> list[Path]:
    """Write the slides, and return their paths."""
    rng, folder = np.random.default_rng(seed), folder / "slides"
    folder.mkdir()
    sections = {path: ad.read_h5ad(path) for path in sorted(data.rglob("*.h5ad")) if "imc" not in str(path)}
    paths = []
    for n in range(number):
        adata = list(sections.values())[n % len(sections)].copy()
        unit, panel = list(UNITS)[n // 3 % 3], PANELS[n % 3]
        angle, xy = rng.uniform(0, 2 * np.pi), np.asarray(adata.obsm["spatial"], dtype=np.float64)[:, :2]
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        genes = np.sort(rng.permutation(adata.n_vars)[: int(panel * adata.n_vars)])
        adata = ad.AnnData(adata.X[:, genes].copy(), obs=adata.obs[[]].copy(), var=adata.var.iloc[genes][[]].copy())
        adata.obsm["spatial"] = (xy @ turn) * UNITS[unit]
        adata.obs["mine"] = rng.integers(1000, size=adata.n_obs)
        every = max(number // 5, 2)
        broken = 1 + n // every if n % every == 1 else 0
        paths.append(write_slide(adata, folder / f"slide{n:03d}", n % 4 == 3, broken))
    return paths


def write_slide(adata: ad.AnnData, path: Path, as_zarr: bool, broken: int) -> Path:
    """Write a slide, broken in one of five ways or (0) whole."""
    if broken == 1:
        adata = adata[:0].copy()
    elif broken == 2:
        adata = adata[:2].copy()
    elif broken == 3:
        adata.var_names = [f"probe-x{number}" for number in range(adata.n_vars)]
    elif broken == 4:
        del adata.obsm["spatial"]
    if as_zarr and not broken:
        adata.write_zarr(path.with_suffix(".zarr"))
        return path.with_suffix(".zarr")
    path = path.with_suffix(".h5ad")
    adata.write_h5ad(path)
    if broken == 5:
        path.write_bytes(path.read_bytes()[:-2000])
    return path


def label(files: list[str], out: str, workers: int, write_back: bool) -> None:
    """Label the files on a cluster (in a process of its own), and print the seconds that the call took."""
    import logging

    from distributed import Client, LocalCluster

    import stage_sc as st

    logging.disable(logging.WARNING)
    with ExitStack() as stack:
        if workers:
            options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.CRITICAL}
            cluster = stack.enter_context(LocalCluster(n_workers=workers, **options))
            stack.enter_context(Client(cluster))
        began = time.perf_counter()
        results = st.tl.label_files(files, out, n_domains=7, write_back=write_back)
        print(json.dumps({"seconds": round(time.perf_counter() - began, 1), "results": len(results)}), flush=True)


def call(paths: list[Path], out: Path, workers: int, *, write_back: bool = False, kill_after: float = TIMEOUT) -> Any:
    """Call `label` in a process, measure the memory of all processes, and kill them at a moment."""
    command = [sys.executable, __file__, "--call", json.dumps([list(map(str, paths)), str(out), workers, write_back])]
    process, peak, began = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), 0, time.perf_counter()
    while process.poll() is None:
        family = family_of(process.pid)
        peak = max(peak, sum(resident(one) for one in family))
        if time.perf_counter() - began > kill_after:
            for one in family:
                one.send_signal(signal.SIGKILL) if one.is_running() else None
            process.wait()
            return None
        time.sleep(STEP)
    assert process.stdout is not None
    said = process.stdout.read()  # whatever becomes of the workers at the end, on a busy machine
    if not said:
        raise RuntimeError("the call failed, see above")
    return {
        **json.loads(said.splitlines()[-1]),
        "wall": round(time.perf_counter() - began, 1),
        "peak_gb": round(peak / 1e9, 2),
    }


def family_of(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def digest_of(out: Path) -> str:
    """Digest of all labels and of the summary, but for warnings."""
    found = hashlib.sha256()
    for path in sorted(out.glob("*.h5ad")):
        adata = ad.read_h5ad(path)
        found.update(adata.obs.to_csv().encode() + adata.obsm["X_stage"].tobytes())
    table = pd.read_csv(out / "summary.csv")[["file", "problem", "labelled"]]
    return found.hexdigest()[:16] + hashlib.sha256(table.to_csv().encode()).hexdigest()[:4]


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)


def content(paths: list[Path], problems: pd.Series) -> dict[str, str]:
    """Digest of counts, coordinates and the user's column of every file that is whole."""
    found = {}
    for path in paths:
        if not problems[str(path)]:
            adata = read(path)
            parts = [adata.X.data.tobytes(), adata.obsm["spatial"].tobytes(), adata.obs["mine"].to_numpy().tobytes()]
            found[str(path)] = hashlib.sha256(b"".join(parts)).hexdigest()
    return found


def check_files(paths: list[Path], out: Path, problems: pd.Series) -> int:
    """Number of files that do not hold their result."""
    faults = 0
    for path in paths:
        if not problems[str(path)]:
            written, result = read(path).obs, ad.read_h5ad(out / f"{path.stem}.h5ad").obs
            faults += not all(written[name].tolist() == result[name].tolist() for name in result)
    return faults


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--parts", default="speed,kills")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="of the calls that are killed; 0: no cluster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--call", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        label(*json.loads(options.call))
        return
    rng, faults = np.random.default_rng(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="cohort-") as name:
        folder = Path(name)
        paths = write_cohort(options.data, folder, options.slides, options.seed)
        print(f"{len(paths)} files, {sum(read_size(path) for path in paths) / 1e6:.0f} MB", flush=True)
        runs = {}
        for workers in (1, 2) if "speed" in options.parts else (options.workers,):
            runs[workers] = call(paths, folder / f"out{workers}", workers)
            print(f"{workers} workers: {runs[workers]}, digest {digest_of(folder / f'out{workers}')}", flush=True)
        expected = digest_of(folder / f"out{workers}")
        table = pd.read_csv(folder / f"out{workers}" / "summary.csv", index_col="file", keep_default_na=False)
        problems = table["problem"]
        print(f"{table['labelled'].replace('', 0).astype(int).sum():,} cells; {(problems != '').sum()} files left out")
        if 1 in runs:
            faults += digest_of(folder / "out1") != expected
            print(f"two workers are {runs[1]['seconds'] / runs[2]['seconds']:.2f} times as fast", flush=True)
        if "kills" in options.parts:
            before, wall = content(paths, problems), runs[workers]["wall"]
            for moment in rng.random(options.kills):
                call(paths, folder / "killed", options.workers, write_back=True, kill_after=(0.3 + 0.7 * moment) * wall)
                same = content(paths, problems) == before
                done = len(list((folder / "killed").glob("*.h5ad")))
                written = sum("stage_path" in read(path).obs for path in paths if not problems[str(path)])
                state = "unchanged" if same else "CHANGED"
                print(f"killed: {done} results, {written} of them in the files, all else {state}", flush=True)
                faults += not same
                if done == len(before) == written:  # begin again, with files that hold a result
                    shutil.rmtree(folder / "killed")
            call(paths, folder / "killed", options.workers, write_back=True)
            same, wrong = digest_of(folder / "killed") == expected, check_files(paths, folder / "killed", problems)
            same_content = content(paths, problems) == before
            left = [one for one in folder.rglob("*") if one.name.endswith(".part")]
            print(
                f"after the kills: {'same' if same else 'OTHER'} labels, {wrong} files without them, {len(left)} litter"
            )
            faults += (not same) + wrong + len(left) + (not same_content)
    print(f"{faults} faults")
    sys.exit(min(faults, 1))


def read_size(path: Path) -> int:
    return sum(one.stat().st_size for one in ([path] if path.is_file() else path.rglob("*")) if one.is_file())


if __name__ == "__main__":
    main()
