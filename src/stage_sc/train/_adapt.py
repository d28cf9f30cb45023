"""What small data changes in the configuration: all in this one place."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from stage_sc.nn import StageConfig

logger = logging.getLogger("stage_sc.train")

# A leaf stands for so many cells of the largest slide at least, or of all slides: finer ones are patches of one slide,
# which the others do not share.
CELLS_PER_LEAF = 50
CELLS_PER_LEAF_IN_ALL = 500
# The published schedule belongs to a corpus of millions of cells; below this many a shorter and steeper one is used.
SMALL = 200_000
SCRATCH = {"epochs": 20, "warmup_epochs": 10, "learning_rate": 1e-3}
TUNING = {"epochs": 10, "warmup_epochs": 0, "learning_rate": 3e-4}


def adapt_config(config: StageConfig, n_cells: Sequence[int], *, tuning: bool = False) -> StageConfig:
    """Fit the size of the tree to the number of cells of a slide, and the length of the schedule to that of all slides.

    Parameters
    ----------
    config
        Wanted configuration.
    n_cells
        Training cells of every slide.
    tuning
        The tree of a trained model is kept: only the schedule changes.

    Returns
    -------
    The configuration to use; what changed is logged.
    """
    changes: dict[str, object] = {}
    total = sum(n_cells)
    filled = max(max(n_cells) // CELLS_PER_LEAF, total // CELLS_PER_LEAF_IN_ALL)
    n_leaves = max(4, min(config.levels[-1], filled))
    if not tuning and n_leaves < config.levels[-1]:
        depth = len(config.levels)
        levels = [max(1, round(n_leaves ** ((level + 1) / depth))) for level in range(depth)]
        while len(levels) > 1 and any(lower < 2 * upper for upper, lower in zip(levels, levels[1:], strict=False)):
            levels = levels[1:]
        changes["levels"] = tuple(levels)
    if tuning or total < SMALL:
        changes |= TUNING if tuning else SCRATCH
    if changes:
        listed = ", ".join(f"{name}={value}" for name, value in changes.items())
        logger.info("%d training cells: %s. Pass `config` to decide yourself.", total, listed)
    return config.replace(**changes)
