"""Whole slides through a model, for labels and for setting the tree."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.data._batch import slide_panel
from stage_sc.data._slide import Matrix, Slide
from stage_sc.model._attention import Block, attend_all, smooth
from stage_sc.model._sparse import Sparse
from stage_sc.model._stage import CONTENT_HOPS, Stage

# Cells that are computed at a time: what a block needs stays in the processor's cache.
BLOCK = 16_384


class Encoded(NamedTuple):
    """What the model makes of the cells of a slide, on the CPU and in the slide's order."""

    pooled: Tensor
    """``(n, dim)`` float32 embeddings before they are brought to length 1."""
    content: Tensor
    """``(n, dim)`` float32 content of the surroundings of each cell, the mean over four hops; or ``(n, 0)``."""

    @property
    def h(self) -> Tensor:
        """``(n, dim)`` float32 embeddings of length 1."""
        return normalize(self.pooled, dim=1)


@torch.no_grad()
def encode_slide(model: Stage, slide: Slide, *, content: bool = True, block: int = BLOCK) -> Encoded:
    """Embed all cells of a slide, each once, layer by layer.

    Parameters
    ----------
    model
        Where it is, the computation is.
    slide
        In memory or on disk: blocks of it are read, expression once.
    content
        Whether the content of the surroundings is wanted.
    block
        Cells at a time. The result does not depend on it (to rounding).

    Notes
    -----
    Four ``(n, dim)`` float32 arrays at a time, and one block: 0.5 GB for a million cells with ``dim=32``.
    """
    device = model.tree.parent.device
    panel = slide_panel(slide, model.vocabulary).to(device)
    graph, local = (partial(_blocks, matrix, block, device) for matrix in (slide.graph, slide.local))
    n, dim = slide.n_cells, model.config.dim
    z = torch.empty(n, dim, device=device)
    around = torch.empty(n, dim if content else 0, device=device)
    for cells, rows in slide.blocks(block):
        expression = Sparse(rows).to(device)
        z[cells] = model.embed(expression, panel)
        if content:
            around[cells] = model.embed_fixed(expression, panel)
    for _ in range(CONTENT_HOPS if content else 0):
        around = smooth(around, graph)
    around = around.cpu()
    for layer in model.encoder.layers:
        z = attend_all(layer, z, graph)
    gated, pooled = model.encoder.gated(z), torch.empty(n, dim)
    for part in local():
        pooled[part.rows] = model.encoder.pool(part.times(gated)).cpu()
    return Encoded(pooled, around)


def _blocks(matrix: Matrix, size: int, device: torch.device) -> Iterator[Block]:
    """Rows of a csr matrix, `size` at a time."""
    for start in range(0, matrix.shape[0], size):
        part = matrix[start : start + size]
        indptr, indices, values = (
            torch.from_numpy(array).to(device, dtype)
            for array, dtype in ((part.indptr, torch.int64), (part.indices, torch.int64), (part.data, torch.float32))
        )
        yield Block(slice(start, start + part.shape[0]), indptr, indices, values)
