"""All warnings about real sections, and their labels by other processors.

    python benchmarks/real_sections.py warnings FOLDER [SECTION ...]
    python benchmarks/real_sections.py processor FOLDER [SECTION ...]

Sections are the .h5ad files below FOLDER, with counts in X and coordinates in obsm["spatial"]; they are named by their
paths without suffix. `warnings` prints a table (TSV) of all messages at WARNING level of `build_graph` and of
`stage_niches` with 7 domains. `processor` labels sections in processes with other kernels of BLAS, torch and numpy, and
with coordinates in 32 and 64 bits, and prints the fraction of cells with the same label; the exit status is 1 if any
cell has another.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import stage_sc as st

# Other kernels of BLAS, torch and numpy.
AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
PROCESSORS: dict[str, dict[str, str]] = {
    "default": {},
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell", "ATEN_CPU_CAPABILITY": "avx2", "NPY_DISABLE_CPU_FEATURES": AVX512},
    "Sandybridge": {"OPENBLAS_CORETYPE": "Sandybridge", "ATEN_CPU_CAPABILITY": "default"},
    "Nehalem": {"OPENBLAS_CORETYPE": "Nehalem", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


class Collect(logging.Handler):
    """Keeps the messages at WARNING level and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage().replace("\n", " ").replace("\t", " "))


def sections(options: argparse.Namespace) -> dict[str, Path]:
    """Sections below a folder by their names, all or those that were asked for."""
    found = {str(path.relative_to(options.folder).with_suffix("")): path for path in options.folder.rglob("*.h5ad")}
    return {name: found[name] for name in options.sections or sorted(found)}


def warn(options: argparse.Namespace) -> int:
    """List the warnings of `build_graph` and of `stage_niches` about every section."""
    handler, paths, n = Collect(), sections(options), 0
    logging.getLogger("stage_sc").addHandler(handler)
    print("section", "function", "message", sep="\t")
    for name, path in paths.items():
        adata = ad.read_h5ad(path)
        for function, call in (
            ("build_graph", st.pp.build_graph),
            ("stage_niches", lambda adata: st.tl.stage_niches(adata, n_domains=7)),
        ):
            handler.messages.clear()
            call(adata)
            n += len(handler.messages)
            for message in handler.messages:
                print(name, function, message, sep="\t", flush=True)
    print(f"{n} warnings about {len(paths)} sections", file=sys.stderr)
    return 0


def labels(options: argparse.Namespace) -> int:
    """Print niches and domains of sections as JSON, with turned coordinates in 64 and 32 bits."""
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    found: dict[str, Any] = {}
    for name, path in sections(options).items():
        adata = ad.read_h5ad(path)
        xy = np.asarray(adata.obsm["spatial"], np.float64)[:, :2] @ turn
        for kind in ("float64", "float32"):
            adata.obsm["spatial"] = xy.astype(kind)
            st.pp.build_graph(adata)
            for n_domains in (7, 10):
                st.tl.stage_niches(adata, n_domains=n_domains)
                found[f"{name} {kind} {n_domains} domains"] = adata.obs["stage_domain"].astype(str).tolist()
            found[f"{name} {kind} niches"] = adata.obs["stage_path"].astype(str).tolist()
    print(json.dumps(found))
    return 0


def processor(options: argparse.Namespace) -> int:
    """Compare the labels of all cells by every kernel with those by default, and of 32 bits with those of 64."""
    found = {}
    for name, environment in PROCESSORS.items():
        command = [sys.executable, __file__, "labels", str(options.folder), *options.sections]
        run = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(run.stdout.splitlines()[-1])
    print("| section | kernels | cells with the same label |", "|---|---|---|", sep="\n")
    faults = 0
    for name, other in found.items():
        for key, values in other.items():
            expected = found["default"][key.replace("float32", "float64")]
            same = np.mean([one == another for one, another in zip(values, expected, strict=True)])
            print(f"| {key} | {name} | {same:.5f} |")
            faults += same < 1
    return faults


PARTS = {"warnings": warn, "processor": processor, "labels": labels}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS, help="labels: those of one process, as JSON")
    parser.add_argument("folder", type=Path)
    parser.add_argument("sections", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.exit(min(PARTS[options.part](options), 1))


if __name__ == "__main__":
    main()
