"""Simulated tissue with known niches, and real sections."""

from stage_sc.datasets._real import olfactory_bulb, osmfish_cortex, xenium_mouse_brain, xenium_pancreas
from stage_sc.datasets._simulate import simulate_cohort, simulate_tissue

__all__ = [
    "olfactory_bulb",
    "osmfish_cortex",
    "simulate_cohort",
    "simulate_tissue",
    "xenium_mouse_brain",
    "xenium_pancreas",
]
