# /// script
# requires-python = ">=3.11"
# dependencies = ["scanpy==1.11.5", "pynndescent<0.6", "louvain==0.8.2", "setuptools<81"]
# ///
"""Louvain clusters of single cells, as scanpy's tutorial has them: no coordinates, no correction of batches."""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
from _clusters import components, joined, search, split


def label(sections: list[ad.AnnData], n_domains: int, seed: int) -> list[np.ndarray]:
    """Label every section."""
    adata = joined(sections)
    components(adata, seed)
    sc.pp.neighbors(adata, random_state=seed)

    def cluster(resolution: float) -> np.ndarray:
        sc.tl.louvain(adata, resolution=resolution, random_state=seed)
        return adata.obs["louvain"].to_numpy()

    return split(search(cluster, n_domains), sections)
