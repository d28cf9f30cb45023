# /// script
# requires-python = ">=3.11"
# dependencies = ["scgpt==0.2.4", "scanpy<1.12", "pynndescent<0.6", "igraph"]
# [tool.benchmark]
# needs = "weights"
# ///
"""Leiden clusters of scGPT's cell embeddings, zero-shot, as in its tutorial; coordinates are not used.

`weights` is the folder of a published checkpoint (args.json, best_model.pt, vocab.json).
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
from _clusters import joined, search, split
from scgpt.tasks import embed_data


def label(sections: list[ad.AnnData], n_domains: int, seed: int, weights: str) -> list[np.ndarray]:
    """Label every section."""
    adata = joined(sections)
    adata.var["gene"] = adata.var_names.str.upper()  # the vocabulary is human
    sc.pp.normalize_total(adata)
    embedded = embed_data(adata, weights, gene_col="gene", batch_size=64, device="cpu", use_fast_transformer=False)
    sc.pp.neighbors(embedded, use_rep="X_scGPT", random_state=seed)

    def cluster(resolution: float) -> np.ndarray:
        sc.tl.leiden(
            embedded, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed
        )
        return embedded.obs["leiden"].to_numpy()

    return split(search(cluster, n_domains), sections)
