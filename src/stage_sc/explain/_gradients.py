"""Integrated gradients: how much each cell of a patch adds to the score of its centre."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.explain._patches import Patches
from stage_sc.nn import Sparse, attend, project

# Number of points of the quadrature, and of places on the line where the best vectors are found.
POINTS, PLACES = 6, 256


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
    r"""Integrate the gradient of the score along the line from the baseline.

    With :math:`f(z) = \max_k h^\top a_k - \max_k h^\top b_k` the score of a centre, :math:`h(z)` its embedding and
    :math:`z_j` the embedded cells of its patch, ``(N, dim)``,

    .. math:: f(z) - f(z^0) = \sum_j (z_j - z^0) \cdot \int_0^1 \frac{\partial h}{\partial z_j}(t)^\top d(t) \, dt,
        \quad d(t) = a_{k(t)} - b_{k'(t)}

    (Sundararajan et al., 2017), with k and k' the best vectors at :math:`z^0 + t (z - z^0)`. The embedding is smooth in
    t: its gradient is computed at the points of Gauss-Legendre quadrature. d jumps: it is integrated against the
    polynomials through these points, on a fine grid of interpolated embeddings. `encoder` is that of a model; `rivals`,
    a and b, are from `stage_sc.nn.PrototypeTree.rivals`.
    """
    products = Sparse(sp.csr_matrix(patches.local, dtype=np.float32)), Sparse(patches.average.astype(np.float32))
    points, grid, basis = _quadrature()
    lines = [(baseline + point * (cells - baseline)).requires_grad_() for point in points]
    found = [_embed(encoder, patches, products, line) for line in lines]
    passed = torch.einsum("gp,pbd->gbd", basis, torch.stack(found).detach().double())
    jumps = _difference(passed.flatten(0, 1), rivals).view(passed.shape)
    pulls = torch.einsum("gp,gbd->pbd", basis, jumps) / len(grid)
    total = torch.zeros(cells.shape, dtype=torch.float64)
    for line, embedding, pull in zip(lines, found, pulls, strict=True):
        (gradient,) = torch.autograd.grad(embedding, line, pull.to(embedding.dtype))
        total += gradient.double()
    with torch.no_grad():
        embedding = _embed(encoder, patches, products, cells)
        start = _embed(encoder, patches, products, baseline.expand_as(cells))
    score, first = ((one.double() * _difference(one.double(), rivals)).sum(dim=1).numpy() for one in (embedding, start))
    return Integrated(score, first, total.numpy(), embedding.numpy())


@cache
def _quadrature() -> tuple[list[float], np.ndarray, Tensor]:
    """Points in (0, 1), the grid, and the polynomial that is 1 at each point and 0 at the others on the grid."""
    points = (np.polynomial.legendre.leggauss(POINTS)[0] + 1) / 2
    grid = (np.arange(PLACES) + 0.5) / PLACES
    powers = np.arange(POINTS)
    basis = (grid[:, None] ** powers) @ np.linalg.inv(points[:, None] ** powers)
    return points.tolist(), grid, torch.from_numpy(basis)


def _embed(encoder: Any, patches: Patches, products: tuple[Sparse, Sparse], z: Tensor) -> Tensor:
    """Niche embeddings of the centres, as `stage_sc.embed.encode_slide` computes those of a slide."""
    local, average = products
    for layer, rows in zip(encoder.layers, reversed(patches.layers), strict=True):
        z = attend(layer, project(layer, z), rows)
    h = normalize(encoder.pool(local @ encoder.gated(z)), dim=1)
    return normalize(average @ h, dim=1)


def _difference(h: Tensor, rivals: tuple[Tensor, Tensor]) -> Tensor:
    """Best vector of the niche less the best of the reference for each embedding, ``(n, dim)`` float64."""
    one, other = (vectors.double()[(h @ vectors.double().T).argmax(dim=1)] for vectors in rivals)
    return one - other
