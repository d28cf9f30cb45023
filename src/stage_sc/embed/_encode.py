"""A whole slide through a model, layer by layer."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.embed._context import BLOCK, cut_rows, hop_means, initial_vectors, row_blocks
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
    """Embed all cells of a slide, each once, layer by layer.

    Parameters
    ----------
    model
        Its device is that of the computation.
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
    graph, local = row_blocks(slide.graph, block, device), partial(cut_rows, slide.local, block, device)
    near, far = hop_means(slide, initial_vectors(model, slide), model.config.context_hops, graph, block)
    panel = _calibrated(model, slide, near, far) if panel is None else panel.to(device)
    context = (far if panel.whitening is None else far @ panel.whitening).cpu()
    z = near  # its memory is free now
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
    """Genes of a slide with the whitening that follows from some of its cells, on the model's device."""
    near, far = hop_means(slide, initial_vectors(model, slide), model.config.context_hops)
    return _calibrated(model, slide, near[cells], far[cells])


def _calibrated(model: Stage, slide: Slide, near: Tensor, far: Tensor) -> Panel:
    panel, config = slide_panel(slide, model.vocabulary), model.config
    if config.whiten:
        map_ = whitening(near, far, persistence=config.persistence, ridge=config.whitening_ridge)
        panel = panel._replace(whitening=map_)
    return panel.to(near.device)
