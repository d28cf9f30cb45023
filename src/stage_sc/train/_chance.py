"""Chance by counting: what is drawn depends on the place in the training alone, so any step can be repeated."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """What is drawn."""

    TREE = 1
    VIEWS = 2
    PARTNERS = 3
    PATHS = 4


def chance(what: Draw, *place: int) -> np.random.Generator:
    """Source of chance for one purpose at one place.

    Parameters
    ----------
    what
        The purpose.
    place
        Root seed of the training, then as far as they apply epoch, step in the epoch and number of the slide: for one
        purpose always as many, because numpy does not tell ``(1,)`` from ``(1, 0)``.
    """
    return np.random.default_rng((int(what), *place))
