"""The slides of one AnnData through a model: all that labels are computed from."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from stage_sc.embed._axes import slide_axes
from stage_sc.embed._context import context_settings
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
    slides: pd.DataFrame
    """Number of spatial directions, noise floor, and hops of the context of each slide."""


def embed_slides(model: Stage, slides: list[Slide], device: torch.device, *, domains: bool) -> Embeddings:
    """Embed all cells; with `domains`, contexts are those by the principal axes of each slide."""
    network = model if device.type == "cpu" else deepcopy(model).to(device)
    parts, rows = [], dict[str, list[float]]()
    for slide in slides:
        likeness = coexpression_correlation(model, slide)
        # Vectors of no more genes than dimensions do not show coexpression.
        if model.config.modality == "rna" and likeness < UNLIKE:
            logger.warning(
                "%r is unlike the slides that the model was trained on: its genes are coexpressed in other ways. "
                "Niches may be meaningless; compare with a model trained on your slides (`st.tl.fit`).",
                slide.name,
            )
        encoded = encode_slide(network, slide)
        context, directions = encoded.context, encoded.directions
        if domains and directions is not None:
            axes = slide_axes(slide, model.config) if encoded.axes is None else encoded.axes
            found, directions = slide_context(model, slide, axes)
            context = found.context
        if directions is not None:
            hops = context_settings(slide, model.config).hops
            rows[slide.name] = [directions.number, directions.floor, hops, likeness]
            if not directions.number:
                logger.warning(
                    "%r: no direction of gene expression varies in space beyond chance (noise floor %.2f): cells and "
                    "their places have nothing to do with one another, or there are too few counts. No niches are "
                    "drawn. Check that rows of `X` and of the coordinates belong together.",
                    *(slide.name, directions.floor),
                )
        flag = np.where(slide.empty[:], 1, np.where(slide.isolated[:], 2, 0)).astype(np.int8)
        parts.append((slide.cells, encoded.niche.numpy(), context.numpy(), flag))
    columns = {"n_directions": int, "noise_floor": float, "context_hops": int, "likeness": float}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(columns)).astype(columns)
    cells, niche, contexts, flags = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Embeddings(cells, niche, contexts, flags, table)
