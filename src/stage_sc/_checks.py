"""Checks of single arguments, shared by all public functions; errors name argument, value and remedy."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np


def check_positive(value: Any, name: str, *, integer: bool = False) -> None:
    """Raise unless `value` is a finite number above 0 (TypeError for other types, ValueError for other values)."""
    kind = Integral if integer else Real
    if isinstance(value, bool | np.bool_) or not isinstance(value, kind):
        expected = "an integer" if integer else "a number"
        raise TypeError(f"`{name}` must be {expected} above 0, got {value!r} ({type(value).__name__}).")
    if not 0 < float(value) < np.inf:
        raise ValueError(f"`{name}` must be above 0 and finite, got {value!r}.")


def check_choice(value: Any, name: str, choices: Iterable[str]) -> None:
    """Raise a ValueError naming the valid `choices` unless `value` is one of them."""
    valid = list(choices)
    if value not in valid:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, valid))}, got {value!r}.")


def check_name(value: Any, name: str) -> None:
    """Raise a TypeError unless `value` is a string with at least one character."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"`{name}` must be a string with at least one character, got {value!r}.")


def check_bool(value: Any, name: str) -> None:
    """Raise a TypeError unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {value!r} ({type(value).__name__}).")
