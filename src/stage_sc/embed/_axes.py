"""Principal axes of the expression of a slide."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from stage_sc.nn import StageConfig
from stage_sc.slides import Slide, mix

# Number of cells for a principal axis beyond as many as the model has components.
CELLS_PER_AXIS = 8
# Number of power iterations of the principal component analysis.
N_ITERATIONS = 7


def slide_axes(slide: Slide, config: StageConfig, cells: Tensor | slice = slice(None)) -> Tensor:
    """Principal axes of some cells of a slide: one for eight cells, at least `dim` and at most `n_axes` of the model.

    Cells enter the network by the first `dim`; contexts of domains are computed from all.
    """
    chosen = np.arange(slide.n_cells)[cells if isinstance(cells, slice) else cells.numpy()]
    n_axes = min(max(config.n_axes, config.dim), max(config.dim, len(chosen) // CELLS_PER_AXIS))
    return principal_axes(slide, n_axes, config.axes_cells, chosen)


def principal_axes(slide: Slide, dim: int, n_cells: int, among: np.ndarray | None = None) -> Tensor:
    """Principal axes of the scaled expression of at most `n_cells` cells, ``(P, dim)`` float32.

    The cells are chosen `among` some (default: all). Columns are orthonormal; those beyond the number of genes or cells
    are 0. Memory: 20 kB for a gene.
    """
    # Chosen and sorted by their counts, not by their order on the slide, which follows the last bits of coordinates:
    # where cells are fewer than genes, the random start has a number for each cell.
    among = np.arange(slide.n_cells) if among is None else among
    chosen = among[np.argsort(mix(slide.identity[:][among]), kind="stable")[:n_cells]]
    cells = np.sort(chosen)
    expression = (slide.take(cells).toarray()[np.searchsorted(cells, chosen)] - slide.mean) / slide.scale
    expression -= expression.mean(axis=0)
    width = min(dim, len(cells), len(slide.genes))
    _, _, axes = randomized_svd(
        expression, width, n_oversamples=dim, n_iter=N_ITERATIONS, power_iteration_normalizer="QR", random_state=0
    )
    return torch.nn.functional.pad(torch.from_numpy(axes.T.copy()).float(), (0, dim - width))
