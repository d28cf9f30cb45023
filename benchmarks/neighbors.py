"""Small p-values of `niche_neighbors` on tissue without any preference of neighbours.

``python benchmarks/neighbors.py [--cohorts 80]``

A slide has 1,500 cells in 150 Voronoi tiles with random labels, in shares that vary over slides as a Dirichlet
distribution. Contacts are those of one slide; differences compare three slides with three.
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial import cKDTree

import stage_sc as st

LABELS, CELLS, TILES, SIDE = 8, 1500, 150, 400.0


def tissue(rng: np.random.Generator) -> AnnData:
    """Cells with a graph."""
    adata = AnnData(sparse.csr_matrix((CELLS, 1), dtype=np.float32), obsm={"spatial": rng.random((CELLS, 2)) * SIDE})
    st.pp.build_graph(adata, scale=1.0)
    return adata


def cohort(slides: list[AnnData], rng: np.random.Generator) -> dict[str, AnnData]:
    """Six slides with random labels of tiles."""
    shares, parts = rng.dirichlet(np.full(LABELS, 3.0)), {}
    for number, slide in enumerate(rng.choice(len(slides), 6, replace=False)):
        part = slides[slide].copy()
        labels = rng.choice(LABELS, TILES, p=rng.dirichlet(60 * shares + 0.01))
        tile = cKDTree(rng.random((TILES, 2)) * SIDE).query(part.obsm["spatial"])[1]
        part.obs["label"] = pd.Categorical(labels[tile].astype(str))
        part.obs["condition"] = "a" if number < 3 else "b"
        parts[str(number)] = part
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", type=int, default=80)
    n_cohorts = parser.parse_args().cohorts
    logging.disable()
    rng = np.random.default_rng(1)
    slides = [tissue(rng) for _ in range(24)]
    rows: dict[str, list[dict[str, float]]] = {"contacts": [], "differences": []}
    for _ in range(n_cohorts):
        parts = cohort(slides, rng)
        st.tl.niche_neighbors(parts, groupby="label", condition_key="condition")
        st.tl.niche_neighbors(parts["1"], groupby="label", key_added="one")
        differences = parts["0"].uns["niche_neighbors"]["differences"]
        for name, table in (("contacts", parts["1"].uns["one"]["table"]), ("differences", differences)):
            p = table["p_value"].dropna()
            small = {f"p < {level}": float((p < level).mean()) for level in (0.05, 0.01, 0.001)}
            rows[name].append(small | {"any fdr <= 0.1": float((table["fdr"] <= 0.1).any())})
    print(pd.DataFrame({name: pd.DataFrame(found).mean() for name, found in rows.items()}).round(4).to_string())


if __name__ == "__main__":
    main()
