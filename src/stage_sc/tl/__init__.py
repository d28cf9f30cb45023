"""Tools: niches with a pretrained model, and training on one's own slides."""

from stage_sc.tl._fit import fit
from stage_sc.tl._stage_niches import stage_niches

__all__ = ["fit", "stage_niches"]
