"""Figures that tell a healthy training from a collapsed one."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("stage_sc.train")

# Below these a run has collapsed: the embeddings of different cells are nearly the same, or few prototypes are used.
MAX_COSINE = 0.98
MIN_SHARE_USED = 0.05


class Health:
    """Collects figures over an epoch."""

    def __init__(self, n_leaves: int) -> None:
        self.count = np.zeros(n_leaves)
        self.rows: list[dict[str, float]] = []

    def update(self, losses: dict[str, Tensor], h: Tensor, leaf_scores: Tensor) -> None:
        """Add a batch."""
        self.count += torch.bincount(leaf_scores.argmax(dim=1).cpu(), minlength=len(self.count)).numpy()
        mean = h.detach().mean(dim=0)
        row = {name: float(value.detach()) for name, value in losses.items()}
        self.rows.append({**row, "cosine": float(mean @ mean)})

    def summary(self) -> dict[str, Any]:
        """Means over the epoch; entropy of the use of leaves (1: all alike), share in use, mean cosine of two cells."""
        share = self.count / max(self.count.sum(), 1)
        used = share > 0
        entropy = float(-(share[used] * np.log(share[used])).sum() / np.log(max(len(share), 2)))
        means = {name: float(np.mean([row[name] for row in self.rows])) for name in self.rows[0]}
        return {**means, "entropy": entropy, "used": int(used.sum())}


def warn_if_collapsed(figures: dict[str, Any], n_leaves: int) -> None:
    """Log a warning where a run has collapsed."""
    if figures["cosine"] > MAX_COSINE or figures["used"] < max(2, MIN_SHARE_USED * n_leaves):
        logger.warning(
            "The embeddings have collapsed: two cells have a cosine of %.3f on average, and %d of %d leaves are in "
            "use. Niches of this model mean little. Train with a lower `learning_rate`, or check the slides.",
            *(figures["cosine"], figures["used"], n_leaves),
        )
