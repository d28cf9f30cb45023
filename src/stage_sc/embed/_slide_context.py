"""Contexts by the slide's own principal axes, rotated onto the directions of a model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stage_sc.embed._context import hop_means
from stage_sc.embed._profiles import profiles_of
from stage_sc.nn import StageConfig, whitening
from stage_sc.slides import Slide, mix

# Minimum singular value of a direction shared by slide and model, as a fraction of the largest.
SHARED = 1e-4
# Number of cells in a partial sum.
BLOCK = 65_536
# Number of iterations of the principal component analysis.
N_ITERATIONS = 8


@torch.no_grad()
def slide_context(slide: Slide, context: Tensor, config: StageConfig) -> Tensor:
    r"""Contexts by the principal axes of a slide, rotated onto its contexts by a model; ``(n, dim)`` float32 each.

    With :math:`X` the contexts by the model (whitened, on the CPU), :math:`\bar x` their mean, and :math:`Y` those by
    `principal_axes` in place of gene vectors, whitened in the same way and centred,

    .. math:: X' = \bar x + Y Q, \quad Q = \arg\min_{Q^\top Q = I} \|Y Q - X\|
        = U V^\top \;\text{with}\; Y^\top X = U S V^\top

    (orthogonal Procrustes; directions that either lacks are left out of U and V). Y has the variation of the slide, X
    the directions common to all slides and panels. Computed on the CPU, with four more ``(n, dim)`` float32 arrays.
    """
    axes = principal_axes(slide, context.shape[1], config.axes_cells)
    one_hop, all_hops = hop_means(slide, axes, config.context_hops)
    own = all_hops @ whitening(one_hop, all_hops, persistence=config.persistence, ridge=config.whitening_ridge)
    own -= own.mean(dim=0)
    cross = sum(y.double().T @ x.double() for y, x in zip(own.split(BLOCK), context.split(BLOCK), strict=True))
    left, shared, right = torch.linalg.svd(cross)
    kept = shared > SHARED * shared[0]
    rotation = (left[:, kept] @ right[kept]).float()
    return (own @ rotation).add_(context.mean(dim=0))


def principal_axes(slide: Slide, dim: int, n_cells: int) -> Tensor:
    """Principal axes of the profiles of at most `n_cells` cells, ``(P, dim)`` float32, by subspace iteration.

    Columns are orthonormal; those beyond the number of genes or cells are 0. Memory: 20 kB for a gene.
    """
    cells = np.arange(slide.n_cells)
    if len(cells) > n_cells:  # by their counts, not by their order, which follows the last bits of the coordinates
        number = mix(cells.astype(np.uint64) if slide.identity is None else slide.identity)
        cells = np.sort(np.argsort(number, kind="stable")[:n_cells])
    profiles, start = torch.empty(len(cells), len(slide.genes)), 0
    for part in profiles_of(slide, cells):
        profiles[start : start + len(part)] = torch.from_numpy(part)
        start += len(part)
    profiles -= profiles.mean(dim=0)
    width = min(2 * dim, *profiles.shape)
    span = torch.randn(len(slide.genes), width, generator=torch.Generator().manual_seed(0))
    for _ in range(N_ITERATIONS):
        span = torch.linalg.qr(profiles.T @ (profiles @ span)).Q
    turn = torch.linalg.svd(profiles @ span, full_matrices=False).Vh
    axes = (span @ turn.T)[:, :dim]
    return torch.nn.functional.pad(axes, (0, dim - axes.shape[1]))
