"""Names of niches proposed from cell types and markers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_name, check_positive
from stage_sc._input import read_labels, read_tables
from stage_sc._result import Columns, category_nodes, domain_labels_shown, node_labels_shown, require_result

if TYPE_CHECKING:
    from stage_sc._input import Data

MAIN = 0.5  # share of the cells above which one cell type names a niche


def propose_names(
    data: Data,
    *,
    cell_type_key: str | None = None,
    n_genes: int = 2,
    key_added: str = "stage",
    layer: str | None = None,
    table_key: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Propose names for niches, from marker genes and cell types: a table to edit.

    Parameters
    ----------
    data
        Cells with niches from `stage_niches`: an AnnData, SpatialData or MuData, or a list or a dictionary of these.
    cell_type_key
        Column of ``obs`` with cell types. Default: names of genes alone.
    n_genes
        Number of marker genes in a name, at least 1.
    key_added
        Name under which the niches were written.
    layer
        Entry of ``layers`` with the counts. Default: ``X``.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.

    Returns
    -------
    Table with a row for each niche of each level and each domain, by its id: ``level`` (0 for domains), ``n_cells``,
    present ``name``, ``proposal``, ``cell_types`` (the three most enriched, with their shares) and ``markers`` (up to
    ten genes). Nothing is written: pass the column ``proposal``, edited where needed, to `annotate_niches`.

    Raises
    ------
    KeyError
        If there are no niches, or a column or layer is missing.
    TypeError
        If an argument is of another type.
    ValueError
        If there are no cells, expression is negative, or labels were joined by hand so that their ids are uncertain.

    See Also
    --------
    annotate_niches : Write names.

    Notes
    -----
    Markers have the largest difference between mean log-normalised expression of the niche and of all other cells, in
    at least 10 % of its cells; niches of fewer than 10 cells have none. The enrichment of a cell type with share p of a
    niche and share q of all cells is p log(p / q): the share of cells times its rise. The type with the largest value
    names the niche, with the second where the first is less than half of the cells. Expression is read once for each
    level, in blocks: about 20 s for a million cells.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> st.tl.stage_niches(adata)
    >>> table = st.tl.propose_names(adata, cell_type_key="cell_type")
    >>> st.tl.annotate_niches(adata, table["proposal"])
    """
    from stage_sc.reports import light_markers, open_expression, sum_groups

    check_positive(n_genes, "n_genes", integer=True)
    check_name(key_added, "key_added")
    for name, value in {"cell_type_key": cell_type_key, "layer": layer}.items():
        if value is not None:
            check_name(value, name)
    parts = list(read_tables(data, table_key=table_key).by_name.values())
    if not sum(part.n_obs for part in parts):
        raise ValueError("`data` has no cells.")
    results = [require_result(part, key_added) for part in parts]
    if cell_type_key is None:
        types, type_codes = [], np.full(sum(part.n_obs for part in parts), -1)
    else:
        values = pd.concat(
            [pd.Series(read_labels(part, cell_type_key, argument="cell_type_key").astype(str)) for part in parts]
        )
        known = pd.concat([part.obs[cell_type_key].notna() for part in parts]).to_numpy()
        type_codes, types = pd.factorize(values.to_numpy(), sort=True)
        type_codes = np.where(known, type_codes, -1)
    expression = open_expression(parts, layer)
    rows = []
    columns = dict(enumerate(results[0]["levels"], start=1))
    domain = Columns(key_added).domain
    if all(domain in part.obs for part in parts):
        columns[0] = domain
    for number, key in columns.items():
        ids, codes, shown = _codes(parts, key, number, key_added)
        sizes = np.bincount(codes[codes >= 0], minlength=len(ids))
        markers = light_markers(sum_groups(expression, codes, len(ids)), len(ids), expression.genes, 10)
        shares = _enriched(codes, type_codes, len(ids), list(types))
        for position, id_ in enumerate(ids):
            genes = [gene for gene, *_ in markers[position]]
            rows.append(
                {
                    "id": id_,
                    "level": number,
                    "n_cells": int(sizes[position]),
                    "name": shown[id_],
                    "proposal": _compose(shares[position], genes[:n_genes]),
                    "cell_types": ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares[position]),
                    "markers": ", ".join(genes),
                }
            )
    fields = ["level", "n_cells", "name", "proposal", "cell_types", "markers"]
    return pd.DataFrame(rows, columns=["id", *fields]).set_index("id")


def _codes(parts: list[AnnData], key: str, number: int, key_added: str) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """Ids in use at a level, or of domains (0), position of that of each cell, and present names."""
    found: list[np.ndarray] = []
    shown: dict[str, str] = {}
    for part in parts:
        result = require_result(part, key_added)
        labels = read_labels(part, key, integers=False, argument="key_added")
        known = node_labels_shown(result, number) if number else domain_labels_shown(result)
        own = category_nodes(part, key, labels, known, result, key_added)
        shown |= dict(zip(own, map(str, labels.categories), strict=True))
        found.append(np.array([*own, ""], dtype=object)[labels.codes])
    values = np.concatenate(found)
    result = require_result(parts[0], key_added)
    used = set(values) - {""}
    ids = [id_ for id_ in (map(str, result["tree"].index) if number else domain_labels_shown(result)) if id_ in used]
    return ids, pd.Index(ids).get_indexer(values), shown


def _enriched(codes: np.ndarray, types: np.ndarray, n: int, names: list[str]) -> list[list[tuple[str, float]]]:
    """Up to three cell types with the largest enrichment, and their shares, of each niche."""
    if not names:
        return [[] for _ in range(n)]
    known = (codes >= 0) & (types >= 0)
    counts = np.bincount(codes[known] * len(names) + types[known], minlength=n * len(names)).reshape(n, len(names))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    overall = counts.sum(axis=0) / max(counts.sum(), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(share > 0, share * np.log(share / overall), -np.inf)
    order = np.argsort(-score.round(9), axis=1, kind="stable")[:, :3]
    return [
        [(names[column], float(share[row, column])) for column in order[row] if score[row, column] > 0]
        for row in range(n)
    ]


def _compose(types: list[tuple[str, float]], genes: list[str]) -> str:
    """Name of one or two cell types, and genes."""
    several = len(types) > 1 and types[0][1] < MAIN
    words = " + ".join(name for name, _ in types[: 1 + several])
    return f"{words} ({', '.join(genes)})" if words and genes else words or "/".join(genes)
