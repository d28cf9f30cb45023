"""Contexts by the slide's own principal axes, turned onto the directions of a model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stage_sc.embed._context import hop_means
from stage_sc.embed._profiles import profiles_of
from stage_sc.nn import StageConfig, whitening
from stage_sc.slides import Slide

# Directions that the slide and the model share by less than this, relative to the direction shared most, are left out.
SHARED = 1e-4
# Number of cells whose sums are taken at a time.
BLOCK = 65_536
# Iterations of the principal component analysis.
N_ITERATIONS = 8


@torch.no_grad()
def slide_context(slide: Slide, context: Tensor, config: StageConfig) -> Tensor:
    r"""Contexts by the principal axes of a slide, turned onto the contexts that a model gives.

    With :math:`X` the contexts by the model and :math:`Y` those by `principal_axes` in place of its gene vectors,
    whitened in the same way and both centred,

    .. math:: X' = \bar x + Y Q, \quad Q = \arg\min_{Q^\top Q = I} \|Y Q - X\|
        = U V^\top \;\text{with}\; Y^\top X = U S V^\top

    (orthogonal Procrustes; directions that one of the two lacks are left out of U and V). Both are whitened, so that
    they differ by a rotation: Y holds the variation of the slide, X the meaning of directions on all slides and
    panels.

    Parameters
    ----------
    slide
        The slide.
    context
        ``(n, dim)`` float32 contexts of its cells by a model, whitened, on the CPU.
    config
        Configuration of the model.

    Returns
    -------
    ``(n, dim)`` float32.

    Notes
    -----
    Always computed on the CPU. Four more ``(n, dim)`` float32 arrays at a time.
    """
    near, far = hop_means(slide, principal_axes(slide, context.shape[1], config.axes_cells), config.context_hops)
    own = far @ whitening(near, far, persistence=config.persistence, ridge=config.whitening_ridge)
    own -= own.mean(dim=0)
    cross = sum(y.double().T @ x.double() for y, x in zip(own.split(BLOCK), context.split(BLOCK), strict=True))
    left, shared, right = torch.linalg.svd(cross)
    kept = shared > SHARED * shared[0]
    turn = (left[:, kept] @ right[kept]).float()
    return (own @ turn).add_(context.mean(dim=0))


def principal_axes(slide: Slide, dim: int, n_cells: int) -> Tensor:
    """Principal axes of the neighbourhood profiles of at most `n_cells` cells of a slide.

    Returns
    -------
    ``(P, dim)`` float32, orthonormal columns; columns beyond the number of genes or cells are zero.

    Notes
    -----
    Memory: 20 kB for a gene, 0.4 GB for 18,000.
    """
    cells = np.linspace(0, slide.n_cells - 1, min(slide.n_cells, n_cells)).astype(int)
    profiles = torch.empty(len(cells), len(slide.genes))
    start = 0
    for part in profiles_of(slide, cells, slice(None)):
        profiles[start : start + len(part)] = torch.from_numpy(part)
        start += len(part)
    profiles -= profiles.mean(dim=0)
    width = min(2 * dim, *profiles.shape)
    span = torch.randn(len(slide.genes), width, generator=torch.Generator().manual_seed(0))
    for _ in range(N_ITERATIONS):
        span = torch.linalg.qr(profiles.T @ (profiles @ span)).Q
    turn = torch.linalg.svd(profiles @ span, full_matrices=False).Vh
    found = (span @ turn.T)[:, :dim]
    return torch.nn.functional.pad(found, (0, dim - found.shape[1]))
