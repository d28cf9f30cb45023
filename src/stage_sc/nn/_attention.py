"""Attention over the rows of a sparse graph: the one definition, for batches in training and for whole slides.

The layers are torch-geometric's, and so are the numbers. A row of attention is a softmax over the entries of a csr row,
and the sum over neighbours a sparse product, forwards and backwards: no message is ever written down.
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
    """Consecutive rows of a csr matrix."""

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


class Projected(NamedTuple):
    """What a layer looks at in every cell."""

    source: Tensor
    """``(n, heads)`` part of the score of a cell that is looked at."""
    target: Tensor
    """``(n, heads)`` part of the score of a cell that looks."""
    summed: Tensor
    """``(heads, n, width + 1)`` what is added up over neighbours, and ones."""


def project(layer: GATConv, z: Tensor) -> Projected:
    """Project cells, ``(n, dim)``."""
    h = layer.lin(z).view(len(z), layer.heads, layer.out_channels)
    summed = F.pad(h, (0, 1), value=1.0).transpose(0, 1).contiguous()
    return Projected((h * layer.att_src).sum(dim=2), (h * layer.att_dst).sum(dim=2), summed)


def attend(layer: GATConv, projected: Projected, graph: Block) -> Tensor:
    r"""Rows of one attention layer.

    .. math:: \alpha_{ij} = \mathrm{softmax}_j \, \mathrm{LeakyReLU}(a_{dst}^\top W z_i + a_{src}^\top W z_j + w_{ij} e)

    Parameters
    ----------
    layer
        Its parameters; one edge feature.
    projected
        The cells, from `project`.
    graph
        Rows of the graph with their edge weights; every cell sees itself.

    Returns
    -------
    ``(b, dim)`` float32.
    """
    slope = (layer.lin_edge.weight.view(layer.heads, -1) * layer.att_edge[0]).sum(dim=1)
    scores = projected.source, projected.target[graph.rows], slope, layer.negative_slope
    total = _WeightedSums.apply(projected.summed, *scores, graph)  # Σ e^s h and Σ e^s in one product
    attended = (total[:, :, :-1] / total[:, :, -1:]).transpose(0, 1).flatten(1)
    return attended + layer.bias


class _WeightedSums(torch.autograd.Function):
    """Sum of `summed` over the entries of every row, with weights ``exp(LeakyReLU(source + target + w slope))``.

    Each row's weights are divided by its greatest, which cancels in attention and so needs no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, summed: Tensor, source: Tensor, target: Tensor, slope: Tensor, negative: float, graph: Block
    ) -> Tensor:
        length = torch.diff(graph.indptr)
        score = source.index_select(0, graph.indices) + torch.repeat_interleave(target, length, dim=0)
        score = F.leaky_relu(score + graph.values[:, None] * slope, negative)
        highest = torch.segment_reduce(score, "max", offsets=graph.indptr, axis=0)
        weight = torch.exp(score - torch.repeat_interleave(highest, length, dim=0))
        ctx.save_for_backward(summed, score, weight)
        ctx.graph, ctx.negative = graph, negative
        weight = weight.T.contiguous()
        return torch.stack([graph.times(summed[head], weight[head]) for head in range(len(weight))])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (summed, score, weight), graph = grads, ctx.saved_tensors, ctx.graph
        row = torch.repeat_interleave(torch.diff(graph.indptr))
        of_weight = torch.empty_like(weight)
        for head, (seen, looks) in enumerate(zip(summed, grad, strict=True)):  # one by one, in the processor's cache
            of_weight[:, head] = (seen.index_select(0, graph.indices) * looks.index_select(0, row)).sum(dim=1)
        of_score = of_weight * weight * torch.where(score > 0, 1.0, ctx.negative)
        of_target = torch.segment_reduce(of_score, "sum", offsets=graph.indptr, axis=0)
        # the same entries, sorted by the cell that is looked at
        n, order = summed.shape[1], torch.argsort(graph.indices, stable=True)
        ends = F.pad(torch.cumsum(torch.bincount(graph.indices, minlength=n), 0), (1, 0))
        of_source = torch.segment_reduce(of_score[order], "sum", offsets=ends, axis=0)
        turned, weight = Block(slice(0, n), ends, row[order], graph.values), weight[order].T.contiguous()
        of_summed = torch.stack([turned.times(grad[head], weight[head]) for head in range(len(weight))])
        return of_summed, of_source, of_target, graph.values @ of_score, None, None


def attend_all(layer: GATConv, z: Tensor, graph: Blocks) -> Tensor:
    """All rows of a layer, block by block. Without gradients."""
    projected, result = project(layer, z), torch.empty_like(z)
    for block in graph():
        result[block.rows] = attend(layer, projected, block)
    return result


def smooth(x: Tensor, graph: Blocks) -> Tensor:
    """Mean over the neighbours of every cell and itself."""
    result = torch.empty_like(x)
    for block in graph():
        total = block.times(x, torch.ones_like(block.values))
        result[block.rows] = total / torch.diff(block.indptr)[:, None]
    return result
