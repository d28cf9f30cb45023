"""What became of the niches of the model that training began with."""

from __future__ import annotations

import torch
from torch import Tensor

from stage_sc.data._slide import Slide
from stage_sc.model._stage import Stage
from stage_sc.train._start import encode_slides


@torch.no_grad()
def compare_niches(model: Stage, start: Stage, h: Tensor, slides: list[Slide]) -> None:
    """Set `before` and `shared` of a model: where the cells of its niches were in the tree of `start`.

    Parameters
    ----------
    model
        Trained, on the CPU.
    start
        The model that training began with; the trees have the same shape.
    h
        ``(n, dim)`` what niches of the slides' cells are read from, by `model`.
    slides
        Training slides; of those on disk a sample is looked at.
    """
    n_nodes = model.tree.n_nodes
    earlier = torch.cat([encoded.niche for encoded in encode_slides(start, slides)])
    pair = _nodes(model, h) * n_nodes + _nodes(start, earlier)
    pairs = torch.bincount(pair.flatten(), minlength=n_nodes**2).view(n_nodes, n_nodes)
    most, node = pairs.max(dim=1)
    model.before.copy_(torch.where(most > 0, node, -1))
    model.shared.copy_(most / pairs.sum(dim=1).clamp(min=1))


def _nodes(model: Stage, h: Tensor) -> Tensor:
    return model.tree.paths(h, how=model.config.assignment)
