"""What became of the niches of the model that training began with."""

from __future__ import annotations

import torch
from torch import Tensor

from stage_sc.data._slide import Slide
from stage_sc.model._stage import Stage
from stage_sc.train._encode import Encoded
from stage_sc.train._start import encode_slides


@torch.no_grad()
def compare_niches(model: Stage, start: Stage, slides: list[Slide]) -> None:
    """Set `before` and `shared` of a model: where the cells of its niches were in the tree of `start`.

    Parameters
    ----------
    model
        Trained, on the CPU.
    start
        The model that training began with; the trees have the same shape.
    slides
        Training slides; of those on disk a sample is looked at.
    """
    n_nodes = model.tree.n_nodes
    pairs = torch.zeros(n_nodes, n_nodes)
    for after, earlier in zip(encode_slides(model, slides), encode_slides(start, slides), strict=True):
        nodes, before = _nodes(model, after), _nodes(start, earlier)
        pairs.view(-1).index_add_(0, (nodes * n_nodes + before).flatten(), torch.ones(nodes.numel()))
    most, node = pairs.max(dim=1)
    model.before.copy_(torch.where(most > 0, node, -1))
    model.shared.copy_(most / pairs.sum(dim=1).clamp(min=1))


def _nodes(model: Stage, encoded: Encoded) -> Tensor:
    nodes, _ = model.tree.assign(encoded.h, how=model.config.assignment, temperature=model.config.temperature)
    return nodes
