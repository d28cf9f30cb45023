"""Simulated tissue with known niches."""

from stage_sc.datasets._simulate import simulate_cohort, simulate_tissue

__all__ = ["simulate_cohort", "simulate_tissue"]
