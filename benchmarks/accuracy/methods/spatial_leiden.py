# /// script
# requires-python = ">=3.11"
# dependencies = ["spatialleiden==0.4.0", "scanpy==1.11.5", "pynndescent<0.6", "igraph", "harmonypy==2.1.0"]
# ///
"""SpatialLeiden as its manual has it: layer ratio 1.8, both resolutions searched.

The spatial graph has the ten nearest cells, weighted by distance, and on arrays of spots those of the grid, all alike:
six on Visium, four on squares.
Components of several sections are corrected by Harmony.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp
import spatialleiden as sl
from _clusters import components, grid, harmonised, joined, split
from sklearn.neighbors import NearestNeighbors


def label(sections: list[ad.AnnData], n_domains: int, seed: int) -> list[np.ndarray]:
    """Label every section."""
    adata = joined(sections)
    components(adata, seed)
    adata.obsm["X_corrected"] = harmonised(adata, "X_pca", seed)
    sc.pp.neighbors(adata, use_rep="X_corrected", random_state=seed)
    adata.obsp["spatial_connectivities"] = sp.block_diag([near(section) for section in sections], format="csr")
    how = {"layer_ratio": 1.8, "directed": (False, True), "random_state": seed}
    found = sl.search_resolution(adata, n_domains, latent_kwargs={"random_state": seed}, spatial_kwargs=dict(how))
    sl.spatialleiden(adata, resolution=found, **how)
    return split(adata.obs["spatialleiden"].to_numpy(), sections)


def near(section: ad.AnnData) -> sp.csr_matrix:
    """Spatial graph of a section."""
    xy, n_neighbors = section.obsm["spatial"], grid(section)
    if n_neighbors is None:
        return sl.distance2connectivity(NearestNeighbors(n_neighbors=10).fit(xy).kneighbors_graph(mode="distance"))
    places = NearestNeighbors(n_neighbors=n_neighbors).fit(xy)
    if n_neighbors == 6:
        return places.radius_neighbors_graph(radius=1.2 * np.median(places.kneighbors()[0][:, 0]))
    near = places.kneighbors_graph(mode="distance")  # positions are jittered; the rule is squidpy's for grids
    near.data = (near.data <= 1.3 * np.median(near.data)).astype(float)
    near.eliminate_zeros()
    return near.maximum(near.T)
