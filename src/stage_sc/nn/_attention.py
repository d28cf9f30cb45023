"""Graph attention over rows of a csr matrix: one definition for training batches and for whole slides.

Parameters and results are those of torch-geometric's ``GATConv``. Attention is a softmax over the entries of a row, and
the sum over neighbours a sparse product, forwards and backwards: no messages are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GATConv

from stage_sc.nn._sparse import csr_tensor


class Block(NamedTuple):
    """Rows of a csr matrix."""

    rows: slice | Tensor
    """Positions of the rows among the columns."""
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


class Projected(NamedTuple):
    """Cells projected by an attention layer."""

    source: Tensor
    """``(n, heads)`` score :math:`a_{src}^T W z` of a cell as a neighbour."""
    target: Tensor
    """``(n, heads)`` score :math:`a_{dst}^T W z` of a cell as the centre."""
    values: Tensor
    """``(heads, n, width + 1)`` projections :math:`W z` and a column of ones."""


def project(layer: GATConv, z: Tensor) -> Projected:
    """Project cells, ``(n, dim)``."""
    h = layer.lin(z).view(len(z), layer.heads, layer.out_channels)
    values = F.pad(h, (0, 1), value=1.0).transpose(0, 1).contiguous()
    return Projected((h * layer.att_src).sum(dim=2), (h * layer.att_dst).sum(dim=2), values)


def attend(layer: GATConv, projected: Projected, graph: Block) -> Tensor:
    r"""Output of an attention layer for the rows of `graph`, ``(b, dim)`` float32.

    .. math:: z'_i = \sum_j \alpha_{ij} W z_j, \quad \alpha_{ij} =
        \mathrm{softmax}_j \, \mathrm{LeakyReLU}(a_{dst}^\top W z_i + a_{src}^\top W z_j + a_{edge} w_{ij})

    over the neighbours j of the cell i and itself, with edge weights w.
    """
    edge = (layer.lin_edge.weight.view(layer.heads, -1) * layer.att_edge[0]).sum(dim=1)
    scores = projected.source, projected.target[graph.rows], edge, layer.negative_slope
    total = _WeightedSums.apply(projected.values, *scores, graph)  # Σ e^s W z and Σ e^s in one product
    return (total[:, :, :-1] / total[:, :, -1:]).transpose(0, 1).flatten(1) + layer.bias


class _WeightedSums(torch.autograd.Function):
    """Sums of `values` over each row, with weights ``exp(LeakyReLU(source + target + edge w))``.

    The weights of a row are divided by their maximum, which cancels in attention and so needs no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, source: Tensor, target: Tensor, edge: Tensor, slope: float, graph: Block
    ) -> Tensor:
        length = torch.diff(graph.indptr)
        score = source.index_select(0, graph.indices) + torch.repeat_interleave(target, length, dim=0)
        score = F.leaky_relu(score + graph.values[:, None] * edge, slope)
        highest = torch.segment_reduce(score, "max", offsets=graph.indptr, axis=0)
        weight = torch.exp(score - torch.repeat_interleave(highest, length, dim=0))
        ctx.save_for_backward(values, score, weight)
        ctx.graph, ctx.slope = graph, slope
        weight = weight.T.contiguous()
        return torch.stack([graph.times(values[head], weight[head]) for head in range(len(weight))])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (values, score, weight), graph = grads, ctx.saved_tensors, ctx.graph
        row = torch.repeat_interleave(torch.diff(graph.indptr))
        of_weight = torch.empty_like(weight)
        for head in range(len(values)):  # one at a time, which fits into the processor's cache
            pairs = values[head].index_select(0, graph.indices) * grad[head].index_select(0, row)
            of_weight[:, head] = pairs.sum(dim=1)
        of_score = of_weight * weight * torch.where(score > 0, 1.0, ctx.slope)
        of_target = torch.segment_reduce(of_score, "sum", offsets=graph.indptr, axis=0)
        # the same entries by column
        n, order = values.shape[1], torch.argsort(graph.indices, stable=True)
        indptr = F.pad(torch.cumsum(torch.bincount(graph.indices, minlength=n), 0), (1, 0))
        of_source = torch.segment_reduce(of_score[order], "sum", offsets=indptr, axis=0)
        transposed, weight = Block(slice(0, n), indptr, row[order], graph.values), weight[order].T.contiguous()
        of_values = torch.stack([transposed.times(grad[head], weight[head]) for head in range(len(weight))])
        return of_values, of_source, of_target, graph.values @ of_score, None, None


def attend_all(layer: GATConv, z: Tensor, graph: Blocks) -> Tensor:
    """Output of a layer for all cells, block by block; without gradients."""
    projected, result = project(layer, z), torch.empty_like(z)
    for block in graph():
        result[block.rows] = attend(layer, projected, block)
    return result


def smooth(x: Tensor, graph: Blocks) -> Tensor:
    """Mean over each cell and its neighbours."""
    result = torch.empty_like(x)
    for block in graph():
        total = block.times(x, torch.ones_like(block.values))
        result[block.rows] = total / torch.diff(block.indptr)[:, None]
    return result
