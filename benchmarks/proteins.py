"""Domains of sections of proteins, against annotation and against the truth of simulated ones.

``python benchmarks/proteins.py [imc_pancreas/image1.h5ad]``: panels drawn at random from the proteins of the annotated
section (where its file is given) and simulated panels of 15 and 33 proteins. Values are read as intensities
(``modality="protein"``), as if they were RNA, and (annotated section) by the bundled model of RNA. Five minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from scipy.spatial import KDTree

import stage_sc as st

SEEDS = range(5)


def simulate_panel(n_proteins: int, *, n_cells: int = 3000, seed: int = 0) -> AnnData:
    """Intensities of antibodies on simulated cortex: positive cell types, background, spill-over and bright cells.

    Every protein marks one to three of the cell types (every fourth none). Intensities are log-normal, of a unit that
    differs a hundredfold between proteins; a cell has a fourth of the intensity of its five neighbours added, and a
    brightness that all of its proteins share.
    """
    tissue, rng = st.datasets.simulate_tissue(n_cells, rng=seed), np.random.default_rng(seed)
    types = tissue.obs["cell_type"].cat.codes.to_numpy()
    level = np.full((types.max() + 1, n_proteins), 0.2)
    for protein in np.flatnonzero(np.arange(n_proteins) % 4 > 0):
        level[rng.choice(len(level), rng.integers(1, 4), replace=False), protein] += rng.uniform(0.5, 3)
    signal = level[types] * rng.lognormal(0, 0.5, (n_cells, n_proteins))
    _, nearest = KDTree(tissue.obsm["spatial"]).query(tissue.obsm["spatial"], 6)
    signal += 0.25 * signal[nearest[:, 1:]].mean(axis=1)
    signal += rng.lognormal(-2, 0.6, signal.shape)
    signal *= rng.lognormal(0, 0.4, (n_cells, 1)) * np.exp(rng.uniform(0, np.log(100), n_proteins))
    names = [f"protein{number}" for number in range(n_proteins)]
    return AnnData(
        signal.astype(np.float32), tissue.obs, pd.DataFrame(index=names), obsm={"spatial": tissue.obsm["spatial"]}
    )


def panels(path: str | None) -> Iterator[tuple[str, int, AnnData]]:
    """Name of a kind of panel, seed, and section."""
    for size in (15, 33):
        for seed in SEEDS:
            yield f"simulated, {size} proteins", seed, simulate_panel(size, seed=seed)
    if path:
        section = read_h5ad(path)
        for size in (9, 15, 33):
            for seed in SEEDS:
                chosen = np.random.default_rng(seed).permutation(section.n_vars)[:size]
                yield f"pancreas, {size} of 36 proteins", seed, section[:, np.sort(chosen)].copy()
        yield "pancreas, 36 proteins", 0, section


def score(adata: AnnData, way: str) -> float:
    """Adjusted Rand index of domains, as many as there are."""
    st.pp.build_graph(adata)
    model = None if way == "bundled" else st.tl.fit(adata, modality=way, epochs=0, progress=False)
    st.tl.stage_niches(adata, model=model, n_domains=adata.obs["domain"].nunique())
    return st.metrics.ari(adata, "domain", "stage_domain")


def main() -> None:
    """Print a line of JSON for every section and way, and a table of means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", nargs="?")
    logging.disable(logging.WARNING)
    rows = []
    for name, seed, adata in panels(parser.parse_args().section):
        for way in ("protein", "rna", *(["bundled"] if name.startswith("pancreas") else [])):
            rows.append({"panel": name, "seed": seed, "way": way, "ARI": round(score(adata.copy(), way), 3)})
            print(json.dumps(rows[-1]), flush=True)
    table = pd.DataFrame(rows).groupby(["panel", "way"], sort=False)["ARI"].agg(["mean", "min", "max"]).round(3)
    print(table.to_string())


if __name__ == "__main__":
    main()
