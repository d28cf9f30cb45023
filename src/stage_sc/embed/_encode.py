"""A whole slide through a model, layer by layer."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.embed._context import (
    BLOCK,
    apply_map,
    context_means,
    context_settings,
    cut_rows,
    hop_means,
    initial_vectors,
    row_blocks,
)
from stage_sc.nn import Directions, Panel, Sparse, Stage, attend_all, smooth
from stage_sc.slides import Slide, slide_panel


class Encoded(NamedTuple):
    """Embeddings of the cells of a slide, on the CPU and in the slide's order."""

    pooled: Tensor
    """``(n, dim)`` float32 embeddings before they are scaled to length 1."""
    context: Tensor
    """``(n, dim)`` float32 contexts: means of cells over the hops of the context, by the spatial directions."""
    niche: Tensor
    """``(n, dim)`` float32 of length 1, from which niches are assigned: mean of embeddings over `smoothing` hops."""
    means: Tensor
    """``(n, dim)`` float32 means of cells over the hops of the context, from which contexts are computed."""
    directions: Directions | None = None
    """Spatial directions, where they were computed here."""

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
    vectors, directions = initial_vectors(model, slide), None
    if panel is None and model.config.whiten:
        means, directions = context_means(slide, vectors, model.config, graph, block)
        panel = slide_panel(slide, model.vocabulary)._replace(whitening=directions.map.cpu())
    else:
        hops = context_settings(slide, model.config).hops
        means = next(islice(hop_means(slide, vectors, graph, block), hops, None))
    panel = (slide_panel(slide, model.vocabulary) if panel is None else panel).to(device)
    context, z = apply_map(means, panel).cpu(), torch.empty_like(means)
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
    return Encoded(pooled, context, normalize(h, dim=1).cpu(), means.cpu(), directions)


@torch.no_grad()
def calibrate(model: Stage, slide: Slide, cells: Tensor | slice = slice(None)) -> Panel:
    """Panel of a slide with the spatial directions computed from some of its cells, on the model's device."""
    vectors, panel = initial_vectors(model, slide), slide_panel(slide, model.vocabulary)
    if model.config.whiten:
        _, directions = context_means(slide, vectors, model.config, cells=cells)
        panel = panel._replace(whitening=directions.map.cpu())
    return panel.to(vectors.device)
