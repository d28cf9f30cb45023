"""Data to try the package on: a tissue simulator with known niches."""

from __future__ import annotations

from stage_sc.datasets._simulate import simulate_cohort, simulate_tissue

__all__ = ["simulate_cohort", "simulate_tissue"]
