"""Directions of gene expression that vary in space beyond chance, and their units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Number of cells at a time.
BLOCK = 8192
# Minimum variance of a direction, as a fraction of the largest.
EMPTY = 1e-6
# Minimum singular value of a direction that is turned, as a fraction of the largest.
SHARED = 1e-4
# Length of what is left of a component below which it depends on those before it.
DEPENDENT = 1e-3


class Directions(NamedTuple):
    """Linear map of the embedded cells of a slide to its spatial directions, in units of their variation."""

    map: Tensor
    """``(k, dim)`` float32, for cells embedded with k components; its rank is `number`."""
    cells: Tensor
    """``(k, k)`` float64 covariance of the embedded cells."""
    number: int
    """Number of directions that vary in space beyond chance."""
    floor: float
    """Noise floor: fraction of the variance of cells that remains in means of neighbours by chance alone."""


def spatial_directions(
    cells: Tensor,
    tested: Tensor,
    null: Sequence[Tensor],
    means: Tensor,
    *,
    frame: Tensor | None = None,
    margin: float,
    power: float,
) -> Directions:
    r"""Find the directions that vary in space beyond chance, and scale them.

    With :math:`R = C^{-1/2}` from the covariance C of the cells,
    :math:`R^\top \operatorname{cov}(\bar z) R` of means over a few hops has eigenvalues :math:`\mu_j` between 0 and 1:
    the fraction of the variance of a direction that is shared with neighbours. For cells shuffled over the places all
    are small; the largest of them (mean over shuffles) is the noise floor c. Directions with :math:`\mu_j > c` span S;
    where none is above c by a margin, there are none. With K the covariance of `means` in S, in units of the cells, the
    map :math:`R S K^{(p - 1) / 2} S^\top` gives them the covariance :math:`K^p`. Symmetric roots move cells least, so
    that components keep their meaning across slides. With a `frame` F, the whitened cells are first turned onto its
    components: :math:`R = C^{-1/2} Q` with the orthogonal factor :math:`Q = U V^\top` of
    :math:`C^{1/2} F = U \Sigma V^\top`.

    Parameters
    ----------
    cells, tested, means
        ``(k, k)`` covariances of the embedded cells, of their means over the hops of the test, and of those that are
        scaled.
    null
        ``(k, k)`` covariances of means over the hops of the test for cells shuffled over the places, one for each
        shuffle.
    frame
        ``(k, dim)`` components of a model in terms of those of the cells. ``None``: the same.
    margin
        Factor on the noise floor that the largest eigenvalue must exceed.
    power
        Exponent p of the variance of a direction in the scaled means; 0: equal weights.
    """
    root = whitening(cells, frame)
    floor = sum(float(torch.linalg.eigvalsh(root.T @ one @ root)[-1]) for one in null) / len(null)
    values, axes = torch.linalg.eigh(root.T @ tested @ root)
    axes = axes[:, values > floor]
    to_axes = root @ axes
    if values[-1] <= margin * floor:
        return Directions(torch.zeros_like(root).float(), cells, 0, floor)
    values, turn = torch.linalg.eigh(to_axes.T @ means @ to_axes)
    scaled = (turn * values.clamp(min=1e-12) ** ((power - 1) / 2)) @ turn.T
    return Directions((to_axes @ scaled @ axes.T).float(), cells, axes.shape[1], floor)


def complete_turn(turn: Tensor, variation: Tensor) -> Tensor:
    """Add the directions that a turn of ``(k, dim)`` leaves out, the largest first, in components that it does not use.

    `variation` is their covariance, ``(k, k)``.
    """
    left = torch.eye(len(turn), dtype=turn.dtype) - turn @ turn.T
    values, axes = torch.linalg.eigh(left @ variation @ left)
    axes = axes[:, values > EMPTY * torch.linalg.eigvalsh(variation)[-1]].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    unused = orthonormal_basis(torch.eye(turn.shape[1], dtype=turn.dtype) - turn.T @ turn)
    number = min(axes.shape[1], unused.shape[1])
    return turn + axes[:, :number] @ unused[:, :number].T


def orthonormal_basis(projector: Tensor) -> Tensor:
    """Axes of the space of a projector by Gram-Schmidt from its first components on, ``(d, r)`` float64."""
    basis = projector.new_zeros(len(projector), 0)
    for column in projector.T:
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)
        if rest.norm() > DEPENDENT:
            basis = torch.cat([basis, (rest / rest.norm())[:, None]], dim=1)
    return basis


def covariance(x: Tensor) -> Tensor:
    """Covariance of the columns of ``(n, dim)``, float64."""
    mean = torch.stack([part.sum(dim=0, dtype=torch.float64) for part in x.split(BLOCK)]).sum(dim=0) / max(len(x), 1)
    total = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in x.split(BLOCK):
        centred = part.double() - mean
        total.addmm_(centred.T, centred)
    return total / max(len(x), 1)


def whitening(cells: Tensor, frame: Tensor | None = None) -> Tensor:
    """Map of embedded cells, with covariance `cells`, to directions of variance 1, turned onto a ``(k, dim)`` frame."""
    root = _inverse_root(cells)
    return root if frame is None else root @ orthogonal_factor(root @ cells @ frame)


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """Turn nearest to a matrix (orthogonal Procrustes), without the directions that the matrix lacks."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > SHARED * values[0]
    return left[:, kept] @ right[kept]


def _inverse_root(matrix: Tensor) -> Tensor:
    """Symmetric inverse root; directions without variance are mapped to 0."""
    values, axes = torch.linalg.eigh(matrix)
    root = torch.where(values > EMPTY * values[-1].clamp(min=1e-30), values.clamp(min=1e-30).rsqrt(), 0)
    return (axes * root) @ axes.T
