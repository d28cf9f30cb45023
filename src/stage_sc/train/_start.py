"""Where the network and the tree start."""

from __future__ import annotations

import numpy as np
import torch

from stage_sc.data._slide import Slide
from stage_sc.data._window import load_window, sample
from stage_sc.model._stage import Stage
from stage_sc.train._encode import Encoded, encode_slide
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


def _encode(model: Stage, slides: list[Slide]) -> Encoded:
    """Encode all cells of slides in memory, and a sample of those on disk."""
    on_disk = sum(slide.stored for slide in slides)
    encoded = []
    for slide in slides:
        if slide.stored:
            window, centres = load_window(
                slide, sample(slide, MAX_CELLS // on_disk), model.config.n_layers, rings=False
            )
            encoded.append(Encoded(*(part[centres] for part in encode_slide(model, window))))
        else:
            encoded.append(encode_slide(model, slide))
    return Encoded(*(torch.cat(parts) for parts in zip(*encoded, strict=True)))
