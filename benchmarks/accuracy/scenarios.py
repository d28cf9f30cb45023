"""What is labelled: sections of one study or of several, with the same genes or with others."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

SHUFFLED = ("shuffled-places", "shuffled-genes")
KINDS = ("joint", "one-by-one", "half-panels", *SHUFFLED)
FACTOR_SD, DEPTH = 0.5, 0.6  # of the batch effect on the second half of a panel


@dataclass(frozen=True)
class Scenario:
    """Sections that are labelled together, or one by one; see scenarios.toml."""

    name: str
    kind: str
    sections: tuple[str, ...]
    roles: tuple[str, ...]
    n_domains: int | None = None
    study: str | None = None
    platform: str | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown kind."""
        if self.kind not in KINDS:
            raise ValueError(f"scenario {self.name!r} has the kind {self.kind!r}: choose one of {KINDS}")

    @property
    def identity(self) -> dict[str, Any]:
        """All that a run depends on."""
        return {"name": self.name, "kind": self.kind, "sections": list(self.sections), "n_domains": self.n_domains}

    def load(self, data: Path, seed: int) -> list[list[ad.AnnData]]:
        """Read the sections, as groups that are labelled together."""
        paths = [path for pattern in self.sections for path in sorted(data.glob(pattern))]
        if not paths:
            raise FileNotFoundError(f"scenario {self.name!r}: no file in {data} matches {self.sections}")
        sections = [ad.read_h5ad(path) for path in paths]
        for section, path in zip(sections, paths, strict=True):
            section.uns["section"] = path.stem if [other.stem for other in paths].count(path.stem) == 1 else str(path)
        if self.kind == "half-panels":
            return [half_panels(section, seed) for section in sections]
        if self.kind in SHUFFLED:
            sections = [shuffled(section, self.kind, seed) for section in sections]
        return [sections] if self.kind == "joint" else [[section] for section in sections]

    def number(self, group: Sequence[ad.AnnData]) -> int:
        """Domains to find: as many as there are expert labels."""
        number = self.n_domains or len(set().union(*(expert(section).dropna() for section in group)))
        if number < 2:
            raise ValueError(f"scenario {self.name!r} has {number} expert labels: give `n_domains`")
        return number


def read_scenarios(more: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Scenario]:
    """Scenarios of scenarios.toml, and those that a config adds."""
    tables: dict[str, Any] = tomllib.loads(Path(__file__).with_name("scenarios.toml").read_text()) | dict(more or {})
    lists = ("sections", "roles")
    return {name: Scenario(name, **table | {key: tuple(table[key]) for key in lists}) for name, table in tables.items()}


def expert(section: ad.AnnData) -> pd.Series:
    """Labels of the expert as strings, missing where there is none."""
    if "domain" not in section.obs:
        return pd.Series(None, index=section.obs_names, dtype=object)
    labels = section.obs["domain"].astype(object)
    return labels.where(labels.isna(), labels.astype(str))


def half_panels(section: ad.AnnData, seed: int) -> list[ad.AnnData]:
    """Make two slides of one: the same cells with two disjoint halves of the genes.

    Counts of the second are multiplied by a log-normal factor per gene, rounded up or down by chance so that the mean
    is kept, and thinned.
    """
    rng = np.random.default_rng(seed)
    halves = [section[:, np.sort(part)].copy() for part in np.array_split(rng.permutation(section.n_vars), 2)]
    counts = sp.csr_matrix(halves[1].X, dtype=np.float64)
    factor = rng.lognormal(sigma=FACTOR_SD, size=halves[1].n_vars)
    counts.data = np.floor(counts.data * factor[counts.indices] + rng.random(counts.nnz))
    counts.data = rng.binomial(counts.data.astype(np.int64), DEPTH).astype(np.float32)
    counts.eliminate_zeros()
    halves[1].X = counts.astype(np.float32)
    for half, name in zip(halves, "AB", strict=True):
        half.uns["section"] = f"{section.uns.get('section', 'section')}-{name}"
    return halves


def shuffled(section: ad.AnnData, kind: str, seed: int) -> ad.AnnData:
    """Permute the coordinates of cells, or every gene over the cells by itself: nothing varies in space any more."""
    rng, section = np.random.default_rng(seed), section.copy()
    if kind == "shuffled-places":
        section.obsm["spatial"] = rng.permutation(section.obsm["spatial"])
        return section
    counts = sp.csc_matrix(section.X)
    for start, end in itertools.pairwise(counts.indptr):
        counts.indices[start:end] = rng.choice(section.n_obs, end - start, replace=False)
    section.X = sp.csr_matrix(counts)
    return section


def common_genes(group: Sequence[ad.AnnData]) -> list[str]:
    """Genes of all sections, in alphabetical order."""
    return sorted(set.intersection(*(set(section.var_names) for section in group)))
