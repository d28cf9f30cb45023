"""Checks of single arguments, shared by all public functions; errors name argument, value and remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np


def check_positive(value: Any, name: str, *, integer: bool = False, zero: bool = False) -> None:
    """Raise unless `value` is a finite number above 0, or 0 with `zero`; a TypeError for other types."""
    kind: Any = Integral if integer else Real
    least = "of at least 0" if zero else "above 0"
    if isinstance(value, bool | np.bool_) or not isinstance(value, kind):
        expected = "an integer" if integer else "a number"
        raise TypeError(f"`{name}` must be {expected} {least}, got {value!r} ({type(value).__name__}).")
    too_large = not integer and isinstance(value, int) and value > sys.float_info.max
    if not (0 < value < np.inf or (zero and value == 0)) or too_large:
        raise ValueError(f"`{name}` must be {least} and finite, got {value!r}.")


def check_scale(value: Any, name: str = "scale") -> None:
    """Raise unless `value` is a number of µm per unit of length with which distances stay finite."""
    check_positive(value, name)
    if not 1e-12 <= value <= 1e12:
        raise ValueError(f"`{name}` is the length of a unit in µm, from 1e-12 to 1e12, got {value!r}.")


def check_choice(value: Any, name: str, choices: Iterable[str]) -> None:
    """Raise an error naming the valid `choices` unless `value` is one of them (TypeError unless it is a string)."""
    valid = list(choices)
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be one of {', '.join(map(repr, valid))}, got {value!r}.")
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


def read_rng(rng: Any) -> np.random.Generator:
    """Return the generator of a seed, of None (another one on each call) or of a generator, which is used itself."""
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng(rng)
    return np.random.default_rng(read_seed(rng, "rng", "an integer, a generator of numpy or None"))


def read_seed(value: Any, name: str, expected: str = "an integer") -> int:
    """Return a non-negative integer; errors name the argument and the `expected` types."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be {expected}, got {value!r} ({type(value).__name__}).")
    if value < 0:
        raise ValueError(f"`{name}` must be a non-negative integer, got {value!r}.")
    return int(value)


def read_names(value: Any, name: str, kinds: Any = str) -> list[str]:
    """Read one name or several of the given types, without repetition; `name` is that of the argument."""
    given = [value] if isinstance(value, kinds) else value
    if isinstance(given, Iterable) and not isinstance(given, Mapping | str | bytes):
        given = list(given)
        if all(isinstance(item, kinds) for item in given):
            return list(dict.fromkeys(map(str, given)))
    raise TypeError(f"`{name}` must be a string or a list of strings, got {value!r}")
