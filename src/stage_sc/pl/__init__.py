"""Plots of niches on the tissue and in their tree, and of how a training went."""

from stage_sc.pl._niche_tree import niche_tree
from stage_sc.pl._spatial_domains import spatial_domains
from stage_sc.pl._training_curves import training_curves

__all__ = ["niche_tree", "spatial_domains", "training_curves"]
