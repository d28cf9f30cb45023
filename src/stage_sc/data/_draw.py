"""Some cells of many, the same ones in any order and of any part."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stage_sc.data._canonical import mix


def draw(values: Tensor, n_cells: int, size: int) -> Tensor:
    """Values of about `size` of `n_cells` cells; those of a part, if `values` is a part of them.

    Whether a cell is drawn depends on its own values alone (the first two components, rounded), so that parts give the
    cells that the whole gives, in any order. Of a whole at least one is drawn.
    """
    if n_cells > size:
        first = np.round(values[:, :2].numpy().astype(np.float64) * 1024).astype(np.int64).view(np.uint64)
        number = mix(first[:, 0] + mix(first[:, -1]))
        least = int(number.min()) if len(values) == n_cells else 0
        values = values[torch.from_numpy(number <= max(int(size / n_cells * 2**64), least))]
    return in_order(values)


def in_order(values: Tensor) -> Tensor:
    """Sort cells by their values."""
    return values[torch.from_numpy(np.lexsort(values.numpy()[:, :2].T))]
