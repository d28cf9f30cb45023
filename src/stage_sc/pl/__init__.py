"""Plots of niches on the tissue and in their tree."""

from ._niche_tree import niche_tree
from ._spatial_domains import spatial_domains

__all__ = ["niche_tree", "spatial_domains"]
