"""Samples of a comparison: their conditions and covariates, read from columns of the cells."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stage_sc._checks import check_name
from stage_sc._input import Tables
from stage_sc._messages import element_name, naming
from stage_sc.analysis._labels import Column, read_column

logger = logging.getLogger("stage_sc.tl")


class Cohort(NamedTuple):
    """Samples of known condition."""

    samples: Column
    """Sample of every cell; -1 for cells without a sample or a condition."""
    conditions: list[str]
    """The reference first."""
    condition: np.ndarray
    """``(n_samples,)`` intp, position in `conditions`."""
    design: np.ndarray
    """``(n_samples, n_columns)`` float64: intercept, each condition but the reference, covariates."""

    def groups(self, condition: int) -> np.ndarray:
        """1 for samples of a condition, 0 for those of the reference, -1 for others."""
        return np.where(self.condition == condition, 1, np.where(self.condition == 0, 0, -1))

    @property
    def replicated(self) -> bool:
        """True if the reference and another condition have two samples or more."""
        number = np.bincount(self.condition, minlength=len(self.conditions))
        return bool(number[0] >= 2 and number[1:].max() >= 2)


def read_cohort(
    tables: Tables, samples: Column, condition_key: str, covariates: Sequence[str], reference: str | None
) -> Cohort:
    """Read the condition and the covariates of every sample, which must have one value each.

    Samples without a condition are left out with a warning.
    """
    conditions = read_column(tables, condition_key, "condition_key")
    condition = _of_samples(samples, conditions.codes, condition_key, "condition_key")
    present = np.unique(samples.codes[samples.codes >= 0])
    used = present[condition[present] >= 0]
    if missing := [samples.names[code] for code in present if condition[code] < 0]:
        logger.warning(
            "%d of %d samples, e.g. %r, have no value in obs[%r] and are left out.",
            *(len(missing), len(present), missing[0], condition_key),
        )
    position = np.full(len(samples.names) + 1, -1)
    position[used] = np.arange(len(used))
    kept = Column([samples.names[code] for code in used], position[samples.codes])
    names = [conditions.names[code] for code in np.unique(condition[used])]
    if len(names) < 2:
        raise ValueError(f"`condition_key`: all samples have the condition {names} in obs[{condition_key!r}].")
    if reference is not None:
        check_name(reference, "reference")
        if reference not in names:
            raise ValueError(f"`reference`: no sample has {reference!r} in obs[{condition_key!r}], there are {names}.")
        names = [reference, *(name for name in names if name != reference)]
    codes = np.array([names.index(conditions.names[condition[code]]) for code in used], dtype=np.intp)
    columns = [np.ones((len(used), 1)), np.eye(len(names))[codes][:, 1:]]
    columns += [_covariate(tables, kept, key) for key in covariates]
    design = np.concatenate(columns, axis=1)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(
            f"`covariates`: {list(covariates)} and obs[{condition_key!r}] cannot be told apart in {len(used)} samples "
            "(each value of a covariate has one condition, or two covariates say the same): leave some out."
        )
    return Cohort(kept, names, codes, design)


def _of_samples(samples: Column, codes: np.ndarray, key: str, argument: str) -> np.ndarray:
    """Value of each sample, -1 for none; a ValueError if its cells have several."""
    known = samples.codes >= 0
    pairs = np.unique(np.c_[samples.codes[known], codes[known]], axis=0)
    sample, number = np.unique(pairs[:, 0], return_counts=True)
    if (number > 1).any():
        several = [samples.names[code] for code in sample[number > 1]]
        raise ValueError(
            f"`{argument}`: {len(several)} samples, e.g. {several[0]!r}, have several values in obs[{key!r}]. Samples "
            "are the replicates, each with one value: name them with `sample_key` (a column that joins slide and "
            "region, if parts of a slide are compared)."
        )
    values = np.full(len(samples.names), -1, dtype=np.intp)
    values[pairs[:, 0]] = pairs[:, 1]
    return values


def _covariate(tables: Tables, samples: Column, key: str) -> np.ndarray:
    """Columns of the design for one covariate: standardised numbers, or all labels but the first."""
    check_name(key, "covariates")
    series = []
    for name, part in tables.by_name.items():
        with naming(element_name("data", name), repr(name)):
            if key not in part.obs:
                raise KeyError(f"`covariates`: no column {key!r} in adata.obs, which has {list(part.obs.columns)}")
            series.append(part.obs[key])
    if all(pd.api.types.is_numeric_dtype(one) and not pd.api.types.is_bool_dtype(one) for one in series):
        numbers = np.concatenate([one.to_numpy(dtype=np.float64, na_value=np.nan) for one in series])
        codes, values = pd.factorize(numbers)
        by_sample = _of_samples(samples, codes, key, "covariates")
        _require_values(by_sample, samples, key)
        number = values[by_sample]
        return ((number - number.mean()) / max(number.std(), 1e-300))[:, None]
    labels = read_column(tables, key, "covariates")
    by_sample = _of_samples(samples, labels.codes, key, "covariates")
    _require_values(by_sample, samples, key)
    return np.eye(len(labels.names))[by_sample][:, np.unique(by_sample)[1:]]


def _require_values(by_sample: np.ndarray, samples: Column, key: str) -> None:
    if missing := [samples.names[code] for code in np.flatnonzero(by_sample < 0)]:
        raise ValueError(
            f"`covariates`: {len(missing)} samples, e.g. {missing[0]!r}, have no value in obs[{key!r}]: fill it, or "
            "drop their cells."
        )
