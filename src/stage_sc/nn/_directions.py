"""Directions of gene expression that vary in space beyond chance, and their units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Minimum variance of a direction, as a fraction of the largest.
EMPTY = 1e-6


class Directions(NamedTuple):
    """Linear map of the embedded cells of a slide to its spatial directions, in units of their variation."""

    map: Tensor
    """``(dim, dim)`` float32; its rank is `number`."""
    root: Tensor
    """``(dim, dim)`` float32, whitening of the cells, of all directions."""
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
    margin: float,
    power: float,
) -> Directions:
    r"""Find the directions that vary in space beyond chance, and scale them; all arguments are ``(dim, dim)``.

    With :math:`R = C^{-1/2}` from the covariance C of the cells, :math:`R \operatorname{cov}(\bar z) R` of means over
    a few hops has eigenvalues :math:`\mu_j` between 0 and 1: the fraction of the variance of a direction that is
    shared with neighbours. For cells shuffled over the places all are small; the largest of them (mean over shuffles)
    is the noise floor c. Directions with :math:`\mu_j > c` span S; where none is above c by a margin, there are none.
    With K the covariance of `means` in S, in units of the cells, the map :math:`R S K^{(p - 1) / 2} S^\top` gives them
    the covariance :math:`K^p`. Symmetric roots move cells least, so that components keep their meaning across slides.

    Parameters
    ----------
    cells, tested, means
        Covariances of the embedded cells, of their means over the hops of the test, and of those that are scaled.
    null
        Covariances of means over the hops of the test for cells shuffled over the places, one for each shuffle.
    margin
        Factor on the noise floor that the largest eigenvalue must exceed.
    power
        Exponent p of the variance of a direction in the scaled means; 0: equal weights.
    """
    root = _inverse_root(cells)
    floor = sum(float(torch.linalg.eigvalsh(root @ one @ root)[-1]) for one in null) / len(null)
    values, axes = torch.linalg.eigh(root @ tested @ root)
    axes = axes[:, values > floor]
    to_axes = root @ axes
    if values[-1] <= margin * floor:
        return Directions(torch.zeros_like(cells).float(), root.float(), 0, floor)
    values, turn = torch.linalg.eigh(to_axes.T @ means @ to_axes)
    scaled = (turn * values.clamp(min=1e-12) ** ((power - 1) / 2)) @ turn.T
    return Directions((to_axes @ scaled @ axes.T).float(), root.float(), axes.shape[1], floor)


def covariance(x: Tensor) -> Tensor:
    """Covariance of the columns of ``(n, dim)``, float64."""
    centred = x.double() - x.mean(dim=0, dtype=torch.float64)
    return centred.T @ centred / max(len(x), 1)


def _inverse_root(matrix: Tensor) -> Tensor:
    """Symmetric inverse root; directions without variance are mapped to 0."""
    values, axes = torch.linalg.eigh(matrix)
    root = torch.where(values > EMPTY * values[-1].clamp(min=1e-30), values.clamp(min=1e-30).rsqrt(), 0)
    return (axes * root) @ axes.T
