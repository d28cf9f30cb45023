"""The slides of one AnnData through a model: all that labels are computed from."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch

from stage_sc.embed._encode import encode_slide
from stage_sc.embed._slide_context import slide_context
from stage_sc.embed._unlike import UNLIKE, coexpression_correlation
from stage_sc.nn import Stage
from stage_sc.slides import Slide

logger = logging.getLogger("stage_sc.tl")


class Embeddings(NamedTuple):
    """Embeddings of the cells of one AnnData, in the order of computation."""

    cells: np.ndarray
    """``(n,)`` position of every cell in the AnnData."""
    niche: np.ndarray
    """``(n, dim)`` float32, from which niches are assigned."""
    context: np.ndarray
    """``(n, dim)`` float32, from which domains are found."""
    flag: np.ndarray
    """``(n,)`` int8, position in `stage_sc._result.FLAGS`."""


def embed_slides(model: Stage, slides: list[Slide], device: torch.device, *, domains: bool) -> Embeddings:
    """Embed all cells; with `domains`, contexts are those by the principal axes of each slide."""
    network = model if device.type == "cpu" else deepcopy(model).to(device)
    parts = []
    for slide in slides:
        if coexpression_correlation(model, slide) < UNLIKE:
            logger.warning(
                "%r is unlike the slides that the model was trained on: its genes are coexpressed in other ways. "
                "Niches may be meaningless; compare with a model trained on your slides (`st.tl.fit`).",
                slide.name,
            )
        encoded = encode_slide(network, slide)
        context = encoded.context
        if domains and model.config.whiten:
            context = slide_context(slide, context, model.config)
        flag = np.where(slide.empty[:], 1, np.where(slide.isolated[:], 2, 0)).astype(np.int8)
        parts.append((slide.cells, encoded.niche.numpy(), context.numpy(), flag))
    return Embeddings(*(np.concatenate(column) for column in zip(*parts, strict=True)))
