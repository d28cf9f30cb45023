"""The network and its checkpoints: tensors only, no AnnData."""

from stage_sc.model._checkpoint import load_checkpoint, save_checkpoint
from stage_sc.model._config import StageConfig
from stage_sc.model._stage import Stage

__all__ = ["Stage", "StageConfig", "load_checkpoint", "save_checkpoint"]
