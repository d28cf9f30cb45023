"""Why cells are in a niche rather than in another: contributions of genes and of neighbours to the deciding score."""

from stage_sc.explain._explain import explain_niche

__all__ = ["explain_niche"]
