# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "scanpy==1.11.5", "pynndescent<0.6", "squidpy==1.8.2", "leidenalg<0.12", "harmonypy==2.1.0", "seaborn", "shapely",
# ]
# [tool.benchmark]
# without-dependencies = ["SOMENDER==1.1"]
# ///
"""MENDER as in its tutorials: cell states by Leiden (resolution 2), six rings of neighbours, Leiden on their counts.

Rings are one median nearest-neighbour distance wide (its tutorial for STARmap: 15 µm), grid rings on arrays of spots.
States of several sections are found on components corrected by Harmony. The distribution SOMENDER pins packages of
2023, and is installed without them.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
from _clusters import components, grid, harmonised, joined, split
from MENDER import MENDER
from sklearn.neighbors import NearestNeighbors


def label(sections: list[ad.AnnData], n_domains: int, seed: int) -> list[np.ndarray]:
    """Label every section."""
    adata = joined([scaled(section) for section in sections])
    components(adata, seed, n_genes=4000)
    adata.obsm["X_corrected"] = harmonised(adata, "X_pca", seed)
    sc.pp.neighbors(adata, use_rep="X_corrected", random_state=seed)
    sc.tl.leiden(adata, resolution=2, key_added="ct", random_state=seed)
    spots = grid(sections[0])  # 6 on Visium, 4 on squares, else None

    found = MENDER(adata, batch_obs="section", ct_obs="ct", random_seed=seed)
    found.prepare()
    found.set_MENDER_para(n_scales=6, nn_mode="ring" if spots else "radius", nn_para=spots or 1.0)
    found.run_representation()
    found.adata_MENDER = ad.concat(found.adata_MENDER_list)
    found.run_clustering_normal(n_domains)
    return split(found.adata_MENDER.obs["MENDER"].loc[adata.obs_names].to_numpy(), sections)


def scaled(section: ad.AnnData) -> ad.AnnData:
    """Coordinates in units of the median distance to the nearest cell."""
    xy = np.asarray(section.obsm["spatial"], dtype=np.float64)
    distance, _ = NearestNeighbors(n_neighbors=2).fit(xy).kneighbors(xy)
    section = section.copy()
    section.obsm["spatial"] = xy / np.median(distance[:, 1])
    return section
