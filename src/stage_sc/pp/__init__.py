"""Preprocessing: filters, gene names, neighbourhood graph, summary."""

from stage_sc.genes import GeneMatch, match_genes
from stage_sc.graph import build_graph
from stage_sc.pp._filter import filter_cells, filter_genes
from stage_sc.pp._summarize import summarize

__all__ = ["GeneMatch", "build_graph", "filter_cells", "filter_genes", "match_genes", "summarize"]
