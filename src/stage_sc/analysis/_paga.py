"""Connectivity of niches in the embedding and in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stage_sc._checks import check_bool, check_name, check_positive
from stage_sc._input import Data, Tables, read_tables
from stage_sc._messages import element_name, naming
from stage_sc._result import Columns
from stage_sc.analysis._edges import read_edges
from stage_sc.analysis._expression import as_frame, indicator
from stage_sc.analysis._labels import Column, Groups, read_groups, warn_left_out
from stage_sc.analysis._store import check_key, write_stored

TOOL = "niche_paga"


def niche_paga(
    data: Data,
    *,
    groupby: str | None = None,
    use_rep: str | None = None,
    n_neighbors: int = 15,
    max_cells: int = 20_000,
    min_cells: int = 10,
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = TOOL,
    copy: bool = False,
) -> Any:
    r"""Connect niches that are alike in the embedding, and those that touch in space.

    Parameters
    ----------
    data
        Cells with labels, an embedding and the graph of `stage_sc.pp.build_graph`; or a list or a dictionary of such
        objects.
    groupby
        Column of ``obs`` with labels; cells without one are left out. ``None``: the domains of
        `stage_sc.tl.stage_niches` if there are any, else its niches of level 2.
    use_rep
        Entry of ``obsm`` with the embedding. ``None``: that of the niches, ``"X_stage"``.
    n_neighbors
        Number of nearest neighbours of a cell in the embedding. More join niches that are further apart.
    max_cells
        Number of cells of which neighbours in the embedding are searched; of more, a sample is taken that does not
        depend on their order. All cells count in space.
    min_cells
        Smaller niches are left out, and named in a warning: with a few cells, any contact is more than chance.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one of the niches or of the graph.
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
        Data frame with a row for each pair of niches that is connected in any way: ``group_a``, ``group_b``;
        ``embedding`` and ``space``, connectivities from 0 to 1 (as by chance or more); ``n_contacts``, the number of
        pairs of neighbouring cells; ``n_slides`` on which the niches touch.
    ``"niches"``
        Data frame with ``group`` and ``n_cells``.
    ``"params"``
        Arguments.

    Raises
    ------
    KeyError
        If there is no graph, no embedding or no column, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type.
    ValueError
        If the embedding is not finite or its width differs between objects, no niche has `min_cells` cells, there are
        fewer cells than `n_neighbors`, or ``uns[key_added]`` holds something else.

    See Also
    --------
    stage_sc.pl.niche_paga : Arcs in the order of the tree, or a graph on the tissue.

    Notes
    -----
    The connectivity of PAGA (Wolf et al. 2019; ``scanpy.tl.paga``, model v1.2): with :math:`e_{kl}` the number of edges
    from cells of niche k to cells of niche l, :math:`e_k = \sum_l e_{kl}` and :math:`n_k` cells of n,

    .. math:: c_{kl} = \min \left( 1, \frac{e_{kl} + e_{lk}}{(e_k n_l + e_l n_k) / (n - 1)} \right).

    In space the edges are those of the graph, and numerator and denominator are added up over slides, so that niches of
    different slides do not count as apart. Neighbours in the embedding are searched over all slides: batch effects
    separate niches there. Neighbours are exact; time grows with the square of `max_cells`, and is linear in all cells.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> st.tl.stage_niches(adata, n_domains=4)
    >>> st.tl.niche_paga(adata)
    >>> adata.uns["niche_paga"]["table"].columns.tolist()[:3]
    ['group_a', 'group_b', 'embedding']
    """
    if use_rep is not None:
        check_name(use_rep, "use_rep")
    check_positive(n_neighbors, "n_neighbors", integer=True)
    check_positive(max_cells, "max_cells", integer=True)
    check_positive(min_cells, "min_cells", integer=True)
    check_bool(copy, "copy")
    tables = read_tables(data, table_key=table_key)
    check_key(tables, key_added, TOOL, copy=copy)
    groups = _leave_out_small(read_groups(tables, groupby, library_key), int(min_cells))
    use_rep = use_rep or Columns(str(groups.result.get("params", {}).get("key_added", "stage"))).embedding
    embedding = _read_embedding(tables, use_rep)
    alike = _connect_alike(embedding, groups, int(n_neighbors), int(max_cells))
    touching, contacts, n_slides = _connect_touching(read_edges(tables), groups)
    names = groups.labels.names
    one, other = np.nonzero(np.triu((alike > 0) | (contacts > 0), 1))
    columns = {
        "group_a": one,
        "group_b": other,
        "embedding": alike[one, other],
        "space": touching[one, other],
        "n_contacts": contacts[one, other],
        "n_slides": n_slides[one, other],
    }
    table = as_frame(columns, group_a=names, group_b=names)
    niches = as_frame({"group": np.arange(len(names)), "n_cells": groups.labels.counts()}, group=names)
    numbers = {"n_neighbors": int(n_neighbors), "max_cells": int(max_cells), "min_cells": int(min_cells)}
    params = {"groupby": groups.groupby, "use_rep": use_rep, **numbers}
    tables = tables.copy() if copy else tables
    write_stored(tables, key_added, TOOL, table, params, niches=niches)
    return tables.given if copy else None


def _leave_out_small(groups: Groups, min_cells: int) -> Groups:
    """Take labels of fewer cells away, with a warning; a ValueError if none is left."""
    labels = groups.labels
    large = np.flatnonzero(labels.counts() >= min_cells)
    warn_left_out([name for code, name in enumerate(labels.names) if code not in set(large)], min_cells)
    if not len(large):
        raise ValueError(f"`min_cells`: no niche of obs[{groups.groupby!r}] has {min_cells} cells. Lower it.")
    position = np.full(len(labels.names) + 1, -1)
    position[large] = np.arange(len(large))
    return groups._replace(labels=Column([labels.names[code] for code in large], position[labels.codes]))


def connectivity(edges: np.ndarray, n_cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count edges between groups in both directions, found and expected, ``(n_groups, n_groups)`` each.

    `edges` are numbers of directed edges, and `n_cells` of cells.
    """
    leaving = edges.sum(axis=1)
    expected = np.outer(leaving, n_cells) / max(n_cells.sum() - 1, 1)
    return edges + edges.T, expected + expected.T


def _ratio(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """PAGA's connectivity; 0 without edges."""
    return np.minimum(np.divide(found, expected, out=np.zeros_like(found, dtype=float), where=expected > 0), 1.0)


def _connect_touching(edges: sp.csr_matrix, groups: Groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure connectivity in space, pairs of neighbouring cells, and slides on which groups touch."""
    n = len(groups.labels.names)
    found, expected, n_slides = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n), dtype=np.int64)
    number = len(groups.slides.names)
    # All slides at once: edges stay on a slide, and groups of different slides are different rows.
    place = np.where(groups.labels.codes >= 0, groups.slides.codes * n + groups.labels.codes, -1)
    between = indicator(place, number * n)
    by_slide = sp.csr_matrix(between.T @ edges @ indicator(groups.labels.codes, n))
    n_cells = np.bincount(place[place >= 0], minlength=number * n).reshape(number, n)
    for slide in range(number):
        one, chance = connectivity(by_slide[slide * n : (slide + 1) * n].toarray(), n_cells[slide])
        found += one
        expected += chance
        n_slides += one > 0
    return _ratio(found, expected), np.rint(found / 2).astype(np.int64), n_slides


def _connect_alike(embedding: np.ndarray, groups: Groups, n_neighbors: int, max_cells: int) -> np.ndarray:
    """Measure connectivity by the nearest neighbours in the embedding."""
    from sklearn.neighbors import NearestNeighbors

    cells = _sample(embedding, np.flatnonzero(groups.labels.codes >= 0), max_cells)
    if len(cells) <= n_neighbors:
        raise ValueError(f"`n_neighbors`: {n_neighbors} neighbours need more cells with a label than {len(cells)}.")
    codes, n = groups.labels.codes[cells], len(groups.labels.names)
    near = NearestNeighbors(n_neighbors=n_neighbors, n_jobs=1).fit(embedding[cells]).kneighbors(return_distance=False)
    edges = np.zeros((n, n))
    np.add.at(edges, (np.repeat(codes, n_neighbors), codes[near.ravel()]), 1)
    return _ratio(*connectivity(edges, np.bincount(codes, minlength=n)))


def _sample(embedding: np.ndarray, cells: np.ndarray, size: int) -> np.ndarray:
    """At most `size` of the cells, drawn by a hash of their embedding, and sorted by it."""
    from stage_sc.slides import mix  # torch takes seconds to import

    leading = np.round(embedding[cells][:, :2].astype(np.float64) * 2.0**20).astype(np.int64).view(np.uint64)
    number = mix(leading[:, 0] + mix(leading[:, -1]))
    return cells[np.lexsort((*embedding[cells].T[::-1][-2:], number))[:size]]


def _read_embedding(tables: Tables, use_rep: str) -> np.ndarray:
    """``obsm[use_rep]`` of all cells, ``(n_cells, dim)`` float32."""
    parts = []
    for name, part in tables.by_name.items():
        with naming(element_name("data", name), repr(name)):
            if use_rep not in part.obsm:
                present = ", ".join(map(repr, part.obsm)) or "nothing"
                raise KeyError(
                    f"`use_rep`: `adata.obsm[{use_rep!r}]` does not exist, obsm holds {present}. Run "
                    "`st.tl.stage_niches(adata)`, or name an embedding."
                )
            stored = part.obsm[use_rep]
            values = stored.to_numpy() if isinstance(stored, pd.DataFrame) else stored
            values = values.toarray() if sp.issparse(values) else np.asarray(values)
            if values.ndim != 2 or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
                raise ValueError(f"`use_rep`: `adata.obsm[{use_rep!r}]` must hold finite numbers, (n_cells, dim).")
            parts.append(values.astype(np.float32))
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise ValueError(f"`use_rep`: `obsm[{use_rep!r}]` of the objects has different widths: {sorted(widths)}.")
    return np.concatenate(parts)
