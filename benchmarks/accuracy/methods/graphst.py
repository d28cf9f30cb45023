# /// script
# requires-python = ">=3.11"
# dependencies = ["graphst-modern==1.1.1.post3", "torch==2.13.0"]
# ///
"""GraphST with its own preprocessing: 600 epochs, the sparse graph ("Slide") for platforms that resolve cells.

The distribution is graphst-modern, which keeps GraphST's code and runs with today's scipy. Sections lie side by side
(its tutorial aligns slices by an R-free tool of another project, which sections of different animals do not allow).
Clusters are those of a Gaussian mixture with one covariance on 20 components, for mclust's EEE, which is an R package;
Visium spots are refined over the 50 nearest, as in the tutorial. It holds arrays of cells by cells.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import torch
from _clusters import apart, joined, split, tied_mixture
from GraphST.GraphST import GraphST
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

N_GENES = 3000  # GraphST takes the 3,000 most variable: all, on smaller panels


def label(sections: list[ad.AnnData], n_domains: int, seed: int) -> list[np.ndarray]:
    """Label every section."""
    adata = joined(sections)
    adata.obsm["spatial"] = apart(sections)
    spots = all(section.uns.get("platform") == "Visium" for section in sections)
    network = GraphST(adata, device=torch.device("cpu"), random_seed=seed, datatype="10X" if spots else "Slide")
    embedding = network.train().obsm["emb"]
    found = tied_mixture(PCA(20, random_state=seed).fit_transform(embedding), n_domains, seed)
    return split(refined(found, adata.obsm["spatial"]) if spots else found, sections)


def refined(labels: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Give every spot the commonest label of its 50 nearest."""
    nearest = NearestNeighbors(n_neighbors=51).fit(xy).kneighbors(xy, return_distance=False)[:, 1:]
    votes = np.stack([(labels[nearest] == name).sum(axis=1) for name in range(labels.max() + 1)], axis=1)
    return votes.argmax(axis=1)
