"""Tools: niches with a pretrained model, training on own slides, robustness of labels."""

from stage_sc.tl._annotate_niches import annotate_niches
from stage_sc.tl._fit import fit
from stage_sc.tl._label_files import label_files
from stage_sc.tl._panel_agreement import panel_agreement
from stage_sc.tl._propose_names import propose_names
from stage_sc.tl._stage_niches import stage_niches

__all__ = ["annotate_niches", "fit", "label_files", "panel_agreement", "propose_names", "stage_niches"]
