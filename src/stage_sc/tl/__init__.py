"""Tools: niches with a pretrained model, training on own slides, outlines, robustness of labels."""

from stage_sc.tl._correct_embedding import correct_embedding
from stage_sc.tl._fit import fit
from stage_sc.tl._label_files import label_files
from stage_sc.tl._label_regions import label_regions
from stage_sc.tl._outline_niches import outline_niches
from stage_sc.tl._panel_agreement import panel_agreement
from stage_sc.tl._stage_niches import stage_niches
from stage_sc.tl._write_outlines import write_cell_groups, write_outlines

__all__ = [
    "correct_embedding",
    "fit",
    "label_files",
    "label_regions",
    "outline_niches",
    "panel_agreement",
    "stage_niches",
    "write_cell_groups",
    "write_outlines",
]
