"""The two-stage training protocol (section 3.7 and algorithm 1 of the paper)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm

from stage_sc.embed import ContextCache
from stage_sc.nn import Stage
from stage_sc.slides import Slide
from stage_sc.train._epoch import epoch_batches, n_batches
from stage_sc.train._health import EpochMetrics, Health, has_collapsed, warn_if_collapsed
from stage_sc.train._processes import launch
from stage_sc.train._random import Purpose, generator_at
from stage_sc.train._start import calibrate_slides, grow_tree, initialize_network
from stage_sc.train._state import State, describe_run, read_state, resume, write_state
from stage_sc.train._step import embed_pairs, pair_losses, set_gradients

logger = logging.getLogger("stage_sc.train")

# Minimum relative decrease of the loss that counts as progress.
MIN_PROGRESS = 1e-3


def train(
    model: Stage,
    slides: list[Slide],
    rng: np.random.Generator,
    *,
    keep_tree: bool = False,
    patience: int | None = None,
    checkpoint: Path | None = None,
    callback: Callable[[pd.DataFrame], None] | None = None,
    every: int = 200,
    accelerator: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Train a model with gene vectors in place, together with the other processes if torchrun started several.

    `slides` are in the order of the model's slides, and all random numbers come from `rng`. With `keep_tree`, training
    continues with network and tree of the model; else a tree is grown at the start and again after the warm-up.
    `patience` is the number of epochs without progress that end a stage (default: no limit). `callback` is called with
    the history after every epoch, in the first process. `accelerator` is a device by its name in lightning.

    The training is written to the file `checkpoint` after `every` steps and every epoch. If it exists, the training
    continues from there with its random numbers; on the CPU the result is bit-identical to that of an uninterrupted
    training. A ValueError is raised if the file holds anything but this training.

    Returns
    -------
    One row per epoch: ``stage`` ("warm-up" or "joint"), the losses, and the metrics of `Health`.
    """
    config = model.config
    processes, device = launch(accelerator)
    run, root = describe_run(model, slides, keep_tree=keep_tree), int(rng.integers(2**62))
    saved = processes.broadcast_object(read_state(checkpoint) if checkpoint and checkpoint.exists() else None)
    if saved is None and processes.rank == 0 and not keep_tree:
        initialize_network(model, slides)
        grow_tree(model, slides, generator_at(Purpose.TREE, root, 0))
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    if checkpoint and saved:
        state = resume(saved, checkpoint, run, model, optimizer)
    else:
        state = State(processes.broadcast_object(root), Health(config.levels[-1]))
        processes.broadcast_model(model)

    def save() -> None:
        if checkpoint and processes.rank == 0:
            write_state(checkpoint, run, state, model, optimizer)

    panels, contexts = calibrate_slides(model, slides), ContextCache()
    n_steps = config.epochs * n_batches(slides, config)
    hidden = not progress or processes.rank > 0
    bar = tqdm(total=config.epochs, initial=state.epoch, disable=hidden, unit="epoch", desc="STAGE")
    while state.epoch < config.epochs:
        joint = state.epoch >= config.warmup_epochs
        model.tree.prototypes.requires_grad_(joint)
        options = {"skip": state.step, "rank": processes.rank, "n_ranks": processes.n}
        for batch in epoch_batches(slides, config, (state.root, state.epoch), **options):
            key = state.root, state.epoch, state.step
            pairs = embed_pairs(model, batch, panels, key, processes, contexts)
            losses, scores = pair_losses(model, pairs, key, joint=joint)
            set_gradients(model, losses["loss"], processes)
            clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _rate(state.done, n_steps)
            optimizer.step()
            state.health.update(losses, pairs.h_i, scores[-1])
            state.step, state.done = state.step + 1, state.done + 1
            if state.done % every == 0:
                save()
        metrics = state.health.summary()
        state.history.append({"stage": "joint" if joint else "warm-up", **metrics})
        state.epoch, state.step, state.health = state.epoch + 1, 0, Health(config.levels[-1])
        bar.update()
        bar.set_postfix(loss=f"{metrics['loss']:.3f}", leaves=metrics["used"])
        if processes.rank == 0:
            logger.info(
                "Epoch %d of %d (%s): loss %.4f, %d of %d leaves in use, cosine %.3f.",
                *(len(state.history), config.epochs, state.history[-1]["stage"], metrics["loss"]),
                *(metrics["used"], config.levels[-1], metrics["cosine"]),
            )
            if callback:
                callback(_table(state.history))
        if has_collapsed(state.history, config.levels[-1]):
            state.epoch = config.epochs
        elif patience and _stalled(state.history, patience):
            state.epoch = config.epochs if joint else config.warmup_epochs
        if not joint and state.epoch == config.warmup_epochs and not keep_tree:
            if processes.rank == 0:
                grow_tree(model, slides, generator_at(Purpose.TREE, state.root, state.epoch))
            processes.broadcast_model(model)
            model.queue.forget()
        save()
    bar.close()
    model.tree.prototypes.requires_grad_(True)
    model.cpu().eval()
    if not state.finished:
        with torch.no_grad():
            model.tree.prototypes.copy_(normalize(model.tree.prototypes, dim=1))
        state.finished = True
        save()
    if processes.rank == 0:
        warn_if_collapsed(state.history, config)
    return _table(state.history)


def _table(history: list[EpochMetrics]) -> pd.DataFrame:
    return pd.DataFrame(history).rename_axis("epoch")


def _rate(step: int, n_steps: int) -> float:
    """Factor of the learning rate: linear rise over a twentieth of the steps, then cosine decay to a hundredth."""
    rise = max(1, n_steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, n_steps - rise))))


def _stalled(history: list[EpochMetrics], patience: int) -> bool:
    """Return True if the last `patience` epochs of the present stage brought no progress."""
    losses = [float(row["loss"]) for row in history if row["stage"] == history[-1]["stage"]]
    if len(losses) <= patience:
        return False
    return min(losses[-patience:]) > (1 - MIN_PROGRESS) * min(losses[:-patience])
