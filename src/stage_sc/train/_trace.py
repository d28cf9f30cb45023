"""Nodes of a fine-tuned tree and those of the tree that training started from."""

from __future__ import annotations

import torch
from torch import Tensor

from stage_sc.nn import Stage
from stage_sc.slides import Slide
from stage_sc.train._start import encode_slides


@torch.no_grad()
def trace_niches(model: Stage, start: Stage, h: Tensor, slides: list[Slide]) -> None:
    """Set `init_node` and `init_share` of a model: the nodes of its cells in the tree of `start`.

    Parameters
    ----------
    model
        Trained, on the CPU.
    start
        The model that training began with; the trees have the same shape.
    h
        ``(n, dim)`` niche embeddings of the slides' cells, by `model`.
    slides
        Training slides; of those on disk a sample is read.
    """
    n_nodes = model.tree.n_nodes
    earlier = torch.cat([encoded.niche for encoded in encode_slides(start, slides)])
    pair = _nodes(model, h) * n_nodes + _nodes(start, earlier)
    pairs = torch.bincount(pair.flatten(), minlength=n_nodes**2).view(n_nodes, n_nodes)
    most, node = pairs.max(dim=1)
    model.init_node.copy_(torch.where(most > 0, node, -1))
    model.init_share.copy_(most / pairs.sum(dim=1).clamp(min=1))


def _nodes(model: Stage, h: Tensor) -> Tensor:
    return model.tree.paths(h, how=model.config.assignment)
