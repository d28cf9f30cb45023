"""A sample of the cells that is the same for any order of the cells and for any division into parts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stage_sc.slides._canonical import mix


def subsample(values: Tensor, n_cells: int, size: int) -> Tensor:
    """Values of about `size` of `n_cells` cells, sorted; those of a part, if `values` is a part of them.

    Whether a cell is drawn depends on a hash of its own values (the first two components, rounded), so that parts give
    the cells that the whole gives, in any order. Of a whole at least one cell is drawn.
    """
    if n_cells > size:
        leading = np.round(values[:, :2].numpy().astype(np.float64) * 1024).astype(np.int64).view(np.uint64)
        number = mix(leading[:, 0] + mix(leading[:, -1]))
        least = int(number.min()) if len(values) == n_cells else 0
        values = values[torch.from_numpy(number <= max(int(size / n_cells * 2**64), least))]
    return sort_cells(values)


def sort_cells(values: Tensor) -> Tensor:
    """Sort cells by their first two components."""
    return values[torch.from_numpy(np.lexsort(values.numpy()[:, :2].T))]
