# /// script
# requires-python = ">=3.11"
# dependencies = ["cellcharter==0.3.7", "scvi-tools", "squidpy==1.8.2", "torch==2.13.0"]
# ///
"""CellCharter as in its tutorials: scVI per section as batch, Delaunay graph without long links, three layers, GMM."""

from __future__ import annotations

import anndata as ad
import cellcharter as cc
import numpy as np
import scvi
import squidpy as sq
import torch
from _clusters import joined, split


def label(sections: list[ad.AnnData], n_domains: int, seed: int) -> list[np.ndarray]:
    """Label every section."""
    torch.set_num_threads(1)
    scvi.settings.seed = seed
    adata = joined(sections)
    batch = "section" if len(sections) > 1 else None
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch)
    network = scvi.model.SCVI(adata)
    network.train(early_stopping=True, accelerator="cpu", enable_progress_bar=False)
    adata.obsm["X_scVI"] = network.get_latent_representation().astype(np.float32)
    sq.gr.spatial_neighbors(adata, library_key="section", coord_type="generic", delaunay=True, percentile=99)
    cc.gr.remove_long_links(adata)
    cc.gr.aggregate_neighbors(adata, n_layers=3, use_rep="X_scVI", out_key="X_cellcharter", sample_key="section")
    mixture = cc.tl.Cluster(n_clusters=n_domains, random_state=seed, trainer_params={"accelerator": "cpu"})
    mixture.fit(adata, use_rep="X_cellcharter")
    return split(np.asarray(mixture.predict(adata, use_rep="X_cellcharter")), sections)
