"""What `speed.py` measures, one function for one process: python speed_workers.py FUNCTION ARGUMENTS-AS-JSON OUT.

Packages are imported in the functions, since stage_sc and Novae may each have an interpreter of their own.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

BATCH = 256
FIRST_USE = 600  # cells that a tool labels before it is timed: what it loads late is not counted as its speed
PACKAGES = {
    "anndata",
    "novae",
    "numpy",
    "scanpy",
    "scipy",
    "squidpy",
    "stage-sc",
    "torch",
    "torch-geometric",
    "torch_geometric",
}


class Enough(Exception):
    """As many batches as were asked for are encoded."""


class Phases(dict[str, dict[str, float]]):
    """CPU time (of all threads), wall time and peak memory of the parts of this process, one after another."""

    last = (0.0, time.perf_counter())

    def end(self, name: str) -> None:
        """Give the time since the last call to this part."""
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu, wall = sum(usage.ru_utime + usage.ru_stime for usage in usages), time.perf_counter()
        peak = usages[0].ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        self[name] = {"cpu_s": cpu - self.last[0], "wall_s": wall - self.last[1], "peak_mb": peak}
        self.last = (cpu, wall)


def tile(section: AnnData, n_cells: int, n_genes: int, seed: int = 0) -> AnnData:
    """Lay copies of a section side by side, cells moved by about a tenth of the spacing, until there are `n_cells`.

    The last copy is a strip of the section, so that the density stays the same.
    """
    import anndata as ad
    import numpy as np
    import scipy.sparse as sp

    spatial = np.asarray(section.obsm["spatial"], dtype=np.float64)
    spatial = spatial - spatial.min(axis=0)
    extent = spatial.max(axis=0)
    spacing = math.sqrt(extent.prod() / section.n_obs)
    n_whole, rest = divmod(n_cells, section.n_obs)
    strip = np.sort(np.argsort(spatial[:, 1], kind="stable")[:rest])
    cells = np.concatenate([np.tile(np.arange(section.n_obs), n_whole), strip])
    row, column = np.divmod(np.arange(n_cells) // section.n_obs, math.ceil(math.sqrt(n_cells / section.n_obs)))
    moved = np.column_stack([column, row]) * (extent + spacing)
    moved += np.random.default_rng(seed).normal(scale=0.1 * spacing, size=(n_cells, 2))
    counts = sp.csr_matrix(section[:, :n_genes].X, dtype=np.float32)[cells]
    tiled = ad.AnnData(counts, var=section.var.iloc[:n_genes, :0], obsm={"spatial": spatial[cells] + moved})
    tiled.obs_names = [f"cell{number}" for number in range(n_cells)]
    return tiled


def write_slide(phases: Phases, section: str, n_cells: int, n_genes: int, path: str) -> None:
    """Write the slide that all others read."""
    import anndata as ad

    tile(ad.read_h5ad(section), n_cells, n_genes).write_h5ad(path)


def triangulation(phases: Phases, path: str) -> None:
    """Triangulate and nothing else: no tool with a Delaunay graph can be faster."""
    import anndata as ad
    from scipy.spatial import Delaunay

    phases.end("import")
    spatial = ad.read_h5ad(path, backed="r").obsm["spatial"]
    Delaunay(spatial[:FIRST_USE])
    phases.end("read")
    Delaunay(spatial)
    phases.end("triangulation")


def stage_cold(phases: Phases, path: str) -> None:
    """Label in a fresh process."""
    adata = _stage_start(phases, path)
    import stage_sc as st

    st.pp.build_graph(adata)
    st.tl.stage_niches(adata)
    phases.end("graph and labelling")


def stage_labels(phases: Phases, path: str, threads: int, n_domains: int | None = None) -> None:
    """From counts to niches."""
    adata = _stage_start(phases, path, threads)
    import stage_sc as st

    st.pp.build_graph(adata)
    phases.end("graph")
    st.tl.stage_niches(adata, n_domains=n_domains)
    phases.end("labelling")


def stage_training(phases: Phases, path: str, threads: int) -> dict[str, int]:
    """Train from scratch with one batch and with many in each of two epochs, one per stage: they differ by batches."""
    adata = _stage_start(phases, path, threads)
    import stage_sc as st

    def fit(data: AnnData, n_batches: int, **changes: Any) -> None:
        config = st.model.StageConfig(
            batch_size=BATCH, cells_per_slide=n_batches * BATCH, epochs=2, warmup_epochs=1, **changes
        )
        st.tl.fit(data, config=config, patience=None, device="cpu", progress=False)

    st.pp.build_graph(adata)
    small = st.datasets.simulate_tissue(FIRST_USE)
    st.pp.build_graph(small)
    fit(small, 1, levels=(2, 4))
    phases.end("first training")
    fit(adata, 1)
    phases.end("one batch")
    n_batches = min(40, adata.n_obs // BATCH)
    fit(adata, n_batches)
    phases.end("batches")
    return {"seed_cells": 2 * (n_batches - 1) * BATCH}


def _stage_start(phases: Phases, path: str, threads: int | None = None) -> AnnData:
    """Read the slide and import stage_sc; with `threads`, label some cells."""
    import anndata as ad

    adata = ad.read_h5ad(path)
    phases.end("read")
    import stage_sc as st

    st.pp, st.tl, st.model  # noqa: B018 - are loaded here
    phases.end("import")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
        small = adata[:FIRST_USE].copy()
        st.pp.build_graph(small)
        st.tl.stage_niches(small, n_domains=2)
        phases.end("first use")
    return adata


def novae_labels(phases: Phases, path: str, threads: int, n_batches: int | None) -> dict[str, int]:
    """Graph and representations of all cells or of so many batches, then domains and new prototypes of the slide."""
    import novae

    adata = _novae_start(phases, path, threads)
    novae.spatial_neighbors(adata, radius=100.0)
    phases.end("graph")
    model = _loaded(adata, path)
    phases.end("model")

    def watched(loader: Any, **_: Any) -> Any:
        phases.end("preparation")
        for number, batch in enumerate(loader, 1):
            yield batch
            if number == n_batches:
                raise Enough(min(number * BATCH, adata.n_obs))

    novae.utils.tqdm = watched  # where its loop over the batches can be seen
    try:
        model.compute_representations(adata)
    except Enough as enough:
        phases.end("encoding")
        return {"cells_encoded": enough.args[0]}
    phases.end("encoding")
    model.assign_domains(adata, level=7)
    phases.end("domains")
    model.assign_to_kmeans_prototypes(adata, "all")
    phases.end("prototypes")
    return {"cells_encoded": adata.n_obs}


def novae_training(phases: Phases, path: str, threads: int) -> dict[str, int]:
    """Train from scratch: ten batches, after two others."""
    import novae
    from lightning.pytorch.callbacks import Callback

    adata = _novae_start(phases, path, threads)
    n_batches = min(10, adata.n_obs // BATCH - 3)

    class Clock(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx in (1, n_batches + 1):
                phases.end("set-up" if batch_idx == 1 else "batches")

    novae.spatial_neighbors(adata, radius=100.0)
    model = novae.Novae(adata, batch_size=BATCH)
    model.fit(max_epochs=1, limit_train_batches=n_batches + 2, callbacks=[Clock()], enable_progress_bar=False)
    return {"seed_cells": n_batches * BATCH}


def _novae_start(phases: Phases, path: str, threads: int) -> AnnData:
    """Import Novae, read the slide, represent some cells."""
    import anndata as ad
    import novae
    import torch

    torch.set_num_threads(threads)
    phases.end("import")
    adata = ad.read_h5ad(path)
    phases.end("read")
    small = adata[:FIRST_USE].copy()
    novae.spatial_neighbors(small, radius=100.0)
    _loaded(small, path).compute_representations(small)
    phases.end("first use")
    return adata


def _loaded(adata: AnnData, path: str) -> Any:
    """Novae as published models are used: read from a folder. Untrained, which changes nothing in its time."""
    import novae

    folder = path + ".novae"
    novae.Novae(var_names=list(adata.var_names)).save_pretrained(folder)
    return novae.Novae.from_pretrained(folder)


if __name__ == "__main__":
    parts = Phases()
    more = globals()[sys.argv[1]](parts, **json.loads(sys.argv[2])) or {}
    versions = {found.name: found.version for found in distributions() if found.name in PACKAGES}
    Path(sys.argv[3]).write_text(json.dumps({**more, "phases": parts, "versions": versions}))
