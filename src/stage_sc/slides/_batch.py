"""Batches in which every centre has the same embedding as on the whole slide."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from stage_sc.graph import ring
from stage_sc.nn import Batch, Neighbours, Panel, Sparse
from stage_sc.slides._slide import Slide
from stage_sc.slides._stored import select_columns


def slide_panel(slide: Slide, vocabulary: dict[str, int]) -> Panel:
    """Genes of a slide as positions in the vocabulary, with their scaling."""
    genes = torch.tensor([vocabulary[gene] for gene in slide.genes], dtype=torch.int64)
    return Panel(genes, torch.from_numpy(slide.mean), torch.from_numpy(slide.scale))


def make_batch(
    slide: Slide, panel: Panel, n_layers: int, *, centres: np.ndarray | None = None, number: int = 0
) -> Batch:
    """Gather centres (``(B,)`` cells, ``None``: all) and their receptive field, so that embeddings are exact.

    `number` is the position of the slide among those of the model. Work and memory grow with the receptive field of
    `n_layers` layers, not with the slide.
    """
    centres = np.arange(slide.n_cells) if centres is None else np.asarray(centres)
    reached = within_hops(slide, slide.local[centres].indices, n_layers)
    # cells that are pooled, then the additional inputs of the last layer, ..., of the first
    shells = [np.setdiff1d(outer, inner, assume_unique=True) for inner, outer in pairwise(reached)]
    cells = np.concatenate([reached[0], *shells])
    n_rows = len(reached[-2]) if n_layers else 0
    order = np.argsort(cells)
    graph = select_columns(slide.graph[cells[:n_rows]], cells[order])
    source, target = order[graph.indices], np.repeat(np.arange(n_rows), np.diff(graph.indptr))
    return Batch(
        number,
        Sparse(slide.take(cells)),
        panel,
        Neighbours(
            torch.from_numpy(np.stack([source, target]).astype(np.int64)),
            torch.from_numpy(graph.data.astype(np.float32))[:, None],
            Sparse(select_columns(slide.local[centres], reached[0])),
            tuple(len(part) for part in reversed(reached[:-1])),
        ),
    )


def receptive_field(slide: Slide, centres: np.ndarray, n_layers: int, context_hops: int = 0) -> np.ndarray:
    """Sorted cells on which the embeddings of the centres depend, and those of their context."""
    reached = within_hops(slide, slide.local[centres].indices, n_layers)[-1]
    return np.union1d(reached, within_hops(slide, centres, context_hops)[-1]) if context_hops else reached


def within_hops(slide: Slide, cells: np.ndarray, hops: int) -> list[np.ndarray]:
    """Sorted cells at most 0, 1, …, `hops` hops from any of `cells`."""
    reached = [np.sort(pd.unique(cells))]
    for _ in range(hops):
        reached.append(np.sort(pd.unique(slide.graph[reached[-1]].indices)))
    return reached


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Move a batch to `device`."""
    number, expression, panel, neighbours = batch
    return Batch(number, expression.to(device), panel.to(device), neighbours.to(device))


def sample_partners(slide: Slide, centres: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw a cell of the view ring of every centre, with probability by weight; the centre if its ring is empty.

    Parameters
    ----------
    slide
        The slide, in memory.
    centres
        ``(B,)`` cells.
    uniform
        ``(B,)`` float64 random numbers in [0, 1).
    """
    rows = ring(slide.xy[:], slide.tree, slide.graph, centres, slide.sizes)
    start, stop = rows.indptr[:-1], rows.indptr[1:]
    filled = stop > start
    weights = rows.data.astype(np.float64)
    if filled.any():  # fractions of each row, because small weights would be lost in a sum with those of other rows
        weights /= np.repeat(np.add.reduceat(weights, start[filled]), (stop - start)[filled])
    total = np.concatenate([[0.0], np.cumsum(weights)])
    target = total[start] + uniform * (total[stop] - total[start])
    position = np.clip(np.searchsorted(total, target, side="right") - 1, start, np.maximum(stop - 1, start))
    partners = centres.copy()
    partners[filled] = rows.indices[position[filled]]
    return partners
