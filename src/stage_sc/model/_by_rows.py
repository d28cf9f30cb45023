"""What `Encoder` computes, for a whole slide: layer by layer, each cell once, over blocks of rows.

The layers are torch-geometric's. A row of attention is a softmax over the entries of a csr row, and a sum over
neighbours a sparse product, so that no message is ever written down: memory is that of the embeddings and of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GATConv

from stage_sc.model._sparse import csr_tensor


class Block(NamedTuple):
    """Consecutive rows of a csr matrix with n columns."""

    rows: slice
    indptr: Tensor
    """``(b + 1,)`` int64."""
    indices: Tensor
    """``(E,)`` int64."""
    values: Tensor
    """``(E,)`` float32."""

    def times(self, dense: Tensor, values: Tensor | None = None) -> Tensor:
        """Product with a dense matrix, with other `values` on the same pattern."""
        shape = (len(self.indptr) - 1, len(dense))
        return csr_tensor(self.indptr, self.indices, self.values if values is None else values, shape) @ dense


Blocks = Callable[[], Iterator[Block]]


def attend(layer: GATConv, z: Tensor, graph: Blocks) -> Tensor:
    r"""One attention layer with its residual connection, ``z + ELU(layer(z))``.

    .. math:: \alpha_{ij} = \mathrm{softmax}_j \, \mathrm{LeakyReLU}(a_{dst}^\top W z_i + a_{src}^\top W z_j + w_{ij} e)

    Parameters
    ----------
    layer
        Its parameters; one edge feature.
    z
        ``(n, dim)`` cells.
    graph
        Gives the rows of the graph with their edge weights, in order; every cell sees itself.
    """
    heads, width = layer.heads, layer.out_channels
    h = layer.lin(z).view(len(z), heads, width)
    source, target = (h * layer.att_src).sum(dim=2), (h * layer.att_dst).sum(dim=2)
    slope = (layer.lin_edge.weight.view(heads, width) * layer.att_edge[0]).sum(dim=1)
    padded = F.pad(h, (0, 1), value=1.0)  # Σ e^s h and Σ e^s in one product
    summed = [padded[:, head].contiguous() for head in range(heads)]
    del h, padded
    result = torch.empty_like(z)
    for block in graph():
        length = torch.diff(block.indptr)
        score = source.index_select(0, block.indices) + torch.repeat_interleave(target[block.rows], length, dim=0)
        score = F.leaky_relu(score + block.values[:, None] * slope, layer.negative_slope)
        highest = torch.segment_reduce(score, "max", offsets=block.indptr, axis=0)
        weight = torch.exp(score - torch.repeat_interleave(highest, length, dim=0)).T.contiguous()
        total = torch.stack([block.times(summed[head], weight[head]) for head in range(heads)], dim=1)
        attended = (total[:, :, :-1] / total[:, :, -1:]).flatten(1) + layer.bias
        result[block.rows] = z[block.rows] + F.elu(attended)
    return result


def smooth(x: Tensor, graph: Blocks) -> Tensor:
    """Mean over the neighbours of every cell and itself."""
    result = torch.empty_like(x)
    for block in graph():
        total = block.times(x, torch.ones_like(block.values))
        result[block.rows] = total / torch.diff(block.indptr)[:, None]
    return result
