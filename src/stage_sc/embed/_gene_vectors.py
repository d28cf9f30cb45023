"""Initial gene vectors: coexpression in neighbourhoods, in one space for all panels."""

from __future__ import annotations

import logging

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh

from stage_sc.embed._common_factors import PanelCovariance, common_factors
from stage_sc.embed._profiles import profile_covariance
from stage_sc.slides import Slide

logger = logging.getLogger("stage_sc.tl")

# Approximate number of cells of a slide from which covariances are computed.
MAX_CELLS = 20_000
# Minimum fraction of all genes on every slide for one common analysis; a gene without counts on a slide is absent.
NEARLY_ALL = 0.9
# Number of common factors of slides with different panels.
N_FACTORS = 20
# Number of shared genes that links two panels; half of the smaller panel also does.
MIN_SHARED_GENES = 40


def coexpression_vectors(
    slides: list[Slide], genes: list[str], dim: int, rng: np.random.Generator | int = 0
) -> np.ndarray:
    r"""Gene vectors from the coexpression of genes in neighbourhoods, ``(len(genes), dim)`` float32.

    The covariance of genes is computed on each slide over neighbourhood profiles (mean scaled expression over two
    hops), where variation over the tissue counts and variation between neighbours averages out.

    Where every slide has at least nine tenths of all genes, with :math:`C \approx U \Lambda U^\top` the mean covariance
    (of two genes, over the slides with both, equally weighted), the vectors are :math:`V = U \Lambda^{-1/4}`: principal
    axes whose components have the sd :math:`\lambda^{1/4}`, half way between a principal component
    (:math:`\lambda^{1/2}`) and a whitened one (1). Where panels differ more, they are the loadings of 20
    `common_factors` (random start by `rng`). Panels linked to the others by fewer than 40 shared genes (or half of the
    smaller panel) have factors that correspond badly, with none at random: a warning is logged.

    `genes` is the vocabulary, with all genes of the slides. Components beyond the rank are 0. Memory: 4 bytes for a
    pair of genes of every different panel and 12 for a pair of the largest, 0.4 and 1.2 GB for a panel of 10,000 genes.
    """
    vectors = np.zeros((len(genes), dim), dtype=np.float32)
    position = {gene: number for number, gene in enumerate(genes)}
    measured = sorted(set().union(*(slide.genes for slide in slides)))
    if min(len(slide.genes) for slide in slides) >= NEARLY_ALL * len(measured):
        axes = _principal_axes(_mean_covariance(slides, measured), min(dim, len(measured)))
        vectors[[position[gene] for gene in measured], : axes.shape[1]] = axes
    else:
        _warn_of_unlinked_panels(slides)
        n_factors = min(N_FACTORS, dim)
        vectors[:, :n_factors] = common_factors(_panel_covariances(slides, position), len(genes), n_factors, rng)
    return vectors


def _scaled_covariance(slide: Slide) -> np.ndarray:
    """Covariance of the genes of a slide, with a mean variance of 1."""
    covariance = profile_covariance(slide, MAX_CELLS)
    covariance /= max(np.trace(covariance), 1e-12) / len(covariance)
    return covariance


def _mean_covariance(slides: list[Slide], genes: list[str]) -> np.ndarray:
    """Covariance of the sorted genes, every pair over the slides with both; 0 for pairs on no slide."""
    total = np.zeros((len(genes), len(genes)), dtype=np.float32)
    present = np.zeros((len(slides), len(genes)), dtype=np.float32)
    for slide, on_slide in zip(slides, present, strict=True):
        columns = np.searchsorted(genes, slide.genes)
        total[np.ix_(columns, columns)] += _scaled_covariance(slide)
        on_slide[columns] = 1
    total /= np.maximum(present.T @ present, 1)
    return total


def _panel_covariances(slides: list[Slide], position: dict[str, int]) -> list[PanelCovariance]:
    """Mean covariance of the slides with each panel, accumulated in place."""
    panels: dict[tuple[str, ...], PanelCovariance] = {}
    for slide in slides:
        covariance, key = _scaled_covariance(slide), tuple(slide.genes)
        if key in panels:
            known = panels[key]
            known.values[:] += (covariance - known.values) / (known.n_slides + 1)
            panels[key] = known._replace(n_slides=known.n_slides + 1)
        else:
            panels[key] = PanelCovariance(np.array([position[gene] for gene in slide.genes]), covariance, 1)
    return list(panels.values())


def _warn_of_unlinked_panels(slides: list[Slide]) -> None:
    """Warn of groups of panels that few genes connect."""
    names: dict[tuple[str, ...], str] = {}
    for slide in slides:
        names.setdefault(tuple(slide.genes), slide.name)
    panels = [set(panel) for panel in names]
    shared = np.array([[len(one & other) for other in panels] for one in panels])
    size = shared.diagonal()
    enough = np.minimum(MIN_SHARED_GENES, np.minimum.outer(size, size) / 2)
    n_groups, group = connected_components(shared >= enough, directed=False)
    if n_groups > 1:
        first = np.array(list(names.values()), dtype=object)[np.unique(group, return_index=True)[1]]
        most = shared[group[:, None] != group].max()
        logger.warning(
            "The slides are of %d groups of panels that share at most %d genes with one another (the first of each: "
            "%s): too few to relate their niches, which then correspond at random. Start from a model that knows these "
            'genes, `st.tl.fit(data, init="bundled")`, or train on each group separately.',
            *(n_groups, most, ", ".join(repr(name) for name in first)),
        )


def _principal_axes(covariance: np.ndarray, n: int) -> np.ndarray:
    """First `n` principal axes, divided by the fourth root of their variance; 0 without variance."""
    if len(covariance) > 4000:  # iterative: a few of many axes
        values, axes = eigsh(covariance, k=n, v0=np.ones(len(covariance), np.float32))
    else:
        values, axes = eigh(covariance, subset_by_index=[len(covariance) - n, len(covariance) - 1])
    values, axes = values[::-1], axes[:, ::-1]
    axes = axes * np.where(axes.sum(axis=0) < 0, -1, 1)  # signs that do not depend on the linear algebra library
    used = values > 1e-6 * values[0]
    found = np.zeros_like(axes)
    found[:, used] = axes[:, used] * values[used] ** -0.25
    return found
