"""The bundled model, and models by their names."""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import as_file, files

from stage_sc._files import as_path
from stage_sc.model._checkpoint import load_checkpoint
from stage_sc.model._hub import PREFIX, load_from_hub
from stage_sc.nn import Stage

BUNDLED = "stage-v2.safetensors"


@cache
def load_bundled() -> Stage:
    """Read the bundled model, once."""
    with as_file(files("stage_sc").joinpath("weights", BUNDLED)) as path:
        return load_checkpoint(path)


def resolve_model(model: Stage | str | os.PathLike[str] | None, name: str = "model") -> Stage:
    """Return a model given as such, as the path of a checkpoint, or as an address on the Hugging Face hub.

    ``None`` and ``"bundled"`` are the bundled model. `name` is that of the argument, for error messages.
    """
    if isinstance(model, Stage):
        return model
    if model is None or (isinstance(model, str) and model == "bundled"):
        return load_bundled()
    if isinstance(model, str) and model.startswith(PREFIX):
        return load_from_hub(model)
    if isinstance(model, str | os.PathLike):
        return load_checkpoint(as_path(model, name))
    raise TypeError(
        f"`{name}` must be a model from `st.tl.fit`, the path of a checkpoint, an address hf://… or None, got "
        f"{type(model).__name__}."
    )
