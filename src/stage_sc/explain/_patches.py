"""Patches: some cells of a slide, each with all cells on which its label depends, as separate small graphs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from stage_sc.nn import Block
from stage_sc.slides import Slide

# Largest number of hops that are told apart.
MAX_HOPS = 20


class Nodes(NamedTuple):
    """Cells of patches; a cell is a node of every patch that it is in."""

    patch: np.ndarray
    """``(N,)`` int64 number of the patch."""
    cell: np.ndarray
    """``(N,)`` int64 cell of the slide."""

    def keys(self, n_cells: int) -> np.ndarray:
        """Sorted number of every node, unique."""
        return self.patch * n_cells + self.cell


class Patches(NamedTuple):
    """Patches of B cells, and the products by which an embedding is computed, from the centre outwards."""

    nodes: Nodes
    """All N nodes, sorted by patch and cell."""
    around: Nodes
    """Nodes within the hops of the means."""
    average: sp.csr_matrix
    """``(B, n)`` weights of the means over hops, on the nodes `around`."""
    local: sp.csr_matrix | None
    """Weights of the local neighbourhoods."""
    layers: list[Block]
    """Rows of the graph for each layer of the network, the last layer first."""


def mean_graph(slide: Slide) -> sp.csr_matrix:
    """``(n, n)`` float64 matrix of means over each cell and its neighbours."""
    graph = slide.graph[:]
    values = np.repeat(1.0 / np.diff(graph.indptr), np.diff(graph.indptr))
    return sp.csr_matrix((values, graph.indices, graph.indptr), shape=graph.shape, copy=False)


def make_patches(slide: Slide, means: sp.csr_matrix, centres: np.ndarray, hops: int, n_layers: int | None) -> Patches:
    """Cut the patches of `centres`: means over `hops`, a local neighbourhood, and `n_layers` layers of the network.

    `means` is from `mean_graph`; ``n_layers=None``: the means alone.
    """
    average = _start(centres, slide.n_cells, np.float64)
    for _ in range(hops):
        average = average @ means
    average.sort_indices()
    around = Nodes(np.repeat(np.arange(len(centres)), np.diff(average.indptr)), average.indices.astype(np.int64))
    shape = len(centres), average.nnz
    average = sp.csr_matrix((average.data, np.arange(average.nnz), average.indptr), shape=shape)
    if n_layers is None:
        return Patches(around, around, average, None, [])
    local, nodes = _step(slide.local, around)
    layers = []
    for _ in range(n_layers):
        inner = nodes.keys(slide.n_cells)
        rows, nodes = _step(slide.graph, nodes)
        own = torch.from_numpy(np.searchsorted(nodes.keys(slide.n_cells), inner))
        indptr, indices = (torch.from_numpy(part.astype(np.int64)) for part in (rows.indptr, rows.indices))
        layers.append(Block(own, indptr, indices, torch.from_numpy(rows.data.astype(np.float32))))
    return Patches(nodes, around, average, local, layers)


def hops_of(means: sp.csr_matrix, centres: np.ndarray, nodes: Nodes) -> np.ndarray:
    """``(N,)`` number of edges from the centre of its patch to every node."""
    n_cells = means.shape[0]
    keys, hop = nodes.keys(n_cells), np.full(len(nodes.cell), -1)
    reached = _start(centres, n_cells, np.float32)
    for number in range(MAX_HOPS + 1):
        found = np.repeat(np.arange(len(centres)), np.diff(reached.indptr)) * n_cells + reached.indices
        place = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
        place = place[keys[place] == found]
        hop[place[hop[place] < 0]] = number
        if (hop >= 0).all():
            break
        reached = reached @ means.astype(np.float32)
        reached.data[:] = 1
    return np.where(hop < 0, MAX_HOPS + 1, hop)


def _start(centres: np.ndarray, n_cells: int, dtype: type) -> sp.csr_matrix:
    parts: Any = np.ones(len(centres), dtype), centres, np.arange(len(centres) + 1)
    return sp.csr_matrix(parts, shape=(len(centres), n_cells))


def _step(matrix: sp.csr_matrix, nodes: Nodes) -> tuple[sp.csr_matrix, Nodes]:
    """Rows of a matrix over cells for all nodes, on the nodes that they reach, and these."""
    rows, n_cells = matrix[nodes.cell], matrix.shape[1]
    keys = np.repeat(nodes.patch, np.diff(rows.indptr)) * n_cells + rows.indices
    reached, columns = np.unique(keys, return_inverse=True)
    shape = len(nodes.cell), len(reached)
    return sp.csr_matrix((rows.data, columns, rows.indptr), shape=shape), Nodes(*np.divmod(reached, n_cells))
