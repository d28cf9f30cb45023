"""Batches that give every centre the embedding that the whole slide gives it."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from stage_sc.data._slide import Slide
from stage_sc.model._augment import Panel
from stage_sc.model._encoder import Neighbours
from stage_sc.model._sparse import Sparse
from stage_sc.model._stage import Batch


def slide_panel(slide: Slide, vocabulary: dict[str, int]) -> Panel:
    """Genes of a slide as positions in the vocabulary, with their scaling."""
    genes = torch.tensor([vocabulary[gene] for gene in slide.genes], dtype=torch.int64)
    return Panel(genes, torch.from_numpy(slide.mean), torch.from_numpy(slide.scale))


def make_batch(
    slide: Slide, panel: Panel, n_layers: int, *, centres: np.ndarray | None = None, number: int = 0
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
    if centres is None:
        cells, pool = np.arange(slide.n_cells), slide.local
        expression, graph = slide.expression, slide.graph
    else:
        pool = slide.local[centres]
        cells = np.unique(pool.indices)
        for _ in range(n_layers):
            cells = np.union1d(cells, slide.graph[cells].indices)
        expression, graph, pool = slide.expression[cells], slide.graph[cells][:, cells], pool[:, cells]
    edges = sp.coo_matrix(graph)
    return Batch(
        number,
        Sparse(expression),
        panel,
        Neighbours(
            torch.from_numpy(np.stack([edges.col, edges.row]).astype(np.int64)),  # from, to
            torch.from_numpy(edges.data.astype(np.float32))[:, None],
            Sparse(sp.csr_matrix(pool)),
        ),
    )


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Move a batch to `device`."""
    return Batch(batch.slide, batch.expression.to(device), batch.panel.to(device), batch.neighbours.to(device))


def draw_partners(slide: Slide, centres: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For every centre a cell of its view ring, with the probability of its weight; itself where the ring is empty."""
    rows = slide.view[centres]
    total = np.concatenate([[0.0], np.cumsum(rows.data, dtype=np.float64)])
    start, stop = rows.indptr[:-1], rows.indptr[1:]
    target = total[start] + rng.random(len(centres)) * (total[stop] - total[start])
    position = np.clip(np.searchsorted(total, target, side="right") - 1, start, np.maximum(stop - 1, start))
    filled = stop > start
    partners = centres.copy()
    partners[filled] = rows.indices[position[filled]]
    return partners
