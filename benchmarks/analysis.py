"""Time and memory of the functions that describe niches.

    python benchmarks/analysis.py SECTION.h5ad [--cells 100000 1000000] [--slides 1] [--genes 300] [--sets 50]

SECTION has counts in X and coordinates in µm in obsm["spatial"]. It is tiled, with jitter, to every number of cells,
divided into slides of equal size, and labelled. Every function runs in a process of its own on one thread; its first
use on 2,000 cells, which compiles and imports, is not timed. The table has seconds of the processor, and the memory
that the call adds at its peak to that of the loaded slide.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

FUNCTIONS = (
    *("rank_niche_genes", "rank_niche_genes within 6 cell types", "rank_niche_genes level 3", "spatial_genes"),
    *("pathways", "niche_paga", "composition", "cell types by niche", "interactions"),
    *("differential_abundance", "niche_neighbors", "distance_to_niche", "cell_type_enrichment", "outline_niches"),
    *("explain_niche", "explain_niche of a domain"),
)


def main() -> None:
    """Write the slides, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", type=Path)
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--slides", type=int, default=1)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--sets", type=int, default=50)
    parser.add_argument("--functions", nargs="+", default=FUNCTIONS, choices=FUNCTIONS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child, options.sets)))
        return
    print("| function | cells | niches | CPU s | GB added |\n|---|---|---|---|---|")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    for n_cells in options.cells:
        with tempfile.TemporaryDirectory() as folder:
            path = write_slides(options.section, n_cells, options.genes, options.slides, Path(folder))
            for name in options.functions:
                child = [sys.executable, __file__, str(options.section), "--sets", str(options.sets), "--child", path]
                done = subprocess.run([*child, name], env=environment, stdout=subprocess.PIPE, text=True, check=True)
                one = json.loads(done.stdout.splitlines()[-1])
                print(f"| `{name}` | {n_cells:,} | {one['n']} | {one['seconds']:.1f} | {one['gb']:.1f} |", flush=True)


def write_slides(section: Path, n_cells: int, n_genes: int, n_slides: int, folder: Path) -> str:
    """Tile a section, divide it into slides, label it, and write it."""
    import anndata as ad
    import numpy as np
    import pandas as pd

    import stage_sc as st

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.speed_workers import tile

    adata = tile(ad.read_h5ad(section), n_cells, n_genes)
    edges = np.quantile(adata.obsm["spatial"][:, 0], np.linspace(0, 1, n_slides + 1)[1:-1])
    adata.obs["slide"] = [f"s{code:02d}" for code in np.searchsorted(edges, adata.obsm["spatial"][:, 0])]
    adata.obs["slide"] = adata.obs["slide"].astype("category")
    draw = np.random.default_rng(0)
    adata.obs["cell_type"] = pd.Categorical.from_codes(draw.integers(6, size=n_cells), [f"type {n}" for n in range(6)])
    sample = draw.integers(8, size=n_cells)
    adata.obs["donor"] = pd.Categorical.from_codes(sample, [f"donor {n}" for n in range(8)])
    adata.obs["condition"] = pd.Categorical.from_codes(sample % 2, ["control", "case"])
    st.pp.build_graph(adata, library_key="slide", scale=1.0)
    st.tl.stage_niches(adata, n_domains=20)
    path = folder / "slides.h5ad"
    adata.write_h5ad(path)
    return str(path)


def measure(path: str, name: str, n_sets: int) -> dict[str, float]:
    """Seconds of the processor and added gigabytes of a call after a small one."""
    import anndata as ad
    import numpy as np
    import pandas as pd

    import stage_sc as st

    adata = ad.read_h5ad(path)
    draw = np.random.default_rng(0)
    sets = [(f"set {number}", gene) for number in range(n_sets) for gene in draw.choice(adata.var_names, 20, False)]
    net = pd.DataFrame(sets, columns=["source", "target"])
    ranked: dict[str, Any] = {"groupby": "stage_domain", "method": "t-test"}
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "rank_niche_genes": (st.tl.rank_niche_genes, ranked),
        "rank_niche_genes within 6 cell types": (st.tl.rank_niche_genes, {**ranked, "cell_type_key": "cell_type"}),
        "rank_niche_genes level 3": (st.tl.rank_niche_genes, {**ranked, "groupby": "stage_l3"}),
        "spatial_genes": (st.tl.spatial_genes, {}),
        "pathways": (st.tl.pathways, {"net": net}),
        "niche_paga": (st.tl.niche_paga, {}),
        "composition": (st.tl.composition, {}),
        "interactions": (st.tl.interactions, {"groupby": "stage_domain"}),
        "differential_abundance": (
            st.tl.differential_abundance,
            {"sample_key": "donor", "condition_key": "condition", "reference": "control"},
        ),
        "niche_neighbors": (st.tl.niche_neighbors, {"groupby": "stage_domain"}),
        "distance_to_niche": (st.tl.distance_to_niche, {"niche": "D1", "groupby": "stage_domain"}),
        "cell_type_enrichment": (st.tl.cell_type_enrichment, {"cell_type_key": "cell_type"}),
        "outline_niches": (st.tl.outline_niches, {"groupby": "stage_domain"}),
        "cell types by niche": (st.tl.composition, {"groupby": "cell_type", "by": "stage_domain"}),
    }
    small = adata[:2000].copy()
    st.pp.build_graph(small, library_key="slide", scale=1.0)
    if name.startswith("explain_niche"):  # reads the labels of a whole call
        st.tl.stage_niches(small, n_domains=20)
        niche = None if name.endswith("domain") else "stage_l2"
        st.tl.explain_niche(small, small.obs[niche].mode()[0] if niche else "D1", n_cells=10)
        calls[name] = st.tl.explain_niche, {"niche": adata.obs[niche].mode()[0] if niche else "D1"}
        function, arguments = calls[name]
    else:
        function, arguments = calls[name]
        function(small, **arguments)
    peak, stop = [memory()], Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak.append(max(peak.pop(), memory()))

    watcher, before = Thread(target=watch), memory()
    watcher.start()
    start = time.process_time()
    function(adata, **arguments)
    seconds = time.process_time() - start
    stop.set()
    watcher.join()
    groupby = str(arguments.get("by") or arguments.get("groupby", "stage_domain"))
    return {"seconds": seconds, "gb": (peak[0] - before) / 1e9, "n": int(adata.obs[groupby].nunique())}


def memory() -> float:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
