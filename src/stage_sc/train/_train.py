"""The two-stage schedule (section 3.7 and algorithm 1 of the paper)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from stage_sc.data._batch import draw_partners, make_batch, slide_panel, to_device
from stage_sc.data._slide import Slide
from stage_sc.model._augment import View, draw_view
from stage_sc.model._config import StageConfig
from stage_sc.model._losses import anchor_loss, path_loss, swapped_loss
from stage_sc.model._stage import Batch, Stage
from stage_sc.train._encode import encode_slide
from stage_sc.train._health import Health, warn_if_collapsed
from stage_sc.train._prior import kmeans_leaves

logger = logging.getLogger("stage_sc.train")

# An epoch that lowers the loss by less than this share is no progress.
MIN_PROGRESS = 1e-3


def train(
    model: Stage,
    slides: list[Slide],
    rng: np.random.Generator,
    *,
    keep_tree: bool = False,
    patience: int | None = None,
    accelerator: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Train a model in place.

    Parameters
    ----------
    model
        With gene vectors set.
    slides
        Training slides, in the order of the model's slides.
    rng
        Source of all chance.
    keep_tree
        Go on with the network and the tree of the model, instead of growing a tree from the data at the start and again
        after the warm-up.
    patience
        End a stage after so many epochs without progress. ``None``: never.
    accelerator
        Where to compute, as lightning names it.
    progress
        Show a progress bar.

    Returns
    -------
    One row per epoch: ``stage`` ("warm-up" or "joint"), the losses, and the figures of `Health`.
    """
    config = model.config
    fabric = Fabric(accelerator=accelerator, devices=1)
    panels = [slide_panel(slide, model.vocabulary) for slide in slides]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    if not keep_tree:
        set_start(model, slides)
        grow_tree(model, slides, rng)
    content = [encode_slide(model, slide).content for slide in slides]
    model.to(fabric.device).train()
    optimizer: Any = fabric.setup_optimizers(torch.optim.Adam(model.parameters(), lr=config.learning_rate))
    n_cells = [min(slide.n_cells, config.cells_per_slide or slide.n_cells) for slide in slides]
    n_steps = config.epochs * sum(math.ceil(n / config.batch_size) for n in n_cells)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, n_steps))
    history: list[dict[str, float | str]] = []
    bar = tqdm(total=config.epochs, disable=not progress, unit="epoch", desc="STAGE")
    epoch = 0
    while epoch < config.epochs:
        joint = epoch >= config.warmup_epochs
        model.tree.prototypes.requires_grad_(joint)
        health = Health(config.levels[-1])
        for number, centres in _batches(slides, config, rng):
            slide, panel = slides[number], panels[number]
            batches, views = zip(
                *(
                    (
                        make_batch(slide, panel, config.n_layers, centres=cells, number=number),
                        _view(model, len(slide.genes), rng),
                    )
                    for cells in (centres, draw_partners(slide, centres, rng))
                ),
                strict=True,
            )
            losses, h, scores = step(model, batches, views, content[number][centres], generator, joint=joint)
            optimizer.zero_grad()
            fabric.backward(losses["loss"])
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            rate.step()
            if joint and config.m_step == "average":
                _average_step(model, h.detach(), scores)
            health.update(losses, h, scores[-1])
        figures = health.summary()
        history.append({"stage": "joint" if joint else "warm-up", **figures})
        bar.update()
        bar.set_postfix(loss=f"{figures['loss']:.3f}", leaves=figures["used"])
        epoch += 1
        if patience and _stalled(history, patience):
            epoch = config.warmup_epochs if not joint else config.epochs
        if not joint and epoch == config.warmup_epochs and not keep_tree:
            grow_tree(model, slides, rng)
            model.queue.forget()
    bar.close()
    model.tree.prototypes.requires_grad_(True)
    model.cpu().eval()
    with torch.no_grad():
        model.tree.prototypes.copy_(normalize(model.tree.prototypes, dim=1))
    if history:
        warn_if_collapsed(history[-1], config.levels[-1])
    return pd.DataFrame(history).rename_axis("epoch")


def step(
    model: Stage,
    batches: tuple[Batch, ...],
    views: tuple[View, ...],
    content: Tensor,
    generator: torch.Generator,
    *,
    joint: bool,
) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    """Losses of one batch: two views of neighbouring cells through the network, then through the tree.

    Returns
    -------
    Losses by name, their weighted sum as ``"loss"``; embeddings of the centres; their scores per level.
    """
    config, tree = model.config, model.tree
    device = tree.parent.device
    batches = tuple(to_device(batch, device) for batch in batches)
    number = batches[0].slide
    h_i, h_j = (model(batch, view.to(device)) for batch, view in zip(batches, views, strict=True))
    active = model.active(number)
    scores_i, scores_j = tree.scores(h_i, active), tree.scores(h_j, active)
    with torch.no_grad():
        model.queue.push(number, h_i @ normalize(tree.prototypes, dim=1).T, config.queue_rank)

    levels = range(len(tree.levels)) if config.swap_levels == "all" else [len(tree.levels) - 1]
    swapped = partial(
        swapped_loss,
        temperature=config.temperature,
        epsilon=config.epsilon,
        n_iterations=config.sinkhorn_iterations,
    )
    losses = {"swapped": torch.stack([swapped(scores_i[level], scores_j[level]) for level in levels]).mean()}
    total = losses["swapped"]
    if config.anchor_weight:
        losses["anchor"] = anchor_loss(model.decoder(h_i), content.to(device))
        total = total + config.anchor_weight * losses["anchor"]
    if joint and len(tree.levels) > 1:
        paths = tree.sample_paths(
            [scores.detach() for scores in scores_i],
            generator,
            epsilon=config.epsilon,
            n_iterations=config.sinkhorn_iterations,
        )
        siblings = [torch.ones_like(scores_i[0], dtype=torch.bool)]
        siblings += [tree.siblings(level, paths[:, level - 1]) for level in range(1, len(tree.levels))]
        losses["path"] = path_loss(scores_i, paths, siblings, temperature=config.temperature)
        total = total + config.global_weight * losses["path"]
    return {"loss": total, **losses}, h_i, [scores.detach() for scores in scores_i]


@torch.no_grad()
def set_start(model: Stage, slides: list[Slide]) -> None:
    """Give the embeddings their constant component, and the decoder the least-squares fit to what it shall predict."""
    config = model.config
    if config.lift:
        model.set_vectors(torch.cat([model.basis[:, :-1], torch.zeros(len(model.genes), 1)], dim=1))
        square, n = 0.0, 0
        for slide in slides:
            batch = make_batch(slide, slide_panel(slide, model.vocabulary), config.n_layers)
            pooled = model.encoder.pooled(model.content(batch), batch.neighbours)
            square, n = square + float(pooled.square().sum()), n + slide.n_cells
        model.encoder.project.bias[-1] = config.lift * (square / n) ** 0.5
    h, content = _encode_all(model, slides)
    inputs = torch.cat([h, torch.ones(len(h), 1)], dim=1).double()
    gram = inputs.T @ inputs + 1e-4 * len(h) * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(gram, inputs.T @ content.double()).float()
    model.decoder.weight.copy_(solution[:-1].T)
    model.decoder.bias.copy_(solution[-1])


@torch.no_grad()
def grow_tree(model: Stage, slides: list[Slide], rng: np.random.Generator) -> None:
    """Set the tree from the embeddings as they are: K-means leaves, agglomerated parents (appendix G.4)."""
    device = model.tree.parent.device
    h, content = _encode_all(model.cpu(), slides)
    leaves, leaf = kmeans_leaves(h, model.config.levels[-1], rng)
    model.tree.grow(leaves, leaf, content, model.config.linkage)
    model.to(device)


def _encode_all(model: Stage, slides: list[Slide]) -> tuple[Tensor, Tensor]:
    encoded = [encode_slide(model, slide) for slide in slides]
    return torch.cat([part.h for part in encoded]), torch.cat([part.content for part in encoded])


def _view(model: Stage, n_genes: int, rng: np.random.Generator) -> View:
    config = model.config
    return draw_view(
        n_genes,
        rng,
        panel_fraction=config.panel_fraction,
        noise_rate=config.noise_rate,
        noise_scale=config.noise_scale,
    )


def _batches(slides: list[Slide], config: StageConfig, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Deal the cells of an epoch into batches of one slide each, in random order."""
    batches = []
    for number, slide in enumerate(slides):
        cells = rng.permutation(slide.n_cells)[: config.cells_per_slide]
        batches += [(number, part) for part in np.array_split(cells, math.ceil(len(cells) / config.batch_size))]
    for position in rng.permutation(len(batches)):
        yield batches[position]


@torch.no_grad()
def _average_step(model: Stage, h: Tensor, scores: list[Tensor]) -> None:
    """M-step as a running average: every prototype moves towards the mean of the cells nearest to it."""
    tree = model.tree
    for level, level_scores in enumerate(scores):
        nodes = tree.nodes(level)
        nearest = level_scores.argmax(dim=1)
        count = torch.bincount(nearest, minlength=tree.levels[level]).to(h)
        mean = torch.zeros_like(tree.prototypes[nodes]).index_add_(0, nearest, h) / count.clamp(min=1)[:, None]
        rate = model.config.average_rate * (count > 0)[:, None]
        tree.prototypes[nodes] = normalize((1 - rate) * normalize(tree.prototypes[nodes], dim=1) + rate * mean, dim=1)


def _rate(step: int, n_steps: int) -> float:
    """Linear rise over the first twentieth of the steps, then a cosine down to a hundredth."""
    rise = max(1, n_steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, n_steps - rise))))


def _stalled(history: list[dict[str, float | str]], patience: int) -> bool:
    """Whether the last `patience` epochs of the present stage brought no progress."""
    losses = [float(row["loss"]) for row in history if row["stage"] == history[-1]["stage"]]
    if len(losses) <= patience:
        return False
    return min(losses[-patience:]) > (1 - MIN_PROGRESS) * min(losses[:-patience])
