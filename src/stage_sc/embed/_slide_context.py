"""Contexts by the slide's own principal axes, rotated onto the directions of a model."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from stage_sc.embed._axes import slide_axes
from stage_sc.embed._context import context_means, context_settings, hop_means, initial_vectors
from stage_sc.nn import Directions, Stage, complete_turn, covariance, orthogonal_factor, whitening
from stage_sc.slides import Slide, slide_panel


class ContextMap(NamedTuple):
    """Contexts of a slide as a linear function of scaled expression."""

    context: Tensor
    """``(n, dim)`` float32 contexts, from which domains are found."""
    vectors: Tensor
    """``(P, dim)`` float32, context of one unit of each gene, averaged over the hops of the context."""
    constant: Tensor
    """``(dim,)`` float32, context where the scaled expression is 0."""
    hops: int
    """Number of hops over which cells are averaged."""


@torch.no_grad()
def slide_context(model: Stage, slide: Slide, axes: Tensor) -> tuple[ContextMap, Directions]:
    r"""Contexts by the principal `axes` of a slide, rotated onto the directions of a model; on the CPU.

    With :math:`\bar z` the means of cells embedded by the axes A in place of gene vectors, :math:`Y` these means mapped
    to spatial directions that have equal variance over the hops of the test, and :math:`X` the same means whitened by
    the cells and turned onto the vectors of the model (`stage_sc.nn.whitening`), both centred,

    .. math:: Y = \bar z M, \quad X = \bar z R, \quad
        X' = Y Q, \quad Q = \arg\min_{Q^\top Q = I} \|Y Q - X\|
        = U V^\top \;\text{with}\; Y^\top X = U S V^\top

    (orthogonal Procrustes; directions that the model lacks go to components that it does not use). Y has the variation
    of the slide, X the directions common to all slides and panels. Memory: two more arrays of `n_axes` float32 numbers
    for each cell.
    """
    means, directions = context_means(slide, axes, model.config, domains=True)
    frame = axes.double().T @ initial_vectors(model, slide_panel(slide, model.vocabulary)).cpu().double()
    variation = directions.map.double().T @ covariance(means)
    turn = complete_turn(
        orthogonal_factor(variation @ whitening(directions.cells, frame)), variation @ directions.map.double()
    )
    turned = directions.map @ turn.float()
    centre, hops = means.mean(dim=0), context_settings(slide, model.config, domains=True).hops
    found = ContextMap((means - centre) @ turned, _of_length_1(axes) @ turned, -centre @ turned, hops)
    return found, directions


@torch.no_grad()
def context_map(model: Stage, slide: Slide) -> ContextMap:
    """Contexts from which the domains of a slide are found, and their dependence on genes; on the CPU."""
    if model.config.whiten:
        return slide_context(model, slide, slide_axes(slide, model.config))[0]
    vectors = initial_vectors(model, slide_panel(slide, model.vocabulary))
    hops = context_settings(slide, model.config).hops
    means = next(islice(hop_means(slide, vectors), hops, None))
    return ContextMap(means, _of_length_1(vectors), torch.zeros(vectors.shape[1]), hops)


def _of_length_1(vectors: Tensor) -> Tensor:
    """Gene vectors as `embed_cells` divides them."""
    return vectors / torch.sqrt(vectors.square().sum() + 1e-12)
