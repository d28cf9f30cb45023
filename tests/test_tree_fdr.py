"""False discovery rates on a tree of hypotheses, against the procedure run at single rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from stage_sc.analysis._tree_fdr import Family, tree_adjust


def rejected_at(families, p_values, root, q):
    """TreeBH at one rate, step by step."""
    found, pending = set(), [(root, q)] if p_values[root] <= q else []
    while pending:
        name, level = pending.pop()
        members = [*families[name].tests, *families[name].nested]
        p = np.array([families[name].tests.get(one, p_values.get(one, np.nan)) for one in members])
        tested = ~np.isnan(p)
        if not tested.any():
            continue
        adjusted = np.full(len(p), np.inf)
        adjusted[tested] = false_discovery_control(p[tested])
        passed = adjusted <= level
        for one in np.array(members, dtype=object)[passed]:
            if one in families[name].tests:
                found.add(one)
            else:
                pending.append((one, level * passed.sum() / tested.sum()))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_adjusted_values_are_the_smallest_rates(seed):
    rng = np.random.default_rng(seed)
    families, p_values = {}, {}
    for one in range(4):
        below = [f"f{one}{two}" for two in range(rng.integers(0, 3))]
        for name in below:
            families[name] = Family({f"{name}-{i}": rng.beta(0.3, 2) for i in range(rng.integers(1, 5))}, [])
        families[f"f{one}"] = Family({f"f{one}-{i}": rng.beta(0.3, 2) for i in range(3)}, below)
    families["root"] = Family({"top": rng.random(), "gone": np.nan}, [f"f{one}" for one in range(4)])

    def simes(name):
        p = [p for p in [*families[name].tests.values(), *map(simes, families[name].nested)] if not np.isnan(p)]
        p_values[name] = float(np.min(np.sort(p) * len(p) / np.arange(1, len(p) + 1)))
        return p_values[name]

    simes("root")
    adjusted = tree_adjust(families, "root")
    assert "gone" not in adjusted
    for q in [*rng.random(30), *(rate * (1 + 1e-9) for rate in adjusted.values() if rate < 1)]:
        expected = rejected_at(families, p_values, "root", q)
        assert {name for name, rate in adjusted.items() if rate <= q} == expected


def test_one_family_is_benjamini_hochberg():
    p = np.random.default_rng(1).random(20) ** 3
    adjusted = tree_adjust({"root": Family(dict(enumerate(p)), [])}, "root")
    assert np.allclose([adjusted[one] for one in range(20)], false_discovery_control(p))
