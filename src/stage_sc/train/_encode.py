"""Whole slides through a model, for labels and for setting the tree."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.data._batch import slide_panel
from stage_sc.data._slide import Matrix, Slide
from stage_sc.data._stored import StoredMatrix
from stage_sc.model._attention import Block, Blocks, attend_all, smooth
from stage_sc.model._augment import Panel, clean_view
from stage_sc.model._embedder import embed_cells
from stage_sc.model._sparse import Sparse
from stage_sc.model._stage import CONTENT_HOPS, Stage
from stage_sc.model._whitening import whitening

# Cells that are computed at a time: what a block needs stays in the processor's cache.
BLOCK = 16_384


class Encoded(NamedTuple):
    """What the model makes of the cells of a slide, on the CPU and in the slide's order."""

    pooled: Tensor
    """``(n, dim)`` float32 embeddings before they are brought to length 1."""
    content: Tensor
    """``(n, dim)`` float32 content of the surroundings of each cell, the mean over six hops."""
    niche: Tensor
    """``(n, dim)`` float32 of length 1, what niches are read from: the mean of embeddings over `smoothing` hops."""

    @property
    def h(self) -> Tensor:
        """``(n, dim)`` float32 embeddings of length 1."""
        return normalize(self.pooled, dim=1)


@torch.no_grad()
def encode_slide(model: Stage, slide: Slide, panel: Panel | None = None, *, block: int = BLOCK) -> Encoded:
    """Embed all cells of a slide, each once, layer by layer.

    Parameters
    ----------
    model
        Where it is, the computation is.
    slide
        In memory or on disk: blocks of it are read, expression twice.
    panel
        From `calibrate`, for a part of a slide. ``None``: of this slide.
    block
        Cells at a time. The result does not depend on it (to rounding).

    Notes
    -----
    Five ``(n, dim)`` float32 arrays at a time, and one block: 0.6 GB for a million cells with ``dim=32``.
    """
    device = model.tree.parent.device
    graph, local = _blocks(slide.graph, block, device), partial(_cut, slide.local, block, device)
    near, far = surroundings(slide, _basis(model, slide), graph, block)
    panel = _calibrated(model, slide, near, far) if panel is None else panel.to(device)
    content = (far if panel.whitening is None else far @ panel.whitening).cpu()
    z = near  # whose place is free now
    for cells, rows in slide.blocks(block):
        z[cells] = model.embed(Sparse(rows).to(device), panel)
    for layer in model.encoder.layers:
        z = attend_all(layer, z, graph)
    gated, pooled = model.encoder.gated(z), torch.empty(slide.n_cells, model.config.dim)
    for part in local():
        pooled[part.rows] = model.encoder.pool(part.times(gated)).cpu()
    h = normalize(pooled, dim=1).to(device)
    for _ in range(model.config.smoothing):
        h = smooth(h, graph)
    return Encoded(pooled, content, normalize(h, dim=1).cpu())


@torch.no_grad()
def calibrate(model: Stage, slide: Slide, cells: Tensor | slice = slice(None)) -> Panel:
    """Genes of a slide with the whitening that follows from some of its cells, on the model's device."""
    near, far = surroundings(slide, _basis(model, slide))
    return _calibrated(model, slide, near[cells], far[cells])


@torch.no_grad()
def surroundings(
    slide: Slide, vectors: Tensor, graph: Blocks | None = None, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Mean over one hop and over six of cells embedded with `vectors` (equation 17), not whitened.

    Parameters
    ----------
    slide
        In memory or on disk.
    vectors
        ``(P, dim)`` float32, of the genes of the slide. Where they are, the computation is.
    graph
        Rows of the slide's graph, `block` at a time. ``None``: they are cut here.
    block
        Cells at a time.

    Returns
    -------
    Two ``(n, dim)`` float32 tensors.
    """
    device, n_genes = vectors.device, len(slide.genes)
    graph = graph or _blocks(slide.graph, block, device)
    panel = Panel(torch.arange(n_genes), torch.from_numpy(slide.mean), torch.from_numpy(slide.scale)).to(device)
    view = clean_view(n_genes).to(device)
    z = torch.empty(slide.n_cells, vectors.shape[1], device=device)
    for cells, rows in slide.blocks(block):
        z[cells] = embed_cells(Sparse(rows).to(device), panel, view, vectors)
    near = far = smooth(z, graph)
    for _ in range(CONTENT_HOPS - 1):
        far = smooth(far, graph)
    return near, far


class Contents:
    """What surrounds the cells of slides in memory, computed once for each and kept as long as the slide."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Slide, Tensor] = WeakKeyDictionary()

    @torch.no_grad()
    def of(self, model: Stage, slide: Slide, panel: Panel) -> Tensor:
        """Content of all cells, ``(n, dim)`` on the CPU; wrong at the border of a window, where no centre is."""
        if slide not in self._known:
            _, far = surroundings(slide, _basis(model, slide))
            self._known[slide] = (far if panel.whitening is None else far @ panel.whitening.to(far.device)).cpu()
        return self._known[slide]


def _calibrated(model: Stage, slide: Slide, near: Tensor, far: Tensor) -> Panel:
    panel = slide_panel(slide, model.vocabulary)
    if model.config.whiten:
        panel = panel._replace(whitening=whitening(near, far, model.config.persistence))
    return panel.to(near.device)


def _basis(model: Stage, slide: Slide) -> Tensor:
    """Vectors that the genes of a slide started from, which stay the same whatever training makes of the embeddings."""
    return model.basis[[model.vocabulary[gene] for gene in slide.genes]]


def _blocks(matrix: Matrix, size: int, device: torch.device) -> Blocks:
    """Rows of a csr matrix for one pass after the other: of one in memory, they are cut only once."""
    if isinstance(matrix, StoredMatrix):
        return partial(_cut, matrix, size, device)
    return list(_cut(matrix, size, device)).__iter__


def _cut(matrix: Matrix, size: int, device: torch.device) -> Iterator[Block]:
    """Rows of a csr matrix, `size` at a time."""
    for start in range(0, matrix.shape[0], size):
        part = matrix[start : start + size]
        indptr, indices, values = (
            torch.from_numpy(array).to(device, dtype)
            for array, dtype in ((part.indptr, torch.int64), (part.indices, torch.int64), (part.data, torch.float32))
        )
        yield Block(slice(start, start + part.shape[0]), indptr, indices, values)
