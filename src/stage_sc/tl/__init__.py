"""Tools: niches with a pretrained model, training on own slides, robustness of labels."""

from stage_sc.tl._fit import fit
from stage_sc.tl._label_files import label_files
from stage_sc.tl._panel_agreement import panel_agreement
from stage_sc.tl._stage_niches import stage_niches

__all__ = ["fit", "label_files", "panel_agreement", "stage_niches"]
