# /// script
# requires-python = ">=3.11"
# dependencies = ["novae==1.1.2", "torch==2.13.0"]
# [tool.benchmark]
# panels = "any"
# ///
"""Novae trained from scratch on the sections: its published weights are on a hub and not used.

Reduced, to end within minutes on one core: training sees about 25,000 cells (8 epochs of 3,000 cells, at least 3) where
the default is 20 epochs; the learning rate falls over these. All else are the defaults. Coordinates that are not in µm
are scaled to a median nearest neighbour at 10 µm.

On sections of a few thousand cells its loss does not leave the logarithm of the number of prototypes, early stopping
ends the training, and labels are those of an untrained network; batches of 64, 128 prototypes and no early stopping
changed nothing. So this is no measure of the pretrained tool.
"""

from __future__ import annotations

import anndata as ad
import lightning
import novae
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

CELLS_SEEN, FEWEST, MOST = 25_000, 3, 20


def label(sections: list[ad.AnnData], n_domains: int, seed: int) -> list[np.ndarray]:
    """Label every section."""
    torch.set_num_threads(1)
    lightning.seed_everything(seed, verbose=False)
    for section in sections:
        if section.uns.get("spatial_unit") != "um":
            section.obsm["spatial"] = in_microns(section.obsm["spatial"])
    novae.spatial_neighbors(sections)
    n_epochs = round(CELLS_SEEN / sum(section.n_obs for section in sections))
    model = novae.Novae(sections)
    model.fit(max_epochs=min(max(n_epochs, FEWEST), MOST), accelerator="cpu", num_workers=0)
    model.compute_representations(accelerator="cpu", num_workers=0)
    key = model.assign_domains(n_domains=n_domains)
    return [section.obs[key].to_numpy() for section in sections]


def in_microns(xy: np.ndarray) -> np.ndarray:
    """Coordinates with a median distance of 10 to the nearest cell."""
    distance, _ = NearestNeighbors(n_neighbors=2).fit(xy).kneighbors(xy)
    return np.asarray(xy) * 10 / np.median(distance[:, 1])
