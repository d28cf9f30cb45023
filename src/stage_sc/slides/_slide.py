"""One slide in the form that the network reads: known genes, neighbourhoods, cells in canonical order."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.spatial import cKDTree

from stage_sc._input import about, slide_name
from stage_sc._matrix import find_counts, read_matrix
from stage_sc._stack import in_micrometres
from stage_sc.genes import gene_tokens, match_genes, match_proteins, protein_tokens, refuse_proteins
from stage_sc.graph import gaussian_weights, graph_coordinates, graph_view, lengths_in_plane, permute, read_graph
from stage_sc.nn import Modality, StageConfig
from stage_sc.slides._canonical import canonical_order
from stage_sc.slides._expression import Expression, plan_columns, read_expression
from stage_sc.slides._stored import StoredArray, StoredMatrix

logger = logging.getLogger("stage_sc.data")

Matrix: TypeAlias = "sp.csr_matrix | StoredMatrix"
# Number of known genes below which a warning is logged.
FEW_GENES = 30


@dataclass(frozen=True, eq=False)
class Slide:
    """One slide, or a window of one, with cells in canonical order (on disk: in spatial order)."""

    name: str
    genes: list[str]
    """Tokens of the P columns of `expression`, sorted."""
    mean: np.ndarray
    """``(P,)`` float32, mean of each gene over the slide (0 without centring)."""
    scale: np.ndarray
    """``(P,)`` float32, sd of each gene over the slide (1 without scaling)."""
    cells: np.ndarray | StoredArray
    """``(n,)`` row of every cell in the AnnData."""
    expression: Matrix
    """``(n, P)`` float32, log-normalised, unscaled; rows in the order of `rows`."""
    rows: np.ndarray | None
    """``(n,)`` row of every cell in `expression`. ``None``: the same order."""
    graph: Matrix
    """``(n, n)`` float32 Gaussian weights of the Delaunay edges, 1 on the diagonal; rows are sorted."""
    local: Matrix
    """``(n, n)`` float32 Gaussian weights of the local neighbourhoods; rows are sorted."""
    xy: np.ndarray | StoredArray
    """``(n, 2)`` float64 coordinates, µm; ``(n, 3)`` with the heights of a stack."""
    sizes: tuple[str, float, float, float]
    """Mode of the neighbourhoods, size of the local one and of the view ring, σ of the weights."""
    edge: float
    """Median length of the edges of the graph within sections, µm."""
    intensities: bool
    """Expression is of intensities, of proteins as a rule, not of counts."""
    empty: np.ndarray | StoredArray
    """``(n,)`` bool, no counts."""
    isolated: np.ndarray | StoredArray
    """``(n,)`` bool, no neighbour."""
    identity: np.ndarray | StoredArray
    """``(n,)`` uint64 hash of the counts of every cell."""
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 2, 2)))
    """Bounding boxes of the chunks of a slide on disk, see `boxes_of`."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.graph.shape[0]

    @property
    def stored(self) -> bool:
        """True if the slide is on disk."""
        return isinstance(self.graph, StoredMatrix)

    @cached_property
    def tree(self) -> cKDTree:
        """Spatial index of the cells."""
        return cKDTree(self.xy[:])

    def take(self, cells: np.ndarray) -> sp.csr_matrix:
        """Expression of some cells."""
        return self.expression[cells if self.rows is None else self.rows[cells]]

    def blocks(self, size: int) -> Iterator[tuple[slice | np.ndarray, sp.csr_matrix]]:
        """All cells with their expression, `size` at a time, in the order of `expression`."""
        order = None if self.rows is None else np.argsort(self.rows)
        for start in range(0, self.n_cells, size):
            part = slice(start, min(start + size, self.n_cells))
            yield part if order is None else order[part], self.expression[part]


def read_slides(
    adata: AnnData,
    config: StageConfig,
    *,
    vocabulary: Collection[str] | None = None,
    spatial_key: str | None = None,
    library_key: str | None = None,
    layer: str | None = None,
    prefix: str = "",
    view: AnnData | None = None,
    scratch: Path | None = None,
) -> list[Slide]:
    """Read all slides of an AnnData with a graph, which is not changed.

    Parameters
    ----------
    adata
        Cells with a graph.
    config
        `modality` decides how values are read, `scaling` and `min_sd` how genes are scaled on each slide.
    vocabulary
        Tokens of the model. ``None``: all genes of the data.
    spatial_key, library_key
        As in `stage_sc.pp.build_graph`.
    layer
        Entry of ``adata.layers`` with the counts. ``None``: ``adata.X``.
    prefix
        Prefix of the names of the slides, before a slash.
    view
        `stage_sc.graph.graph_view` of `adata`, to which a stale graph is written anew. ``None``: a new one.
    scratch
        Folder for the expression. ``None``: it is kept in memory.

    Raises
    ------
    KeyError
        If the graph, the layer, the coordinates or the slide column do not exist.
    ValueError
        If no gene is in the vocabulary, if expression is negative, NaN or infinite, or if coordinates are refused.
    """
    columns = plan_columns(
        _tokens(adata, vocabulary, config.modality), lambda name: vocabulary is None or name in vocabulary
    )
    view = view or graph_view(adata)
    graph = read_graph(view, spatial_key=spatial_key, library_key=library_key)
    state = view.uns["stage_graph"]
    xy, codes = graph_coordinates(adata, state["params"])
    expressions = read_expression(
        read_matrix(adata, layer),
        columns,
        codes.codes,
        len(codes.names),
        scratch,
        names=[slide_name(prefix, key) for key in codes.names],
        proteins=config.modality == "protein",
        advice=partial(_advise, adata, layer, config.modality),
    )
    slides = []
    for (key, cells), expression in zip(codes.rows().items(), expressions, strict=True):
        lengths, local = graph.distances, graph.local
        if len(cells) < len(xy):
            lengths, local = lengths[cells][:, cells], local[cells][:, cells]
        name = slide_name(prefix, key) or "slide"
        settings = state["slides"].loc[key]
        places = in_micrometres(xy[cells], float(settings["scale"]), state["params"])
        slides.append(_slide(name, cells, expression, config, lengths, local, places, settings))
    return slides


def _advise(adata: AnnData, layer: str | None, modality: Modality) -> str:
    """Sentence about values that are refused."""
    if modality == "rna":
        return find_counts(adata, layer)
    return "Pass intensities as measured; set those below 0, of subtracted background, to 0: `np.maximum(X, 0)`."


def _tokens(adata: AnnData, vocabulary: Collection[str] | None, modality: Modality) -> list[str | None]:
    """Token of every column, ``None`` for features that are of another modality, or controls."""
    if modality == "protein":
        return protein_tokens(adata.var) if vocabulary is None else match_proteins(adata.var, vocabulary)
    refuse_proteins(adata.var)
    if vocabulary is None:
        return gene_tokens(adata.var)
    match = match_genes(adata, vocabulary=vocabulary)
    is_gene = ~match.table["status"].isin(["control", "other"])
    if match.n_matched < max(0.5 * is_gene.sum(), FEW_GENES):
        logger.warning(
            "The model knows only %d of the %d genes: niches may be coarse or wrong. Check "
            "`st.pp.match_genes(adata)`, or train on this data with `st.tl.fit`.",
            *(match.n_matched, is_gene.sum()),
        )
    else:
        logger.info("The model knows %d of the %d genes.", match.n_matched, is_gene.sum())
    return [token if gene else None for token, gene in zip(match.table["token"], is_gene, strict=True)]


def _slide(
    name: str,
    cells: np.ndarray,
    expression: Expression,
    config: StageConfig,
    lengths: sp.csr_matrix,
    local: sp.csr_matrix,
    xy: np.ndarray,
    settings: pd.Series,
) -> Slide:
    """Put one slide into canonical order; `lengths` of the edges, `local` weights and `xy` (µm) are its own."""
    weights = gaussian_weights(lengths.data, settings["sigma"])
    edges = sp.csr_matrix((weights, lengths.indices, lengths.indptr), shape=lengths.shape, copy=False)
    graph = sp.csr_matrix(edges + sp.identity(len(cells), np.float32, format="csr"))
    order = canonical_order(expression.identity, graph)
    empty, isolated = ~expression.filled[order], np.diff(edges.indptr)[order] == 0
    for flags, lacking in ((empty, "counts of the genes used"), (isolated, "neighbour")):
        if flags.any():
            logger.warning(
                "%s%d cells have no %s; they get the labels of the rest of their neighbourhood, and a flag.",
                *(about(name), flags.sum(), lacking),
            )
    mean, sd = gene_scaling(expression.mean, expression.deviation, config)
    return Slide(
        name=name,
        genes=expression.genes,
        mean=mean,
        scale=sd,
        cells=cells[order],
        expression=expression.matrix,
        rows=order,
        graph=permute(graph, order),
        local=permute(local, order),
        xy=xy[order],
        sizes=(str(settings["mode"]), float(settings["local"]), float(settings["view"]), float(settings["sigma"])),
        edge=float(np.median(in_plane)) if len(in_plane := lengths_in_plane(lengths, xy)) else 0.0,
        intensities=expression.intensities,
        empty=empty,
        isolated=isolated,
        identity=expression.identity[order],
    )


def gene_scaling(mean: np.ndarray, sd: np.ndarray, config: StageConfig) -> tuple[np.ndarray, np.ndarray]:
    """Float32 mean to subtract from the expression of each gene, and sd to divide it by."""
    mean = np.zeros_like(mean) if config.scaling == "none" else mean
    sd = np.maximum(sd, config.min_sd) if config.scaling == "standardize" else np.ones_like(sd)
    return mean.astype(np.float32), sd.astype(np.float32)
