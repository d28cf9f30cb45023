"""Gene names of any panel, human or mouse, and the tokens that all panels share."""

from stage_sc.genes._evidence import other_species
from stage_sc.genes._features import is_control
from stage_sc.genes._match import GeneMatch, gene_tokens, match_genes
from stage_sc.genes._proteins import MAX_PROTEINS, match_proteins, protein_tokens, refuse_proteins

__all__ = [
    "MAX_PROTEINS",
    "GeneMatch",
    "gene_tokens",
    "is_control",
    "match_genes",
    "match_proteins",
    "other_species",
    "protein_tokens",
    "refuse_proteins",
]
