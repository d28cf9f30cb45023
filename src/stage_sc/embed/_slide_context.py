"""Contexts by the slide's own principal axes, rotated onto the directions of a model."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from stage_sc.embed._context import context_means
from stage_sc.nn import Directions, StageConfig
from stage_sc.slides import Slide, mix

# Minimum singular value of a direction shared by slide and model, as a fraction of the largest.
SHARED = 1e-4
# Number of cells in a partial sum.
BLOCK = 65_536
# Number of power iterations of the principal component analysis.
N_ITERATIONS = 7


@torch.no_grad()
def slide_context(slide: Slide, context: Tensor, config: StageConfig) -> tuple[Tensor, Directions]:
    r"""Contexts by the principal axes of a slide, rotated onto its contexts by a model; ``(n, dim)`` float32 each.

    With :math:`X` the contexts by the model (on the CPU), :math:`\bar x` their mean, and :math:`Y` those by
    `principal_axes` in place of gene vectors, by spatial directions found in the same way, and centred,

    .. math:: X' = \bar x + Y Q, \quad Q = \arg\min_{Q^\top Q = I} \|Y Q - X\|
        = U V^\top \;\text{with}\; Y^\top X = U S V^\top

    (orthogonal Procrustes). Y has the variation of the slide, X the directions common to all slides and panels.
    Directions of Y that X lacks keep their variation in components that X does not use. Computed on the CPU, with four
    more ``(n, dim)`` float32 arrays.
    """
    means, directions = context_means(slide, principal_axes(slide, context.shape[1], config.axes_cells), config)
    own = means @ directions.map
    own -= own.mean(dim=0)
    cross = sum(y.double().T @ x.double() for y, x in zip(own.split(BLOCK), context.split(BLOCK), strict=True))
    left, shared, right = torch.linalg.svd(cross)
    kept = shared > SHARED * shared[0]
    rotation = left[:, kept] @ right[kept]
    rest = own.double() @ (torch.eye(len(cross)) - left[:, kept] @ left[:, kept].T)
    return (own @ rotation.float()).add_(context.mean(dim=0)), directions


def principal_axes(slide: Slide, dim: int, n_cells: int) -> Tensor:
    """Principal axes of the scaled expression of at most `n_cells` cells, ``(P, dim)`` float32.

    Columns are orthonormal; those beyond the number of genes or cells are 0. Memory: 20 kB for a gene.
    """
    cells = np.arange(slide.n_cells)
    if len(cells) > n_cells:  # by their counts, not by their order, which follows the last bits of the coordinates
        number = mix(cells.astype(np.uint64) if slide.identity is None else slide.identity)
        cells = np.sort(np.argsort(number, kind="stable")[:n_cells])
    expression = (slide.take(cells).toarray() - slide.mean) / slide.scale
    expression -= expression.mean(axis=0)
    number = min(dim, *expression.shape)
    _, _, axes = randomized_svd(
        expression, number, n_oversamples=dim, n_iter=N_ITERATIONS, power_iteration_normalizer="QR", random_state=0
    )
    return torch.nn.functional.pad(torch.from_numpy(axes.T.copy()).float(), (0, dim - number))
