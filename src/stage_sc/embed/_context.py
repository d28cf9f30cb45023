"""The context of cells: embedded expression, averaged over hops of the graph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from stage_sc.nn import Block, Blocks, Panel, Sparse, Stage, clean_view, embed_cells, smooth
from stage_sc.slides import Matrix, Slide, StoredMatrix

# Number of cells computed at a time: a block stays in the processor's cache.
BLOCK = 16_384


@torch.no_grad()
def hop_means(
    slide: Slide, vectors: Tensor, hops: int, graph: Blocks | None = None, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Means of cells embedded with `vectors` over one hop and over `hops` hops (equation 17), not whitened.

    `vectors` is ``(P, dim)`` float32, for the genes of the slide; the computation is on its device. `graph` are the
    rows of the slide's graph, `block` at a time (default: cut here). Both results are ``(n, dim)`` float32.
    """
    device, n_genes = vectors.device, len(slide.genes)
    graph = graph or row_blocks(slide.graph, block, device)
    panel = Panel(torch.arange(n_genes), torch.from_numpy(slide.mean), torch.from_numpy(slide.scale)).to(device)
    view = clean_view(n_genes).to(device)
    z = torch.empty(slide.n_cells, vectors.shape[1], device=device)
    for cells, rows in slide.blocks(block):
        z[cells] = embed_cells(Sparse(rows).to(device), panel, view, vectors)
    one_hop = all_hops = smooth(z, graph)
    for _ in range(hops - 1):
        all_hops = smooth(all_hops, graph)
    return one_hop, all_hops


def initial_vectors(model: Stage, slide: Slide) -> Tensor:
    """Vectors of the genes of a slide at the start of training, from which contexts are computed."""
    return model.initial_vectors[[model.vocabulary[gene] for gene in slide.genes]]


class ContextCache:
    """Contexts of the cells of slides in memory, computed once for each slide and kept as long as the slide."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Slide, Tensor] = WeakKeyDictionary()

    @torch.no_grad()
    def of(self, model: Stage, slide: Slide, panel: Panel) -> Tensor:
        """``(n, dim)`` float32 contexts, on the CPU; those at the border of a window are not valid."""
        if slide not in self._known:
            _, means = hop_means(slide, initial_vectors(model, slide), model.config.context_hops)
            self._known[slide] = apply_whitening(means, panel).cpu()
        return self._known[slide]


def apply_whitening(means: Tensor, panel: Panel) -> Tensor:
    """Whitened means of cells; the means themselves for a panel without whitening."""
    return means if panel.whitening is None else means @ panel.whitening.to(means.device)


def row_blocks(matrix: Matrix, size: int, device: torch.device) -> Blocks:
    """Rows of a csr matrix, `size` at a time, for several passes; a matrix in memory is cut once."""
    if isinstance(matrix, StoredMatrix):
        return partial(cut_rows, matrix, size, device)
    return list(cut_rows(matrix, size, device)).__iter__


def cut_rows(matrix: Matrix, size: int, device: torch.device) -> Iterator[Block]:
    """Rows of a csr matrix, `size` at a time."""
    for start in range(0, matrix.shape[0], size):
        part = matrix[start : start + size]
        indptr, indices, values = (
            torch.from_numpy(array).to(device, dtype)
            for array, dtype in ((part.indptr, torch.int64), (part.indices, torch.int64), (part.data, torch.float32))
        )
        yield Block(slice(start, start + part.shape[0]), indptr, indices, values)
