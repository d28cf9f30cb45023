"""A score of how unlike a slide is to the training data of a model."""

from __future__ import annotations

import math

import numpy as np

from stage_sc.embed._context import initial_vectors
from stage_sc.embed._profiles import profile_covariance
from stage_sc.nn import Stage
from stage_sc.slides import Slide, slide_panel

# Numbers of cells and genes of a slide from which the score is computed.
N_CELLS, N_GENES = 1000, 400
# Correlation below which a slide is reported.
UNLIKE = 0.05


def coexpression_correlation(model: Stage, slide: Slide) -> float:
    """Correlation over pairs of genes between their coexpression on a slide and in a model; about 0 if unlike.

    Coexpression is the correlation of neighbourhood profiles on the slide, and the cosine of initial vectors in the
    model.
    """
    vectors = initial_vectors(model, slide_panel(slide, model.vocabulary)).cpu().double().numpy()
    known = np.flatnonzero(np.square(vectors).sum(axis=1) > 0)
    genes = known[:: math.ceil(len(known) / N_GENES) or 1]
    on_slide = _correlation(profile_covariance(slide, N_CELLS, genes))
    in_model = _correlation(vectors[genes] @ vectors[genes].T)
    pairs = np.triu_indices(len(genes), 1)
    if len(pairs[0]) < 2 or not on_slide[pairs].std() or not in_model[pairs].std():
        return 0.0
    return float(np.corrcoef(on_slide[pairs], in_model[pairs])[0, 1])


def _correlation(covariance: np.ndarray) -> np.ndarray:
    sd = np.sqrt(np.maximum(covariance.diagonal(), 1e-12))
    return covariance / np.outer(sd, sd)
