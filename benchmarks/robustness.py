"""Damaged files, killed processes and full disks: a clear error or the same result, never another.

    python benchmarks/robustness.py flips|kills|full-disk [--attempts 20] [--seed 0]

Every attempt is a process of its own on small simulated slides. `flips` changes one bit of a checkpoint, a store, the
state of a training and of results, and reads them. `kills` ends a process at a random moment, `full-disk` runs it on a
small file system (a tmpfs for root, else a limit of the size of files); nothing of the user may be lost, and the next
call must give the result of an undisturbed run and leave no other files. A table of outcomes is printed; the exit
status is 1 if there is a fault. Each part takes 3 to 5 minutes on one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes are forked

import argparse
import hashlib
import logging
import multiprocessing
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import stage_sc as st

# Folders of the package and of the standard library.
OWN = tuple(str(Path(module.__file__).parent) for module in (st, os))
CONFIG = st.model.StageConfig(
    dim=16, n_layers=1, levels=(2, 6, 18), epochs=6, warmup_epochs=3, batch_size=64, domain_starts=9, domain_refined=2
)
NOTE = "weeks of work"
# Seconds after which a process is taken to hang.
TIMEOUT = 180
SAME, CLEAR, KILLED, CRASH, HANG = "same result", "clear error", "killed", "CRASH", "HANG"
FINE = (SAME, CLEAR, KILLED)


class Work:
    """A folder with two slides of the user, and the three functions that write files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def files(self) -> list[Path]:
        return [self.folder / "raw" / f"slide{number}.h5ad" for number in range(2)]

    def start(self) -> Work:
        """Write the files of the user: slides, a model, and notes in the folders of results."""
        for number, path in enumerate(self.files):
            path.parent.mkdir(parents=True, exist_ok=True)
            st.datasets.simulate_tissue(300, rng=number).write_h5ad(path)
        adata = ad.read_h5ad(self.files[0])
        st.pp.build_graph(adata)
        model = st.tl.fit(adata, config=CONFIG, epochs=0, progress=False)
        st.model.save_checkpoint(model, self.folder / "raw" / "model")
        for name in ("label_files", "build_store", "fit", "tmp"):
            (self.folder / name).mkdir()
            (self.folder / name / "note.txt").write_text(NOTE)
        return self

    def label_files(self) -> str:
        model = self.folder / "raw" / "model.safetensors"
        results = st.tl.label_files(self.files, self.folder / "label_files", model=model, n_domains=4)
        return digest(*(ad.read_h5ad(path).obs.to_csv().encode() for path in results))

    def build_store(self) -> str:
        store = st.data.build_store(self.files, self.folder / "build_store", progress=False)
        store.verify()
        return digest(*(array.tobytes() for slide in store.slides() for array in (slide.xy[:], slide.mean)))

    def fit(self, callback: Callable[[Any], None] | None = None) -> str:
        adata, state = ad.read_h5ad(self.files[0]), self.folder / "fit" / "state"
        st.pp.build_graph(adata)
        return st.tl.fit(adata, config=CONFIG, checkpoint=state, callback=callback, progress=False).digest

    def label(self) -> str:
        adata = ad.read_h5ad(self.files[0])
        st.pp.build_graph(adata)
        st.tl.stage_niches(adata, model=self.folder / "raw" / "model.safetensors")
        return digest(adata.obs.to_csv().encode(), adata.obsm["X_stage"].tobytes())

    def fit_store(self) -> str:
        return st.tl.fit(st.data.Store(self.folder / "build_store"), config=CONFIG, epochs=1, progress=False).digest

    def listing(self) -> set[str]:
        """Names of all files."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def size(self) -> int:
        """Bytes of all files on the disk."""
        return sum(512 * path.stat().st_blocks for path in self.folder.rglob("*"))

    def users(self) -> str:
        """Digest of everything that the user has written."""
        paths = [*sorted((self.folder / "raw").iterdir()), *sorted(self.folder.glob("*/note.txt"))]
        return digest(*(path.read_bytes() for path in paths))


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def attempt(
    action: Callable[[], str], named: tuple[str, ...] = (), *, seconds: float = TIMEOUT, most: int | None = None
) -> str:
    """Outcome of an action in a process of its own: ``"= digest"`` of its result, or one of the other outcomes.

    The process is killed after `seconds`, and may write files of `most` bytes.
    """
    reader, writer = multiprocessing.Pipe(False)
    pid = os.fork()
    if pid == 0:
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            writer.send(f"= {action()}")
        except Exception as error:  # noqa: BLE001 (of any kind: that is the question)
            writer.send(judge(error, named))
        os._exit(0)
    writer.close()
    if not reader.poll(seconds):  # neither a result nor the end of the process
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if status == signal.SIGKILL:
        return HANG if seconds == TIMEOUT else KILLED
    return f"{CRASH} by signal {status}" if status else str(reader.recv())


def judge(error: Exception, named: tuple[str, ...]) -> str:
    """Tell clear errors of the package, which name one of the files, from others."""
    text = " ".join([str(error), *getattr(error, "__notes__", [])])
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if (
        where.startswith(OWN)
        and "site-packages" not in where.removeprefix(OWN[0])
        and any(name in text for name in named)
    ):
        return CLEAR
    return f"UNCLEAR {type(error).__name__} in {Path(where).name}: {text[:200]}"


def report(rows: list[tuple[str, str]]) -> int:
    """Print how often each outcome came, and return the number of faults."""
    print("| case | outcome | times |", "|---|---|---|", sep="\n")
    for (case, outcome), times in sorted(Counter(rows).items()):
        print(f"| {case} | {outcome} | {times} |")
    faults = sum(outcome not in FINE for _, outcome in rows)
    print(f"\n{len(rows)} attempts, {faults} faults")
    return faults


def compare(outcome: str, expected: str) -> str:
    if outcome.startswith("= "):
        return SAME if outcome == expected else "ANOTHER RESULT"
    return outcome


def flips(options: argparse.Namespace, folder: Path) -> list[tuple[str, str]]:
    """Change one bit of a file, use it, and restore it."""
    work, rng, rows = Work(folder).start(), np.random.default_rng(options.seed), []

    def stop(history: Any) -> None:
        if len(history) == 4:
            raise RuntimeError

    for prepare in (work.label_files, work.build_store, lambda: work.fit(stop)):
        attempt(prepare)
    cases: dict[str, tuple[str, str, Callable[[], str]]] = {
        "checkpoint": ("raw", "model.safetensors", work.label),
        "store": ("build_store", "*/**/*", work.fit_store),
        "training": ("fit", "state", work.fit),
        "result": ("label_files", "*.h5ad", work.label_files),
        "embeddings": ("label_files", "embeddings/*", work.label_files),
    }
    for case, (place, pattern, action) in cases.items():
        whole = folder / "whole"
        shutil.copytree(folder / place, whole)
        expected = attempt(action)
        paths = sorted(path.relative_to(whole) for path in whole.glob(pattern) if path.is_file())
        for _ in range(3 * options.attempts):
            shutil.rmtree(folder / place)
            shutil.copytree(whole, folder / place)
            path = folder / place / paths[rng.integers(len(paths))]
            content = bytearray(path.read_bytes())
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)
            rows.append((f"one bit of a {case}", compare(attempt(action, (path.name,)), expected)))
        shutil.rmtree(folder / place)
        whole.rename(folder / place)
    return rows


def disturb(options: argparse.Namespace, folder: Path) -> list[tuple[str, str]]:
    """Kill each function, or fill the disk, at random moments; check the files of the user, and call it again."""
    start, work = Work(folder / "start").start(), Work(folder / "work")
    rng, clean, rows = np.random.default_rng(options.seed), start.users(), []
    named = tuple(f"{work.folder}/{name}/" for name in ("label_files", "build_store", "fit", "tmp"))
    tempfile.tempdir = str(work.folder / "tmp")
    for name in ("label_files", "build_store", "fit"):
        action = getattr(work, name)
        shutil.copytree(start.folder, work.folder)
        began = time.perf_counter()
        expected = attempt(action)
        seconds, files, size = time.perf_counter() - began, work.listing(), work.size()
        largest = max(path.stat().st_size for path in work.folder.glob("*/**/*"))
        shutil.rmtree(work.folder)
        for moment in rng.random(options.attempts):
            free = int(start.size() + 1.5 * moment * (size - start.size()))
            work.folder.mkdir()
            mounted = options.part == "full-disk" and mount(work.folder, free)
            try:
                shutil.copytree(start.folder, work.folder, dirs_exist_ok=True)
                if options.part == "kills":
                    outcome = attempt(action, named, seconds=moment * seconds)
                else:
                    outcome = attempt(action, named, most=None if mounted else int(moment * largest))
                rows.append((f"{name}, {options.part}", compare(outcome, expected)))
                if mounted:
                    mount(work.folder, 4 * size, "remount,")
                rows.append((f"{name}, files of the user", SAME if work.users() == clean else "LOST"))
                rows.append((f"{name}, next call", compare(attempt(action, named), expected)))
                left = sorted({one.split(".")[-1] for one in work.listing() - files})
                rows.append((f"{name}, files afterwards", f"LITTER {left}" if left else SAME))
            finally:
                if mounted:
                    subprocess.run(["umount", work.folder], check=True)
                shutil.rmtree(work.folder)
    return rows


def mount(folder: Path, size: int, options: str = "") -> bool:
    """Mount a small file system, and return True if that is possible."""
    command = ["mount", "-t", "tmpfs", "-o", f"{options}size={max(size, 4096)}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["flips", "kills", "full-disk"])
    parser.add_argument("--attempts", type=int, default=20, help="for each function; three times as many bits")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="robustness-") as folder:
        rows = (flips if options.part == "flips" else disturb)(options, Path(folder))
    sys.exit(min(report(rows), 1))


if __name__ == "__main__":
    main()
