"""Metrics that tell a healthy training from a collapsed one."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from stage_sc.nn import StageConfig

logger = logging.getLogger("stage_sc.train")

# A training has collapsed above this mean cosine of two cells, or below this fraction of leaves in use.
MAX_COSINE = 0.98
MIN_FRACTION_USED = 0.05
# Number of successive collapsed epochs after which training ends.
PATIENCE = 2

EpochMetrics = dict[str, float | str]


class Health:
    """Metrics of an epoch, collected as sums over its steps."""

    def __init__(self, n_leaves: int) -> None:
        self.count = torch.zeros(n_leaves, dtype=torch.int64)
        self.sums: dict[str, float] = {}
        self.n_steps = 0

    def update(self, losses: dict[str, Tensor], h: Tensor, leaf_scores: Tensor) -> None:
        """Add a batch."""
        self.count += torch.bincount(leaf_scores.argmax(dim=1), minlength=len(self.count)).cpu()
        n, total = len(h), h.detach().sum(dim=0)
        cosine = (total @ total - n) / max(1, n * (n - 1))  # mean over pairs of different cells
        values = torch.stack([*(loss.detach() for loss in losses.values()), cosine]).tolist()
        for name, value in zip((*losses, "cosine"), values, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.n_steps += 1

    def summary(self) -> EpochMetrics:
        """Means over the epoch, normalised entropy of the leaves (1: equal use), and number of leaves in use."""
        fraction = self.count.numpy() / max(int(self.count.sum()), 1)
        used = fraction[fraction > 0]
        entropy = float(-(used * np.log(used)).sum() / np.log(max(len(fraction), 2)))
        means = {name: total / self.n_steps for name, total in self.sums.items()}
        return {**means, "entropy": entropy, "used": len(used)}


def has_collapsed(history: list[EpochMetrics], n_leaves: int, patience: int = PATIENCE) -> bool:
    """Return True if the last `patience` epochs were all collapsed, or without numbers."""
    min_used = min(n_leaves, max(2, MIN_FRACTION_USED * n_leaves))
    last = history[-patience:]
    return len(last) == patience and all(
        not float(row["cosine"]) <= MAX_COSINE or float(row["used"]) < min_used for row in last
    )


def warn_if_collapsed(history: list[EpochMetrics], config: StageConfig) -> None:
    """Log a warning if the last epoch was collapsed."""
    if has_collapsed(history, config.levels[-1], patience=1):
        logger.warning(
            "The embeddings have collapsed after %d of %d epochs: two cells have a cosine of %.3f on average, and %d "
            "of %d leaves are in use. Niches of this model mean little. Train with a lower `learning_rate`, or check "
            "the slides.",
            *(len(history), config.epochs, history[-1]["cosine"], history[-1]["used"], config.levels[-1]),
        )
