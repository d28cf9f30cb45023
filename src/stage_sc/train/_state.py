"""A training on disk: whatever it needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stage_sc.data._slide import Slide
from stage_sc.model._checkpoint import model_digest
from stage_sc.model._stage import Stage
from stage_sc.train._health import Figures, Health

logger = logging.getLogger("stage_sc.train")

FORMAT = "stage_sc training"
FORMAT_VERSION = 1


@dataclass
class State:
    """How far a training is, beside its model and optimiser."""

    root: int
    """Seed that all chance comes from."""
    health: Health
    """Figures of the epoch under way."""
    epoch: int = 0
    step: int = 0
    """Steps of the epoch that are done."""
    done: int = 0
    """Steps of all epochs that are done."""
    history: list[Figures] = field(default_factory=list)
    """Figures of the epochs that are done."""
    finished: bool = False


class Saved(NamedTuple):
    """Content of a file."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]


def describe_run(model: Stage, slides: list[Slide], *, keep_tree: bool) -> dict[str, Any]:
    """Return what a training starts from, and must be resumed with, as JSON can hold it."""
    return {
        **model.config.to_dict(),
        "genes": hashlib.sha256("\n".join(model.genes).encode()).hexdigest()[:16],
        "slides": [_describe(slide) for slide in slides],
        "init": model_digest(model) if keep_tree else None,
    }


def _describe(slide: Slide) -> list[Any]:
    """Tell a slide from the same one with other counts or another graph, whatever rounding a machine adds."""
    n_pairs = [int(matrix.indptr[-1:][0]) for matrix in (slide.graph, slide.local)]
    mode, *sizes = slide.sizes
    figures = [f"{value:.4g}" for value in (*sizes, float(slide.mean.sum(dtype=np.float64)))]
    return [slide.name, slide.n_cells, len(slide.genes), mode, *n_pairs, *figures]


def write_state(path: Path, run: dict[str, Any], state: State, model: Stage, optimizer: torch.optim.Optimizer) -> None:
    """Write a training to a file. One that is there is replaced at once: there is a whole file at any moment.

    At the end of an epoch the log says so, with the history in the attribute ``history`` of the record.

    Parameters
    ----------
    path
        The file.
    run
        From `describe_run`.
    state, model, optimizer
        The training. Without the optimiser's moments once it is finished.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors["health.count"] = state.health.count
    for name, parameter in () if state.finished else model.named_parameters():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    header = {
        "version": FORMAT_VERSION,
        "run": run,
        "state": {name: value for name, value in vars(state).items() if name != "health"},
        "health": {"sums": state.health.sums, "n_steps": state.health.n_steps},
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(save(tensors, metadata={FORMAT: json.dumps(header)}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if state.step == 0 and state.history and not state.finished:
        last = state.history[-1]
        logger.info(
            "Epoch %d of %d is done (%s): loss %.4f, %d of %d leaves in use, cosine %.3f.",
            *(len(state.history), run["epochs"], last["stage"], last["loss"]),
            *(last["used"], run["levels"][-1], last["cosine"]),
            extra={"history": state.history},
        )


def read_state(path: Path) -> Saved:
    """Read what `write_state` wrote.

    Raises
    ------
    ValueError
        If the file is something else, or was written in a format that this version does not know.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"`checkpoint` {str(path)!r} cannot be read as a safetensors file: {error}.") from error
    if FORMAT not in metadata:
        raise ValueError(
            f"`checkpoint` {str(path)!r} holds no training of stage_sc, and is not written over. Pass another path; to "
            "start from a model, pass it as `init`."
        )
    header = json.loads(metadata[FORMAT])
    if header["version"] != FORMAT_VERSION:
        raise ValueError(
            f"`checkpoint` {str(path)!r} has format {header['version']}, this version of stage_sc reads "
            f"{FORMAT_VERSION}. Finish the training with the version that began it, or pass another path."
        )
    return Saved(header, tensors)


def resume(saved: Saved, path: Path, run: dict[str, Any], model: Stage, optimizer: torch.optim.Optimizer) -> State:
    """Set model and optimiser to where a training was.

    Parameters
    ----------
    saved, path
        From `read_state`, and where from.
    run
        From `describe_run`.
    model, optimizer
        Set in place.

    Raises
    ------
    ValueError
        If it is another training that was saved.
    """
    header, tensors = saved
    differs = {name: (header["run"].get(name), value) for name, value in run.items()}
    differs = {name: pair for name, pair in differs.items() if pair[0] != pair[1]}
    if differs:
        listed = ", ".join(
            f"`{name}` ({there!r} there, {here!r} here)" if len(f"{there}{here}") < 80 else f"`{name}`"
            for name, (there, here) in differs.items()
        )
        raise ValueError(
            f"`checkpoint` {str(path)!r} belongs to another training, which differs in {listed}. Pass another path, or "
            "remove the file to start anew."
        )
    prefix = "model."
    model.load_state_dict({name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)})
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):  # of Adam; the step is counted on the CPU
            value = tensors.get(f"optimizer.{name}.{key}")
            if value is not None:
                optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    health = Health(model.config.levels[-1])
    health.count, health.sums = tensors["health.count"], header["health"]["sums"]
    health.n_steps = header["health"]["n_steps"]
    return State(health=health, **header["state"])
