"""One simulated slide: which type each cell has, and what is counted in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from stage_sc.datasets._cortex import CELL_TYPES, COMPOSITION, EXPRESSION, GENES, GRADIENTS, PANELS
from stage_sc.datasets._geometry import Section, lay_out_section, smooth_fields, turn

CLUMPING = 0.8  # standard deviation of the logarithm of a cell type's local abundance inside its niche
SPILL = 0.35  # counts from the nearest cells, as a share of what such a cell holds: segmentation is imperfect
NEIGHBOURS = 5  # cells that spill into another
AMBIENT = 0.08  # stray counts, as a share of what an average cell holds
CELL_SIZE_SD = 0.5  # of the logarithm: cells are cut and captured unevenly
DISPERSION = 2.0  # shape of the gamma distribution behind the negative binomial
GRADIENT_FLOOR = 0.25  # of a gene's level, far away from its peak
EFFICIENCY_SD = 0.6  # of the logarithm: how differently the probes of one platform work


class Slide(NamedTuple):
    """A simulated slide; all arrays have one row per cell."""

    section: Section
    cell_type: np.ndarray  # index into CELL_TYPES
    counts: np.ndarray  # (n_cells, n_genes) int


def simulate_slide(
    n_cells: int, panel: str, lesion: bool, batch_effect: float, rotation: float, rng: np.random.Generator
) -> Slide:
    """Draw places, cell types and counts of one slide; only the counts depend on panel and batch effect."""
    section = lay_out_section(n_cells, lesion, rng)
    cell_type = _cell_types(section, rng)
    angle = rng.uniform(-1.0, 1.0) * rotation

    genes = PANELS[panel].genes
    batch = np.exp(batch_effect * rng.standard_normal(len(GENES)))[[GENES.index(gene) for gene in genes]]
    batch *= np.exp(batch_effect / 2 * rng.standard_normal())
    size = rng.lognormal(-(CELL_SIZE_SD**2) / 2, CELL_SIZE_SD, (n_cells, 1))

    own = _profiles(panel)[cell_type] * _gradient(genes, section.depth)
    _, nearest = KDTree(section.coordinates).query(section.coordinates, NEIGHBOURS + 1)
    spill = SPILL * own[nearest[:, 1:]].mean(axis=1)
    mean = batch * (size * own + spill + AMBIENT * own.mean(axis=0))
    counts = rng.poisson(mean * rng.gamma(DISPERSION, 1 / DISPERSION, mean.shape))
    return Slide(section._replace(coordinates=turn(section.coordinates, angle)), cell_type, counts)


def _cell_types(section: Section, rng: np.random.Generator) -> np.ndarray:
    """Draw each cell's type from its niche, with types locally more or less common than the niche has it."""
    clumps = smooth_fields(section.coordinates, len(CELL_TYPES), rng)
    share = COMPOSITION[section.niche_of_type] * np.exp(CLUMPING * clumps)
    cumulated = share.cumsum(axis=1) / share.sum(axis=1, keepdims=True)
    return (rng.random((len(share), 1)) > cumulated[:, :-1]).sum(axis=1)


def _profiles(panel: str) -> np.ndarray:
    """Mean counts of every gene of the panel in every cell type, (n_types, n_genes)."""
    genes, depth, platform = PANELS[panel]
    # From a generator of its own: efficiencies belong to the platform, whatever the seed of the tissue.
    efficiency = np.random.default_rng(platform).lognormal(0.0, EFFICIENCY_SD, len(GENES))
    profiles = (EXPRESSION * efficiency)[genes].to_numpy()
    return profiles * (depth / profiles.sum(axis=1).mean())


def _gradient(genes: list[str], depth: np.ndarray) -> np.ndarray:
    """Factor of every cell and gene, (n_cells, n_genes): 1 at the gene's peak, falling to a floor."""
    factor = np.ones((len(depth), len(genes)))
    for gene in GRADIENTS.keys() & set(genes):
        peak, width = GRADIENTS[gene]
        bell = np.exp(-0.5 * ((depth - peak) / width) ** 2)
        factor[:, genes.index(gene)] = GRADIENT_FLOOR + (1 - GRADIENT_FLOOR) * bell
    return factor
