"""Gene names of any panel, human or mouse, and the tokens that all panels share."""

from stage_sc.genes._evidence import other_species
from stage_sc.genes._features import is_control
from stage_sc.genes._match import GeneMatch, gene_tokens, match_genes

__all__ = ["GeneMatch", "gene_tokens", "is_control", "match_genes", "other_species"]
