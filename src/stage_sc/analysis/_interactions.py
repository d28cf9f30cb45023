"""Ligands and receptors between niches that touch, or between the cell types of each niche."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stage_sc._checks import check_bool, check_positive
from stage_sc._input import Data, read_tables
from stage_sc.analysis._edges import read_edges
from stage_sc.analysis._expression import LogExpression, as_frame, group_moments, read_log_expression
from stage_sc.analysis._labels import Column, Groups, read_column, read_groups, warn_left_out
from stage_sc.analysis._ligand_receptor import (
    Pairs,
    check_resource,
    find_genes,
    find_resource,
    rank_pairs,
    require_liana,
)
from stage_sc.analysis._store import check_key, write_stored
from stage_sc.analysis._touching import Neighbors, compare_contacts, count_touching

TOOL = "interactions"


def interactions(
    data: Data,
    *,
    groupby: str | None = None,
    cell_type_key: str | None = None,
    resource: str | pd.DataFrame | None = None,
    min_cells: int = 10,
    expr_prop: float = 0.1,
    library_key: str | None = None,
    layer: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = TOOL,
    copy: bool = False,
) -> Any:
    r"""Rank ligand-receptor pairs within niches and between niches that touch, or between the cell types of niches.

    Needs liana: ``pip install "stage-sc[interactions]"``. Without `cell_type_key`, senders and receivers are niches:
    every niche with itself, and niches that touch in the graph of `stage_sc.pp.build_graph`, in both directions. With
    `cell_type_key` they are the cell types of one niche, those that touch within it.

    Parameters
    ----------
    data
        Cells with counts, labels and the graph of `stage_sc.pp.build_graph`; or a list or a dictionary of such objects,
        of which the common genes are used.
    groupby
        Column of ``obs`` with labels; cells without one are left out. ``None``: the domains of
        `stage_sc.tl.stage_niches` if there are any, else its niches of level 2.
    cell_type_key
        Column of ``obs`` with cell types, to rank pairs between the cell types within each niche.
    resource
        Name of a resource in liana (``liana.rs.show_resources()``), or a data frame with the columns ``ligand`` and
        ``receptor``, names of genes as in ``var_names`` with the subunits of complexes joined by ``_``. ``None``:
        ``"consensus"`` for human or ``"mouseconsensus"`` for mouse, whichever has more pairs on the panel. Resources
        have licences of their own. Other species: translate one with ``liana.rs.translate_resource``.
    min_cells
        Groups (niches, or cell types of a niche) with fewer cells with counts are left out. Two groups touch if so many
        cells of either have a neighbour in the other.
    expr_prop
        Least fraction of the cells of the sender with the ligand, and of those of the receiver with the receptor, above
        0 up to 1. Lower it for shallow data.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one of the niches or of the graph.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    copy
        Return a copy of `data` with the result instead of writing into `data`.

    Returns
    -------
    ``None``, or with `copy` a copy of `data`. Written into every object is ``uns[key_added]``, about all of them:

    ``"table"``
        Data frame with a row for each sender, receiver and pair that is expressed, best ``specificity_rank`` first
        within sender and receiver. Names of columns are those of liana, so that ``liana.pl`` draws it:

        - ``source`` and ``target``: niches, or with `cell_type_key` cell types of the niche ``group``;
        - ``ligand_complex`` and ``receptor_complex``;
        - ``specificity_rank`` and ``magnitude_rank``: from 0, the best, to 1;
        - ``expr_prod``: product of mean expression; ``lr_logfc``: mean of the log2 fold changes of ligand and receptor,
          each over all other cells;
        - ``ligand_mean``, ``receptor_mean``, ``ligand_props``, ``receptor_props``: mean log-normalised expression and
          fraction of cells, of the lowest subunit of complexes;
        - ``contact_ratio``: expression where cells touch, over that of cells placed at random in their group;
        - ``n_edges``: pairs of neighbouring cells; ``n_slides``: slides on which the groups touch; ``n_expressed``:
          those of them where the pair is expressed.
    ``"params"``
        Arguments, the name of the ``resource``, and how many pairs it has (``n_pairs_resource``) and are on the panel
        (``n_pairs``).

    Raises
    ------
    KeyError
        If there is no graph, a column or layer does not exist, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type.
    ValueError
        If no pair is on the panel or expressed, fewer than two groups touch, expression is not valid, the objects have
        no common gene, or ``uns[key_added]`` holds something else.
    ImportError
        If liana is not installed.

    See Also
    --------
    stage_sc.pl.interactions : Dots of pairs and niches.
    stage_sc.tl.niche_neighbors : Niches that touch more than by chance.

    Notes
    -----
    **Ranks** are those of liana [1]_, robust rank aggregates over the methods without permutations: magnitude of NATMI,
    Connectome and SingleCellSignalR, specificity of NATMI, Connectome and log2 fold changes. All groups that touch, of
    all niches, are ranked together, on log-normalised expression. Labels are not permuted, as CellPhoneDB does: niches
    differ in expression by their making, and almost every pair would be significant. Ranks are no p-values.

    **Contacts.** Ranks know which groups touch, but not which cells. ``contact_ratio`` is, over all neighbouring cells
    i of the sender and j of the receiver,

    .. math:: \frac{\sum_{(i, j)} l_i r_j}{\sum_s E_s \, \overline{l r}_s},

    with the number of edges :math:`E_s` of slide s and the mean product of two cells of the groups on it. It is above 1
    where ligand and receptor are higher at the border, or beside each other within a niche, than elsewhere in these
    groups. It has no test; transcripts of a cell that were assigned to its neighbour raise it too.

    Ligands that travel further than to neighbouring cells act between niches that do not touch; these are left out.
    On spots, which hold many cells, groups touch through neighbouring spots.

    Linear in cells and edges, times pairs; deterministic.

    References
    ----------
    .. [1] Dimitrov et al. Comparison of methods and resources for cell-cell communication inference from single-cell
       RNA-Seq data. Nature Communications 13 (2022). LIANA+: Nature Cell Biology 26 (2024).

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(600)
    >>> st.pp.build_graph(adata)
    >>> st.tl.interactions(adata, groupby="domain")
    >>> adata.uns["interactions"]["table"].columns[:4].tolist()
    ['source', 'target', 'ligand_complex', 'receptor_complex']
    """
    check_positive(min_cells, "min_cells", integer=True)
    check_positive(expr_prop, "expr_prop")
    if expr_prop > 1:
        raise ValueError(f"`expr_prop` is a fraction of cells, at most 1, got {expr_prop!r}.")
    check_bool(copy, "copy")
    resource = check_resource(resource)
    require_liana()
    tables = read_tables(data, table_key=table_key)
    check_key(tables, key_added, TOOL, copy=copy)
    groups = read_groups(tables, groupby, library_key)
    types = None if cell_type_key is None else read_column(tables, cell_type_key, "cell_type_key")
    edges = read_edges(tables)
    expression = read_log_expression(tables, groups.slides, layer)
    found = find_resource(resource, expression.genes)
    pairs, used = find_genes(found.table, expression.genes)
    units = _units(groups, types, expression, int(min_cells))
    matrix, neighbors = _in_one_order(expression, used, units, groups, edges)
    ranked, pairs = _compare(matrix, neighbors, pairs, units, int(min_cells), float(expr_prop))
    table = _tabulate(ranked, pairs, units, groups, types)
    params = {
        "groupby": groups.groupby,
        "cell_type_key": cell_type_key,
        "resource": found.name,
        "n_pairs": len(found.table),
        "n_pairs_resource": found.size,
        "min_cells": int(min_cells),
        "expr_prop": float(expr_prop),
        "library_key": library_key,
        "layer": layer,
    }
    tables = tables.copy() if copy else tables
    write_stored(tables, key_added, TOOL, table, params)
    return tables.given if copy else None


class Units(NamedTuple):
    """Groups that send and receive: niches, or cell types of niches."""

    codes: np.ndarray
    """``(n_cells,)`` intp unit, -1 for cells that are left out."""
    niche: np.ndarray
    """``(n_units,)`` position of the niche."""
    kind: np.ndarray | None
    """``(n_units,)`` position of the cell type."""


def _units(groups: Groups, types: Column | None, expression: LogExpression, min_cells: int) -> Units:
    """Find groups with enough cells with counts, in the order of niches and cell types."""
    filled = np.diff(expression.matrix.indptr) > 0
    codes, n_types = np.where(filled, groups.labels.codes, -1), 1
    if types is not None:
        n_types = len(types.names)
        codes = np.where((codes >= 0) & (types.codes >= 0), codes * n_types + types.codes, -1)
    size = np.bincount(codes[codes >= 0], minlength=len(groups.labels.names) * n_types)
    large = np.flatnonzero(size >= min_cells)
    if len(large) < 2:
        raise ValueError(
            f"`min_cells`: {len(large)} groups of obs[{groups.groupby!r}] have {min_cells} cells with counts, and "
            "at least two are needed to compare: lower it, or choose another `groupby`."
        )
    niche, kind = np.divmod(large, n_types)
    small = np.setdiff1d(np.arange(len(groups.labels.names)), niche)
    warn_left_out([groups.labels.names[code] for code in small], min_cells)
    number = np.full(len(size) + 1, -1, np.intp)
    number[large] = np.arange(len(large))
    return Units(number[codes], niche, None if types is None else kind)


def _in_one_order(
    expression: LogExpression, used: Sequence[int], units: Units, groups: Groups, edges: sp.csr_matrix
) -> tuple[sp.csr_matrix, Neighbors]:
    """Genes that are used and cells with a group, sorted by their values: sums do not depend on the order given."""
    cells = np.flatnonzero(units.codes >= 0)
    matrix = expression.matrix[cells][:, used]
    matrix.sort_indices()
    key = matrix.astype(np.float64) @ np.random.default_rng(0).random(len(used))
    order = np.lexsort((units.codes[cells], key))
    cells = cells[order]
    slides = np.argsort(np.argsort(groups.slides.names))[groups.slides.codes[cells]]
    return matrix[order], Neighbors(units.codes[cells], slides, edges[cells][:, cells])


def _compare(
    matrix: sp.csr_matrix,
    neighbors: Neighbors,
    pairs: Pairs,
    units: Units,
    min_cells: int,
    expr_prop: float,
) -> tuple[pd.DataFrame, Pairs]:
    """Rank the pairs between units that touch: positions of units and pairs, ranks, expression, and contacts."""
    n = len(units.niche)
    touching, n_slides = count_touching(neighbors, n, min_cells)
    if units.kind is not None:
        touching &= units.niche[:, None] == units.niche
    if touching.any(axis=0).sum() < 2:
        raise ValueError(
            f"`min_cells`: fewer than two groups have {min_cells} cells that are neighbours of others. Lower it."
        )
    source, target = np.nonzero(touching)
    moments = group_moments(matrix, neighbors.codes, n)
    ligand_props, receptor_props = pairs.lowest(moments.fraction)
    passing = (ligand_props[source] >= expr_prop) & (receptor_props[target] >= expr_prop)
    if not passing.any():
        raise ValueError(
            f"`expr_prop`: none of the {len(pairs.table)} pairs on the panel is expressed in a fraction of "
            f"{expr_prop:g} of the cells of a sender and of a receiver. Lower it."
        )
    pairs = pairs.take(np.flatnonzero(passing.any(axis=0)))
    table = rank_pairs(matrix, neighbors.codes, touching, pairs, expr_prop)
    contacts = compare_contacts(neighbors, matrix, pairs, touching, min_cells, expr_prop)
    number = np.full(touching.shape, -1, np.intp)
    number[source, target] = np.arange(len(source))
    one, other, pair = (table[name].to_numpy() for name in ("source", "target", "pair"))
    row = number[one, other]
    for name, values in (("mean", moments.mean), ("props", moments.fraction)):
        ligand, receptor = pairs.lowest(values)
        table[f"ligand_{name}"], table[f"receptor_{name}"] = ligand[one, pair], receptor[other, pair]
    table["contact_ratio"] = contacts.ratio[row, pair]
    table["n_edges"], table["n_slides"] = contacts.n_edges[row], n_slides[one, other]
    table["n_expressed"] = contacts.n_expressed[row, pair]
    best = ["source", "target", "specificity_rank", "magnitude_rank", "pair"]
    return table.sort_values(best, ignore_index=True), pairs


def _tabulate(table: pd.DataFrame, pairs: Pairs, units: Units, groups: Groups, types: Column | None) -> pd.DataFrame:
    """Replace positions by names."""
    ends = {side: table[side].to_numpy() for side in ("source", "target")}
    columns: dict[str, Any] = {}
    names = {"source": groups.labels.names, "target": groups.labels.names}
    if types is not None and units.kind is not None:
        columns["group"], names["group"] = units.niche[ends["source"]], groups.labels.names
        names["source"] = names["target"] = types.names
    of = units.niche if units.kind is None else units.kind
    columns |= {side: of[units_of] for side, units_of in ends.items()}
    for side in ("ligand", "receptor"):  # strings, as liana's plots need them
        columns[f"{side}_complex"] = pairs.table[side].to_numpy(dtype=object)[table["pair"].to_numpy()]
    columns |= {str(name): table[name].to_numpy() for name in table if name not in ("source", "target", "pair")}
    return as_frame(columns, **names)
