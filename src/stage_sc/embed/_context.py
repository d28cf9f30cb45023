"""The context of cells: embedded expression, averaged over hops of the graph, by spatial directions of the slide."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from stage_sc.nn import (
    Block,
    Blocks,
    Directions,
    Panel,
    Sparse,
    Stage,
    StageConfig,
    clean_view,
    covariance,
    embed_cells,
    smooth,
    spatial_directions,
)
from stage_sc.slides import Matrix, Slide, StoredMatrix, mix

# Number of cells computed at a time: a block stays in the processor's cache.
BLOCK = 16_384
# Largest number of shuffles.
MAX_SHUFFLES = 20
# Smallest and largest number of hops of a mean.
FEWEST_HOPS, MOST_HOPS = 2, 50


@torch.no_grad()
def hop_means(slide: Slide, vectors: Tensor, graph: Blocks | None = None, block: int = BLOCK) -> Iterator[Tensor]:
    """Means of cells embedded with `vectors` over 0, 1, 2 … hops (equation 17), each ``(n, dim)`` float32.

    `vectors` is ``(P, dim)`` float32, for the genes of the slide; the computation is on its device. `graph` are the
    rows of the slide's graph, `block` at a time (default: cut here).
    """
    device, n_genes = vectors.device, len(slide.genes)
    graph = graph or row_blocks(slide.graph, block, device)
    panel = Panel(torch.arange(n_genes), torch.from_numpy(slide.mean), torch.from_numpy(slide.scale)).to(device)
    view = clean_view(n_genes).to(device)
    z = torch.empty(slide.n_cells, vectors.shape[1], device=device)
    for cells, rows in slide.blocks(block):
        z[cells] = embed_cells(Sparse(rows).to(device), panel, view, vectors)
    while True:
        yield z
        z = smooth(z, graph)


@torch.no_grad()
def context_means(
    slide: Slide,
    vectors: Tensor,
    config: StageConfig,
    graph: Blocks | None = None,
    block: int = BLOCK,
    cells: Tensor | slice = slice(None),
    *,
    frame: Tensor | None = None,
    domains: bool = False,
) -> tuple[Tensor, Directions]:
    """Means of embedded cells over the hops of the context, ``(n, k)``, and the spatial directions of a slide.

    The directions are computed from some `cells`, and turned onto a `frame` of ``(k, dim)``; contexts, with `domains`
    those of domains, are the means mapped by them.
    """
    graph = graph or row_blocks(slide.graph, block, vectors.device)
    chosen = context_settings(slide, config, domains=domains)
    found = {}
    for hop, z in enumerate(islice(hop_means(slide, vectors, graph, block), max(chosen.hops, chosen.tested) + 1)):
        if hop in (0, chosen.tested, chosen.scaled):
            found[hop] = covariance(z[cells])
        if hop == 0:
            null = [covariance(one[cells]) for one in _shuffled_means(slide, z, config, graph, chosen.tested)]
        if hop == chosen.hops:
            means = z
    tested, scaled = found[chosen.tested], found[chosen.scaled]
    return means, spatial_directions(
        found[0], tested, null, scaled, frame=frame, margin=config.null_margin, power=chosen.power
    )


class ContextSettings(NamedTuple):
    """Computation of contexts from embedded cells."""

    hops: int
    """Number of hops of the means."""
    tested: int
    """Number of hops of the means in which directions are tested."""
    scaled: int
    """Number of hops of the means by whose variance directions are scaled."""
    power: float
    """Exponent of the variance of a direction in these means, in units of its variance in cells."""


def context_settings(slide: Slide, config: StageConfig, *, domains: bool = False) -> ContextSettings:
    """Contexts of a slide of cells, bins or spots: those that the network learns, or those of `domains`.

    In means over the hops of the test, all directions have the same variance in contexts of domains. Those of
    intensities (proteins) are as for the network.
    """
    tested = hops_within(config.test_reach, slide)
    if domains and not slide.intensities:
        return ContextSettings(max(hops_within(config.domain_reach, slide), tested), tested, tested, 0.0)
    hops = hops_within(config.context_reach, slide)
    return ContextSettings(hops, tested, hops, config.spot_power if slide.edge >= config.spot_edge else config.power)


def hops_within(reach: float, slide: Slide) -> int:
    """Return the number of hops that reach some µm by the median edge of the slide: 2 to 50, and 0 for 0 µm."""
    edge = float(f"{slide.edge:.5g}")  # the same to the bit after a rotation
    if reach == 0 or edge == 0:
        return 0 if reach == 0 else FEWEST_HOPS
    return int(min(max(round(reach / edge), FEWEST_HOPS), MOST_HOPS))


def window_hops(slide: Slide, config: StageConfig) -> int:
    """Return the number of hops around a cell from which its context, and the test of directions, are computed."""
    chosen = context_settings(slide, config)
    return max(chosen.hops, chosen.tested)


def _shuffled_means(slide: Slide, z: Tensor, config: StageConfig, graph: Blocks, hops: int) -> Iterator[Tensor]:
    """Means over some hops for embedded cells `z` that are shuffled over the places.

    Cells are shuffled by a hash of their counts, so that the result does not depend on their order.
    """
    identity = slide.identity[:]
    place = torch.from_numpy(np.argsort(mix(identity), kind="stable"))
    for shuffle in range(1, 1 + min(MAX_SHUFFLES, max(1, config.null_cells // slide.n_cells))):
        shuffled = torch.empty_like(z)
        shuffled[place] = z[torch.from_numpy(np.argsort(mix(identity + np.uint64(shuffle)), kind="stable"))]
        for _ in range(hops):
            shuffled = smooth(shuffled, graph)
        yield shuffled


def initial_vectors(model: Stage, panel: Panel) -> Tensor:
    """Vectors from which contexts are computed: axes of the panel, or those of its genes at the start of training."""
    return model.initial_vectors[panel.genes] if panel.axes is None else panel.axes


class ContextCache:
    """Contexts of the cells of slides in memory, computed once for each slide and kept as long as the slide."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Slide, Tensor] = WeakKeyDictionary()

    @torch.no_grad()
    def of(self, model: Stage, slide: Slide, panel: Panel) -> Tensor:
        """``(n, dim)`` float32 contexts, on the CPU; those at the border of a window are not valid."""
        if slide not in self._known:
            hops, vectors = context_settings(slide, model.config).hops, initial_vectors(model, panel)
            self._known[slide] = apply_map(next(islice(hop_means(slide, vectors), hops, None)), panel).cpu()
        return self._known[slide]


def apply_map(means: Tensor, panel: Panel) -> Tensor:
    """Means of cells by the spatial directions of a panel; the means themselves for a panel without them."""
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
