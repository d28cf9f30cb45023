"""Neighbourhood profiles: mean scaled expression over two hops around cells, and its covariance."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from stage_sc.slides import Slide, sample, select_columns

# Number of cells whose expression is held densely at a time.
BLOCK = 4096


def profile_covariance(slide: Slide, n_cells: int, genes: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Covariance of genes of a slide over the profiles of about `n_cells` cells, ``(P, P)`` float32."""
    cells, n_genes = sample(slide, n_cells), len(slide.mean[genes])
    product = np.zeros((n_genes, n_genes), dtype=np.float32)
    mean = np.zeros(n_genes, dtype=np.float32)
    for profiles in profiles_of(slide, cells, genes):
        product += profiles.T @ profiles
        mean += profiles.sum(axis=0)
    mean /= len(cells)
    return product / len(cells) - np.outer(mean, mean)


def profiles_of(slide: Slide, cells: np.ndarray, genes: np.ndarray | slice = slice(None)) -> Iterator[np.ndarray]:
    """Profiles of cells in blocks, ``(b, P)`` float32."""
    for part in np.array_split(cells, math.ceil(len(cells) / BLOCK)):
        reached = np.unique(slide.graph[np.unique(slide.graph[part].indices)].indices)
        adjacency = (select_columns(slide.graph[reached], reached) != 0).astype(np.float32)
        mean = sp.diags_array(1 / np.maximum(np.diff(adjacency.indptr), 1)).astype(np.float32) @ adjacency
        expression = mean[np.searchsorted(reached, part)] @ mean @ slide.take(reached)[:, genes]
        yield (expression.toarray() - slide.mean[genes]) / slide.scale[genes]
