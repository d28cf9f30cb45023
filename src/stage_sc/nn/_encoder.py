"""Graph attention encoder: from embedded cells to embedded neighbourhoods."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv

from stage_sc.nn._attention import Block, attend, project
from stage_sc.nn._sparse import Sparse


class Neighbours(NamedTuple):
    """Graph among the n cells of a batch.

    Cells that later layers need come first: each layer computes the first `sizes` cells only.
    """

    edges: Tensor
    """``(2, E)`` int64, from and to, sorted by the latter; with an edge from every cell to itself."""
    weights: Tensor
    """``(E, 1)`` float32, Gaussian weight of each edge (equation 20), 1 for a cell with itself."""
    pool: Sparse
    """``(B, m)`` Gaussian weights of the local neighbourhoods of the B centres, among the first m cells."""
    sizes: tuple[int, ...] | None = None
    """Number of cells that each layer computes; ``None``: all."""

    def to(self, device: torch.device | str) -> Neighbours:
        """Move to `device`."""
        return Neighbours(self.edges.to(device), self.weights.to(device), self.pool.to(device), self.sizes)

    def rows(self, layer: int, n: int) -> Block:
        """Rows of the graph that a layer computes, of n cells."""
        size = n if self.sizes is None else self.sizes[layer]
        source, target = self.edges
        indptr = torch.searchsorted(target, torch.arange(size + 1, device=target.device))
        end = int(indptr[-1])
        return Block(slice(0, size), indptr, source[:end], self.weights[:end, 0])


class Encoder(nn.Module):
    """Graph attention layers, then attention pooling over the local neighbourhood.

    Every layer starts as the mean over a cell and its neighbours, and pooling as the Gaussian mean: the untrained
    encoder smooths. Embeddings are those of the whole graph, also at the border of a batch. Other weights are drawn
    from `generator` (default: that of torch).
    """

    def __init__(self, dim: int, n_layers: int, n_heads: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        with torch.device("meta"):  # no random numbers of the process are drawn
            self.layers = nn.ModuleList(
                GATConv(dim, dim // n_heads, heads=n_heads, edge_dim=1, add_self_loops=False) for _ in range(n_layers)
            )
            self.score = nn.Linear(dim, 1)
            self.project = nn.Linear(dim, dim)
        self.to_empty(device="cpu")
        skip = partial(torch.rand, generator=generator)  # draws of the constructors, so that a seed keeps its weights
        for layer in self.layers:
            skip(2 * dim * dim + dim)
            bound = (6 / (dim + 1)) ** 0.5
            nn.init.uniform_(layer.lin_edge.weight, -bound, bound, generator=generator)
            skip(3 * dim)
            nn.init.zeros_(layer.bias)
        skip(dim + 1 + dim * dim + dim)
        for name, parameter in self.layers.named_parameters():
            if name.endswith(".lin.weight"):
                nn.init.eye_(parameter)
            elif ".att_" in name:
                nn.init.normal_(parameter, std=0.01, generator=generator)
        for zero in (self.score.weight, self.score.bias, self.project.bias):
            nn.init.zeros_(zero)
        nn.init.eye_(self.project.weight)

    def forward(self, z: Tensor, neighbours: Neighbours) -> Tensor:
        """Embed the neighbourhoods of the centres: from cells, ``(n, dim)``, to ``(B, dim)`` of length 1."""
        return F.normalize(self.pooled(z, neighbours), dim=1)

    def pooled(self, z: Tensor, neighbours: Neighbours) -> Tensor:
        """Embeddings before they are scaled to length 1, ``(B, dim)``."""
        for number, layer in enumerate(self.layers):
            z = attend(layer, project(layer, z), neighbours.rows(number, len(z)))
        return self.pool(neighbours.pool @ self.gated(z[: neighbours.pool.shape[1]]))

    def gated(self, z: Tensor) -> Tensor:
        """Summands of pooling, ``e^s z`` and ``e^s`` of every cell with its score s, ``(n, dim + 1)``."""
        gate = torch.exp(self.score(z).clamp(-10, 10))
        return torch.cat([gate * z, gate], dim=1)

    def pool(self, total: Tensor) -> Tensor:
        """Projection of ``Σ w e^s z / Σ w e^s``, from both sums."""
        return self.project(total[:, :-1] / total[:, -1:])
