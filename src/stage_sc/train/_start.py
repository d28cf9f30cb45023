"""Where the network and the tree start."""

from __future__ import annotations

import numpy as np
import torch

from stage_sc.data._slide import Slide
from stage_sc.data._window import load_window, sample
from stage_sc.model._augment import Panel
from stage_sc.model._stage import Stage
from stage_sc.train._encode import Encoded, calibrate, encode_slide
from stage_sc.train._prior import kmeans_leaves

# Of slides on disk so many cells are looked at, of all of them together.
MAX_CELLS = 200_000


@torch.no_grad()
def set_start(model: Stage, slides: list[Slide]) -> None:
    """Give the embeddings their constant component, and the decoder the least-squares fit to what it shall predict."""
    config = model.config
    if config.lift:
        model.set_vectors(torch.cat([model.basis[:, :-1], torch.zeros(len(model.genes), 1)], dim=1))
    encoded = _encode(model, slides)
    if config.lift:
        constant = config.lift * encoded.pooled.square().sum(dim=1).mean().sqrt()
        model.encoder.project.bias[-1] = constant
        encoded.pooled[:, -1] += constant
    inputs = torch.cat([encoded.h, torch.ones(len(encoded.pooled), 1)], dim=1).double()
    gram = inputs.T @ inputs + 1e-4 * len(inputs) * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(gram, inputs.T @ encoded.content.double()).float()
    model.decoder.weight.copy_(solution[:-1].T)
    model.decoder.bias.copy_(solution[-1])


@torch.no_grad()
def grow_tree(model: Stage, slides: list[Slide], rng: np.random.Generator) -> None:
    """Set the tree from the embeddings as they are: K-means leaves, agglomerated parents (appendix G.4)."""
    device = model.tree.parent.device
    encoded = _encode(model.cpu(), slides)
    leaves, leaf = kmeans_leaves(encoded.h, model.config.levels[-1], rng)
    model.tree.grow(leaves, leaf, encoded.content, model.config.linkage)
    model.to(device)


@torch.no_grad()
def calibrate_slides(model: Stage, slides: list[Slide]) -> list[Panel]:
    """Genes of every slide with its whitening, on the CPU; of those on disk it follows from a sample."""
    return [calibrate(model, *_seen(model, slide, slides)).to("cpu") for slide in slides]


def encode_slides(model: Stage, slides: list[Slide]) -> list[Encoded]:
    """Encode all cells of slides in memory, and a sample of those on disk."""
    encoded = []
    for slide in slides:
        window, cells = _seen(model, slide, slides)
        panel = calibrate(model, window, cells) if slide.stored else None
        found = encode_slide(model, window, panel)
        encoded.append(Encoded(*(part[cells] for part in found)))
    return encoded


def _encode(model: Stage, slides: list[Slide]) -> Encoded:
    return Encoded(*(torch.cat(parts) for parts in zip(*encode_slides(model, slides), strict=True)))


def _seen(model: Stage, slide: Slide, slides: list[Slide]) -> tuple[Slide, torch.Tensor | slice]:
    """Slide in memory, and which of its cells are looked at."""
    if not slide.stored:
        return slide, slice(None)
    size = MAX_CELLS // sum(one.stored for one in slides)
    cells = around = sample(slide, size)
    for _ in range(model.config.smoothing):
        around = np.unique(slide.graph[around].indices)
    window, position = load_window(slide, around, model.config.n_layers, rings=False)
    return window, torch.from_numpy(position[np.searchsorted(around, cells)])
