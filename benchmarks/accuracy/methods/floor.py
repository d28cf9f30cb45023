# /// script
# requires-python = ">=3.11"
# dependencies = ["anndata>=0.12", "scikit-learn>=1.5"]
# ///
"""The plain floor: log-normalise, PCA (30), mean over two hops of the graph, k-means.

The graph is the Delaunay triangulation without edges above three times their median length. Several sections are put
together without any correction.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import scipy.sparse as sp
from _clusters import joined, split
from scipy.spatial import Delaunay
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

N_COMPS, LONGEST = 30, 3.0


def label(sections: list[ad.AnnData], n_domains: int, seed: int) -> list[np.ndarray]:
    """Label every section."""
    counts = joined(sections).X.toarray().astype(np.float64)
    depth = counts.sum(axis=1, keepdims=True)
    values = np.log1p(counts * (np.median(depth) / np.maximum(depth, 1e-9)))
    values = PCA(min(N_COMPS, *values.shape), random_state=seed).fit_transform(values)
    smooth = [two_hops(section) @ part for section, part in zip(sections, split(values, sections), strict=True)]
    return split(KMeans(n_domains, n_init=10, random_state=seed).fit_predict(np.concatenate(smooth)), sections)


def two_hops(section: ad.AnnData) -> sp.csr_matrix:
    """Weights of the mean over all cells at most two edges away, the cell itself among them."""
    xy = np.asarray(section.obsm["spatial"], dtype=np.float64)
    triangles = Delaunay(xy).simplices
    first, second = np.concatenate([triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])]).T
    length = np.linalg.norm(xy[first] - xy[second], axis=1)
    short = length <= LONGEST * np.median(length)
    edges = sp.csr_matrix((np.ones(short.sum()), (first[short], second[short])), shape=(len(xy), len(xy)))
    near = edges + edges.T + sp.eye(len(xy), format="csr")
    reached = (near @ near > 0).astype(np.float64)
    return sp.csr_matrix(reached.multiply(1 / reached.sum(axis=1)))
