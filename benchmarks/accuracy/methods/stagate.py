# /// script
# requires-python = ">=3.11"
# dependencies = ["stagate-modern==1.0.0.post1", "scanpy==1.11.5", "scikit-misc", "torch==2.13.0"]
# ///
"""STAGATE in its PyTorch version, as in its tutorials: 1,000 epochs of the graph attention autoencoder.

The distribution is stagate-modern, which keeps the code of STAGATE_pyG (not on PyPI) without torch_sparse. Edges join
cells within 1.1 times the median distance to the sixth nearest: six neighbours on Visium, about seven elsewhere.
3,000 variable genes on panels with more. Sections lie side by side, so their networks do not touch. Clusters are those
of a Gaussian mixture with one covariance, as mclust's model EEE, which the tutorials use, is an R package.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
import STAGATE_pyG as stagate
from _clusters import apart, joined, split, tied_mixture
from sklearn.neighbors import NearestNeighbors

N_GENES = 3000


def label(sections: list[ad.AnnData], n_domains: int, seed: int) -> list[np.ndarray]:
    """Label every section."""
    adata = joined([scaled(section) for section in sections])
    adata.obsm["spatial"] = apart([adata[adata.obs["section"] == name] for name in map(str, range(len(sections)))])
    if adata.n_vars > N_GENES:
        sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=N_GENES)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    stagate.Cal_Spatial_Net(adata, rad_cutoff=1.1, verbose=False)
    stagate.train_STAGATE(adata, random_seed=seed, verbose=False, device="cpu")
    return split(tied_mixture(adata.obsm["STAGATE"], n_domains, seed), sections)


def scaled(section: ad.AnnData) -> ad.AnnData:
    """Coordinates in units of the median distance to the sixth nearest cell."""
    xy = np.asarray(section.obsm["spatial"], dtype=np.float64)
    distance, _ = NearestNeighbors(n_neighbors=7).fit(xy).kneighbors(xy)
    section = section.copy()
    section.obsm["spatial"] = xy / np.median(distance[:, 6])
    return section
