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


def generator_at(purpose: Purpose, *place: int) -> np.random.Generator:
    """Random number generator for one purpose at one place of the training.

    Parameters
    ----------
    purpose
        What the numbers are for.
    place
        Root seed of the training, then as far as they apply epoch, step in the epoch and number of the slide: for one
        purpose always as many, because numpy does not tell ``(1,)`` from ``(1, 0)``.
    """
    return np.random.default_rng((int(purpose), *place))
