"""Initial gene vectors: coexpression around cells, in one space for all panels."""

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
# Fraction of all genes in each slide from which panels count as the same; a gene may lack counts on a slide.
NEARLY_ALL = 0.9
# Number of common factors of slides with different panels.
N_FACTORS = 20
# Minimum number of shared genes that links the factors of two panels; or half of the smaller panel.
MIN_SHARED_GENES = 40


def coexpression_vectors(
    slides: list[Slide], genes: list[str], dim: int, rng: np.random.Generator | int = 0
) -> np.ndarray:
    r"""Gene vectors from the co-expression of genes around cells.

    For every slide the covariance of genes is taken over the mean scaled expression around each cell (two hops), so
    that what varies over the tissue counts and what varies between neighbours averages out. Every slide has the same
    weight.

    Where every slide has at least nine tenths of all genes, with :math:`C \approx U \Lambda U^\top` the mean covariance
    (of two genes over the slides that have both) the vectors are :math:`V = U \Lambda^{-1/4}`: principal axes whose
    components have the standard deviation :math:`\lambda^{1/4}`, half way between that of a principal component
    (:math:`\lambda^{1/2}`) and a whitened one (1). Where panels differ more, they are the loadings of 20 factors that
    the slides have in common (see `common_factors`): of more, the panels do not tell how those of one slide correspond
    to those of another. Panels that share fewer than 40 genes (or half of the smaller one's) with any other tell this
    badly, and those that share none, by chance: a warning says so.

    Parameters
    ----------
    slides
        Training slides.
    genes
        Vocabulary, which holds all their genes.
    dim
        Length of the vectors; components beyond the rank are zero.
    rng
        Source of chance, where panels differ.

    Returns
    -------
    ``(len(genes), dim)`` float32.

    Notes
    -----
    Memory: 4 bytes for a pair of genes of every panel that differs (of one where they nearly agree), and 12 for one of
    the largest: 0.4 and 1.2 GB for a panel of 10,000 genes. Beside these, 3 kB for a gene of the vocabulary.
    """
    vectors = np.zeros((len(genes), dim), dtype=np.float32)
    position = {gene: number for number, gene in enumerate(genes)}
    every = sorted(set().union(*(slide.genes for slide in slides)))
    if min(len(slide.genes) for slide in slides) >= NEARLY_ALL * len(every):
        found = _principal_axes(_mean_covariance(slides, every), min(dim, len(every)))
        vectors[[position[gene] for gene in every], : found.shape[1]] = found
    else:
        _warn_of_unlinked_panels(slides)
        n_factors = min(N_FACTORS, dim)
        panels = _panel_covariances(slides, position)
        vectors[:, :n_factors] = common_factors(panels, len(genes), n_factors, rng)
    return vectors


def _mean_covariance(slides: list[Slide], genes: list[str]) -> np.ndarray:
    """How (sorted) genes go together around cells, as the mean over the slides that have both; 0 where none has."""
    total = np.zeros((len(genes), len(genes)), dtype=np.float32)
    there = np.zeros((len(slides), len(genes)), dtype=np.float32)
    for slide, has in zip(slides, there, strict=True):
        here = np.searchsorted(genes, slide.genes)
        total[np.ix_(here, here)] += _scaled_covariance(slide)
        has[here] = 1
    total /= np.maximum(there.T @ there, 1)
    return total


def _scaled_covariance(slide: Slide) -> np.ndarray:
    covariance = profile_covariance(slide, MAX_CELLS)
    covariance /= max(np.trace(covariance), 1e-12) / len(covariance)
    return covariance


def _panel_covariances(slides: list[Slide], position: dict[str, int]) -> list[PanelCovariance]:
    """How genes go together around the cells of slides, for every different panel."""
    panels: dict[tuple[str, ...], PanelCovariance] = {}
    for slide in slides:
        covariance = _scaled_covariance(slide)
        known = panels.get(tuple(slide.genes))
        if known is None:
            here = np.array([position[gene] for gene in slide.genes])
            panels[tuple(slide.genes)] = PanelCovariance(here, covariance, 1)
        else:
            known.values[:] += (covariance - known.values) / (known.n_slides + 1)
            panels[tuple(slide.genes)] = known._replace(n_slides=known.n_slides + 1)
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
        most = max(int(shared[one, other]) for one, other in np.argwhere(group[:, None] != group))
        logger.warning(
            "The slides are of %d groups of panels that share at most %d genes with one another (the first of each: "
            "%s): too few to tell how niches correspond, which is then up to chance. Begin with a model that knows "
            'these genes, `st.tl.fit(data, init="bundled")`, or train on each group by itself.',
            *(n_groups, most, ", ".join(repr(name) for name in first)),
        )


def _principal_axes(covariance: np.ndarray, n: int) -> np.ndarray:
    """First `n` axes over the fourth root of their variance; those without variance are zero."""
    if len(covariance) > 4000:  # a few of many axes
        values, axes = eigsh(covariance, k=n, v0=np.ones(len(covariance), np.float32))
    else:
        values, axes = eigh(covariance, subset_by_index=[len(covariance) - n, len(covariance) - 1])
    values, axes = values[::-1], axes[:, ::-1]
    axes = axes * np.where(axes.sum(axis=0) < 0, -1, 1)  # signs that do not depend on the linear algebra library
    used = values > 1e-6 * values[0]
    found = np.zeros_like(axes)
    found[:, used] = axes[:, used] * values[used] ** -0.25
    return found
