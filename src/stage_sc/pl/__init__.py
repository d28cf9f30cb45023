"""Plots: niches on the tissue, the tree of niches, and training curves."""

from stage_sc.pl._cells import Cells as Cells
from stage_sc.pl._cells import read_cells as read_cells  # for reports
from stage_sc.pl._niche_tree import niche_tree
from stage_sc.pl._spatial_domains import spatial_domains
from stage_sc.pl._training_curves import training_curves

__all__ = ["niche_tree", "spatial_domains", "training_curves"]
