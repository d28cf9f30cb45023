"""Gene embedder: vectors of fixed length from the expression of any panel (equation 17)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stage_sc.nn._augment import Panel, View
from stage_sc.nn._sparse import Sparse


class GeneEmbedder(nn.Module):
    """Gene vectors, ``(G, dim)``, and the embedding of cells by them or by the axes of a panel, see `embed_cells`.

    Untrained vectors are drawn from `generator` (default: that of torch).
    """

    def __init__(self, n_genes: int, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(n_genes, dim, generator=generator) / dim**0.5)

    def forward(self, expression: Sparse, panel: Panel, view: View) -> Tensor:
        """Embed cells, ``(n, dim)``."""
        vectors = self.vectors[panel.genes] if panel.axes is None else panel.axes
        return embed_cells(expression, panel, view, vectors)


def embed_cells(expression: Sparse, panel: Panel, view: View, vectors: Tensor) -> Tensor:
    r"""Sum of gene vectors weighted by expression, divided by the norm of the panel (equation 17).

    .. math:: \mathrm{embed}(x, P) = \frac{\sum_{j \in P} x_j v_j}{\sqrt{\sum_{j \in P} \|v_j\|^2}}

    `expression` is ``(n, P)`` and log-normalised, `vectors` ``(P, dim)``, the result ``(n, dim)`` float32. Scaling,
    augmentation and whitening are linear: they are applied to the vectors, and a cell costs one row of a sparse
    product.
    """
    vectors = vectors * view.kept[:, None]
    vectors = vectors / torch.sqrt(vectors.square().sum() + 1e-12)
    if panel.whitening is not None:
        vectors = vectors @ panel.whitening
    factor = view.gain / panel.scale  # offset + gain (x - mean) / scale
    constant = (view.offset - factor * panel.mean) @ vectors
    return expression @ (factor[:, None] * vectors) + constant
