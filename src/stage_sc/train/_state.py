"""State of a training on disk, from which it continues as if never interrupted."""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch

from stage_sc.nn import Stage
from stage_sc.slides import Slide
from stage_sc.train._health import EpochMetrics, Health

FORMAT = "stage_sc training 2"


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
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_state(path: Path) -> dict[str, Any]:
    """Read a file of `write_state`, without running code in it; a ValueError if it is another or a damaged file."""
    try:
        with ZipFile(path) as file:
            if file.testzip():  # torch compares no checksums
                raise BadZipFile
        content = torch.load(path, map_location="cpu", weights_only=True)
        format_ = content["format"]
    except (BadZipFile, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
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
    model.load_state_dict(saved["model"])
    if saved["optimizer"] is not None:
        optimizer.load_state_dict(saved["optimizer"])
    health = Health(model.config.levels[-1])
    vars(health).update(saved["health"])
    return State(health=health, **saved["state"])
