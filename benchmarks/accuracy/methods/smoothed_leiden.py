# /// script
# requires-python = ">=3.11"
# dependencies = ["scanpy==1.11.5", "pynndescent<0.6", "igraph==1.0.0", "harmonypy==2.1.0"]
# ///
"""Leiden clusters of principal components averaged over each cell and its ten nearest: no tool, a bar to pass.

The components of several sections are corrected by Harmony first.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
from _clusters import components, harmonised, joined, search, split
from sklearn.neighbors import NearestNeighbors


def label(sections: list[ad.AnnData], n_domains: int, seed: int) -> list[np.ndarray]:
    """Label every section."""
    adata = joined(sections)
    components(adata, seed, n_comps=30)
    corrected = split(harmonised(adata, "X_pca", seed), sections)
    adata.obsm["smooth"] = np.concatenate(
        [
            values[NearestNeighbors(n_neighbors=11).fit(xy).kneighbors(xy, return_distance=False)].mean(axis=1)
            for values, xy in zip(corrected, (section.obsm["spatial"] for section in sections), strict=True)
        ]
    )
    sc.pp.neighbors(adata, use_rep="smooth", random_state=seed)

    def cluster(resolution: float) -> np.ndarray:
        sc.tl.leiden(adata, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        return adata.obs["leiden"].to_numpy()

    return split(search(cluster, n_domains), sections)
