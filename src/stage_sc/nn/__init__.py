"""The network and its losses, on tensors only. Other packages import from here."""

from stage_sc.nn._attention import Block, Blocks, attend, attend_all, project, smooth
from stage_sc.nn._augment import Panel, View, clean_view, draw_view
from stage_sc.nn._config import Modality, StageConfig
from stage_sc.nn._directions import (
    Directions,
    complete_turn,
    covariance,
    orthogonal_factor,
    orthonormal_basis,
    spatial_directions,
    whitening,
)
from stage_sc.nn._embedder import embed_cells
from stage_sc.nn._encoder import Neighbours
from stage_sc.nn._linkage import leaf_order, weighted_ward
from stage_sc.nn._losses import path_loss, reconstruction_loss, swav_loss
from stage_sc.nn._queue import SlideQueue
from stage_sc.nn._sinkhorn import sinkhorn
from stage_sc.nn._sparse import Sparse
from stage_sc.nn._stage import Batch, Stage, check_weights, content_digest
from stage_sc.nn._tree import PrototypeTree

__all__ = [
    "Batch",
    "Block",
    "Blocks",
    "Directions",
    "Modality",
    "Neighbours",
    "Panel",
    "PrototypeTree",
    "SlideQueue",
    "Sparse",
    "Stage",
    "StageConfig",
    "View",
    "attend",
    "attend_all",
    "check_weights",
    "clean_view",
    "complete_turn",
    "content_digest",
    "covariance",
    "draw_view",
    "embed_cells",
    "leaf_order",
    "orthogonal_factor",
    "orthonormal_basis",
    "path_loss",
    "project",
    "reconstruction_loss",
    "sinkhorn",
    "smooth",
    "spatial_directions",
    "swav_loss",
    "weighted_ward",
    "whitening",
]
