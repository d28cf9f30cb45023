"""False discovery rate on a tree of hypotheses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Family(NamedTuple):
    """Hypotheses about the children of one node, which are considered only if that of the node is rejected."""

    tests: Mapping[Any, float]
    """p-value of each hypothesis of its own, NaN if it was not tested."""
    nested: Sequence[Hashable]
    """Names of families below."""


def tree_adjust(families: Mapping[Any, Family], root: Hashable) -> dict[Any, float]:
    r"""Adjust p-values by TreeBH: the smallest rate at which each hypothesis is rejected.

    A family stands for "nothing differs in it or below", with the p-value of Simes over its members: its own tests and
    the families below. From the root down, the members of a rejected family are tested by Benjamini and Hochberg's
    procedure at

    .. math:: q \prod_{a} \frac{R_a}{m_a},

    where :math:`R_a` of the :math:`m_a` members were rejected in each family a on the way to it; the root is tested at
    q. For independent p-values the expected share of false discoveries, averaged over the families that were entered,
    is at most q on each level.

    References
    ----------
    Bogomolov, Peterson, Benjamini, Sabatti. Hypotheses on a tree: new error rates and testing strategies. Biometrika
    108 (2021).
    """
    p_values = _simes(families, root)
    adjusted: dict[Any, float] = {}
    # Rates at which the factor of the level changes, and the factor from each on.
    pending = [(root, np.array([p_values[root]]), np.array([1.0]))]
    while pending:
        name, starts, factors = pending.pop()
        family = families[name]
        keys = [key for key, p in family.tests.items() if not np.isnan(p)]
        inner = [one for one in family.nested if not np.isnan(p_values[one])]
        p = np.array([*(family.tests[key] for key in keys), *(p_values[one] for one in inner)])
        if not len(p):
            continue
        rates = _first_rates(benjamini_hochberg(p), starts, factors)
        adjusted |= dict(zip(keys, rates[: len(keys)].tolist(), strict=True))
        steps = np.unique(np.r_[starts, rates])
        share = (rates[None, :] <= steps[:, None]).mean(axis=1)
        steps, share = steps[share > 0], share[share > 0]
        product = share * factors[np.searchsorted(starts, steps, side="right") - 1]
        for one, rate in zip(inner, rates[len(keys) :], strict=True):
            entered = steps >= rate
            pending.append((one, steps[entered], product[entered]))
    return adjusted


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjust p-values, ``(n,)``, for their number."""
    order = np.argsort(-p)
    rank = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(p[order] * len(p) / rank).clip(max=1)
    return adjusted


def _simes(families: Mapping[Any, Family], root: Hashable) -> dict[Hashable, float]:
    """p-value of each family from those of its members, from the leaves up; NaN without any."""
    order, pending = [], [root]
    while pending:
        order.append(pending.pop())
        pending += families[order[-1]].nested
    found: dict[Hashable, float] = {}
    for name in reversed(order):
        members = np.array([*families[name].tests.values(), *(found[one] for one in families[name].nested)], float)
        members = members[~np.isnan(members)]
        found[name] = float(benjamini_hochberg(members).min()) if len(members) else np.nan
    return found


def _first_rates(adjusted: np.ndarray, starts: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Smallest rate q with ``q * factor(q) >= adjusted``, in steps that begin at `starts`; 1 if there is none below."""
    ends = np.r_[starts[1:], np.inf]
    rate = np.maximum(starts[:, None], adjusted[None, :] / factors[:, None])
    rate = np.where(rate < ends[:, None], rate, np.inf)
    return rate.min(axis=0).clip(max=1)
