"""Coordinates, niches, cell types and counts of a simulated slide."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from stage_sc.datasets._cortex import CELL_TYPES, COMPOSITION, EXPRESSION, GENES, GRADIENTS, LAYERS, PANELS

DENSITY = 3.3e-3  # cells per µm² of layer 4
LESION_FRACTION = 0.08  # of the area of a section, less if that is too large for the grey matter
SMALLEST_ASPECT = 0.5  # width over depth of sections too small for a whole cortex
CLUMPING = 0.8  # sd of the logarithm of the local abundance of a cell type within its niche
SPILL = 0.35  # counts from neighbours, as a fraction of their mean: imperfect segmentation
NEIGHBOURS = 5  # number of cells that spill into another
AMBIENT = 0.08  # background counts, as a fraction of the mean of all cells
CELL_SIZE_SD = 0.5  # of the logarithm
DISPERSION = 2.0  # shape of the gamma distribution of the negative binomial
GRADIENT_FLOOR = 0.25  # expression far from the peak of a gradient, as a fraction of that at the peak
EFFICIENCY_SD = 0.6  # of the logarithm of the probe efficiencies of a platform

_THICKNESS, _DENSITY = np.array(list(LAYERS.values())).T
_EDGES = np.concatenate([[0.0], np.cumsum(_THICKNESS)]) / _THICKNESS.sum()


class Slide(NamedTuple):
    """Cells of one slide."""

    coordinates: np.ndarray  # (n, 2) float64, µm
    depth: np.ndarray  # 0 at the pia, 1 at the bottom of the white matter; the same for a layer's border on all slides
    niche: np.ndarray  # true label, index into NICHES
    cell_type: np.ndarray  # index into CELL_TYPES
    counts: np.ndarray  # (n, n_genes) int


def simulate_slide(
    n_cells: int, panel: str, lesion: bool, batch_effect: float, rotation: float, rng: np.random.Generator
) -> Slide:
    """Draw coordinates, cell types and counts; only the counts depend on panel and batch effect."""
    xy, depth, niche, niche_of_type = _lay_out_section(n_cells, lesion, rng)
    cell_type = _cell_types(xy, niche_of_type, rng)
    angle = rng.uniform(-1.0, 1.0) * rotation

    genes = PANELS[panel].genes
    batch = np.exp(batch_effect * rng.standard_normal(len(GENES)))[[GENES.index(gene) for gene in genes]]
    batch *= np.exp(batch_effect / 2 * rng.standard_normal())
    size = rng.lognormal(-(CELL_SIZE_SD**2) / 2, CELL_SIZE_SD, (n_cells, 1))

    own = _profiles(panel)[cell_type] * _gradient(genes, depth)
    _, nearest = KDTree(xy).query(xy, NEIGHBOURS + 1)
    spill = SPILL * own[nearest[:, 1:]].mean(axis=1)
    mean = batch * (size * own + spill + AMBIENT * own.mean(axis=0))
    counts = rng.poisson(mean * rng.gamma(DISPERSION, 1 / DISPERSION, mean.shape))
    return Slide(_rotate(xy, angle), depth, niche, cell_type, counts)


def _cell_types(xy: np.ndarray, niche_of_type: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the type of each cell from the composition of its niche, with local variation."""
    clumps = _smooth_fields(xy, len(CELL_TYPES), rng)
    weight = COMPOSITION[niche_of_type] * np.exp(CLUMPING * clumps)
    cumulated = weight.cumsum(axis=1) / weight.sum(axis=1, keepdims=True)
    return (rng.random((len(weight), 1)) > cumulated[:, :-1]).sum(axis=1)


def _profiles(panel: str) -> np.ndarray:
    """Mean counts, (n_types, n_genes of the panel)."""
    genes, depth, platform = PANELS[panel]
    # Efficiencies belong to the platform, whatever the seed of the tissue.
    efficiency = np.random.default_rng(platform).lognormal(0.0, EFFICIENCY_SD, len(GENES))
    profiles = (EXPRESSION * efficiency)[genes].to_numpy()
    return profiles * (depth / profiles.sum(axis=1).mean())


def _gradient(genes: list[str], depth: np.ndarray) -> np.ndarray:
    """Factor of expression, (n_cells, n_genes): 1 at the peak of a gene, falling to a floor."""
    factor = np.ones((len(depth), len(genes)))
    for gene in GRADIENTS.keys() & set(genes):
        peak, width = GRADIENTS[gene]
        bell = np.exp(-0.5 * ((depth - peak) / width) ** 2)
        factor[:, genes.index(gene)] = GRADIENT_FLOOR + (1 - GRADIENT_FLOOR) * bell
    return factor


def _lay_out_section(n_cells: int, lesion: bool, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Coordinates, depth, niche and niche of the type of each cell (cells stray over borders).

    Cells are placed at random, with the density of each layer, in a bent strip of cortex; small y is the pia.
    """
    area = n_cells / (DENSITY * np.average(_DENSITY, weights=_THICKNESS))
    height = min(_THICKNESS.sum(), np.sqrt(area / SMALLEST_ASPECT))
    width = area / height
    x, y = _jittered_lattice(width, height, rng)

    thickness = np.diff(_EDGES) * rng.lognormal(0.0, 0.06, len(LAYERS))
    edges = np.concatenate([[0.0], np.cumsum(thickness)]) / thickness.sum() * height
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
    # Always drawn, so that the rest of a slide is the same with and without a lesion.
    inside = _blob(x, y, width, height, rng) & lesion
    niche, niche_of_type = np.where(inside, len(LAYERS), [layer, stray])

    bend = 0.12 * height * ((x / width - rng.uniform(0.3, 0.7)) * 2) ** 2 + _wave(x, 0.02 * height, rng)
    return np.column_stack([x, y + bend]), np.clip(depth, 0, 1), niche, niche_of_type


def _rotate(coordinates: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate coordinates and shift them to start at the origin."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turned = coordinates @ np.array([[cos, sin], [-sin, cos]])
    return turned - turned.min(axis=0)


def _smooth_fields(coordinates: np.ndarray, n_fields: int, rng: np.random.Generator) -> np.ndarray:
    """Random fields of mean 0 and variance 1, (n_cells, n_fields): each 12 plane waves of wavelengths 100 to 400 µm."""
    angle, phase = rng.uniform(0.0, 2 * np.pi, (2, n_fields, 12))
    wavenumber = 2 * np.pi / rng.uniform(100.0, 400.0, (n_fields, 12))
    x, y = coordinates.T[:, :, None]
    fields = [
        np.cos(x * (k * np.cos(a)) + y * (k * np.sin(a)) + p).sum(axis=1)
        for k, a, p in zip(wavenumber, angle, phase, strict=True)
    ]
    return np.sqrt(2 / 12) * np.column_stack(fields)


def _jittered_lattice(width: float, height: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Hexagonal lattice at the highest density with noise: fewer overlaps than in a Poisson process."""
    spacing = np.sqrt(2 / np.sqrt(3) / DENSITY)
    rows, columns = int(height / (spacing * np.sqrt(0.75))) + 2, int(width / spacing) + 2
    row, column = np.divmod(np.arange(rows * columns), columns)
    x = (column + 0.5 * (row % 2)) * spacing * width / ((columns - 0.5) * spacing)
    y = (row + 0.5) * height / rows
    x = x + rng.normal(0.0, 0.25 * spacing, len(x))
    y = y + rng.normal(0.0, 0.25 * spacing, len(y))
    return x, np.clip(y, 0.0, height)


def _layer(y: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Index of the layer at `y` (n,), given the y of the borders between layers (5, n) at the same x."""
    return (y > borders).sum(axis=0)


def _wave(x: np.ndarray, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth irregular line over `x`: three sines with wavelengths of 150 to 800 µm."""
    length, phase = rng.uniform(150.0, 800.0, 3), rng.uniform(0.0, 2 * np.pi, 3)
    return amplitude * np.sin(2 * np.pi * x[:, None] / length + phase).mean(axis=1) * np.sqrt(3)


def _blob(x: np.ndarray, y: np.ndarray, width: float, height: float, rng: np.random.Generator) -> np.ndarray:
    """Mask of the cells in a dented disk in the grey matter."""
    radius = min(np.sqrt(LESION_FRACTION * width * height / np.pi), 0.28 * height)
    margin = min(1.2 * radius, 0.45 * min(width, height))
    dx = x - rng.uniform(margin, width - margin)
    dy = y - rng.uniform(margin, max(0.85 * height - margin, margin))
    dent = 1 + 0.15 * np.sin(3 * np.arctan2(dy, dx) + rng.uniform(0.0, 2 * np.pi))
    return np.hypot(dx, dy) < radius * dent
