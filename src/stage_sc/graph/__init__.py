"""Neighbourhood graphs: coordinates to pairs of cells, in µm, written to and read from an AnnData."""

from stage_sc.graph._build import build_graph
from stage_sc.graph._measure import Measures, measure_slides
from stage_sc.graph._neighbors import SLACK, gaussian_weights, lengths_in_plane, permute, ring
from stage_sc.graph._platforms import find_platform
from stage_sc.graph._state import copy_graph, graph_coordinates, graph_scale, graph_view, read_graph

__all__ = [
    "SLACK",
    "Measures",
    "build_graph",
    "copy_graph",
    "find_platform",
    "gaussian_weights",
    "graph_coordinates",
    "graph_scale",
    "graph_view",
    "lengths_in_plane",
    "measure_slides",
    "permute",
    "read_graph",
    "ring",
]
