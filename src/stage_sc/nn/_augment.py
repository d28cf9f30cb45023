"""Augmentation of training cells: fewer genes and a pseudo batch effect (equation 16, appendix G.2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Panel(NamedTuple):
    """Genes of a slide, in the order of the columns of its expression, with their scaling."""

    genes: Tensor
    """``(P,)`` int64, positions in the vocabulary."""
    mean: Tensor
    """``(P,)`` float32, subtracted from expression."""
    scale: Tensor
    """``(P,)`` float32, divisor of centred expression."""
    whitening: Tensor | None = None
    """``(dim, dim)`` float32 map of embedded cells, see `stage_sc.nn.spatial_directions`; ``None``: the identity."""
    axes: Tensor | None = None
    """``(P, dim)`` float32 principal axes of the slide, in place of gene vectors; ``None``: those of the model."""

    def to(self, device: torch.device | str) -> Panel:
        """Copy to `device`."""
        whitening, axes = (None if tensor is None else tensor.to(device) for tensor in (self.whitening, self.axes))
        return Panel(self.genes.to(device), self.mean.to(device), self.scale.to(device), whitening, axes)


class View(NamedTuple):
    """Augmentation of scaled expression x, gene by gene: ``kept * (offset + x * gain)``."""

    kept: Tensor
    """``(P,)`` bool, genes of the reduced panel."""
    gain: Tensor
    """``(P,)`` float32, 1 + s."""
    offset: Tensor
    """``(P,)`` float32, a."""

    def to(self, device: torch.device | str) -> View:
        """Copy to `device`."""
        return View(*(tensor.to(device) for tensor in self))


def clean_view(n_genes: int) -> View:
    """Return the view without augmentation."""
    return View(torch.ones(n_genes, dtype=torch.bool), torch.ones(n_genes), torch.zeros(n_genes))


def draw_view(
    n_genes: int, rng: np.random.Generator, *, panel_fraction: float, noise_rate: float, noise_scale: float
) -> View:
    r"""Draw a reduced panel of ``floor(γ P)`` genes, at least one, and a pseudo batch effect (equation 16).

    .. math:: x^{(noise)} = a + x \odot (1 + s), \quad a_g \sim \mathrm{Exp}(\lambda), \; s_g \sim N(0, \sigma^2)

    γ is `panel_fraction`, λ `noise_rate` (mean 1/λ), σ `noise_scale`; 1 + s is clipped to [0, 2]. The noise is drawn
    per gene and shared by all cells of the view, as in a change of platform or protocol: noise per cell would average
    out over a neighbourhood.
    """
    kept = torch.zeros(n_genes, dtype=torch.bool)
    kept[rng.permutation(n_genes)[: max(1, int(panel_fraction * n_genes))]] = True
    gain = np.clip(1 + noise_scale * rng.standard_normal(n_genes), 0, 2).astype(np.float32)
    offset = rng.exponential(1 / noise_rate, n_genes).astype(np.float32)
    return View(kept, torch.from_numpy(gain), torch.from_numpy(offset))
