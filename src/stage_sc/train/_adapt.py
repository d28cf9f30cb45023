"""Changes of the configuration for small data, all in one place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise

from stage_sc.nn import StageConfig

logger = logging.getLogger("stage_sc.train")

# Minimum number of cells per leaf, of the largest slide or of all slides: finer leaves are patches of one slide.
CELLS_PER_LEAF = 50
CELLS_PER_LEAF_IN_ALL = 500
# The schedule of the paper is for millions of cells; below this number a shorter and steeper one is used.
SMALL = 200_000
SCRATCH = {"epochs": 20, "warmup_epochs": 10, "learning_rate": 1e-3}
TUNING = {"epochs": 10, "warmup_epochs": 0, "learning_rate": 3e-4}


def adapt_config(config: StageConfig, n_cells: Sequence[int], *, tuning: bool = False) -> StageConfig:
    """Fit the tree and the schedule to the numbers of training cells of the slides, and log the changes.

    With `tuning`, the tree of a trained model is kept and only the schedule changes.
    """
    changes: dict[str, object] = {}
    total = sum(n_cells)
    n_leaves = max(4, max(n_cells) // CELLS_PER_LEAF, total // CELLS_PER_LEAF_IN_ALL)
    if not tuning and n_leaves < config.levels[-1]:
        depth = len(config.levels)
        levels = [max(1, round(n_leaves ** ((level + 1) / depth))) for level in range(depth)]
        while any(lower < 2 * upper for upper, lower in pairwise(levels)):
            levels = levels[1:]
        changes["levels"] = tuple(levels)
    if tuning or total < SMALL:
        changes |= TUNING if tuning else SCRATCH
    if changes:
        listed = ", ".join(f"{name}={value}" for name, value in changes.items())
        logger.info("%d training cells: %s. Pass `config` to decide yourself.", total, listed)
    return config.replace(**changes)
