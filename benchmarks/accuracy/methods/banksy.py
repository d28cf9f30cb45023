# /// script
# requires-python = ">=3.11"
# dependencies = ["pybanksy==1.3.5", "scanpy==1.11.5", "pynndescent<0.6", "harmonypy==2.1.0"]
# ///
"""BANKSY for domains: its tutorials' 15 neighbours, lambda 0.8, 20 components, Leiden on shared neighbours.

Counts are normalised to the median and cut to 2,000 variable genes where there are more. Several sections are laid
side by side and their components corrected by Harmony, as in the tutorial for several samples. The resolution is
searched for the number of domains. `neighbours` 6 and `weight` 0.2 are what its authors take on Visium.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
from _clusters import apart, harmonised, joined, search, split
from banksy.embed_banksy import generate_banksy_matrix
from banksy.initialize_banksy import initialize_banksy
from banksy.main import LeidenPartition
from sklearn.decomposition import PCA

N_COMPS, DECAY = 20, "scaled_gaussian"


def label(
    sections: list[ad.AnnData], n_domains: int, seed: int, neighbours: int = 15, weight: float = 0.8
) -> list[np.ndarray]:
    """Label every section."""
    adata = joined(sections)
    sc.pp.normalize_total(adata)
    if adata.n_vars > 2000:
        variable = sc.pp.highly_variable_genes(
            sc.pp.log1p(adata, copy=True), n_top_genes=2000, batch_key="section", inplace=False
        )
        adata = adata[:, variable["highly_variable"].to_numpy()].copy()
    adata.obsm["spatial"] = apart(sections)
    adata.obs["x"], adata.obs["y"] = adata.obsm["spatial"].T
    quiet = dict.fromkeys(("plt_edge_hist", "plt_nbr_weights", "plt_agf_angles", "plt_theta"), False)
    weights = initialize_banksy(adata, ("x", "y", "spatial"), neighbours, DECAY, max_m=1, **quiet)
    _, matrix = generate_banksy_matrix(adata, weights, [weight], max_m=1, verbose=False)
    values = np.nan_to_num(np.asarray(matrix.X, dtype=np.float64))
    adata.obsm["components"] = PCA(min(N_COMPS, values.shape[1]), random_state=seed).fit_transform(values)
    partition = LeidenPartition(harmonised(adata, "components", seed), num_nn=50, verbose=False)

    def cluster(resolution: float) -> np.ndarray:
        found, _ = partition.partition(resolution=resolution, n_iterations=-1, seed=seed)
        return np.asarray(found.dense)

    return split(search(cluster, n_domains), sections)
