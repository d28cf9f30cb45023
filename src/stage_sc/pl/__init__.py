"""Plots: niches on the tissue, the tree of niches, results about niches, and training curves."""

from stage_sc.pl._cell_type_enrichment import cell_type_enrichment
from stage_sc.pl._cells import Cells as Cells
from stage_sc.pl._cells import read_cells as read_cells  # for reports
from stage_sc.pl._composition import composition
from stage_sc.pl._differential_abundance import differential_abundance
from stage_sc.pl._explain_niche import explain_niche
from stage_sc.pl._interactions import interactions
from stage_sc.pl._niche_neighbors import niche_neighbors
from stage_sc.pl._niche_paga import niche_paga
from stage_sc.pl._niche_tree import niche_tree
from stage_sc.pl._pathways import pathways
from stage_sc.pl._rank_niche_genes import rank_niche_genes
from stage_sc.pl._spatial_domains import spatial_domains
from stage_sc.pl._spatial_genes import spatial_genes
from stage_sc.pl._training_curves import training_curves

__all__ = [
    "cell_type_enrichment",
    "composition",
    "differential_abundance",
    "explain_niche",
    "interactions",
    "niche_neighbors",
    "niche_paga",
    "niche_tree",
    "pathways",
    "rank_niche_genes",
    "spatial_domains",
    "spatial_genes",
    "training_curves",
]
