"""Tables about niches and other labels: each function reads labels, slides and expression, and writes under ``uns``.

`stage_sc.tl` has the public functions. Labels are read by `_labels.py`, expression by `_expression.py`, neighbours by
`_edges.py`; tables are written and read by `_store.py`.
"""

from stage_sc.analysis._cell_type_enrichment import cell_type_enrichment
from stage_sc.analysis._composition import composition
from stage_sc.analysis._differential_abundance import differential_abundance
from stage_sc.analysis._distances import distance_to_niche
from stage_sc.analysis._interactions import interactions
from stage_sc.analysis._labels import Groups, find_result, read_column, read_groups
from stage_sc.analysis._niche_neighbors import niche_neighbors
from stage_sc.analysis._paga import niche_paga
from stage_sc.analysis._pathways import pathways
from stage_sc.analysis._rank_genes import rank_niche_genes
from stage_sc.analysis._spatial_genes import spatial_genes
from stage_sc.analysis._store import check_key, find_stored, read_stored, write_stored

__all__ = [
    "Groups",
    "cell_type_enrichment",
    "check_key",
    "composition",
    "differential_abundance",
    "distance_to_niche",
    "find_result",
    "find_stored",
    "interactions",
    "niche_neighbors",
    "niche_paga",
    "pathways",
    "rank_niche_genes",
    "read_column",
    "read_groups",
    "read_stored",
    "spatial_genes",
    "write_stored",
]
