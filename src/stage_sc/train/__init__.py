"""Training: starting point, two-stage schedule, health metrics, state on disk."""

from stage_sc.train._adapt import adapt_config
from stage_sc.train._start import copy_model, encode_slides, new_model
from stage_sc.train._trace import trace_niches
from stage_sc.train._train import train

__all__ = ["adapt_config", "copy_model", "encode_slides", "new_model", "trace_niches", "train"]
