"""Tools: niches with a pretrained model, and training on one's own slides."""

from stage_sc.tl._fit import fit
from stage_sc.tl._label_files import label_files
from stage_sc.tl._stage_niches import stage_niches

__all__ = ["fit", "label_files", "stage_niches"]
