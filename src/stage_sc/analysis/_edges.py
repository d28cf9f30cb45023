"""Neighbours in space of all cells of a container."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from stage_sc._input import Tables
from stage_sc._messages import element_name, naming
from stage_sc.graph import graph_view, read_graph


def read_edges(tables: Tables) -> sp.csr_matrix:
    """0/1 graph of all cells, one object after the other; a stale graph is rebuilt apart from the object."""
    parts = []
    for name, part in tables.by_name.items():
        with naming(element_name("data", name), repr(name)):
            distances = read_graph(graph_view(part)).distances
        ones = np.ones(distances.nnz, np.float32)
        parts.append(sp.csr_matrix((ones, distances.indices, distances.indptr), shape=distances.shape, copy=False))
    return parts[0] if len(parts) == 1 else sp.block_diag(parts, format="csr")
