"""Integrated gradients: how much each cell of a patch adds to the score of its centre."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.explain._patches import Patches
from stage_sc.nn import Sparse, attend, project

# Number of points of the quadrature.
POINTS = 8


class Integrated(NamedTuple):
    """Scores of the centres of patches, and their gradients, averaged from the baseline to the cells."""

    score: np.ndarray
    """``(B,)`` float64."""
    baseline: np.ndarray
    """``(B,)`` float64 score where all cells are as the baseline."""
    gradient: np.ndarray
    """``(N, dim)`` float64 mean gradient of the score of its centre, for every node."""
    embedding: np.ndarray
    """``(B, dim)`` float32 embeddings of the centres."""


def integrate(
    encoder: Any, patches: Patches, cells: Tensor, baseline: Tensor, rivals: tuple[Tensor, Tensor]
) -> Integrated:
    r"""Integrate the gradient of the score along the line from the baseline, by Gauss-Legendre quadrature.

    With :math:`f(z)` the score of a centre and :math:`z_j` the embedded cells of its patch, ``(N, dim)``,

    .. math:: f(z) - f(z^0) = \sum_j (z_j - z^0) \cdot \int_0^1 \frac{\partial f}{\partial z_j}(z^0 + t (z - z^0)) dt

    (Sundararajan et al., 2017). `encoder` is that of a model, `rivals` are the vectors that decide, see `stage_sc.nn.PrototypeTree.rivals`.
    """
    products = Sparse(sp.csr_matrix(patches.local, dtype=np.float32)), Sparse(patches.average.astype(np.float32))
    change, total = cells - baseline, torch.zeros(cells.shape, dtype=torch.float64)
    points, weights = np.polynomial.legendre.leggauss(POINTS)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        place = (baseline + float(point) * change).requires_grad_()
        score = _score(_embed(encoder, patches, products, place), rivals).sum()
        (gradient,) = torch.autograd.grad(score, place)
        total += float(weight) * gradient.double()
    with torch.no_grad():
        embedding = _embed(encoder, patches, products, cells)
        start = _embed(encoder, patches, products, baseline.expand_as(cells))
    scores = (_score(one.double(), rivals).numpy() for one in (embedding, start))
    return Integrated(*scores, total.numpy(), embedding.numpy())


def _embed(encoder: Any, patches: Patches, products: tuple[Sparse, Sparse], z: Tensor) -> Tensor:
    """Niche embeddings of the centres, as `stage_sc.embed.encode_slide` computes those of a slide."""
    local, average = products
    for layer, rows in zip(encoder.layers, reversed(patches.layers), strict=True):
        z = attend(layer, project(layer, z), rows)
    h = normalize(encoder.pool(local @ encoder.gated(z)), dim=1)
    return normalize(average @ h, dim=1)


def _score(h: Tensor, rivals: tuple[Tensor, Tensor]) -> Tensor:
    """Best product with a vector of the niche less the best with one of the reference."""
    one, other = ((h @ vectors.to(h.dtype).T).amax(dim=1) for vectors in rivals)
    return one - other
