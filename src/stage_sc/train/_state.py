"""State of a training on disk, from which it continues as if never interrupted."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stage_sc._files import is_intact, seal, write_whole
from stage_sc.nn import Stage, check_weights
from stage_sc.slides import Slide
from stage_sc.train._health import EpochMetrics, Health

FORMAT = "stage_sc training 3"


@dataclass
class State:
    """Progress of a training, besides its model and optimiser."""

    root: int
    """Seed of all random numbers."""
    health: Health
    """Metrics of the present epoch."""
    epoch: int = 0
    step: int = 0
    """Number of finished steps of the epoch."""
    done: int = 0
    """Number of finished steps of all epochs."""
    history: list[EpochMetrics] = field(default_factory=list)
    """Metrics of the finished epochs."""
    finished: bool = False


def describe_run(model: Stage, slides: list[Slide], *, keep_tree: bool) -> dict[str, Any]:
    """Return configuration, genes and slides of a training, which must be the same when it continues."""
    return {
        **model.config.to_dict(),
        "genes": hashlib.sha256("\n".join(model.genes).encode()).hexdigest()[:16],
        "slides": [_describe(slide) for slide in slides],
        "init": model.digest if keep_tree else None,
    }


def _describe(slide: Slide) -> list[Any]:
    """Values that differ for other counts or another graph, rounded because machines differ in the last bits."""
    n_pairs = [int(matrix.indptr[-1:][0]) for matrix in (slide.graph, slide.local)]
    mode, *sizes = slide.sizes
    rounded = [f"{value:.4g}" for value in (*sizes, float(slide.mean.sum(dtype=np.float64)))]
    return [slide.name, slide.n_cells, len(slide.genes), mode, *n_pairs, *rounded]


def write_state(path: Path, run: dict[str, Any], state: State, model: Stage, optimizer: torch.optim.Optimizer) -> None:
    """Write a training, described by `run`, to a file, which is replaced as a whole."""
    content = {
        "format": FORMAT,
        "run": run,
        "state": {name: value for name, value in vars(state).items() if name != "health"},
        "health": vars(state.health),
        "model": model.state_dict(),
        "optimizer": None if state.finished else optimizer.state_dict(),
    }
    file = BytesIO()
    torch.save(content, file)
    write_whole(path, seal(file.getvalue()))


def read_state(path: Path) -> dict[str, Any]:
    """Read a file of `write_state`, without running code in it; a ValueError if it is another or a damaged file."""
    try:
        intact = is_intact(path)  # torch compares no checksums
        if intact is False:
            raise ValueError("checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
        format_ = content["format"]
        if format_ == FORMAT and not intact:
            raise ValueError("checksum")
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"`checkpoint` {str(path)!r} holds no training of this version of stage_sc, or is damaged "
            f"({type(error).__name__}), and was not overwritten. Pass another path; to start from a model, pass it as "
            "`init`."
        ) from error
    if format_ != FORMAT:
        raise ValueError(
            f"`checkpoint` {str(path)!r} has the format {format_!r}, this version of stage_sc reads {FORMAT!r}. Finish "
            "the training with the version that began it, or pass another path."
        )
    return dict(content)


def resume(
    saved: dict[str, Any], path: Path, run: dict[str, Any], model: Stage, optimizer: torch.optim.Optimizer
) -> State:
    """Set model and optimiser to those of a saved training; a ValueError names values that differ from `run`."""
    differences = [
        f"`{name}` ({before!r} in the file, {now!r} here)" if len(f"{before}{now}") < 80 else f"`{name}`"
        for name, now in run.items()
        if now != (before := saved["run"].get(name))
    ]
    if differences:
        raise ValueError(
            f"`checkpoint` {str(path)!r} belongs to another training, which differs in {', '.join(differences)}. Pass "
            "another path, or remove the file to start anew."
        )
    try:
        model.load_state_dict(saved["model"])
        check_weights(model.state_dict(), model.config)
        if saved["optimizer"] is not None:
            optimizer.load_state_dict(saved["optimizer"])
        health = Health(model.config.levels[-1])
        vars(health).update(saved["health"])
        return State(health=health, **saved["state"])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"`checkpoint` {str(path)!r} is damaged: its content does not fit ({error}).") from error
