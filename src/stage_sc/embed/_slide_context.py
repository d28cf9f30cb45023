"""Contexts by the slide's own principal axes, rotated onto the directions of a model."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from stage_sc.embed._context import context_means, context_settings, hop_means, initial_vectors
from stage_sc.nn import Directions, Stage, StageConfig
from stage_sc.slides import Slide, mix

# Minimum singular value of a direction shared by slide and model, as a fraction of the largest.
SHARED = 1e-4
# Number of cells for a principal axis beyond as many as the model has components.
CELLS_PER_AXIS = 8
# Number of cells in a partial sum.
BLOCK = 65_536
# Number of power iterations of the principal component analysis.
N_ITERATIONS = 7


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
def slide_context(slide: Slide, reference: Tensor, config: StageConfig) -> tuple[Tensor, Directions]:
    r"""Contexts by the principal axes of a slide, rotated onto those by a model; ``(n, dim)`` float32 each.

    With the `reference` :math:`X`, means of cells by the initial vectors of the model, whitened (on the CPU), and
    :math:`Y` the means by `principal_axes` in place of gene vectors, mapped to spatial directions that have equal
    variance over the hops of the test, both centred,

    .. math:: X' = Y Q, \quad Q = \arg\min_{Q^\top Q = I} \|Y Q - X\|
        = U V^\top \;\text{with}\; Y^\top X = U S V^\top

    (orthogonal Procrustes; directions that either lacks are left out of U and V). Y has the variation of the slide, X
    the directions common to all slides and panels. Computed on the CPU, with four more
    arrays of `n_axes` float32 numbers for each cell.
    """
    found, directions = _own_context(slide, reference, config)
    return found.context, directions


@torch.no_grad()
def context_map(model: Stage, slide: Slide) -> ContextMap:
    """Contexts from which the domains of a slide are found, and their dependence on genes; on the CPU."""
    vectors = initial_vectors(model, slide)
    if model.config.whiten:
        means, directions = context_means(slide, vectors, model.config)
        return _own_context(slide, means @ directions.root, model.config)[0]
    hops = context_settings(slide, model.config).hops
    means = next(islice(hop_means(slide, vectors), hops, None))
    return ContextMap(means, _of_length_1(vectors), torch.zeros(vectors.shape[1]), hops)


def _own_context(slide: Slide, reference: Tensor, config: StageConfig) -> tuple[ContextMap, Directions]:
    """Contexts as by `slide_context`, as a map."""
    n_axes = min(config.n_axes, max(reference.shape[1], slide.n_cells // CELLS_PER_AXIS))
    axes = principal_axes(slide, n_axes, config.axes_cells)
    means, directions = context_means(slide, axes, config, domains=True)
    own = means @ directions.map
    centre = own.mean(dim=0)
    own -= centre
    blocks = zip(own.split(BLOCK), reference.split(BLOCK), strict=True)  # Y is centred, X need not be
    cross = sum(y.double().T @ x.double() for y, x in blocks)
    left, shared, right = torch.linalg.svd(cross, full_matrices=False)
    kept = shared > SHARED * shared[0]
    turn = (left[:, kept] @ right[kept]).float()
    vectors = _of_length_1(axes) @ directions.map @ turn
    hops = context_settings(slide, config, domains=True).hops
    return ContextMap(own @ turn, vectors, -centre @ turn, hops), directions


def _of_length_1(vectors: Tensor) -> Tensor:
    """Gene vectors as `embed_cells` divides them."""
    return vectors / torch.sqrt(vectors.square().sum() + 1e-12)


def principal_axes(slide: Slide, dim: int, n_cells: int) -> Tensor:
    """Principal axes of the scaled expression of at most `n_cells` cells, ``(P, dim)`` float32.

    Columns are orthonormal; those beyond the number of genes or cells are 0. Memory: 20 kB for a gene.
    """
    # Chosen and sorted by their counts, not by their order on the slide, which follows the last bits of coordinates:
    # where cells are fewer than genes, the random start has a number for each cell.
    chosen = np.argsort(mix(slide.identity[:]), kind="stable")[:n_cells]
    cells = np.sort(chosen)
    expression = (slide.take(cells).toarray()[np.searchsorted(cells, chosen)] - slide.mean) / slide.scale
    expression -= expression.mean(axis=0)
    width = min(dim, len(cells), len(slide.genes))
    _, _, axes = randomized_svd(
        expression, width, n_oversamples=dim, n_iter=N_ITERATIONS, power_iteration_normalizer="QR", random_state=0
    )
    return torch.nn.functional.pad(torch.from_numpy(axes.T.copy()).float(), (0, dim - width))
