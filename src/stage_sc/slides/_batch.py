"""Batches that give every centre the embedding that the whole slide gives it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from stage_sc.graph import ring
from stage_sc.nn import Batch, Neighbours, Panel, Sparse
from stage_sc.slides._slide import Slide
from stage_sc.slides._stored import restrict


def slide_panel(slide: Slide, vocabulary: dict[str, int]) -> Panel:
    """Genes of a slide as positions in the vocabulary, with their scaling."""
    genes = torch.tensor([vocabulary[gene] for gene in slide.genes], dtype=torch.int64)
    return Panel(genes, torch.from_numpy(slide.mean), torch.from_numpy(slide.scale))


def make_batch(
    slide: Slide,
    panel: Panel,
    n_layers: int,
    *,
    centres: np.ndarray | None = None,
    number: int = 0,
) -> Batch:
    """Gather centres and all cells that their embeddings depend on.

    The centres' local neighbourhoods are pooled, and every layer looks one hop further: cells beyond these hops cannot
    change the result, so the embeddings are those of the whole slide.

    Parameters
    ----------
    slide, panel
        The slide and its genes.
    n_layers
        Attention layers of the encoder.
    centres
        ``(B,)`` cells to embed. ``None``: all.
    number
        Number of the slide among those of the model.

    Notes
    -----
    Work and memory grow with the number of cells reached, not with the slide.
    """
    centres = np.arange(slide.n_cells) if centres is None else np.asarray(centres)
    reached = _reached(slide, centres, n_layers)
    # those that each layer computes come first, then those that it looks at
    shells = [np.setdiff1d(outer, inner, assume_unique=True) for inner, outer in pairwise(reached)]
    cells = np.concatenate([reached[0], *shells])
    order = np.argsort(cells)
    n_rows = len(reached[max(0, n_layers - 1)]) * (n_layers > 0)
    graph = _local_rows(slide.graph[cells[:n_rows]], cells, order)
    pool = _local_rows(slide.local[centres], cells, order)
    return Batch(
        number,
        Sparse(slide.take(cells)),
        panel,
        Neighbours(
            torch.from_numpy(np.stack([graph.indices, _rows(graph)]).astype(np.int64)),  # from, to
            torch.from_numpy(graph.data.astype(np.float32))[:, None],
            Sparse(sp.csr_matrix((pool.data, pool.indices, pool.indptr), (len(centres), len(reached[0])), copy=False)),
            tuple(len(part) for part in reversed(reached[:-1])),
        ),
    )


def receptive_field(slide: Slide, centres: np.ndarray, n_layers: int, context_hops: int = 0) -> np.ndarray:
    """Sorted cells on which the embedding of the centres depends, and their context over so many hops."""
    reached = _reached(slide, centres, n_layers)[-1]
    return np.union1d(reached, _within_hops(slide, centres, context_hops)) if context_hops else reached


def _reached(slide: Slide, centres: np.ndarray, n_layers: int) -> list[np.ndarray]:
    """Sorted cells that are pooled, that the last layer looks at, and so on to the first."""
    reached = [_distinct(slide.local[centres].indices)]
    for _ in range(n_layers):
        reached.append(_distinct(slide.graph[reached[-1]].indices))
    return reached


def _within_hops(slide: Slide, centres: np.ndarray, hops: int) -> np.ndarray:
    around = _distinct(centres)
    for _ in range(hops):
        around = _distinct(slide.graph[around].indices)
    return around


def _local_rows(rows: sp.csr_matrix, cells: np.ndarray, order: np.ndarray) -> sp.csr_matrix:
    """``rows[:, cells]`` for `cells` that `order` sorts."""
    found = select_columns(rows, cells[order])
    indices = order[found.indices].astype(np.int32)
    return sp.csr_matrix((found.data, indices, found.indptr), shape=found.shape, copy=False)


def _rows(matrix: sp.csr_matrix) -> np.ndarray:
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def select_columns(rows: sp.csr_matrix, cells: np.ndarray) -> sp.csr_matrix:
    """``rows[:, cells]`` for sorted `cells`, whatever the number of columns."""
    return restrict(rows.data, rows.indices, rows.indptr, cells)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Move a batch to `device`."""
    number, expression, panel, neighbours = batch
    return Batch(number, expression.to(device), panel.to(device), neighbours.to(device))


def sample_partners(slide: Slide, centres: np.ndarray, u: np.ndarray) -> np.ndarray:
    """For every centre a cell of its view ring, with the probability of its weight; itself where the ring is empty.

    Parameters
    ----------
    slide
        The slide, in memory.
    centres
        ``(B,)`` cells.
    u
        ``(B,)`` float64 in [0, 1): chance.
    """
    rows = ring(slide.xy[:], slide.tree, slide.graph, centres, slide.sizes)
    start, stop = rows.indptr[:-1], rows.indptr[1:]
    filled = stop > start
    weights = rows.data.astype(np.float64)
    if filled.any():  # shares of each row, or the weights of a far ring would be lost in a sum with those of near ones
        weights /= np.repeat(np.add.reduceat(weights, start[filled]), (stop - start)[filled])
    total = np.concatenate([[0.0], np.cumsum(weights)])
    target = total[start] + u * (total[stop] - total[start])
    position = np.clip(np.searchsorted(total, target, side="right") - 1, start, np.maximum(stop - 1, start))
    partners = centres.copy()
    partners[filled] = rows.indices[position[filled]]
    return partners


def _distinct(cells: np.ndarray) -> np.ndarray:
    return np.sort(pd.unique(cells))
