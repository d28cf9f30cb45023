"""Domains of simulated stacks of serial sections, against the truth: section by section, as slides, and as stacks.

``python benchmarks/stack.py``: cells of a thick piece of simulated cortex are dealt to six sections at random; x and y
are shrunk to the density of a single section. With a tilt, every section is shifted by so many µm, and borders with it.
Three minutes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

import stage_sc as st

N_SECTIONS, N_CELLS, DISTANCE, SEEDS = 6, 1500, 10.0, range(5)


def simulate_stack(tilt: float, seed: int) -> AnnData:
    """Stack of sections 10 µm apart, the height in ``obs["z"]``; borders move by `tilt` µm from section to section."""
    adata = st.datasets.simulate_tissue(N_CELLS * N_SECTIONS, rotation=0, rng=seed)
    section = np.random.default_rng(seed).integers(N_SECTIONS, size=adata.n_obs)
    adata.obsm["spatial"] /= np.sqrt(N_SECTIONS)
    adata.obsm["spatial"][:, 1] += section * tilt
    adata.obs["z"], adata.obs["section"] = section * DISTANCE, [f"s{number}" for number in section]
    return adata


def one_by_one(adata: AnnData) -> AnnData:
    """Label every section in a call of its own; names of domains hold within sections."""
    found = pd.Series("", adata.obs_names, dtype=object)
    for name, rows in adata.obs.groupby("section").indices.items():
        part = as_slides(adata[rows].copy())
        found.iloc[rows] = name + part.obs["stage_domain"].astype(str).to_numpy()
    return AnnData(obs=adata.obs.assign(stage_domain=found.astype("category")))


def as_slides(adata: AnnData) -> AnnData:
    """Label all sections in one call, without edges between them."""
    st.pp.build_graph(adata, library_key="section")
    st.tl.stage_niches(adata, n_domains=6)
    return adata


def as_stack(adata: AnnData) -> AnnData:
    """Label the stack."""
    st.pp.build_graph(adata, z_key="z")
    st.tl.stage_niches(adata, n_domains=6)
    return adata


def main() -> None:
    """Print a line of JSON for every stack and way, and a table of means."""
    logging.disable(logging.WARNING)
    ways: list[Callable[[AnnData], AnnData]] = [one_by_one, as_slides, as_stack]
    rows = []
    for tilt in (0.0, 10.0):
        for seed in SEEDS:
            adata = simulate_stack(tilt, seed)
            pairs = sp.coo_matrix(st.pp.build_graph(adata, z_key="z", copy=True).obsp["spatial_connectivities"])
            z = adata.obs["z"].to_numpy()
            across = np.flatnonzero(z[pairs.row] != z[pairs.col])
            for way in ways:
                labels = way(adata.copy()).obs["stage_domain"]
                parts = adata.obs.assign(found=labels).groupby("section", observed=True)
                ari = np.mean([st.metrics.ari(AnnData(obs=part), "domain", "found") for _, part in parts])
                codes = labels.cat.codes.to_numpy()
                same = np.mean(codes[pairs.row[across]] == codes[pairs.col[across]])
                along = np.nan if way is one_by_one else round(float(same), 3)
                row = {"tilt": tilt, "seed": seed, "way": way.__name__, "ARI": round(float(ari), 3)}
                rows.append(row | {"same along z": along})
                print(json.dumps(rows[-1]), flush=True)
    columns = ["ARI", "same along z"]
    print(pd.DataFrame(rows).groupby(["tilt", "way"], sort=False)[columns].mean().round(3).to_string())


if __name__ == "__main__":
    main()
