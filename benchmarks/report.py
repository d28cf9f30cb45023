"""Reports of 10,000 to 1,000,000 cells: time and memory to write, size, and in Chromium, if any, time to open and to
draw: ``python benchmarks/report.py SECTION.h5ad``.

The section is labelled, then tiled with jitter; labels are those of its cells.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

import stage_sc as st

sys.path.append(str(Path(__file__).parents[1] / "tests"))
SIZES = (10_000, 200_000, 1_000_000)


def tile(adata: ad.AnnData, n: int) -> ad.AnnData:
    """Copies of a labelled section side by side, `n` cells in all."""
    tiles = -(-n // adata.n_obs)
    rows, number = np.tile(np.arange(adata.n_obs), tiles)[:n], np.repeat(np.arange(tiles), adata.n_obs)[:n]
    side = int(np.ceil(np.sqrt(tiles)))
    places = np.c_[number % side, number // side] * (np.ptp(adata.obsm["spatial"], axis=0) + 10)
    jitter = np.random.default_rng(0).normal(0, 1, (n, 2))
    obs = adata.obs.iloc[rows].set_axis(np.arange(n).astype(str))
    xy = adata.obsm["spatial"][rows] + places + jitter
    uns = {"stage": adata.uns["stage"]}
    return ad.AnnData(sp.csr_matrix(adata.X)[rows], obs=obs, var=adata.var[[]], obsm={"spatial": xy}, uns=uns)


def measure(section: Path, n: int, folder: Path) -> dict[str, Any]:
    """One report."""
    from browser import Page, find_browser

    adata = tile(ad.read_h5ad(section), n)
    st.pp.build_graph(adata)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    path = st.report(adata, folder / f"{n}.html")
    row: dict[str, Any] = {"cells": n, "seconds": round(time.perf_counter() - start, 1)}
    row |= {"MB": round(path.stat().st_size / 1e6, 2), "peak GB before": round(before / 1e6, 2)}
    row["peak GB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    if find_browser():
        page = Page(path, folder, (1400, 850))
        row["open s"] = round(page.load_seconds, 2)
        for name, code in {"whole": "fit()", "zoomed 6 times": "zoomAt(image.width / 2, image.height / 2, 6)"}.items():
            frames = page.run(f"({code}, drawNow(), Array.from({{length: 15}}, () => drawNow()))")
            row[f"frame ms, {name}"] = round(float(np.median(frames)), 1)
        page.close()
    return row


def main() -> None:
    """Measure every size in a process of its own, and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", type=Path)
    adata = ad.read_h5ad(parser.parse_args().section)
    st.pp.build_graph(adata)
    st.tl.stage_niches(adata, n_domains=8)
    with tempfile.TemporaryDirectory() as name:
        adata.write_h5ad(Path(name) / "labelled.h5ad")
        for n in SIZES:
            with get_context("spawn").Pool(1) as pool:
                print(json.dumps(pool.apply(measure, (Path(name) / "labelled.h5ad", n, Path(name)))), flush=True)


if __name__ == "__main__":
    main()
