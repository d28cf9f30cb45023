"""Where the cells of a simulated slide lie, and in which niche."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stage_sc.datasets._cortex import LAYERS, LESION, NICHES

DENSITY = 3.3e-3  # cells per µm² of layer 4
LESION_SHARE = 0.08  # of the area of a section, where that spot is not too large for the grey matter
SMALLEST_ASPECT = 0.5  # width over depth of sections too small for a whole cortex

_DENSITY = np.array([layer.density for layer in LAYERS.values()])
_THICKNESS = np.array([layer.thickness for layer in LAYERS.values()])
_EDGES = np.concatenate([[0.0], np.cumsum(_THICKNESS)]) / _THICKNESS.sum()


class Section(NamedTuple):
    """The cells of one slide; all arrays have one entry per cell."""

    coordinates: np.ndarray  # (n, 2) float64, µm
    depth: np.ndarray  # 0 at the pia, 1 at the bottom of the white matter, each layer at its usual share
    niche: np.ndarray  # index into NICHES: the true label
    niche_of_type: np.ndarray  # index into NICHES from which the cell's type is drawn: cells stray over borders


def lay_out_section(n_cells: int, lesion: bool, rng: np.random.Generator) -> Section:
    """Place cells at random, unevenly dense by layer, in a bent strip of cortex, the pia on the side of small y."""
    area = n_cells / (DENSITY * np.average(_DENSITY, weights=_THICKNESS))
    height = min(_THICKNESS.sum(), np.sqrt(area / SMALLEST_ASPECT))
    width = area / height
    x, y = _jittered_lattice(width, height, rng)

    shares = np.diff(_EDGES) * rng.lognormal(0.0, 0.06, len(LAYERS))
    edges = np.concatenate([[0.0], np.cumsum(shares)]) / shares.sum() * height
    borders = edges[1:-1, None] + np.stack([_wave(x, 0.015 * height, rng) for _ in edges[1:-1]])

    density = _DENSITY[_layer(y, borders)]
    chosen = np.argsort(rng.random(len(x)) / density)[:n_cells]
    x, y, borders = x[chosen], y[chosen], borders[:, chosen]

    layer = _layer(y, borders)
    tops = np.vstack([np.zeros_like(y), borders, np.full_like(y, height)])
    cells = np.arange(n_cells)
    top, bottom = tops[layer, cells], tops[layer + 1, cells]
    depth = _EDGES[layer] + (y - top) / (bottom - top) * np.diff(_EDGES)[layer]

    stray = _layer(y + rng.normal(0.0, 0.015 * height, n_cells), borders)
    # Drawn in any case, so that a slide is the same elsewhere whether it has a lesion or not.
    inside = _blob(x, y, width, height, rng) & lesion
    niche, niche_of_type = np.where(inside, NICHES.index(LESION), [layer, stray])

    bend = 0.12 * height * ((x / width - rng.uniform(0.3, 0.7)) * 2) ** 2 + _wave(x, 0.02 * height, rng)
    return Section(np.column_stack([x, y + bend]), np.clip(depth, 0, 1), niche, niche_of_type)


def turn(coordinates: np.ndarray, degrees: float) -> np.ndarray:
    """Coordinates turned by an angle and shifted to start at the origin."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turned = coordinates @ np.array([[cos, sin], [-sin, cos]])
    return turned - turned.min(axis=0)


def smooth_fields(coordinates: np.ndarray, n_fields: int, rng: np.random.Generator) -> np.ndarray:
    """Independent smooth random fields of mean 0 and variance 1 at the cells, (n_cells, n_fields).

    Each is a sum of 12 plane waves of wavelengths between 100 and 400 µm.
    """
    angle, phase = rng.uniform(0.0, 2 * np.pi, (2, n_fields, 12))
    number = 2 * np.pi / rng.uniform(100.0, 400.0, (n_fields, 12))
    x, y = coordinates.T[:, :, None]
    fields = [
        np.cos(x * (k * np.cos(a)) + y * (k * np.sin(a)) + p).sum(axis=1)
        for k, a, p in zip(number, angle, phase, strict=True)
    ]
    return np.sqrt(2 / 12) * np.column_stack(fields)


def _jittered_lattice(width: float, height: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Hexagonal lattice at the highest density, shaken: cells neither overlap as in a Poisson process nor line up."""
    spacing = np.sqrt(2 / np.sqrt(3) / DENSITY)
    rows, columns = int(height / (spacing * np.sqrt(0.75))) + 2, int(width / spacing) + 2
    row, column = np.divmod(np.arange(rows * columns), columns)
    x = (column + 0.5 * (row % 2)) * spacing * width / ((columns - 0.5) * spacing)
    y = (row + 0.5) * height / rows
    x = x + rng.normal(0.0, 0.25 * spacing, len(x))
    y = y + rng.normal(0.0, 0.25 * spacing, len(y))
    return x, np.clip(y, 0.0, height)


def _layer(y: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Index of the layer at depth ``y`` (n,), given the borders between layers (5, n) above and below it."""
    return (y > borders).sum(axis=0)


def _wave(x: np.ndarray, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth irregular line over ``x``: three sines with wavelengths of 150 to 800 µm."""
    length, phase = rng.uniform(150.0, 800.0, 3), rng.uniform(0.0, 2 * np.pi, 3)
    return amplitude * np.sin(2 * np.pi * x[:, None] / length + phase).mean(axis=1) * np.sqrt(3)


def _blob(x: np.ndarray, y: np.ndarray, width: float, height: float, rng: np.random.Generator) -> np.ndarray:
    """Cells inside a dented disk in the grey matter."""
    radius = min(np.sqrt(LESION_SHARE * width * height / np.pi), 0.28 * height)
    margin = min(1.2 * radius, 0.45 * min(width, height))
    dx = x - rng.uniform(margin, width - margin)
    dy = y - rng.uniform(margin, max(0.85 * height - margin, margin))
    dent = 1 + 0.15 * np.sin(3 * np.arctan2(dy, dx) + rng.uniform(0.0, 2 * np.pi))
    return np.hypot(dx, dy) < radius * dent
