"""The model that comes with the package, and models by their names."""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import as_file, files

from stage_sc.model._checkpoint import load_checkpoint
from stage_sc.model._hub import PREFIX, load_from_hub
from stage_sc.nn import Stage

BUNDLED = "stage-v1.safetensors"


@cache
def load_bundled() -> Stage:
    """Read the bundled model, once."""
    with as_file(files("stage_sc").joinpath("weights", BUNDLED)) as path:
        return load_checkpoint(path)


def resolve_model(model: Stage | str | os.PathLike[str] | None) -> Stage:
    """Return the model that a user means.

    Parameters
    ----------
    model
        A model; the path of a checkpoint; ``hf://OWNER/REPO@COMMIT/FILE.safetensors`` for one on the Hugging Face hub;
        ``None`` or ``"bundled"`` for the one that comes with the package.

    Raises
    ------
    TypeError
        For anything else.
    FileNotFoundError, ValueError
        As `stage_sc.model.load_checkpoint`.
    ImportError, OSError, ValueError
        As `stage_sc.model._hub.load_from_hub`.
    """
    if model is None or (isinstance(model, str) and model == "bundled"):
        return load_bundled()
    if isinstance(model, Stage):
        return model
    if isinstance(model, str) and model.startswith(PREFIX):
        return load_from_hub(model)
    if isinstance(model, str | os.PathLike):
        return load_checkpoint(model)
    raise TypeError(
        f"`model` must be a model from `st.tl.fit`, the path of a checkpoint, an address hf://… or None, got "
        f"{type(model).__name__}."
    )
