"""Embeddings of slides: gene vectors, contexts, niche embeddings, and a score of unlikeness."""

from stage_sc.embed._context import ContextCache, hops_within, window_hops
from stage_sc.embed._embed_slides import Embeddings, embed_slides
from stage_sc.embed._encode import Encoded, calibrate, encode_slide
from stage_sc.embed._gene_vectors import coexpression_vectors
from stage_sc.embed._slide_context import ContextMap, context_map

__all__ = [
    "ContextCache",
    "ContextMap",
    "Embeddings",
    "Encoded",
    "calibrate",
    "coexpression_vectors",
    "context_map",
    "embed_slides",
    "encode_slide",
    "hops_within",
    "window_hops",
]
