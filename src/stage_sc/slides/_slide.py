"""A slide as the network reads it: matched genes, scaled expression, neighbourhoods, cells in canonical order."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.spatial import cKDTree

from stage_sc._input import about, read_coordinates, read_matrix, read_slide_codes, slide_name
from stage_sc.genes import gene_tokens, is_control, match_genes
from stage_sc.graph import gaussian_weights, graph_view, permute, read_graph
from stage_sc.nn import StageConfig
from stage_sc.slides._canonical import canonical_order
from stage_sc.slides._expression import Expression, plan_columns, read_expression
from stage_sc.slides._stored import StoredArray, StoredMatrix

logger = logging.getLogger("stage_sc.data")

Matrix: TypeAlias = "sp.csr_matrix | StoredMatrix"
# Fewer genes than this say little about a niche.
FEW_GENES = 50


@dataclass(frozen=True, eq=False)
class Slide:
    """One slide, or a window of one. Cells stand in one order of their own, genes in that of their tokens."""

    name: str
    genes: list[str]
    """Tokens of the P columns of `expression`, sorted."""
    mean: np.ndarray
    """``(P,)`` float32 mean of each column over the slide, as the configuration scales."""
    scale: np.ndarray
    """``(P,)`` float32, standard deviation of each column over the slide, or 1."""
    cells: np.ndarray | StoredArray
    """``(n,)`` position of every cell in the AnnData."""
    expression: Matrix
    """``(n, P)`` float32, log-normalised; in the order of `rows`."""
    rows: np.ndarray | None
    """``(n,)`` row of `expression` of every cell. ``None``: the cells follow each other there too."""
    graph: Matrix
    """``(n, n)`` float32 Gaussian weights of the Delaunay edges, 1 on the diagonal; rows are sorted."""
    local: Matrix
    """``(n, n)`` float32 Gaussian weights of the local neighbourhoods; rows are sorted."""
    xy: np.ndarray | StoredArray
    """``(n, 2)`` float64 coordinates in µm."""
    sizes: tuple[str, float, float, float]
    """Mode of the neighbourhoods, size of the local one and of the ring, σ of the weights."""
    empty: np.ndarray | StoredArray
    """``(n,)`` bool: no counts."""
    isolated: np.ndarray | StoredArray
    """``(n,)`` bool: no neighbour."""
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 2, 2)))
    """Corners of the chunks of a slide on disk, see `stage_sc.data._window`."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.graph.shape[0]

    @property
    def stored(self) -> bool:
        """Whether its cells are on disk."""
        return isinstance(self.graph, StoredMatrix)

    @cached_property
    def tree(self) -> cKDTree:
        """Look-up of cells by place."""
        return cKDTree(self.xy[:])

    def take(self, cells: np.ndarray) -> sp.csr_matrix:
        """Expression of some cells."""
        return self.expression[cells if self.rows is None else self.rows[cells]]

    def blocks(self, size: int) -> Iterator[tuple[slice | np.ndarray, sp.csr_matrix]]:
        """All cells with their expression, `size` at a time, in the order in which it is kept."""
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
    """Read all slides of an AnnData, which is not changed: a stale graph is rebuilt beside it.

    Parameters
    ----------
    adata
        Cells with a graph.
    config
        `scaling` and `min_sd` decide how genes are scaled on each slide.
    vocabulary
        Tokens of the model. ``None``: every gene of the data.
    spatial_key, library_key
        As in `stage_sc.pp.build_graph`.
    layer
        Entry of ``adata.layers`` with the counts. ``None``: ``adata.X``.
    prefix
        Put before the names of the slides, with a slash.
    view
        `stage_sc.graph.graph_view` of `adata`, into which a rebuilt graph is written. ``None``: a new one.
    scratch
        Folder in which expression is kept. ``None``: it is kept in memory.

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
    values = read_matrix(adata, layer)
    columns = plan_columns(_tokens(adata, vocabulary), lambda name: vocabulary is None or name in vocabulary)
    view = view or graph_view(adata)
    graph = read_graph(view, spatial_key=spatial_key, library_key=library_key)
    state = view.uns["stage_graph"]
    slides = read_slide_codes(adata, state["params"]["library_key"])
    xy = read_coordinates(adata, state["params"]["spatial_key"])
    read = read_expression(values, columns, slides.codes, len(slides.names), scratch)
    return [
        _slide(
            slide_name(prefix, name) or "slide",
            cells,
            expression,
            config,
            (graph.distances, graph.local, xy[:, :2]),
            state["slides"].loc[name],
        )
        for (name, cells), expression in zip(slides.rows().items(), read, strict=True)
    ]


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
                "The model knows %d of the %d genes, which is little: niches may be coarse or wrong. Look at "
                "`st.pp.match_genes(adata)`, or train on this data with `st.tl.fit`.",
                *(known, len(tokens)),
            )
        else:
            logger.info("The model knows %d of the %d genes.", known, len(tokens))
    return [None if skip else token for token, skip in zip(tokens, control, strict=True)]


def _slide(
    name: str,
    cells: np.ndarray,
    expression: Expression,
    config: StageConfig,
    everything: tuple[sp.csr_matrix, sp.csr_matrix, np.ndarray],
    settings: pd.Series,
) -> Slide:
    """Put one slide into canonical order; `everything` holds distances, local weights and coordinates of all cells."""
    lengths, local, xy = everything
    if len(cells) < len(xy):
        lengths, local, xy = lengths[cells][:, cells], local[cells][:, cells], xy[cells]
    weights = gaussian_weights(lengths.data, settings["sigma"])
    edges = sp.csr_matrix((weights, lengths.indices, lengths.indptr), shape=lengths.shape, copy=False)
    graph = sp.csr_matrix(edges + sp.identity(len(cells), np.float32, format="csr"))
    order = canonical_order(expression.identity, graph)
    mean, sd = gene_scaling(expression.mean, expression.deviation, config)
    slide = Slide(
        name=name,
        genes=expression.genes,
        mean=mean,
        scale=sd,
        cells=cells[order],
        expression=expression.matrix,
        rows=order,
        graph=permute(graph, order),
        local=permute(local, order),
        xy=xy[order] * float(settings["scale"]),
        sizes=(str(settings["mode"]), float(settings["local"]), float(settings["view"]), float(settings["sigma"])),
        empty=~expression.filled[order],
        isolated=np.diff(edges.indptr)[order] == 0,
    )
    _report(slide)
    return slide


def gene_scaling(mean: np.ndarray, sd: np.ndarray, config: StageConfig) -> tuple[np.ndarray, np.ndarray]:
    """Float32 values that are subtracted from the expression of each gene, and divided by afterwards."""
    mean = np.zeros_like(mean) if config.scaling == "none" else mean
    sd = np.maximum(sd, config.min_sd) if config.scaling == "standardize" else np.ones_like(sd)
    return mean.astype(np.float32), sd.astype(np.float32)


def _report(slide: Slide) -> None:
    for flags, lacking in ((slide.empty, "counts of the genes used"), (slide.isolated, "neighbour")):
        cells = flags[:]
        if cells.any():
            logger.warning(
                "%s%d cells have no %s; they get the labels of the rest of their neighbourhood, and a flag.",
                *(about(slide.name), cells.sum(), lacking),
            )
