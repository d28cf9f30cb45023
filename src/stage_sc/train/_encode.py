"""Whole slides through a model, for labels and for setting the tree."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stage_sc.data._batch import make_batch, slide_panel, to_device
from stage_sc.data._slide import Slide
from stage_sc.model._sparse import Sparse
from stage_sc.model._stage import Stage


class Encoded(NamedTuple):
    """What the model makes of the cells of a slide, on the CPU and in the slide's order."""

    h: Tensor
    """``(n, dim)`` float32 embeddings of length 1."""
    content: Tensor
    """``(n, dim)`` float32 content of the surroundings of each cell: the mean over four hops."""


@torch.no_grad()
def encode_slide(model: Stage, slide: Slide) -> Encoded:
    """Embed all cells of a slide."""
    device = model.tree.parent.device
    batch = to_device(make_batch(slide, slide_panel(slide, model.vocabulary), model.config.n_layers), device)
    around = Sparse(slide.surroundings())
    return Encoded(model(batch).cpu(), around @ (around @ model.content(batch).cpu()))
