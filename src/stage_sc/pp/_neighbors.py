"""Graph and neighbourhoods of one slide: pure functions from coordinates to pairs of cells."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.spatial import cKDTree

from stage_sc.pp._platforms import GRID_NEIGHBOURS
from stage_sc.pp._units import SlideSettings

# Radii are closed with this slack, so that rounding after a rotation or shift cannot move a pair across a boundary.
SLACK = 1 + 1e-9
MAX_MEAN_NEIGHBOURS = 1000


class Pairs(NamedTuple):
    """Ordered pairs of cells (both directions) with their distance."""

    rows: np.ndarray
    cols: np.ndarray
    distance: np.ndarray
    """float64, µm."""


class SlideGraph(NamedTuple):
    """The three neighbourhood relations of one slide."""

    edges: Pairs
    local: Pairs
    """Includes every cell with itself."""
    view: Pairs
    squidpy_entry: dict[str, Any]


def slide_graph(xy: np.ndarray, settings: SlideSettings) -> SlideGraph:
    """Delaunay (or grid) graph, local neighbourhood and view ring of one slide.

    Parameters
    ----------
    xy
        ``(n, 2)`` float64 coordinates in µm.
    settings
        Layout, mode and sizes.

    Notes
    -----
    Equations 1, 2, 18 and 19 of the STAGE paper for mode ``"radius"``. O(n log n) time; memory is that of the pairs.
    """
    adjacency, entry = _adjacency(xy, settings)
    edges = _pairs(adjacency, xy)
    if settings.mode == "radius":
        local, view = _within_radii(xy, settings.local, settings.view)
    else:
        local, view = _within_hops(adjacency, xy, int(settings.local), int(settings.view))
    return SlideGraph(edges, local, view, entry)


def gaussian_weights(distance: np.ndarray, sigma: float) -> np.ndarray:
    """``exp(-d² / 2σ²)`` (equation 20 of the STAGE paper), float32 and above 0.

    The exponent is computed in float64 and rounded to four decimals: rotating or shifting the coordinates changes
    distances in the last bits only, and so leaves every weight as it is, to the bit. The relative error is below 5e-5.
    """
    exponent = np.round(np.square(distance / sigma) / 2, 4)
    return np.exp(-np.minimum(exponent, 80.0)).astype(np.float32)


def _adjacency(xy: np.ndarray, settings: SlideSettings) -> tuple[sp.csr_matrix, dict[str, Any]]:
    """Symmetric boolean adjacency between cells, without the diagonal, from squidpy's builders."""
    # Cells at one place would be isolated in a triangulation: triangulate the places, then connect the cells of a place
    # with each other and with those of neighbouring places. Sorted places make ties independent of the cell order.
    places, place = np.unique(xy, axis=0, return_inverse=True)
    graph, entry = _squidpy_graph(places, settings)
    # A nearest-neighbour edge is part of every Delaunay triangulation, but points closer than Qhull's precision are
    # left out of it; put their edge back.
    distance, nearest = (column[:, 1] for column in cKDTree(places).query(places, 2))
    close = np.flatnonzero(distance <= settings.radius * SLACK) if settings.layout == "cells" else np.empty(0, np.intp)
    extra = sp.csr_matrix((np.ones(len(close), bool), (close, nearest[close])), shape=graph.shape)
    graph = (graph + graph.T + extra + extra.T).astype(bool)
    member = sp.csr_matrix(
        (np.ones(len(xy), np.int32), (np.arange(len(xy)), place.reshape(-1))), shape=(len(xy), len(places))
    )
    graph = (member @ (graph + sp.identity(len(places), dtype=bool, format="csr")).astype(np.int32) @ member.T).tocsr()
    graph.setdiag(0)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph.astype(bool), entry


def _squidpy_graph(places: np.ndarray, settings: SlideSettings) -> tuple[sp.csr_matrix, dict[str, Any]]:
    """Let squidpy connect distinct places; its entry for ``uns`` comes in a form that can be written to disk."""
    import squidpy as sq  # seconds to import, and only needed here

    # Centred, because Qhull lifts points to x² + y² and would lose the digits of coordinates far from the origin.
    light = AnnData(
        obs=pd.DataFrame(index=pd.RangeIndex(len(places)).astype(str)),
        obsm={"spatial": places - places.mean(axis=0)},
    )
    with _quiet("spatialdata._logging"):  # which squidpy logs to: a line for every slide
        if settings.layout == "cells":
            sq.gr.spatial_neighbors_delaunay(light, radius=settings.radius * SLACK)
        else:
            n_neighs = min(GRID_NEIGHBOURS[settings.layout], len(places) - 1)
            sq.gr.spatial_neighbors_grid(light, n_neighs=n_neighs)
    entry = dict(light.uns["spatial_neighbors"])
    # A tuple cannot be written to h5ad.
    entry["params"] = {key: list(v) if isinstance(v, tuple) else v for key, v in entry["params"].items()}
    if "radius" in entry["params"]:
        entry["params"]["radius"] = [0.0, float(settings.radius)]
    return light.obsp["spatial_connectivities"].astype(bool).tocsr(), entry


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Only warnings of the logger `name` within the block."""
    other = logging.getLogger(name)
    level = other.level
    other.setLevel(logging.WARNING)
    try:
        yield
    finally:
        other.setLevel(level)


def _within_radii(xy: np.ndarray, local: float, view: float) -> tuple[Pairs, Pairs]:
    """All pairs within `local` (with the cells themselves), and all pairs in the ring up to `view`."""
    tree = cKDTree(xy)
    sample = xy[np.lexsort(xy.T)][:: max(1, len(xy) // 512)]
    mean = float(np.mean(tree.query_ball_point(sample, view * SLACK, return_length=True)))
    if mean > MAX_MEAN_NEIGHBOURS:
        raise ValueError(
            f"A cell has {mean:.0f} others within {view:g} µm on average: `scale` (µm per unit of the coordinates) is "
            'probably too small. For very dense data pass mode="hops", or smaller `local` and `view`.'
        )
    pairs = tree.query_pairs(view * SLACK, output_type="ndarray").astype(np.int32)
    distance = _distances(xy, pairs[:, 0], pairs[:, 1])
    near = distance <= local * SLACK
    itself = np.arange(len(xy), dtype=np.int32)
    return (
        Pairs(
            np.concatenate([itself, pairs[near, 0], pairs[near, 1]]),
            np.concatenate([itself, pairs[near, 1], pairs[near, 0]]),
            np.concatenate([np.zeros(len(xy)), distance[near], distance[near]]),
        ),
        Pairs(
            np.concatenate([pairs[~near, 0], pairs[~near, 1]]),
            np.concatenate([pairs[~near, 1], pairs[~near, 0]]),
            np.concatenate([distance[~near], distance[~near]]),
        ),
    )


def _within_hops(adjacency: sp.csr_matrix, xy: np.ndarray, local: int, view: int) -> tuple[Pairs, Pairs]:
    """Pairs at most `local` hops apart (with the cells themselves), and pairs at exactly `view` hops."""
    reach = [sp.identity(len(xy), dtype=bool, format="csr")]  # reach[k]: pairs at most k hops apart
    step = adjacency + reach[0]
    for _ in range(max(local, view)):
        reach.append(reach[-1] @ step)
    ring = reach[view].astype(np.int8) - reach[view - 1].astype(np.int8)
    ring.eliminate_zeros()
    return _pairs(reach[local], xy), _pairs(ring, xy)


def _pairs(matrix: sp.csr_matrix, xy: np.ndarray) -> Pairs:
    pairs = matrix.tocoo()
    return Pairs(pairs.row, pairs.col, _distances(xy, pairs.row, pairs.col))


def _distances(xy: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return np.hypot(xy[rows, 0] - xy[cols, 0], xy[rows, 1] - xy[cols, 1])
