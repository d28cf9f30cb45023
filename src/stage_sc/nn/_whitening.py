"""Whitening of embedded cells, which makes slides of any panel, depth and platform comparable."""

from __future__ import annotations

import torch
from torch import Tensor


def whitening(one_hop: Tensor, all_hops: Tensor, *, persistence: float, ridge: float) -> Tensor:
    r"""Linear map of the embedded cells of a slide to units of their variation, ``(dim, dim)`` float32.

    With the covariance C of `one_hop`, :math:`W = (C + \rho \bar c I)^{-1/2}` gives all directions equal variance.
    Variation between neighbours averages out over more hops, variation over the tissue persists:
    :math:`M = W \, \mathrm{cov}(\text{all hops}) \, W` has eigenvalues between 0 and about 1. The map is
    :math:`W M^\gamma`. Its roots are symmetric: of all whitening maps they move the cells least, and components keep
    their meaning across slides.

    Parameters
    ----------
    one_hop, all_hops
        ``(n, dim)`` means of embedded cells over one hop, and over the hops of the context.
    persistence
        Exponent γ; 0 whitens only, higher values reduce the weight of directions that do not persist.
    ridge
        Variance ρ added to every direction, as a fraction of the mean variance, which limits the gain of noise.
        Directions without variance are mapped to 0.
    """
    values, axes = torch.linalg.eigh(_covariance(one_hop))
    values = values.clamp(min=0)
    root = torch.where(values > 1e-9 * values[-1], torch.rsqrt(values + ridge * values.mean()), 0)
    map_ = (axes * root) @ axes.T
    if persistence:
        values, axes = torch.linalg.eigh(map_ @ _covariance(all_hops) @ map_)
        map_ = map_ @ (axes * values.clamp(min=0) ** persistence) @ axes.T
    return map_.float()


def _covariance(x: Tensor) -> Tensor:
    centred = x.double() - x.mean(dim=0, dtype=torch.float64)
    return centred.T @ centred / max(len(x), 1)
