"""Slides as the model takes them: matched genes, scaled expression, neighbourhoods, in canonical order."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stage_sc._checks import read_slides, slide_prefix
from stage_sc.data._canonical import canonical_order
from stage_sc.pp._genes import gene_tokens, is_control, match_genes
from stage_sc.pp._graph_state import read_graph, stand_in
from stage_sc.pp._neighbors import gaussian_weights
from stage_sc.pp._normalize import expression, log_normalize, to_csr

logger = logging.getLogger("stage_sc.data")

# Genes whose log-normalised expression varies less are not blown up to unit variance.
MIN_SCALE = 1e-3
# Fewer genes than this say little about a niche.
FEW_GENES = 50


class Slide(NamedTuple):
    """One slide. Cells stand in canonical order, genes in that of their tokens."""

    name: str
    cells: np.ndarray
    """``(n,)`` position of every cell in the AnnData."""
    expression: sp.csr_matrix
    """``(n, P)`` float32, log-normalised."""
    genes: list[str]
    """Tokens of the columns, sorted."""
    mean: np.ndarray
    """``(P,)`` float32 mean of each column, as the configuration scales."""
    scale: np.ndarray
    """``(P,)`` float32, standard deviation of each column, or 1."""
    graph: sp.csr_matrix
    """``(n, n)`` float32 Gaussian weights of the Delaunay edges."""
    local: sp.csr_matrix
    """``(n, n)`` float32 Gaussian weights of the local neighbourhoods."""
    view: sp.csr_matrix
    """``(n, n)`` float32 Gaussian weights of the view rings."""
    empty: np.ndarray
    """``(n,)`` bool: no counts."""
    isolated: np.ndarray
    """``(n,)`` bool: no neighbour."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.cells)

    def surroundings(self) -> sp.csr_matrix:
        """``(n, n)`` float32 operator: the mean over neighbours, twice, with every cell among its own neighbours."""
        near = self.graph.astype(bool).astype(np.float32) + sp.identity(self.n_cells, np.float32, format="csr")
        near = sp.diags_array(1 / np.asarray(near.sum(axis=1)).ravel()).astype(np.float32) @ near
        return sp.csr_matrix(near @ near)


def read_data(
    adata: AnnData,
    *,
    scaling: str,
    vocabulary: Collection[str] | None = None,
    spatial_key: str | None = None,
    library_key: str | None = None,
    layer: str | None = None,
    prefix: str = "",
    light: AnnData | None = None,
) -> list[Slide]:
    """Read all slides of an AnnData, which is not changed: a stale graph is rebuilt beside it.

    Parameters
    ----------
    adata
        Cells with a graph.
    scaling
        ``"none"``, ``"center"`` or ``"standardize"``: how the model wants genes scaled on each slide.
    vocabulary
        Tokens of the model. ``None``: every gene of the data.
    spatial_key, library_key
        As in `stage_sc.pp.build_graph`.
    layer
        Entry of ``adata.layers`` with the counts. ``None``: ``adata.X``.
    prefix
        Put before the names of the slides, with a slash.
    light
        Stand-in of `adata` (`stage_sc.pp._graph_state.stand_in`) that a rebuilt graph is left in. ``None``: a new one.

    Returns
    -------
    One entry per slide.

    Raises
    ------
    KeyError
        If the graph, the layer, the coordinates or the slide column do not exist.
    ValueError
        If no gene is in the vocabulary, if expression is negative, NaN or infinite, or if coordinates are refused.
    """
    tokens = _tokens(adata, vocabulary)
    values, names = _merge_columns(to_csr(expression(adata, layer)), tokens)
    light = light or stand_in(adata)
    graph = read_graph(light, spatial_key=spatial_key, library_key=library_key)
    state = light.uns["stage_graph"]
    slides = read_slides(adata, state["params"]["library_key"])
    known = np.array([vocabulary is None or name in vocabulary for name in names])
    used = [name for name, use in zip(names, known, strict=True) if use]
    members = [np.flatnonzero(slides.codes == code) for code in range(len(slides.names))]
    lengths, table = light.obsp["spatial_distances"], state["slides"]
    return [
        _slide(
            f"{prefix}/{name}".strip("/") or "slide",
            cells,
            *_measured(log_normalize(values[cells])[0][:, known], used),
            scaling,
            (lengths, graph.local, graph.view),
            table.loc[name],
        )
        for name, cells in zip(slides.names, members, strict=True)
    ]


def _measured(values: sp.csr_matrix, names: list[str]) -> tuple[sp.csr_matrix, list[str]]:
    """Columns with any count: the others are no part of this slide's panel, e.g. where panels were joined."""
    seen = np.bincount(values.indices, minlength=values.shape[1]) > 0
    if not seen.any():  # empty cells alone
        return values, names
    return sp.csr_matrix(values[:, seen]), [name for name, use in zip(names, seen, strict=True) if use]


def _tokens(adata: AnnData, vocabulary: Collection[str] | None) -> list[str | None]:
    """Token of every column, ``None`` for control probes."""
    control = is_control(adata.var)
    if vocabulary is None:
        tokens = gene_tokens(adata.var)
    else:
        table = match_genes(adata, vocabulary=vocabulary).table
        tokens = table["token"].tolist()
        known = int(table["status"].isin(["matched", "ambiguous"]).sum())
        if known < 0.5 * len(tokens) or known < FEW_GENES:
            logger.warning(
                "The model knows only %d of the %d genes: niches may be coarse or wrong. Look at "
                "`st.pp.match_genes(adata)`, or train on this data with `st.tl.fit`.",
                *(known, len(tokens)),
            )
        else:
            logger.info("The model knows %d of the %d genes.", known, len(tokens))
    return [None if skip else token for token, skip in zip(tokens, control, strict=True)]


def _merge_columns(counts: sp.csr_matrix, tokens: list[str | None]) -> tuple[sp.csr_matrix, list[str]]:
    """Columns sorted by token, those of one token added up, and those without any left out."""
    uses = Counter(token for token in tokens if token is not None)
    repeated = sorted(token for token, n in uses.items() if n > 1)
    if repeated:
        shown = ", ".join(repeated[:5]) + (", …" if len(repeated) > 5 else "")
        logger.warning("%d genes have several columns, which were added up: %s.", len(repeated), shown)
    names = sorted(uses)
    if not names:
        raise ValueError(f"There are no genes: `adata.var_names` holds {len(tokens)} control probes and nothing else.")
    column = {token: position for position, token in enumerate(names)}
    pairs = [(row, column[token]) for row, token in enumerate(tokens) if token is not None]
    rows, cols = np.array(pairs, dtype=np.intp).T
    if repeated:  # in float64, where the order of a few float32 terms makes no difference
        merge = sp.csr_matrix((np.ones(len(rows)), (rows, cols)), (len(tokens), len(names)))
        counts = sp.csr_matrix(counts.astype(np.float64) @ merge, dtype=np.float32)
    else:
        counts = sp.csr_matrix(counts[:, rows[np.argsort(cols)]])
    counts.sort_indices()
    return counts, names


def _slide(
    name: str,
    cells: np.ndarray,
    here: sp.csr_matrix,
    genes: list[str],
    scaling: str,
    graphs: tuple[sp.csr_matrix, ...],
    settings: pd.Series,
) -> Slide:
    """Scale one slide and put it into canonical order; `here` is its expression, `graphs` are those of all cells."""
    lengths, local, view = (sp.csr_matrix(matrix[cells][:, cells]) for matrix in graphs)
    lengths.sort_indices()
    graph = sp.csr_matrix(
        (gaussian_weights(lengths.data, settings["sigma"]), lengths.indices, lengths.indptr), shape=lengths.shape
    )
    order = canonical_order(here, genes, graph)
    here = here[order]
    graph, local, view = (_reorder(matrix, order) for matrix in (graph, local, view))
    mean, square = (np.asarray(part.mean(axis=0, dtype=np.float64)).ravel() for part in (here, here.multiply(here)))
    deviation = np.sqrt(np.maximum(square - np.square(mean), 0))
    slide = Slide(
        name,
        cells[order],
        here,
        genes,
        (np.zeros_like(mean) if scaling == "none" else mean).astype(np.float32),
        (np.maximum(deviation, MIN_SCALE) if scaling == "standardize" else np.ones_like(mean)).astype(np.float32),
        *(graph, local, view),
        np.diff(here.indptr) == 0,
        np.diff(graph.indptr) == 0,
    )
    _report(slide)
    return slide


def _reorder(matrix: sp.csr_matrix, order: np.ndarray) -> sp.csr_matrix:
    matrix = sp.csr_matrix(matrix[order][:, order])
    matrix.sort_indices()
    return matrix


def _report(slide: Slide) -> None:
    for cells, what in ((slide.empty, "counts of the genes used"), (slide.isolated, "neighbour")):
        if cells.any():
            logger.warning(
                "%s%d cells have no %s; they are labelled by what there is, and flagged.",
                *(slide_prefix(slide.name), cells.sum(), what),
            )
