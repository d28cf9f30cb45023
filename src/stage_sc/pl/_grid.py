"""Places of panels in a figure of sane size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDEST, HIGHEST = 30.0, 40.0  # inches of a figure by default


def panel_size(extents: np.ndarray, n: int) -> np.ndarray:
    """Width and height in inches of `n` panels for slides of the given ``(slides, 2)`` extents."""
    ratio = extents[:, 0] / extents[:, 1]
    aspect = np.exp(np.median(np.log(ratio))).clip(1 / 8, 8)
    size = np.sqrt((16 if n == 1 else 9) * np.array([aspect, 1 / aspect]))
    return size * min(1.0, 10 / size.max())


def best_columns(n: int, width: float, height: float) -> int:
    """Columns for `n` blocks of panels: up to 4 side by side where they fit, more for a figure of landscape shape."""
    columns = np.clip(max(min(4, 18 // width), round(np.sqrt(1.4 * n * height / width))), 1, n)
    return int(-(-n // -(-n // columns)))  # rows are equally full


def place_panels(
    n: int,
    columns: int,
    panel: np.ndarray,
    legends: Sequence[float],
    figsize: tuple[float, float] | None,
    labelled: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Place `n` panels of the given size, shrunk where the figure would be larger than `WIDEST` x `HIGHEST`.

    `legends` is the room beside each column in inches; every column whose number is a multiple of `labelled` has a
    label on its left. Returns the size of the figure in inches; left, bottom, width and height of the panels as
    fractions of it; width and height of a panel in inches; and the size of titles in points.
    """
    rows = -(-n // columns)
    between, below = min(0.15, 5 / columns), min(0.5, 12 / rows)
    left = np.array([0.22 if labelled and column % labelled == 0 else 0.0 for column in range(columns)])
    margin = 0.35  # above, for a title of all panels
    fixed = np.array([columns * between + left.sum() + sum(legends), rows * below + margin])
    number = np.array([columns, rows])
    limit = np.array([WIDEST, HIGHEST])
    shrink = min(1.0, *(np.maximum(limit - fixed, 0.2 * number) / (number * panel)))
    size = fixed + shrink * number * panel if figsize is None else np.array(figsize, dtype=float)
    cell = np.maximum((size - fixed) / number, 0.1)
    right = np.cumsum(left + np.array(legends) + cell[0] + between)
    row, column = np.divmod(np.arange(n), columns)
    x = (right - np.array(legends) - cell[0] - between / 2)[column]
    y = size[1] - margin - (row + 1) * cell[1] - (row + 0.5) * below
    boxes = np.column_stack([x / size[0], y / size[1], np.full((n, 2), cell / size)])
    return size, boxes, cell, float(np.clip(72 * 0.28 * below, 3, 10))
