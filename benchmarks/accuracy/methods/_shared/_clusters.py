"""What several methods need: sections in one AnnData, the usual preprocessing, a given number of clusters."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import scipy.sparse as sp

N_TRIALS = 30
GRIDS = {"Visium": 6, "Spatial Transcriptomics": 4}  # neighbours of a spot


def joined(sections: list[ad.AnnData]) -> ad.AnnData:
    """All sections in one, named in ``obs["section"]``; counts as csr float32, coordinates in ``obsm["spatial"]``."""
    adata = ad.concat(dict(enumerate(map(bare, sections))), label="section", index_unique="-")
    adata.obs["section"] = adata.obs["section"].astype(str).astype("category")
    return adata


def bare(section: ad.AnnData) -> ad.AnnData:
    """Counts, coordinates and names."""
    return ad.AnnData(
        sp.csr_matrix(section.X, dtype=np.float32),
        obs=section.obs[[]],
        var=section.var[[]],
        obsm={"spatial": np.asarray(section.obsm["spatial"], dtype=np.float64)},
    )


def split(labels: np.ndarray, sections: list[ad.AnnData]) -> list[np.ndarray]:
    """Take the labels of `joined` apart."""
    return np.split(np.asarray(labels), np.cumsum([section.n_obs for section in sections])[:-1])


def grid(section: ad.AnnData) -> int | None:
    """Neighbours that a spot has on the array's grid; None where there is no array."""
    return GRIDS.get(str(section.uns.get("platform")).partition(" (")[0])


def components(adata: ad.AnnData, seed: int, *, n_genes: int = 2000, n_comps: int = 50) -> None:
    """Counts to log-normalised ones, variable genes where there are many, principal components: as scanpy teaches."""
    import scanpy as sc

    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    if adata.n_vars > n_genes:
        sc.pp.highly_variable_genes(adata, n_top_genes=n_genes, batch_key="section")
    sc.pp.pca(adata, n_comps=min(n_comps, adata.n_vars - 1), random_state=seed)


def harmonised(adata: ad.AnnData, key: str, seed: int) -> np.ndarray:
    """``obsm[key]`` without the differences between sections, by Harmony; as it is for one section."""
    if adata.obs["section"].nunique() == 1:
        return adata.obsm[key]
    import harmonypy

    found = harmonypy.run_harmony(adata.obsm[key], adata.obs, "section", random_state=seed).Z_corr
    return np.asarray(found if len(found) == adata.n_obs else found.T)


def search(
    cluster: Callable[[float], np.ndarray], n_domains: int, *, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
    """Find the resolution that gives `n_domains` clusters, by bisection; else the labels that come closest."""
    best, gap = np.empty(0), np.inf
    bounded = False
    for _ in range(N_TRIALS):
        resolution = (low + high) / 2 if bounded else high
        labels = np.asarray(cluster(resolution))
        n_found = len(np.unique(labels))
        if abs(n_found - n_domains) < gap:
            best, gap = labels, abs(n_found - n_domains)
        if n_found == n_domains:
            break
        if n_found > n_domains:
            bounded, high = True, resolution
        else:
            low, high = resolution, high if bounded else 2 * high
    return best


def tied_mixture(values: np.ndarray, n_domains: int, seed: int) -> np.ndarray:
    """Gaussian mixture with one covariance for all clusters: model EEE of mclust, which is an R package."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(n_domains, covariance_type="tied", n_init=5, reg_covar=1e-6, random_state=seed)
    return mixture.fit_predict(np.asarray(values, dtype=np.float64))


def apart(sections: list[ad.AnnData]) -> np.ndarray:
    """Coordinates (n, 2) with the sections side by side, so far that no neighbourhood reaches from one to another."""
    places, left = [], 0.0
    for section in sections:
        xy = np.asarray(section.obsm["spatial"], dtype=np.float64)
        xy = xy - xy.min(axis=0) + [left, 0.0]
        left = 2 * xy[:, 0].max() - left + np.ptp(xy[:, 1])
        places.append(xy)
    return np.concatenate(places)
