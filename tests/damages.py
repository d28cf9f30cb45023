"""Damages of an object, the part that each is of, and the parts that each public function reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


class Damage(NamedTuple):
    """A change of an object."""

    part: str
    """Parts of the object: X, genes (v), places (p), slides (s), graph (g, and u in uns), result (r), labels (l),
    number of cells (n), doubled columns (d)."""
    outcome: str
    """``"error"``, ``"warning"`` (or an error), ``"right"`` (no error), or ``"same"`` (and the same result)."""
    change: Callable[[ad.AnnData], None]


def x(outcome: str, make: Callable[[sp.csr_matrix], Any]) -> Damage:
    """Change of the expression, also to forms that AnnData does not convert."""
    return Damage("X", outcome, lambda a: setattr(a, "_X", make(a.X.copy())))


def entry(value: float) -> Damage:
    """One value of the expression."""
    return x("error", lambda X: X.data.__setitem__(3, value) or X)


def places(outcome: str, make: Callable[[np.ndarray], Any]) -> Damage:
    return Damage("p", outcome, lambda a: a.obsm.__setitem__("spatial", make(np.array(a.obsm["spatial"]))))


def uns(part: str, key: str, value: Any) -> Damage:
    return Damage(part, "error", lambda a: a.uns.__setitem__(key, value))


def column(part: str, outcome: str, name: str, make: Callable[[pd.Series], Any]) -> Damage:
    return Damage(part, outcome, lambda a: a.obs.__setitem__(name, make(a.obs[name])))


def cells(outcome: str, rows: Any) -> Damage:
    return Damage("n", outcome, lambda a: a._inplace_subset_obs(np.arange(a.n_obs)[rows]))


def genes(outcome: str, names: Callable[[list[str]], list[str]]) -> Damage:
    return Damage("v", outcome, lambda a: setattr(a, "var_names", names(list(a.var_names))))


def first(values: pd.Series, n: int, value: Any) -> pd.Series:
    """Column of objects with another value in the first cells."""
    return values.astype(object).where(np.arange(len(values)) >= n, value)


def graphs(change: Callable[[ad.AnnData, str], None]) -> Damage:
    return Damage("g", "error", lambda a: [change(a, key) for key in list(a.obsp)] and None)


def twice(part: str, name: str) -> Damage:
    """A column that is there twice, which anndata takes but cannot subset."""
    return Damage(f"{part}d", "error", lambda a: setattr(a, "obs", pd.concat([a.obs, a.obs[[name]]], axis=1)))


def odd_columns(adata: ad.AnnData) -> None:
    """Columns that no function reads."""
    adata.obs[0], adata.obs["lists"] = 1, [[1]] * adata.n_obs


DAMAGES: dict[str, Damage] = {
    "NaN in X": entry(np.nan),
    "infinite X": entry(np.inf),
    "negative X": entry(-1),
    "huge X": entry(1e38),
    "index out of range": x("error", lambda X: X.indices.__setitem__(5, 10**6) or X),
    "index negative": x("error", lambda X: X.indices.__setitem__(5, -1) or X),
    "complex X": x("error", lambda X: X.toarray().astype(complex)),
    "object X": x("error", lambda X: X.toarray().astype(object)),
    "text X": x("error", lambda X: X.toarray().astype(int).astype(str)),
    "masked X": x("error", lambda X: np.ma.masked_less(X.toarray(), 1)),
    "no X": Damage("X", "error", lambda a: setattr(a, "X", None)),
    "bool X": x("right", lambda X: X.astype(bool)),
    "negative zeros": x("same", lambda X: np.where(X.toarray() == 0, np.float32(-0.0), X.toarray())),
    "integer X": x("same", lambda X: X.astype(np.int16)),
    "big-endian X": x("same", lambda X: X.toarray().astype(">f8")),
    "Fortran X": x("same", lambda X: np.asfortranarray(X.toarray())),
    "csc X": x("same", lambda X: X.tocsc()),
    "csr array": x("same", sp.csr_array),
    "read-only X": x("same", lambda X: X.data.setflags(write=False) or X.indices.setflags(write=False) or X),
    "unknown genes": genes("error", lambda names: [f"x{i}" for i in range(len(names))]),
    "duplicated genes": genes("warning", lambda names: [names[0], *names[:-1]]),
    "no genes": Damage("v", "error", lambda a: a._inplace_subset_var(np.zeros(a.n_vars, bool))),
    "place NaN": places("error", lambda xy: np.where(np.arange(len(xy))[:, None] == 4, np.nan, xy)),
    "place infinite": places("error", lambda xy: np.where(np.arange(len(xy))[:, None] == 4, np.inf, xy)),
    "places text": places("error", lambda xy: xy.astype(str)),
    "places objects": places("error", lambda xy: np.full(xy.shape, "a", object)),
    "places complex": places("error", lambda xy: xy + 1j),
    "places bool": places("error", lambda xy: xy > 100),
    "places in 1 column": places("error", lambda xy: xy[:, :1]),
    "places in 4 columns": places("error", lambda xy: np.c_[xy, xy]),
    "places dates": places("error", lambda xy: xy.astype("datetime64[s]")),
    "places equal": places("error", np.zeros_like),
    "places on a line": places("error", lambda xy: np.c_[xy[:, 0], 2 * xy[:, 0]]),
    "third coordinate": places("error", lambda xy: np.c_[xy, np.arange(len(xy))]),
    "no places": Damage("p", "error", lambda a: a.obsm.pop("spatial")),
    "places integer": places("right", lambda xy: xy.astype(np.int32)),
    "places of 1e12": places("warning", lambda xy: 1e12 * xy),
    "places shifted by 1e12": places("right", lambda xy: 1e12 + xy),
    "places in a frame": places("right", lambda xy: pd.DataFrame(xy, index=pd.RangeIndex(len(xy)).astype(str))),
    "many cells at a place": places("right", lambda xy: np.where(np.arange(len(xy))[:, None] < 40, xy[0], xy)),
    "slides missing": column("s", "error", "slide", lambda s: first(s, 3, None)),
    "slides NaN": column("s", "error", "slide", lambda s: pd.Series(first(s.cat.codes, 3, np.nan), dtype=float)),
    "a slide of 3 cells": column("s", "error", "slide", lambda s: first(s, 3, "few")),
    "no slide column": Damage("s", "error", lambda a: a.obs.__delitem__("slide")),
    "two columns for slides": twice("s", "slide"),
    "two columns for labels": twice("l", "stage_domain"),
    "slides float": column("s", "right", "slide", lambda s: s.cat.codes.astype(float)),
    "slides bool": column("s", "right", "slide", lambda s: s == "slide1"),
    "slides with unused names": column("s", "same", "slide", lambda s: s.cat.add_categories(["none", "slide0"])),
    "graph without slides": uns("u", "stage_graph", {"params": {}}),
    "graph is text": uns("u", "stage_graph", "graph"),
    "graph of another shape": graphs(lambda a, key: a.obsp._data.__setitem__(key, a.obsp[key][:9, :9])),
    "graph of text": graphs(lambda a, key: a.obsp._data.__setitem__(key, np.full((a.n_obs, a.n_obs), "a"))),
    "graph with NaN": graphs(lambda a, key: a.obsp[key].data.__setitem__(4, np.nan)),
    "graph out of range": graphs(lambda a, key: a.obsp[key].indices.__setitem__(4, 10**6)),
    "no graph": graphs(lambda a, key: a.obsp.__delitem__(key)),
    "result is broken": uns("r", "stage", {"tree": "none"}),
    "result is a list": uns("r", "stage", [1, 2]),
    "labels continuous": column("l", "error", "stage_domain", lambda s: np.linspace(0, 1, len(s))),
    "labels missing": column("l", "error", "stage_domain", lambda s: pd.Categorical([None] * len(s))),
    "labels are dates": column("l", "error", "stage_domain", lambda s: pd.date_range("2020", periods=len(s))),
    "labels are lists": column("l", "error", "stage_domain", lambda s: [[1]] * len(s)),
    "labels with unused names": column("l", "same", "stage_domain", lambda s: s.cat.add_categories(["none"])),
    "0 cells": cells("error", slice(0)),
    "1 cell": cells("error", slice(1)),
    "3 cells": cells("error", slice(3)),
    "half of the cells": cells("right", slice(None, None, 2)),
    "odd columns": Damage("n", "same", odd_columns),
    "duplicated cells": Damage("n", "same", lambda a: setattr(a, "obs_names", [*a.obs_names[:1], *a.obs_names[:-1]])),
}
# Parts of an object that a function reads.
READS = {
    "pp.build_graph": "psn",
    "pp.summarize": "Xvpsn",
    "pp.filter_cells": "pnd",
    "pp.filter_genes": "Xvnd",
    "pp.match_genes": "v",
    "tl.stage_niches": "Xvpsgurn",
    "tl.fit": "Xvpsgun",
    "tl.panel_agreement": "Xvpsgun",
    "tl.annotate_niches": "rln",
    "tl.propose_names": "Xrn",
    "report": "psrgln",
    "tl.label_files": "Xvpsn",
    "tl.outline_niches": "psrln",
    "tl.correct_embedding": "srn",
    "tl.rank_niche_genes": "Xvsln",
    "tl.spatial_genes": "Xvpsguln",
    "tl.pathways": "Xvsln",
    "tl.interactions": "Xvpsguln",
    "tl.niche_paga": "psguln",
    "tl.composition": "sln",
    "tl.differential_abundance": "sln",
    "tl.niche_neighbors": "psguln",
    "tl.cell_type_enrichment": "sln",
    "tl.distance_to_niche": "psln",
    "tl.explain_niche": "Xvpsgurln",
    "data.build_store": "Xvpsn",
    **dict.fromkeys(("pl.rank_niche_genes", "pl.spatial_genes", "pl.pathways", "pl.niche_paga", "pl.composition"), ""),
    **dict.fromkeys(("pl.differential_abundance", "pl.niche_neighbors", "pl.cell_type_enrichment"), ""),
    "pl.interactions": "",
    "pl.explain_niche": "",
    "pl.spatial_domains": "psgrln",
    "pl.niche_tree": "srn",
    "metrics.ari": "sln",
    "metrics.nmi": "sln",
    "metrics.jsd": "sln",
    "metrics.fide": "sgln",
    "metrics.pas": "psln",
    "metrics.asw": "psln",
    "metrics.evaluate": "psgln",
}
FEW = {"1 cell", "3 cells"}
SHAPES = {"places on a line", "third coordinate", "places of 1e12", "a slide of 3 cells"}
FILTERED = {"place NaN", "place infinite"}
# Damages of these parts that are none for a function.
HARMLESS: dict[str, set[str]] = {
    "pp.filter_cells": {*FEW, *SHAPES, *FILTERED, "places equal"},
    "pp.filter_genes": {*FEW, "unknown genes", "duplicated genes"},
    "pp.match_genes": {"duplicated genes"},
    **dict.fromkeys(("tl.label_files", "data.build_store"), {*FILTERED, "masked X"}),
    "tl.fit": {"unknown genes"},
    "tl.correct_embedding": {"a slide of 3 cells"},
    "tl.outline_niches": {"places of 1e12"},
    "tl.composition": {*FEW, "a slide of 3 cells"},
    "tl.rank_niche_genes": {"a slide of 3 cells", "unknown genes"},
    "tl.pathways": {"a slide of 3 cells", "3 cells"},
    "tl.spatial_genes": {"unknown genes"},
    "tl.differential_abundance": {"a slide of 3 cells"},
    "tl.cell_type_enrichment": {*FEW, "a slide of 3 cells"},
    "tl.distance_to_niche": {*FEW, *SHAPES, "places equal"},
    "pl.spatial_domains": {*FEW, *SHAPES, "places equal", "labels missing", "no graph"},
    "tl.annotate_niches": {*FEW, "labels missing", "0 cells"},
    "tl.propose_names": FEW,
    "report": {*FEW, *SHAPES, "places equal", "no graph", "labels missing"},
    "pl.niche_tree": {*FEW, "a slide of 3 cells"},
    **{f"metrics.{name}": {*FEW, *SHAPES} for name in ("ari", "nmi", "jsd", "fide", "pas", "asw", "evaluate")},
}
HARMLESS["metrics.jsd"] = SHAPES
HARMLESS["data.build_store"] = HARMLESS["data.build_store"] | {"unknown genes"}
# Damages that metrics and plots need not refuse beside an object as it should be.
ALONE = {*FEW, "0 cells", "labels missing", "places equal", "third coordinate", "two columns for slides", "no graph"}
