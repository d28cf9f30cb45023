"""Pairs of ligands and receptors on a panel, and their ranks by liana."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

logger = logging.getLogger("stage_sc.tl")

HUMAN, MOUSE = "consensus", "mouseconsensus"
FEW = 20  # pairs; ranks of fewer are reported
RANKS = ["magnitude_rank", "specificity_rank", "expr_prod", "lr_logfc"]


class Resource(NamedTuple):
    """Pairs of a resource, some of them on the panel."""

    name: str
    size: int
    """Number of pairs of the resource."""
    table: pd.DataFrame
    """Columns ``ligand`` and ``receptor`` of the pairs on the panel: genes, or subunits joined by ``_``."""


class Pairs(NamedTuple):
    """Pairs with their genes."""

    table: pd.DataFrame
    ligands: list[tuple[int, ...]]
    """Positions of the subunits of every ligand among the genes."""
    receptors: list[tuple[int, ...]]

    def take(self, chosen: np.ndarray) -> Pairs:
        """Choose some pairs by their positions."""
        parts = ([one[position] for position in chosen] for one in (self.ligands, self.receptors))
        return Pairs(self.table.iloc[chosen].reset_index(drop=True), *parts)

    def lowest(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of ligands and of receptors, each ``(n_rows, n_pairs)``: the lowest of the subunits."""
        return lowest(values, self.ligands), lowest(values, self.receptors)


def lowest(values: np.ndarray, subunits: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Take the lowest column of each complex, ``(n_rows, n_complexes)``."""
    result = values[:, [one[0] for one in subunits]]
    for position, one in enumerate(subunits):
        if len(one) > 1:
            result[:, position] = values[:, one].min(axis=1)
    return result


def require_liana() -> None:
    """Raise an ImportError with the way out if liana is missing."""
    try:
        import liana  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "`st.tl.interactions` needs the package liana: `pip install 'stage-sc[interactions]'` or "
            "`pip install liana`."
        ) from error


def check_resource(resource: Any) -> Any:
    """Read a data frame of pairs as strings without repeats; names and ``None`` stay; else a TypeError."""
    how = "the name of a resource of liana, or a data frame with the columns 'ligand' and 'receptor'"
    if resource is None or (isinstance(resource, str) and resource):
        return resource
    if not isinstance(resource, pd.DataFrame):
        raise TypeError(f"`resource` must be {how}, got {resource!r:.60} ({type(resource).__name__}).")
    if missing := [name for name in ("ligand", "receptor") if name not in resource]:
        raise ValueError(f"`resource` must be {how}: {missing} not in its columns {list(map(str, resource.columns))}.")
    pairs = resource[["ligand", "receptor"]].dropna().astype(str).drop_duplicates()
    return pairs.sort_values(["ligand", "receptor"], ignore_index=True)


def find_resource(resource: str | pd.DataFrame | None, genes: Sequence[str]) -> Resource:
    """Find the pairs on a panel; by default of human or of mouse, whichever has more. A ValueError if there is none."""
    import liana

    if isinstance(resource, pd.DataFrame):
        tables = {"given": resource}
    else:
        names = [HUMAN, MOUSE] if resource is None else [resource.lower()]
        known = sorted(liana.rs.show_resources())
        if names[0] not in known:
            raise ValueError(f"`resource` must be one of {known}, or a data frame, got {resource!r}.")
        tables = {name: check_resource(liana.rs.select_resource(name)) for name in names}
    panel = set(genes)
    found = {name: table[_on_panel(table, panel)] for name, table in tables.items()}
    name = max(found, key=lambda one: len(found[one]))  # the first of equals
    if not len(found[name]):
        example = tables[name].iloc[0].tolist() if len(tables[name]) else []
        tried = " or ".join(map(repr, tables))
        raise ValueError(
            f"`resource`: no pair of {tried} (such as {example}) is on the panel of {len(genes)} genes (such as "
            f"{list(genes[:3])}). Gene symbols of the same species are needed in `var_names`; {HUMAN!r} is for human "
            f"and {MOUSE!r} for mouse. A small panel may hold none: then pass pairs of your own, a data frame with the "
            "columns 'ligand' and 'receptor'."
        )
    level = logging.WARNING if len(found[name]) < FEW else logging.INFO
    text = "; ranks of so few pairs say little." if level == logging.WARNING else "."
    logger.log(
        level, "%d of %d pairs of the resource %r are on the panel%s", len(found[name]), len(tables[name]), name, text
    )
    return Resource(name, len(tables[name]), found[name].reset_index(drop=True))


def _on_panel(table: pd.DataFrame, panel: set[str]) -> np.ndarray:
    """Pairs of which every subunit is on the panel, ``(n_pairs,)`` bool."""
    complexes = pd.unique(table[["ligand", "receptor"]].to_numpy().ravel())
    there = {name: name in panel or panel.issuperset(name.split("_")) for name in complexes}
    return table["ligand"].map(there).to_numpy(bool) & table["receptor"].map(there).to_numpy(bool)


def find_genes(table: pd.DataFrame, genes: Sequence[str]) -> tuple[Pairs, list[int]]:
    """Positions of subunits among the genes that are used; these are given by their positions among all genes."""
    number = {gene: position for position, gene in enumerate(genes)}

    def split(name: str) -> list[int]:
        return [number[name]] if name in number else [number[part] for part in dict.fromkeys(name.split("_"))]

    ligands, receptors = (list(map(split, table[side])) for side in ("ligand", "receptor"))
    used = sorted({gene for one in (*ligands, *receptors) for gene in one})
    place = {gene: position for position, gene in enumerate(used)}
    parts = ([tuple(place[gene] for gene in one) for one in side] for side in (ligands, receptors))
    return Pairs(table, *parts), used


def rank_pairs(
    matrix: sp.csr_matrix, codes: np.ndarray, touching: np.ndarray, pairs: Pairs, expr_prop: float
) -> pd.DataFrame:
    """Ranks of liana for all touching groups and all pairs that are expressed in both.

    `codes` are those of the cells in `matrix`, all of which have a group; `touching` is ``(n_groups, n_groups)`` bool.
    Columns are positions ``source``, ``target`` and ``pair``, and `RANKS`.
    """
    import liana as li

    names = [f"g{position}" for position in range(matrix.shape[1])]
    ligands, receptors = (
        ["_".join(names[gene] for gene in one) for one in side] for side in (pairs.ligands, pairs.receptors)
    )
    resource = pd.DataFrame({"ligand": ligands, "receptor": receptors})
    source, target = np.nonzero(touching)
    labels = [str(code) for code in range(len(touching))]
    table = AnnData(
        matrix,
        obs=pd.DataFrame(
            {"group": pd.Categorical.from_codes(codes, labels)}, index=pd.RangeIndex(len(codes)).astype(str)
        ),
        var=pd.DataFrame(index=names),
    )
    table.obs["group"] = table.obs["group"].cat.remove_unused_categories()
    methods = [li.mt.connectome, li.mt.logfc, li.mt.natmi, li.mt.singlecellsignalr]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = li.mt.AggregateClass(li.mt.aggregate_meta, methods=methods)(
            table,
            groupby="group",
            groupby_pairs=pd.DataFrame({"source": source.astype(str), "target": target.astype(str)}),
            resource=resource,
            expr_prop=expr_prop,
            min_cells=1,
            use_raw=False,
            n_perms=1,  # none of the methods permutes; without, liana ranks magnitudes alone
            inplace=False,
            verbose=False,
        )
    position = {pair: number for number, pair in enumerate(zip(ligands, receptors, strict=True))}
    numbers = [position[pair] for pair in zip(found["ligand_complex"], found["receptor_complex"], strict=True)]
    columns = {"source": found["source"].astype(int), "target": found["target"].astype(int), "pair": numbers}
    return pd.DataFrame({**columns, **{name: found[name].astype(float) for name in RANKS}}).reset_index(drop=True)
