"""A whole slide through a model, layer by layer."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.embed._context import BLOCK, apply_whitening, cut_rows, hop_means, initial_vectors, row_blocks
from stage_sc.nn import Panel, Sparse, Stage, attend_all, smooth, whitening
from stage_sc.slides import Slide, slide_panel


class Encoded(NamedTuple):
    """Embeddings of the cells of a slide, on the CPU and in the slide's order."""

    pooled: Tensor
    """``(n, dim)`` float32 embeddings before they are scaled to length 1."""
    context: Tensor
    """``(n, dim)`` float32 contexts: means of whitened cells over `context_hops` hops."""
    niche: Tensor
    """``(n, dim)`` float32 of length 1, from which niches are assigned: mean of embeddings over `smoothing` hops."""

    @property
    def h(self) -> Tensor:
        """``(n, dim)`` float32 embeddings of length 1."""
        return normalize(self.pooled, dim=1)


@torch.no_grad()
def encode_slide(model: Stage, slide: Slide, panel: Panel | None = None, *, block: int = BLOCK) -> Encoded:
    """Embed all cells of a slide, each once, layer by layer, on the device of the model.

    Expression of a slide on disk is read twice, in blocks. `panel` is from `calibrate` for a part of a slide (default:
    that of this slide). The number of cells in a `block` changes the result by rounding only. Memory: five
    ``(n, dim)`` float32 arrays and one block, 0.6 GB for a million cells with ``dim=32``.
    """
    device = model.tree.parent.device
    graph, local = row_blocks(slide.graph, block, device), partial(cut_rows, slide.local, block, device)
    one_hop, all_hops = hop_means(slide, initial_vectors(model, slide), model.config.context_hops, graph, block)
    panel = _whitened_panel(model, slide, one_hop, all_hops) if panel is None else panel.to(device)
    context = apply_whitening(all_hops, panel).cpu()
    z = one_hop  # reuse its memory
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
    return Encoded(pooled, context, normalize(h, dim=1).cpu())


@torch.no_grad()
def calibrate(model: Stage, slide: Slide, cells: Tensor | slice = slice(None)) -> Panel:
    """Panel of a slide with the whitening computed from some of its cells, on the model's device."""
    one_hop, all_hops = hop_means(slide, initial_vectors(model, slide), model.config.context_hops)
    return _whitened_panel(model, slide, one_hop[cells], all_hops[cells])


def _whitened_panel(model: Stage, slide: Slide, one_hop: Tensor, all_hops: Tensor) -> Panel:
    panel, config = slide_panel(slide, model.vocabulary), model.config
    if config.whiten:
        map_ = whitening(one_hop, all_hops, persistence=config.persistence, ridge=config.whitening_ridge)
        panel = panel._replace(whitening=map_)
    return panel.to(one_hop.device)
