"""Tools: niches with a pretrained model, training on own slides, robustness of labels, biology of niches."""

from stage_sc.analysis import (
    cell_type_enrichment,
    composition,
    differential_abundance,
    distance_to_niche,
    niche_neighbors,
    niche_paga,
    pathways,
    rank_niche_genes,
    spatial_genes,
)
from stage_sc.tl._fit import fit
from stage_sc.tl._label_files import label_files
from stage_sc.tl._panel_agreement import panel_agreement
from stage_sc.tl._stage_niches import stage_niches

__all__ = [
    "cell_type_enrichment",
    "composition",
    "differential_abundance",
    "distance_to_niche",
    "fit",
    "label_files",
    "niche_neighbors",
    "niche_paga",
    "panel_agreement",
    "pathways",
    "rank_niche_genes",
    "spatial_genes",
    "stage_niches",
]
