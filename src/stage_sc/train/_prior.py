"""Where training starts: gene vectors from co-expression around cells, leaves from K-means (appendix G.4)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from scipy.linalg import eigh
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from sklearn.cluster import KMeans

from stage_sc.data._batch import among
from stage_sc.data._slide import Slide
from stage_sc.data._window import sample
from stage_sc.model._stage import Stage
from stage_sc.train._common_factors import PanelCovariance, common_factors

logger = logging.getLogger("stage_sc.tl")

# About so many cells of a slide co-expression is computed from.
MAX_CELLS = 20_000
# Slides have the same panel for our purpose if each has this share of all genes; a gene may lack counts on a slide.
NEARLY_ALL = 0.9
# Factors that slides of different panels have in common.
N_FACTORS = 20
# Genes that two panels share, at least, for these to tell how the factors of one correspond to those of the other; or
# half of the genes of the smaller one.
FEW_SHARED = 40
# Cells and genes that a slide is compared by with what a model has learnt.
COHERENCE_CELLS, COHERENCE_GENES = 1000, 400
# Cells of a slide that its own axes are found on, at most, and iterations of finding them.
AXES_CELLS = 5000
N_ITERATIONS = 8
# Cells whose expression is held densely at a time.
BLOCK = 4096
# K-means runs on a sample of this many cells.
KMEANS_CELLS = 50_000


def gene_prior(slides: list[Slide], genes: list[str], dim: int, rng: np.random.Generator | int = 0) -> np.ndarray:
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
        _warn_of_strangers(slides)
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
        total[np.ix_(here, here)] += _of_mean_variance_1(slide)
        has[here] = 1
    total /= np.maximum(there.T @ there, 1)
    return total


def _of_mean_variance_1(slide: Slide) -> np.ndarray:
    covariance = _covariance(slide, MAX_CELLS)
    covariance /= max(np.trace(covariance), 1e-12) / len(covariance)
    return covariance


def _panel_covariances(slides: list[Slide], position: dict[str, int]) -> list[PanelCovariance]:
    """How genes go together around the cells of slides, for every different panel."""
    panels: dict[tuple[str, ...], PanelCovariance] = {}
    for slide in slides:
        covariance = _of_mean_variance_1(slide)
        known = panels.get(tuple(slide.genes))
        if known is None:
            here = np.array([position[gene] for gene in slide.genes])
            panels[tuple(slide.genes)] = PanelCovariance(here, covariance, 1)
        else:
            known.values[:] += (covariance - known.values) / (known.n_slides + 1)
            panels[tuple(slide.genes)] = known._replace(n_slides=known.n_slides + 1)
    return list(panels.values())


def _warn_of_strangers(slides: list[Slide]) -> None:
    """Warn of groups of panels that few genes connect."""
    names: dict[tuple[str, ...], str] = {}
    for slide in slides:
        names.setdefault(tuple(slide.genes), slide.name)
    panels = [set(panel) for panel in names]
    shared = np.array([[len(one & other) for other in panels] for one in panels])
    size = shared.diagonal()
    enough = np.minimum(FEW_SHARED, np.minimum.outer(size, size) / 2)
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


def coherence(model: Stage, slide: Slide) -> float:
    """How genes go together on a slide as the model has learnt: near 0 where it has learnt nothing about the slide.

    The correlation, over pairs of genes, between what two genes have to do with each other around the cells of the
    slide (see `gene_prior`) and the cosine of their vectors as training began.
    """
    vectors = model.basis[[model.vocabulary[gene] for gene in slide.genes]].double().numpy()
    known = np.flatnonzero(np.square(vectors).sum(axis=1) > 0)
    genes = known[:: math.ceil(len(known) / COHERENCE_GENES) or 1]
    seen = _correlation(_covariance(slide, COHERENCE_CELLS, genes))
    learnt = _correlation(vectors[genes] @ vectors[genes].T)
    pairs = np.triu_indices(len(genes), 1)
    if len(pairs[0]) < 2 or not seen[pairs].std() or not learnt[pairs].std():
        return 0.0
    return float(np.corrcoef(seen[pairs], learnt[pairs])[0, 1])


def _correlation(covariance: np.ndarray) -> np.ndarray:
    sd = np.sqrt(np.maximum(covariance.diagonal(), 1e-12))
    return covariance / np.outer(sd, sd)


def own_axes(slide: Slide, dim: int) -> torch.Tensor:
    """Axes along which expression varies over a slide, whatever a model has learnt.

    The principal components of the mean scaled expression around 5,000 cells of the slide (two hops), by subspace
    iteration.

    Returns
    -------
    ``(P, dim)`` float32, orthonormal columns; those beyond the number of genes or cells are zero.

    Notes
    -----
    Memory: 20 kB for a gene, 0.4 GB for 18,000.
    """
    cells = np.linspace(0, slide.n_cells - 1, min(slide.n_cells, AXES_CELLS)).astype(int)
    profiles = torch.empty(len(cells), len(slide.genes))
    start = 0
    for part in _profiles(slide, cells, slice(None)):
        profiles[start : start + len(part)] = torch.from_numpy(part)
        start += len(part)
    profiles -= profiles.mean(dim=0)
    width = min(2 * dim, *profiles.shape)
    span = torch.randn(len(slide.genes), width, generator=torch.Generator().manual_seed(0))
    for _ in range(N_ITERATIONS):
        span = torch.linalg.qr(profiles.T @ (profiles @ span)).Q
    turn = torch.linalg.svd(profiles @ span, full_matrices=False).Vh
    found = (span @ turn.T)[:, :dim]
    return torch.nn.functional.pad(found, (0, dim - found.shape[1]))


def _covariance(slide: Slide, n_cells: int, genes: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Covariance of genes of a slide over the mean scaled expression around its cells, ``(P, P)`` float32."""
    cells, n_genes = sample(slide, n_cells), len(slide.mean[genes])
    product = np.zeros((n_genes, n_genes), dtype=np.float32)
    mean = np.zeros(n_genes, dtype=np.float32)
    for profiles in _profiles(slide, cells, genes):
        product += profiles.T @ profiles
        mean += profiles.sum(axis=0)
    mean /= len(cells)
    return product / len(cells) - np.outer(mean, mean)


def _profiles(slide: Slide, cells: np.ndarray, genes: np.ndarray | slice) -> Iterator[np.ndarray]:
    """Mean scaled expression of genes around cells (two hops), ``(b, P)`` float32 for a block of cells at a time."""
    for part in np.array_split(cells, math.ceil(len(cells) / BLOCK)):
        reached = np.unique(slide.graph[np.unique(slide.graph[part].indices)].indices)
        near = (among(slide.graph[reached], reached) != 0).astype(np.float32)
        near = sp.diags_array(1 / np.maximum(np.diff(near.indptr), 1)).astype(np.float32) @ near
        around = near[np.searchsorted(reached, part)] @ near @ slide.take(reached)[:, genes]
        yield (around.toarray() - slide.mean[genes]) / slide.scale[genes]


def kmeans_leaves(h: torch.Tensor, n_leaves: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster embeddings into leaves.

    Parameters
    ----------
    h
        ``(n, dim)`` embeddings of length 1.
    n_leaves
        Number of clusters.
    rng
        Source of chance.

    Returns
    -------
    ``(n_leaves, dim)`` directions of the centres, and ``(n,)`` int64 the nearest of them for every cell.
    """
    sample = h.numpy()
    if len(sample) > KMEANS_CELLS:
        sample = sample[rng.choice(len(sample), KMEANS_CELLS, replace=False)]
    seed = int(rng.integers(2**31))
    centres = KMeans(n_leaves, n_init=1, random_state=seed, max_iter=50).fit(sample).cluster_centers_
    leaves = torch.nn.functional.normalize(torch.from_numpy(centres.astype(np.float32)), dim=1)
    return leaves, (h @ leaves.T).argmax(dim=1)
