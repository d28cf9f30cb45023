"""Tools: niches with a pretrained model, training on own slides, outlines, robustness of labels, biology of niches."""

from stage_sc.analysis import (
    cell_type_enrichment,
    composition,
    differential_abundance,
    distance_to_niche,
    interactions,
    niche_neighbors,
    niche_paga,
    pathways,
    rank_niche_genes,
    spatial_genes,
)
from stage_sc.explain import explain_niche
from stage_sc.tl._annotate_niches import annotate_niches
from stage_sc.tl._correct_embedding import correct_embedding
from stage_sc.tl._fit import fit
from stage_sc.tl._label_files import label_files
from stage_sc.tl._label_regions import label_regions
from stage_sc.tl._outline_niches import outline_niches
from stage_sc.tl._panel_agreement import panel_agreement
from stage_sc.tl._propose_names import propose_names
from stage_sc.tl._stage_niches import stage_niches
from stage_sc.tl._write_outlines import write_cell_groups, write_outlines

__all__ = [
    "annotate_niches",
    "cell_type_enrichment",
    "composition",
    "correct_embedding",
    "differential_abundance",
    "distance_to_niche",
    "explain_niche",
    "fit",
    "interactions",
    "label_files",
    "label_regions",
    "niche_neighbors",
    "niche_paga",
    "outline_niches",
    "panel_agreement",
    "pathways",
    "propose_names",
    "rank_niche_genes",
    "spatial_genes",
    "stage_niches",
    "write_cell_groups",
    "write_outlines",
]
