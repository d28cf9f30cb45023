"""From a panel's expression to vectors of one length, whatever the panel (equation 17)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stage_sc.nn._augment import Panel, View
from stage_sc.nn._sparse import Sparse


class GeneEmbedder(nn.Module):
    r"""Sum of gene vectors weighted by expression, over the norm of the panel's vectors.

    .. math:: \mathrm{embed}(x, P) = \frac{\sum_{j \in P} x_j v_j}{\sqrt{\sum_{j \in P} \|v_j\|^2}}

    Scaling, augmentation and whitening are applied to the vectors, not to cells: a cell costs one row of one sparse
    product.

    Parameters
    ----------
    n_genes, dim
        Size of the vocabulary and length of the vectors.
    """

    def __init__(self, n_genes: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(n_genes, dim) / dim**0.5)

    def forward(self, expression: Sparse, panel: Panel, view: View) -> Tensor:
        """Embed cells with the gene vectors, see `embed_cells`."""
        return embed_cells(expression, panel, view, self.vectors[panel.genes])


def embed_cells(expression: Sparse, panel: Panel, view: View, vectors: Tensor) -> Tensor:
    """Equation 17 with given gene vectors.

    Parameters
    ----------
    expression
        ``(n, P)`` log-normalised expression.
    panel, view
        Genes, scaling and whitening of the slide, and what this view does to the genes.
    vectors
        ``(P, dim)`` vectors of the panel's genes.

    Returns
    -------
    ``(n, dim)`` float32.
    """
    vectors = vectors * view.kept[:, None]
    vectors = vectors / torch.sqrt(vectors.square().sum() + 1e-12)
    if panel.whitening is not None:
        vectors = vectors @ panel.whitening
    factor = view.gain / panel.scale  # offset + gain (x - mean) / scale
    constant = (view.offset - factor * panel.mean) @ vectors
    return expression @ (factor[:, None] * vectors) + constant
