"""One training step: a batch through the network, its losses, its gradients (inner loops of algorithm 1)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.embed import ContextCache
from stage_sc.nn import Batch, Panel, Stage, View, draw_view, path_loss, reconstruction_loss, swav_loss
from stage_sc.slides import make_batch, sample_partners, to_device
from stage_sc.train._epoch import GlobalBatch, Part
from stage_sc.train._processes import Processes
from stage_sc.train._random import Purpose, generator_at


class Pairs(NamedTuple):
    """Cells and their partners, each in a view of its own: the B rows of all processes."""

    h_i: Tensor
    """``(B, dim)`` embeddings of the cells."""
    h_j: Tensor
    """``(B, dim)`` embeddings of their partners."""
    context: Tensor | None
    """``(B, dim)`` contexts of the cells, where they are reconstructed."""
    slides: Tensor
    """``(B,)`` int64 number of the slide."""


def embed_pairs(
    model: Stage,
    batch: GlobalBatch,
    panels: list[Panel],
    place: tuple[int, ...],
    processes: Processes,
    contexts: ContextCache,
) -> Pairs:
    """Embed the cells of a batch and their partners.

    Every process embeds its own rows and gets those of the others. What follows is little work, and each process does
    it for the whole batch: balanced assignment, losses and statistics are those of a process that is alone.

    Parameters
    ----------
    model
        On its device.
    batch
        From `stage_sc.data`.
    panels
        Genes of every slide.
    place
        Root seed, epoch and step, which all chance comes from.
    processes
        Those that share the batch.
    contexts
        Contexts of the cells.
    """
    config, device = model.config, model.tree.parent.device
    h_i, h_j, context = (torch.zeros(batch.size, config.dim, device=device) for _ in range(3))
    slides = torch.zeros(batch.size, dtype=torch.int64, device=device)
    draws = generator_at(Purpose.PARTNERS, *place).random(batch.size)
    for part in batch.parts:
        rows, panel, rng = part.rows, panels[part.number], generator_at(Purpose.VIEWS, *place, part.number)
        partners = sample_partners(part.slide, part.centres, draws[rows])
        one, view_i = _seen(model, part, part.centres, panel, rng)
        other, view_j = _seen(model, part, partners, panel, rng)
        h_i[rows], h_j[rows], slides[rows] = model(one, view_i), model(other, view_j), part.number
        if config.reconstruction_weight:
            context[rows] = contexts.of(model, part.slide, panel)[part.centres].to(device)
    return Pairs(
        processes.all_gather(h_i),
        processes.all_gather(h_j),
        processes.all_gather(context) if config.reconstruction_weight else None,
        processes.all_gather(slides),
    )


def _seen(model: Stage, part: Part, cells: np.ndarray, panel: Panel, rng: np.random.Generator) -> tuple[Batch, View]:
    """Put some cells of a slide together, and draw a view of them."""
    config, device = model.config, model.tree.parent.device
    batch = make_batch(part.slide, panel, config.n_layers, centres=cells, number=part.number)
    view = draw_view(
        len(panel.genes),
        rng,
        panel_fraction=config.panel_fraction,
        noise_rate=config.noise_rate,
        noise_scale=config.noise_scale,
    )
    return to_device(batch, device), view.to(device)


def pair_losses(
    model: Stage, pairs: Pairs, place: tuple[int, ...], *, joint: bool
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses of one batch, and its slides remember which prototypes they used.

    Parameters
    ----------
    model
        On its device.
    pairs
        From `embed_pairs`.
    place
        Root seed, epoch and step.
    joint
        With the path loss.

    Returns
    -------
    Losses by name, their weighted sum as ``"loss"``; and for every level, the ``(B, K_l)`` scores of the cells.
    """
    config, tree = model.config, model.tree
    active = model.active(pairs.slides)
    scores_i, scores_j = tree.scores(pairs.h_i, active), tree.scores(pairs.h_j, active)
    with torch.no_grad():
        cosine = pairs.h_i @ normalize(tree.prototypes, dim=1).T
        model.queue.push(pairs.slides, cosine, config.queue_rank)

    epsilon, n_iterations, temperature = config.epsilon, config.sinkhorn_iterations, config.temperature
    swav = partial(swav_loss, temperature=temperature, epsilon=epsilon, n_iterations=n_iterations)
    levels = range(len(tree.levels)) if config.swav_levels == "all" else [len(tree.levels) - 1]
    losses = {"swav": torch.stack([swav(scores_i[level], scores_j[level]) for level in levels]).mean()}
    total = config.swav_weight * losses["swav"]
    if pairs.context is not None:
        losses["reconstruction"] = reconstruction_loss(model.decoder(pairs.h_i), pairs.context)
        total = total + config.reconstruction_weight * losses["reconstruction"]
    scores = [level.detach() for level in scores_i]
    if joint and len(tree.levels) > 1:
        draws = generator_at(Purpose.PATHS, *place).random((len(pairs.slides), len(tree.levels)), dtype=np.float32)
        uniform = torch.from_numpy(draws).to(active.device)
        paths = tree.sample_paths(scores, uniform, epsilon=epsilon, n_iterations=n_iterations)
        siblings = [torch.ones_like(scores[0], dtype=torch.bool)]
        siblings += [tree.siblings(level, paths[:, level - 1]) for level in range(1, len(tree.levels))]
        losses["path"] = path_loss(scores_i, paths, siblings, temperature=temperature)
        total = total + config.path_weight * losses["path"]
    return {"loss": total, **losses}, scores


def set_gradients(model: Stage, loss: Tensor, processes: Processes) -> None:
    """Set the gradients of the whole batch, on every process.

    Each has run its own rows through embedder and encoder, whose gradients are added up, and all rows through decoder
    and tree, whose gradients are those of process 0.
    """
    model.zero_grad()
    if loss.requires_grad:
        loss.backward()
    if processes.n == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if processes.rank:
        model.decoder.zero_grad()
        model.tree.zero_grad()
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    total = processes.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
    for parameter, gradient in zip(parameters, total.split([one.numel() for one in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)
