"""Random numbers that depend on purpose, epoch and step alone, so that any step can be repeated."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Purpose of random numbers."""

    TREE = 1
    VIEWS = 2
    PARTNERS = 3
    PATHS = 4


def generator_at(purpose: Purpose, *key: int) -> np.random.Generator:
    """Random number generator for one purpose and one step of the training.

    `key` is the root seed, then, as far as they apply, epoch, step of the epoch and number of the slide. Its length is
    fixed per purpose, because numpy gives ``(1,)`` and ``(1, 0)`` the same numbers.
    """
    return np.random.default_rng((int(purpose), *key))
