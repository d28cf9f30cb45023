"""What a model keeps of its training: how well it knows the slides, and the niches that it began with."""

from __future__ import annotations

import torch
from torch import Tensor

from stage_sc.data._slide import Slide
from stage_sc.model._stage import Stage
from stage_sc.train._encode import Encoded
from stage_sc.train._start import encode_slides


@torch.no_grad()
def describe(model: Stage, slides: list[Slide], start: Stage | None = None) -> None:
    """Set the model's `familiarity` and, for one that began as another, `before` and `shared`.

    Parameters
    ----------
    model
        Trained, on the CPU.
    slides
        Training slides, in the order of the model's slides.
    start
        The model that training began with; the trees have the same shape.
    """
    encoded = encode_slides(model, slides)
    model.familiarity.copy_(torch.stack([model.tree.familiarity(one.h) for one in encoded]))
    if start is None:
        return
    n_nodes = model.tree.n_nodes
    pairs = torch.zeros(n_nodes, n_nodes)
    for now, then in zip(encoded, encode_slides(start, slides), strict=True):
        nodes, before = _nodes(model, now), _nodes(start, then)
        pairs.view(-1).index_add_(0, (nodes * n_nodes + before).flatten(), torch.ones(nodes.numel()))
    most, node = pairs.max(dim=1)
    model.before.copy_(torch.where(most > 0, node, -1))
    model.shared.copy_(most / pairs.sum(dim=1).clamp(min=1))


def _nodes(model: Stage, encoded: Encoded) -> Tensor:
    nodes, _ = model.tree.assign(encoded.h, how=model.config.assignment, temperature=model.config.temperature)
    return nodes
