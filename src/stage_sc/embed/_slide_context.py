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
def slide_context(slide: Slide, reference: Tensor, config: StageConfig) -> tuple[Tensor, Directions]:
    r"""Contexts by the principal axes of a slide, rotated onto those by a model; ``(n, dim)`` float32 each.

    With the `reference` :math:`X`, means of cells by the initial vectors of the model, whitened (on the CPU), and
    :math:`Y` the contexts by `principal_axes` in place of gene vectors, both centred,

    .. math:: X' = Y Q, \quad Q = \arg\min_{Q^\top Q = I} \|Y Q - X\|
        = U V^\top \;\text{with}\; Y^\top X = U S V^\top

    (orthogonal Procrustes; directions that either lacks are left out of U and V). Y has the variation of the slide, X
    the directions common to all slides and panels. Computed on the CPU, with four more ``(n, dim)`` float32 arrays.
    """
    means, directions = context_means(slide, principal_axes(slide, reference.shape[1], config.axes_cells), config)
    own = means @ directions.map
    own -= own.mean(dim=0)
    blocks = zip(own.split(BLOCK), reference.split(BLOCK), strict=True)  # Y is centred, X need not be
    cross = sum(y.double().T @ x.double() for y, x in blocks)
    left, shared, right = torch.linalg.svd(cross)
    kept = shared > SHARED * shared[0]
    return own @ (left[:, kept] @ right[kept]).float(), directions


def principal_axes(slide: Slide, dim: int, n_cells: int) -> Tensor:
    """Principal axes of the scaled expression of at most `n_cells` cells, ``(P, dim)`` float32.

    Columns are orthonormal; those beyond the number of genes or cells are 0. Memory: 20 kB for a gene.
    """
    cells = np.arange(slide.n_cells)
    if len(cells) > n_cells:  # by their counts, not by their order, which follows the last bits of the coordinates
        cells = np.sort(np.argsort(mix(slide.identity[:]), kind="stable")[:n_cells])
    expression = (slide.take(cells).toarray() - slide.mean) / slide.scale
    expression -= expression.mean(axis=0)
    width = min(dim, len(cells), len(slide.genes))
    _, _, axes = randomized_svd(
        expression, width, n_oversamples=dim, n_iter=N_ITERATIONS, power_iteration_normalizer="QR", random_state=0
    )
    return torch.nn.functional.pad(torch.from_numpy(axes.T.copy()).float(), (0, dim - width))
