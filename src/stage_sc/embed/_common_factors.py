"""One space for the genes of all panels: factors that the slides have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Number of rounds of expectation maximisation.
N_ROUNDS = 30
# Noise variance: lower bound and initial value.
MIN_NOISE, INITIAL_NOISE = 0.01, 0.5


class PanelCovariance(NamedTuple):
    """Covariance of the genes of a panel."""

    genes: np.ndarray
    """``(P,)`` int64 position of each gene in the vocabulary."""
    values: np.ndarray
    """``(P, P)`` float32 mean over the slides with this panel, with a mean variance of 1."""
    n_slides: int
    """Number of slides with this panel."""


def common_factors(
    panels: Sequence[PanelCovariance], n_genes: int, n_factors: int, rng: np.random.Generator | int = 0
) -> np.ndarray:
    r"""Fit loadings of genes on factors common to all slides, ``(n_genes, n_factors)`` float64; 0 for unmeasured genes.

    The neighbourhood profile of a cell on a slide with panel s of the genes P is modelled as
    :math:`x = V_P t + \epsilon`, with :math:`t \sim \mathcal N(0, I)` and
    :math:`\epsilon \sim \mathcal N(0, \sigma_s^2 I)`: probabilistic principal component analysis (Tipping and Bishop,
    1999) with missing genes. Genes that were never measured together are related through genes measured with both.
    It is fitted to covariances alone, by 30 rounds of expectation maximisation: with
    :math:`B_s = (V_P^\top V_P + \sigma_s^2 I)^{-1} V_P^\top` and :math:`S_s = \sigma_s^2 (V_P^\top V_P + \sigma_s^2
    I)^{-1} + B_s C_s B_s^\top`, the vector of a gene g becomes

    .. math:: v_g = \Big(\sum_{s \ni g} \frac{S_s}{\sigma_s^2}\Big)^{-1}
        \sum_{s \ni g} \frac{B_s (C_s)_{\cdot g}}{\sigma_s^2},

    with the same weight for every slide, and the noise of a panel follows from the vectors before the round,

    .. math:: \sigma_s^2 = \max\big(0.01, \tfrac{1}{|P|} \mathrm{tr}(C_s - 2 V_P B_s C_s + V_P S_s V_P^\top)\big).

    Initial vectors are normal with sd 0.1. Columns of the result are principal axes, by falling variance. With little
    noise, loadings after 30 rounds are shorter than at the maximum. A round costs :math:`P^2 k` operations for P genes
    and k factors: 10 s in all for 11 panels, one of them with 10,000 genes.
    """
    identity = np.eye(n_factors)
    vectors: np.ndarray = np.random.default_rng(rng).normal(scale=0.1, size=(n_genes, n_factors))
    noise = np.full(len(panels), INITIAL_NOISE)
    for _ in range(N_ROUNDS):
        product, moment = np.zeros((n_genes, n_factors)), np.zeros((n_genes, n_factors, n_factors))
        for number, (genes, covariance, n_slides) in enumerate(panels):
            loadings, sigma2 = vectors[genes], noise[number]
            inverse = np.linalg.inv(loadings.T @ loadings + sigma2 * identity)
            with_factors = (covariance @ (loadings @ inverse).astype(np.float32)).astype(np.float64)
            factors = sigma2 * inverse + inverse @ loadings.T @ with_factors
            product[genes] += n_slides / sigma2 * with_factors
            moment[genes] += n_slides / sigma2 * factors
            error = covariance.trace() - 2 * (loadings * with_factors).sum() + ((loadings @ factors) * loadings).sum()
            noise[number] = max(error / len(genes), MIN_NOISE)
        vectors = np.linalg.solve(moment + 1e-9 * identity, product[..., None])[..., 0]  # 0 for genes of no panel
    explained = sum(vectors[genes].T @ vectors[genes] * (n_slides / len(genes)) for genes, _, n_slides in panels)
    turned = vectors @ np.linalg.eigh(explained)[1][:, ::-1]
    return turned * np.where(turned.sum(axis=0) < 0, -1, 1)  # signs that do not depend on the linear algebra library
