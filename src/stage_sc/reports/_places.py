"""Places of cells for the page: quantised on each slide, and in an order that compresses well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

STEPS = 65_535


class Places(NamedTuple):
    """Cells in the order of the page: slide by slide, along a Z-order curve."""

    order: np.ndarray
    """``(n,)`` row of each cell in the data."""
    xy: np.ndarray
    """``(n, 2)`` uint16 in steps of each slide."""
    slides: list[dict[str, Any]]
    """Name, first cell, number of cells, origin and step of each slide, in units of its coordinates."""


def quantise(xy: np.ndarray, slides: Mapping[str, np.ndarray], ties: np.ndarray) -> Places:
    """Round coordinates to 65,535 steps along the longer side of each slide.

    The order depends on places and, for cells at one place, on the integers `ties`, but not on the order of cells.
    """
    orders, steps, described, start = [], [], [], 0
    for name, rows in slides.items():
        low, high = xy[rows].min(axis=0), xy[rows].max(axis=0)
        step = float((high - low).max()) / STEPS or 1.0
        place = np.rint((xy[rows] - low) / step).clip(0, STEPS).astype(np.uint16)
        order = np.lexsort((*ties[rows].T, xy[rows, 1], xy[rows, 0], _z_order(place)))
        orders.append(rows[order])
        steps.append(place[order])
        described.append(
            {"name": name, "start": start, "n": len(rows), "origin": low.tolist(), "step": step}
            | {"size": (high - low).tolist()}
        )
        start += len(rows)
    return Places(np.concatenate(orders), np.concatenate(steps), described)


def _z_order(place: np.ndarray) -> np.ndarray:
    """Interleave the bits of two columns of uint16."""
    bits = place.astype(np.uint64)
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
    return bits[:, 0] | (bits[:, 1] << np.uint64(1))
