"""Making slides comparable: embedded cells in units of what varies on their own slide, and persists in space."""

from __future__ import annotations

import torch
from torch import Tensor


def whitening(near: Tensor, far: Tensor, *, persistence: float, ridge: float) -> Tensor:
    r"""Linear map of embedded cells that makes slides of any panel, depth and platform comparable.

    With :math:`C` the covariance of `near` and :math:`W = (C + \rho \bar c I)^{-1/2}`, whitened cells vary equally in
    all directions. What varies between neighbours averages out farther away, what varies over the tissue persists:
    :math:`M = W \, \mathrm{cov}(far) \, W` has eigenvalues between 0 and about 1. The map is :math:`W M^\gamma`. The
    roots are symmetric: of all whitening maps they move the cells least, and the components keep their meaning from
    slide to slide.

    Parameters
    ----------
    near
        ``(n, dim)`` mean embedding of every cell and its neighbours.
    far
        ``(n, dim)`` mean over more hops.
    persistence
        γ: 0 whitens only; the higher, the lower the weight of directions that do not persist.
    ridge
        ρ: variance added to every direction, as a fraction of the mean variance, which limits the gain of noise.

    Returns
    -------
    ``(dim, dim)`` float32. Directions without variance are mapped to 0.
    """
    covariance = _covariance(near)
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    root = torch.where(values > 1e-9 * values[-1], torch.rsqrt(values + ridge * values.mean()), 0)
    map_ = (axes * root) @ axes.T
    if persistence:
        values, axes = torch.linalg.eigh(map_ @ _covariance(far) @ map_)
        map_ = map_ @ (axes * values.clamp(min=0) ** persistence) @ axes.T
    return map_.float()


def _covariance(x: Tensor) -> Tensor:
    centred = x.double() - x.mean(dim=0, dtype=torch.float64)
    return centred.T @ centred / max(len(x), 1)
