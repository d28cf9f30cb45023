"""Views of a panel: fewer genes and a pseudo batch effect (equation 16, appendix G.2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Panel(NamedTuple):
    """The genes of a slide and how the slide's expression is scaled; columns of an expression matrix follow it."""

    genes: Tensor
    """``(P,)`` int64, positions in the vocabulary."""
    mean: Tensor
    """``(P,)`` float32, subtracted from expression."""
    scale: Tensor
    """``(P,)`` float32, divided by afterwards."""
    whitening: Tensor | None = None
    """``(dim, dim)`` float32, applied to embedded cells, see `stage_sc.model._whitening`. ``None``: nothing is."""

    def to(self, device: torch.device | str) -> Panel:
        """Copy to `device`."""
        whitening = None if self.whitening is None else self.whitening.to(device)
        return Panel(self.genes.to(device), self.mean.to(device), self.scale.to(device), whitening)


class View(NamedTuple):
    """What one view does to scaled expression, gene by gene: ``kept * (offset + x * gain)``."""

    kept: Tensor
    """``(P,)`` bool, genes that the view sees."""
    gain: Tensor
    """``(P,)`` float32, 1 + s."""
    offset: Tensor
    """``(P,)`` float32, a."""

    def to(self, device: torch.device | str) -> View:
        """Copy to `device`."""
        return View(*(tensor.to(device) for tensor in self))


def clean_view(n_genes: int) -> View:
    """Return the view that leaves expression as it is."""
    return View(torch.ones(n_genes, dtype=torch.bool), torch.ones(n_genes), torch.zeros(n_genes))


def draw_view(
    n_genes: int, rng: np.random.Generator, *, panel_fraction: float, noise_rate: float, noise_scale: float
) -> View:
    r"""Draw a panel subset and a pseudo batch effect.

    .. math:: x^{(noise)} = a + x \odot (1 + s), \quad a_g \sim \mathrm{Exp}(\lambda), \; s_g \sim N(0, \sigma^2)

    Parameters
    ----------
    n_genes
        Genes P of the panel.
    rng
        Source of chance.
    panel_fraction
        γ: the view sees ``floor(γ P)`` genes, at least one.
    noise_rate
        λ of the exponential distribution, whose mean is 1/λ.
    noise_scale
        σ; factors 1 + s are kept in [0, 2].

    Notes
    -----
    Equation 16. The noise is drawn once for each gene and shared by all cells of the view, as a change of platform or
    protocol would be: drawn for each value of each cell it would average out over a neighbourhood.
    """
    kept = np.zeros(n_genes, dtype=bool)
    kept[rng.permutation(n_genes)[: max(1, int(panel_fraction * n_genes))]] = True
    gain = np.clip(1 + noise_scale * rng.standard_normal(n_genes), 0, 2)
    offset = rng.exponential(1 / noise_rate, n_genes)
    return View(
        torch.from_numpy(kept), torch.from_numpy(gain.astype(np.float32)), torch.from_numpy(offset.astype(np.float32))
    )
