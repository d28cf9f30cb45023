"""One training step: embeddings of pairs, losses, gradients (inner loops of algorithm 1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stage_sc.embed import ContextCache
from stage_sc.nn import Panel, Stage, draw_view, path_loss, reconstruction_loss, swav_loss
from stage_sc.slides import make_batch, sample_partners, to_device
from stage_sc.train._epoch import GlobalBatch, Part
from stage_sc.train._processes import Processes
from stage_sc.train._random import Purpose, generator_at


class Pairs(NamedTuple):
    """Embedded pairs (i, j) of equation 4, the B rows of all processes."""

    h_i: Tensor
    """``(B, dim)`` embeddings of the cells."""
    h_j: Tensor
    """``(B, dim)`` embeddings of their partners."""
    context: Tensor | None
    """``(B, dim)`` contexts of the cells; ``None`` without reconstruction."""
    slides: Tensor
    """``(B,)`` int64 number of the slide."""


def embed_pairs(
    model: Stage,
    batch: GlobalBatch,
    panels: list[Panel],
    key: tuple[int, ...],
    processes: Processes,
    contexts: ContextCache,
) -> Pairs:
    """Embed the cells of a batch and their partners, each in a view of its own (algorithm 1, lines 5 and 6).

    Every process embeds its own rows and receives the others. The rest of a step is little work, and each process does
    it for the whole batch: assignment, losses and metrics are those of a single process. `panels` are those of all
    slides; `key` is root seed, epoch and step, which determine all random numbers.
    """
    config, device = model.config, model.tree.parent.device
    h_i, h_j, context = (torch.zeros(batch.size, config.dim, device=device) for _ in range(3))
    slides = torch.zeros(batch.size, dtype=torch.int64, device=device)
    draws = generator_at(Purpose.PARTNERS, *key).random(batch.size)
    for part in batch.parts:
        rows, panel, rng = part.rows, panels[part.number], generator_at(Purpose.VIEWS, *key, part.number)
        partners = sample_partners(part.slide, part.centres, draws[rows])
        h_i[rows] = _embed_view(model, part, part.centres, panel, rng)
        h_j[rows] = _embed_view(model, part, partners, panel, rng)
        slides[rows] = part.number
        if config.reconstruction_weight:
            context[rows] = contexts.of(model, part.slide, panel)[part.centres].to(device)
    h_i, h_j, slides = (processes.all_gather(rows) for rows in (h_i, h_j, slides))
    return Pairs(h_i, h_j, processes.all_gather(context) if config.reconstruction_weight else None, slides)


def _embed_view(model: Stage, part: Part, cells: np.ndarray, panel: Panel, rng: np.random.Generator) -> Tensor:
    """Embed cells of a slide in a random view."""
    config, device, n_genes = model.config, model.tree.parent.device, len(panel.genes)
    batch = make_batch(part.slide, panel, config.n_layers, centres=cells, number=part.number)
    view = draw_view(
        n_genes, rng, panel_fraction=config.panel_fraction, noise_rate=config.noise_rate, noise_scale=config.noise_scale
    )
    return model(to_device(batch, device), view.to(device))


def pair_losses(
    model: Stage, pairs: Pairs, key: tuple[int, ...], *, joint: bool
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses of a batch (algorithm 1, lines 7, 8, 15 and 16), which is added to the queue of its slides.

    `joint` adds the path loss. Returned are the losses by name, their weighted sum as ``"loss"``, and for every level
    the ``(B, K_l)`` scores of the cells.
    """
    config, tree = model.config, model.tree
    transport: dict[str, Any] = {"epsilon": config.epsilon, "n_iterations": config.sinkhorn_iterations}
    active = model.active(pairs.slides)  # equation 12
    scores_i, scores_j = tree.scores(pairs.h_i, active), tree.scores(pairs.h_j, active)
    with torch.no_grad():
        model.queue.push(pairs.slides, torch.cat(tree.scores(pairs.h_i), dim=1), config.queue_rank)  # equation 11

    levels = range(len(tree.levels)) if config.swav_levels == "all" else [-1]
    swav = [swav_loss(scores_i[k], scores_j[k], temperature=config.temperature, **transport) for k in levels]
    losses = {"swav": torch.stack(swav).mean()}  # equation 4
    total = config.swav_weight * losses["swav"]
    if pairs.context is not None:
        losses["reconstruction"] = reconstruction_loss(model.decoder(pairs.h_i), pairs.context)
        total = total + config.reconstruction_weight * losses["reconstruction"]
    scores = [level.detach() for level in scores_i]
    if joint and len(tree.levels) > 1:
        draws = generator_at(Purpose.PATHS, *key).random((len(pairs.slides), len(tree.levels)), dtype=np.float32)
        paths = tree.sample_paths(scores, torch.from_numpy(draws).to(active.device), **transport)  # equations 6 to 8
        siblings = [torch.ones_like(scores[0], dtype=torch.bool)]
        siblings += [tree.siblings(level, paths[:, level - 1]) for level in range(1, len(tree.levels))]
        losses["path"] = path_loss(scores_i, paths, siblings, temperature=config.temperature)  # equation 10
        total = total + config.path_weight * losses["path"]  # equation 13
    return {"loss": total, **losses}, scores


def set_gradients(model: Stage, loss: Tensor, processes: Processes) -> None:
    """Set the gradients of the whole batch, in every process.

    Gradients of embedder and encoder, to which each process passed its own rows, are added up. Those of decoder and
    tree, which had all rows, are taken from process 0.
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
