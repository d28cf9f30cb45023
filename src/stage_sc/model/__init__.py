"""Models: configuration, checkpoints, the bundled model and those on the Hugging Face hub."""

from stage_sc.model._checkpoint import load_checkpoint, save_checkpoint
from stage_sc.model._pretrained import resolve_model as resolve_model  # for the other packages
from stage_sc.nn import Stage, StageConfig

__all__ = ["Stage", "StageConfig", "load_checkpoint", "save_checkpoint"]
