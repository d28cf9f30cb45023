"""A whole slide through a model, layer by layer."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.embed._axes import slide_axes
from stage_sc.embed._context import (
    BLOCK,
    apply_map,
    context_means,
    context_settings,
    cut_rows,
    hop_means,
    hops_within,
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
    """``(n, dim)`` float32 of length 1, from which niches are assigned: mean of embeddings over their neighbourhood."""
    directions: Directions | None = None
    """Spatial directions, where they were computed here."""
    axes: Tensor | None = None
    """``(P, n_axes)`` float32 principal axes of the slide, where cells entered by these."""

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
    device, config = model.tree.parent.device, model.config
    graph, local = row_blocks(slide.graph, block, device), partial(cut_rows, slide.local, block, device)
    axes, directions = None, None
    if panel is None and config.whiten:
        panel, frame, axes = _input(model, slide)
        means, directions = context_means(slide, initial_vectors(model, panel), config, graph, block, frame=frame)
        panel = panel._replace(whitening=directions.map)
    else:
        panel = (slide_panel(slide, model.vocabulary) if panel is None else panel).to(device)
        hops = context_settings(slide, config).hops
        means = next(islice(hop_means(slide, initial_vectors(model, panel), graph, block), hops, None))
    context, z = apply_map(means, panel).cpu(), torch.empty_like(means)
    for cells, rows in slide.blocks(block):
        z[cells] = model.embed(Sparse(rows).to(device), panel)
    for layer in model.encoder.layers:
        z = attend_all(layer, z, graph)
    gated, pooled = model.encoder.gated(z), torch.empty(slide.n_cells, config.dim)
    for part in local():
        pooled[part.rows] = model.encoder.pool(part.times(gated)).cpu()
    h = normalize(pooled, dim=1).to(device)
    for _ in range(hops_within(config.smoothing_reach, slide)):
        h = smooth(h, graph)
    return Encoded(pooled, context, normalize(h, dim=1).cpu(), directions, axes)


@torch.no_grad()
def calibrate(model: Stage, slide: Slide, cells: Tensor | slice = slice(None)) -> Panel:
    """Panel of a slide with its axes, and spatial directions computed from some of its cells; on the model's device."""
    if not model.config.whiten:
        return slide_panel(slide, model.vocabulary).to(model.tree.parent.device)
    panel, frame, _ = _input(model, slide, cells)
    _, directions = context_means(slide, initial_vectors(model, panel), model.config, cells=cells, frame=frame)
    return panel._replace(whitening=directions.map)


def _input(
    model: Stage, slide: Slide, cells: Tensor | slice = slice(None)
) -> tuple[Panel, Tensor | None, Tensor | None]:
    """Vectors by which cells of a slide enter a model.

    Returns the panel on the model's device, with axes of the slide if cells enter by these; then also the model's
    vectors in terms of these axes, and all axes of the slide.
    """
    panel = slide_panel(slide, model.vocabulary).to(model.tree.parent.device)
    if not model.by_axes:
        return panel, None, None
    axes = slide_axes(slide, model.config, cells)
    first = axes[:, : model.config.dim].to(panel.genes.device)
    return panel._replace(axes=first), first.double().T @ model.initial_vectors[panel.genes].double(), axes
