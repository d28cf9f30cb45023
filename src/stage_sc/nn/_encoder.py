"""From embedded cells to embedded neighbourhoods: graph attention, then attention pooling."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv

from stage_sc.nn._attention import Block, attend, project
from stage_sc.nn._sparse import Sparse


class Neighbours(NamedTuple):
    """Who sees whom among the n cells of a batch.

    Cells stand so that those whose embeddings are needed after a layer come first: each layer computes fewer.
    """

    edges: Tensor
    """``(2, E)`` int64, from and to, sorted by the latter; every cell sees itself."""
    weights: Tensor
    """``(E, 1)`` float32, Gaussian weight of each edge (equation 20), 1 for a cell with itself."""
    pool: Sparse
    """``(B, n)`` Gaussian weights of the local neighbourhoods of the batch's centres, or of the first columns."""
    sizes: tuple[int, ...] | None = None
    """How many of the cells each layer computes; ``None``: all."""

    def to(self, device: torch.device | str) -> Neighbours:
        """Move to `device`."""
        return Neighbours(self.edges.to(device), self.weights.to(device), self.pool.to(device), self.sizes)

    def rows(self, layer: int, n: int) -> Block:
        """Rows of the graph that a layer computes, of n cells."""
        size = n if self.sizes is None else self.sizes[layer]
        seen, sees = self.edges
        ends = torch.searchsorted(sees, torch.arange(size + 1, device=sees.device))
        last = int(ends[-1])
        return Block(slice(0, size), ends, seen[:last], self.weights[:last, 0])


class Encoder(nn.Module):
    """Graph attention layers, then pooling over the local neighbourhood.

    Every layer starts as the mean over a cell and its neighbours, and pooling as the Gaussian mean: the untrained
    encoder smooths, and training changes whom a cell attends to. It is a function on the whole graph: nothing
    is cut off at the border of a batch.

    Parameters
    ----------
    dim
        Length of cell and neighbourhood embeddings.
    n_layers, n_heads
        Number of layers, and of heads in each.
    """

    def __init__(self, dim: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GATConv(dim, dim // n_heads, heads=n_heads, edge_dim=1, add_self_loops=False) for _ in range(n_layers)
        )
        self.score = nn.Linear(dim, 1)
        self.project = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from plain smoothing."""
        for name, parameter in self.layers.named_parameters():
            if name.endswith(".lin.weight"):
                nn.init.eye_(parameter)
            elif ".att_" in name:
                nn.init.normal_(parameter, std=0.01)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        nn.init.eye_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def pooled(self, cells: Tensor, neighbours: Neighbours) -> Tensor:
        """Neighbourhoods of the centres before they are brought to length 1, ``(B, dim)``."""
        z = cells
        for number, layer in enumerate(self.layers):
            z = attend(layer, project(layer, z), neighbours.rows(number, len(z)))
        return self.pool(neighbours.pool @ self.gated(z[: neighbours.pool.shape[1]]))

    def gated(self, z: Tensor) -> Tensor:
        """Return what pooling adds up over a neighbourhood: ``e^s z`` and ``e^s`` of every cell, ``(n, dim + 1)``.

        One sparse product, because the score s belongs to the cell that is looked at.
        """
        gate = torch.exp(self.score(z).clamp(-10, 10))
        return torch.cat([gate * z, gate], dim=1)

    def pool(self, total: Tensor) -> Tensor:
        """Project ``Σ w e^s z / Σ w e^s``, from both sums."""
        return self.project(total[:, :-1] / total[:, -1:])

    def forward(self, cells: Tensor, neighbours: Neighbours) -> Tensor:
        """Embed the neighbourhoods of the centres.

        Parameters
        ----------
        cells
            ``(n, dim)`` embedded cells.
        neighbours
            Graph and local neighbourhoods.

        Returns
        -------
        ``(B, dim)`` float32 with rows of length 1.
        """
        return F.normalize(self.pooled(cells, neighbours), dim=1)
