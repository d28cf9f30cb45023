"""A score of how unlike a slide is to the training data of a model."""

from __future__ import annotations

import math

import numpy as np

from stage_sc.embed._context import initial_vectors
from stage_sc.embed._profiles import profile_covariance
from stage_sc.nn import Stage
from stage_sc.slides import Slide

# Numbers of cells and genes of a slide from which the score is computed.
N_CELLS, N_GENES = 1000, 400
# Slides below this correlation are reported.
UNLIKE = 0.05


def coexpression_correlation(model: Stage, slide: Slide) -> float:
    """Correlation, over pairs of genes, of the coexpression on a slide with that learnt by a model; near 0 if unlike.

    The coexpression of two genes is the correlation of their neighbourhood profiles on the slide, and the cosine of
    their initial vectors in the model.
    """
    vectors = initial_vectors(model, slide).double().numpy()
    known = np.flatnonzero(np.square(vectors).sum(axis=1) > 0)
    genes = known[:: math.ceil(len(known) / N_GENES) or 1]
    seen = _correlation(profile_covariance(slide, N_CELLS, genes))
    learnt = _correlation(vectors[genes] @ vectors[genes].T)
    pairs = np.triu_indices(len(genes), 1)
    if len(pairs[0]) < 2 or not seen[pairs].std() or not learnt[pairs].std():
        return 0.0
    return float(np.corrcoef(seen[pairs], learnt[pairs])[0, 1])


def _correlation(covariance: np.ndarray) -> np.ndarray:
    sd = np.sqrt(np.maximum(covariance.diagonal(), 1e-12))
    return covariance / np.outer(sd, sd)
