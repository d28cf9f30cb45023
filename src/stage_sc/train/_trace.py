"""Correspondence between a fine-tuned tree and the tree that training started from."""

from __future__ import annotations

import torch
from torch import Tensor

from stage_sc.nn import Stage
from stage_sc.slides import Slide
from stage_sc.train._start import encode_slides


@torch.no_grad()
def trace_niches(model: Stage, start: Stage, h: Tensor, slides: list[Slide]) -> None:
    """Set `init_node` and `init_share` of a trained model, on the CPU: the nodes of its cells in the tree of `start`.

    The trees have the same shape. `h` are the ``(n, dim)`` niche embeddings by `model` of the cells of `slides`, or of
    a sample for slides on disk.
    """
    n_nodes = model.tree.n_nodes
    initial_h = torch.cat([encoded.niche for encoded in encode_slides(start, slides)])
    nodes = model.tree.paths(h, how=model.config.assignment)
    initial_nodes = start.tree.paths(initial_h, how=start.config.assignment)
    pairs = torch.bincount((nodes * n_nodes + initial_nodes).flatten(), minlength=n_nodes**2).view(n_nodes, n_nodes)
    most, node = pairs.max(dim=1)
    model.init_node.copy_(torch.where(most > 0, node, -1))
    model.init_share.copy_(most / pairs.sum(dim=1).clamp(min=1))
