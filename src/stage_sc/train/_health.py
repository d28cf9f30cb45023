"""Metrics that tell a healthy training from a collapsed one."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from stage_sc.nn import StageConfig

logger = logging.getLogger("stage_sc.train")

# Beyond these a run has collapsed: the embeddings of different cells are nearly the same, or few prototypes are used.
MAX_COSINE = 0.98
MIN_SHARE_USED = 0.05
# Training ends after so many collapsed epochs in a row.
PATIENCE = 2

EpochMetrics = dict[str, float | str]


class Health:
    """Collects metrics over an epoch, as sums over its steps.

    Parameters
    ----------
    n_leaves
        Leaves of the tree.
    """

    def __init__(self, n_leaves: int) -> None:
        self.count = torch.zeros(n_leaves, dtype=torch.int64)
        self.sums: dict[str, float] = {}
        self.n_steps = 0

    def update(self, losses: dict[str, Tensor], h: Tensor, leaf_scores: Tensor) -> None:
        """Add a batch."""
        self.count += torch.bincount(leaf_scores.argmax(dim=1), minlength=len(self.count)).cpu()
        n, total = len(h), h.detach().sum(dim=0)
        cosine = (total @ total - n) / max(1, n * (n - 1))  # of two different cells
        values = torch.stack([*(loss.detach() for loss in losses.values()), cosine]).tolist()
        for name, value in zip((*losses, "cosine"), values, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.n_steps += 1

    def summary(self) -> EpochMetrics:
        """Means over the epoch; entropy of the use of leaves (1: all alike), and leaves in use."""
        share = self.count.numpy() / max(int(self.count.sum()), 1)
        used = share > 0
        entropy = float(-(share[used] * np.log(share[used])).sum() / np.log(max(len(share), 2)))
        means = {name: total / self.n_steps for name, total in self.sums.items()}
        return {**means, "entropy": entropy, "used": int(used.sum())}


def has_collapsed(history: list[EpochMetrics], n_leaves: int, patience: int = PATIENCE) -> bool:
    """Whether the last `patience` epochs were all beyond what is healthy, or brought no numbers at all."""
    least = min(n_leaves, max(2, MIN_SHARE_USED * n_leaves))
    last = history[-patience:]
    return len(last) == patience and all(
        not float(row["cosine"]) <= MAX_COSINE or float(row["used"]) < least for row in last
    )


def warn_if_collapsed(history: list[EpochMetrics], config: StageConfig) -> None:
    """Log a warning if the last epoch was that of a collapsed run."""
    if has_collapsed(history, config.levels[-1], patience=1):
        logger.warning(
            "The embeddings have collapsed after %d of %d epochs: two cells have a cosine of %.3f on average, and %d "
            "of %d leaves are in use. Niches of this model mean little. Train with a lower `learning_rate`, or check "
            "the slides.",
            *(len(history), config.epochs, history[-1]["cosine"], history[-1]["used"], config.levels[-1]),
        )
