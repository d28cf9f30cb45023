"""Graph and neighbourhoods of one slide: pure functions from coordinates to pairs of cells."""

from __future__ import annotations

import logging
import threading
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.spatial import cKDTree

from stage_sc.graph._platforms import GRID_NEIGHBOURS
from stage_sc.graph._settings import SlideSettings
from stage_sc.graph._units import distinct_places, sorted_places

# Factor on radii, so that rounding after a rotation or shift moves no pair across the boundary.
SLACK = 1 + 1e-9
MAX_MEAN_NEIGHBOURS = 1000


class SlideGraph(NamedTuple):
    """Neighbourhoods of one slide: symmetric ``(n, n)`` csr matrices."""

    edges: sp.csr_matrix
    """float64 lengths in µm of the edges of the Delaunay (or grid) graph, 0 between cells at one place."""
    local: sp.csr_matrix
    """float32 Gaussian weights of the local neighbourhoods, 1 on the diagonal."""
    sigma: float
    """Bandwidth of the weights, µm."""
    squidpy_entry: dict[str, Any]


def slide_graph(xy: np.ndarray, settings: SlideSettings) -> SlideGraph:
    """Delaunay (or grid) graph and local neighbourhoods (equations 1 and 18 of the paper) of one slide.

    `xy` is ``(n, 2)`` float64 in µm. O(n log n) time; memory is that of the pairs.
    """
    adjacency, entry = _adjacency(xy, settings)
    edges = _lengths(adjacency, xy)
    sigma = settings.sigma or _median_edge(edges.data)
    if settings.mode == "radius":
        local = _within_radius(xy, settings.local, settings.view, sigma)
    else:
        _check_hops(adjacency, int(settings.view))
        itself = sp.identity(len(xy), dtype=bool, format="csr")
        local = _lengths(_within_hops(itself + adjacency, adjacency, int(settings.local) - 1), xy)
        weights = gaussian_weights(local.data, sigma)
        local = sp.csr_matrix((weights, local.indices, local.indptr), shape=local.shape, copy=False)
    return SlideGraph(edges, local, sigma, entry)


def ring(
    xy: np.ndarray,
    tree: cKDTree,
    adjacency: sp.csr_matrix,
    cells: np.ndarray,
    sizes: tuple[str, float, float, float],
) -> sp.csr_matrix:
    """View rings of some cells (equations 2 and 19), ``(B, n)`` float32 Gaussian weights (equation 20), rows sorted.

    `xy` is ``(n, 2)`` float64 in µm, `tree` its index, `adjacency` the ``(n, n)`` pattern of the graph, and `sizes` are
    mode, local and view size, and σ. Rings are not stored: they include most pairs and are used in training only.
    """
    mode, local, view, sigma = sizes
    if mode == "hops":
        itself = sp.csr_matrix((np.ones(len(cells), bool), (np.arange(len(cells)), cells)), (len(cells), len(xy)))
        inner = _within_hops(itself, adjacency, int(view) - 1)
        outer = _within_hops(inner, adjacency, 1)
        pairs = (outer.astype(np.int8) - inner.astype(np.int8)).tocoo()
        rows, cols = pairs.row, pairs.col
        distance = _distances(xy, cells[rows], cols)
    else:
        found = cKDTree(xy[cells]).sparse_distance_matrix(tree, view * SLACK, output_type="ndarray")
        found = found[found["v"] > local * SLACK]
        rows, cols, distance = found["i"], found["j"], found["v"]
    return sorted_csr(rows, cols, gaussian_weights(distance, sigma), (len(cells), len(xy)))


def gaussian_weights(distance: np.ndarray, sigma: float) -> np.ndarray:
    """``exp(-d² / 2σ²)`` (equation 20 of the paper), float32 and above 0.

    The exponent is computed in float64 and rounded to four decimals: rotating or shifting the coordinates changes
    distances in the last bits only, and weights not at all. The relative error is below 5e-5.
    """
    exponent = np.round(np.square(distance / sigma) / 2, 4)
    return np.exp(-np.minimum(exponent, 80.0)).astype(np.float32)


def _adjacency(xy: np.ndarray, settings: SlideSettings) -> tuple[sp.csr_matrix, dict[str, Any]]:
    """Symmetric boolean adjacency of cells, without the diagonal, from squidpy's builders."""
    # Cells at one place would be isolated in a triangulation: places are triangulated, then the cells of a place are
    # connected with each other and with those of neighbouring places. Sorted places make ties independent of the order
    # of the cells, and Qhull is faster if consecutive points are close.
    places, place = distinct_places(xy)
    spatial = cKDTree(places).indices
    places, place = places[spatial], np.argsort(spatial)[place]
    graph, entry = _squidpy_graph(places, settings)
    if settings.layout not in GRID_NEIGHBOURS:
        graph = _connect_lone_places(graph, places, settings.radius)
    else:
        graph = (graph + graph.T).astype(bool)
    if len(places) == len(xy):
        return permute(graph, place), entry
    member = sp.csr_matrix((np.ones(len(xy), np.int32), (np.arange(len(xy)), place)), shape=(len(xy), len(places)))
    graph = (member @ (graph + sp.identity(len(places), dtype=bool, format="csr")).astype(np.int32) @ member.T).tocsr()
    graph.setdiag(0)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph.astype(bool), entry


def _connect_lone_places(graph: sp.csr_matrix, places: np.ndarray, radius: float) -> sp.csr_matrix:
    """Connect places that Qhull omitted (closer to another than its precision) with their nearest place.

    The edge to the nearest place is part of every Delaunay triangulation.
    """
    lone = np.flatnonzero(np.diff(graph.indptr) == 0)
    if not len(lone):
        return graph
    distance, nearest = (column[:, 1] for column in cKDTree(places).query(places[lone], 2))
    lone, nearest = lone[distance <= radius * SLACK], nearest[distance <= radius * SLACK]
    extra = sp.csr_matrix((np.ones(len(lone), bool), (lone, nearest)), shape=graph.shape)
    return (graph + extra + extra.T).astype(bool)


def permute(matrix: sp.csr_matrix, order: np.ndarray) -> sp.csr_matrix:
    """``matrix[order][:, order]`` of a symmetric matrix, with sorted rows (its transpose by csc, which sorts)."""
    inverse = np.empty(len(order), dtype=np.int32)
    inverse[order] = np.arange(len(order), dtype=np.int32)
    rows = matrix[order]
    unsorted = sp.csr_matrix((rows.data, inverse[rows.indices], rows.indptr), shape=rows.shape, copy=False)
    turned = unsorted.tocsc()
    return sp.csr_matrix((turned.data, turned.indices, turned.indptr), shape=rows.shape, copy=False)


def _squidpy_graph(places: np.ndarray, settings: SlideSettings) -> tuple[sp.csr_matrix, dict[str, Any]]:
    """Adjacency of distinct places by squidpy, and its entry for ``uns`` in a form that can be written to disk."""
    import squidpy as sq  # takes seconds

    # Centred, because Qhull lifts points to x² + y² and would lose the digits of coordinates far from the origin.
    adata = AnnData(
        obs=pd.DataFrame(index=pd.RangeIndex(len(places)).astype(str)),
        obsm={"spatial": places - places.mean(axis=0)},
    )
    log, thread = logging.getLogger("spatialdata._logging"), threading.get_ident()

    def quiet(record: logging.LogRecord) -> bool:  # squidpy logs a line per slide
        return record.thread != thread or record.levelno >= logging.WARNING

    log.addFilter(quiet)
    try:
        if settings.layout not in GRID_NEIGHBOURS:
            sq.gr.spatial_neighbors_delaunay(adata, radius=settings.radius * SLACK)
        else:
            sq.gr.spatial_neighbors_grid(adata, n_neighs=min(GRID_NEIGHBOURS[settings.layout], len(places) - 1))
    finally:
        log.removeFilter(quiet)
    entry = dict(adata.uns["spatial_neighbors"])
    # Tuples cannot be written to h5ad.
    entry["params"] = {key: list(v) if isinstance(v, tuple) else v for key, v in entry["params"].items()}
    if "radius" in entry["params"]:
        entry["params"]["radius"] = [0.0, float(settings.radius)]
    return adata.obsp["spatial_connectivities"].astype(bool).tocsr(), entry


def _within_radius(xy: np.ndarray, local: float, view: float, sigma: float) -> sp.csr_matrix:
    """Weights of all pairs within `local`, and 1 on the diagonal."""
    tree = cKDTree(xy)
    sample = sorted_places(xy)
    sample = sample[:: max(1, len(sample) // 512)]
    mean = float(np.mean(tree.query_ball_point(sample, view * SLACK, return_length=True)))
    if mean > MAX_MEAN_NEIGHBOURS:
        raise ValueError(
            f"A cell has {mean:.0f} others within {view:g} µm on average: `scale` (µm per unit of the coordinates) is "
            'probably too small. For very dense data pass mode="hops", or smaller `local` and `view`.'
        )
    first, second = np.ascontiguousarray(tree.query_pairs(local * SLACK, output_type="ndarray").T, dtype=np.int32)
    weights = gaussian_weights(_distances(xy, first, second), sigma)
    itself = np.arange(len(xy), dtype=np.int32)
    return sorted_csr(
        np.concatenate([itself, first, second]),
        np.concatenate([itself, second, first]),
        np.concatenate([np.ones(len(xy), np.float32), weights, weights]),
        (len(xy), len(xy)),
    )


def _within_hops(pattern: sp.csr_matrix, adjacency: sp.csr_matrix, hops: int) -> sp.csr_matrix:
    """Boolean `pattern` of pairs, extended by the pairs at most `hops` hops further."""
    for _ in range(hops):
        n_pairs, pattern = pattern.nnz, (pattern @ adjacency + pattern).astype(bool)
        if pattern.nnz == n_pairs:
            break
    return pattern


def _check_hops(adjacency: sp.csr_matrix, hops: int) -> None:
    """Raise a ValueError if cells have too many others within `hops` hops, on average of a sample."""
    n = adjacency.shape[0]
    some = np.random.default_rng(0).permutation(n)[:256]
    pattern = sp.csr_matrix((np.ones(len(some), bool), (np.arange(len(some)), some)), (len(some), n))
    for hop in range(1, hops + 1):
        n_pairs, pattern = pattern.nnz, _within_hops(pattern, adjacency, 1)
        mean = pattern.nnz / len(some)
        if mean > MAX_MEAN_NEIGHBOURS:
            raise ValueError(
                f"A cell has {mean:.0f} others within {hop} hops on average, and {hops} hops were asked for: `local` "
                'and `view` are numbers of steps on the graph with mode="hops". Pass smaller ones, or mode="radius" '
                "for µm."
            )
        if pattern.nnz == n_pairs:
            break


def sorted_csr(rows: np.ndarray, cols: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """Distinct pairs as csr with sorted rows, by two counting sorts; explicit zeros stay."""
    pairs = sp.coo_matrix((values, (rows, cols)), shape=shape)
    pairs.has_canonical_format = True  # nothing to add up
    return pairs.tocsc().tocsr()


def _lengths(pattern: sp.csr_matrix, xy: np.ndarray) -> sp.csr_matrix:
    """Distance of every pair of the pattern."""
    rows = np.repeat(np.arange(pattern.shape[0], dtype=np.int32), np.diff(pattern.indptr))
    distance = _distances(xy, rows, pattern.indices)
    return sp.csr_matrix((distance, pattern.indices, pattern.indptr), shape=pattern.shape, copy=False)


def _median_edge(lengths: np.ndarray) -> float:
    """Median length of the edges between different places, rounded to be the same to the bit after a rotation."""
    lengths = lengths[lengths > 0]
    return float(f"{np.median(lengths):.5g}") if len(lengths) else 10.0


def _distances(xy: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return np.hypot(xy[rows, 0] - xy[cols, 0], xy[rows, 1] - xy[cols, 1])
