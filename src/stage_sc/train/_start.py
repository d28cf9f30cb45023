"""Starting point of training: gene vectors, constant component, decoder, and a tree grown from the embeddings."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.embed import Encoded, calibrate, coexpression_vectors, encode_slide, hops_within, window_hops
from stage_sc.nn import Panel, SlideQueue, Stage, StageConfig
from stage_sc.slides import Slide, load_window, sample

# Approximate number of cells sampled from all slides on disk.
MAX_CELLS = 200_000
# Maximum number of cells for K-means.
KMEANS_CELLS = 50_000


def new_model(config: StageConfig, slides: list[Slide], rng: np.random.Generator, name: str, *, vectors: bool) -> Stage:
    """Untrained model; `vectors`: with gene vectors from coexpression, which a training on disk does not need."""
    genes = sorted({gene for slide in slides for gene in slide.genes})
    seed = int(rng.integers(2**62))
    model = Stage(config, genes, [slide.name for slide in slides], name, seed=seed)
    if vectors:
        model.set_vectors(torch.from_numpy(coexpression_vectors(slides, genes, config.dim, seed)))
    return model


def copy_model(start: Stage, config: StageConfig, slides: list[Slide], name: str) -> Stage:
    """Copy of a trained model, with an empty queue for new slides."""
    model = Stage(config, start.genes, [slide.name for slide in slides], name)
    state = {key: value for key, value in start.state_dict().items() if not key.startswith("queue.")}
    model.load_state_dict(state, strict=False)
    model.queue = SlideQueue(len(slides), model.tree.n_nodes, config.queue_length)
    return model


@torch.no_grad()
def initialize_network(model: Stage, slides: list[Slide]) -> None:
    """Set the constant component of embeddings, and the decoder to the ridge regression of contexts on embeddings."""
    config = model.config
    if config.constant_component:
        model.set_vectors(torch.cat([model.initial_vectors[:, :-1], torch.zeros(len(model.genes), 1)], dim=1))
    encoded = _encode(model, slides)
    if config.constant_component:
        constant = config.constant_component * encoded.pooled.square().sum(dim=1).mean().sqrt()
        model.encoder.project.bias[-1] = constant
        encoded.pooled[:, -1] += constant
    inputs = torch.cat([encoded.h, torch.ones(len(encoded.pooled), 1)], dim=1).double()
    gram = inputs.T @ inputs + 1e-4 * len(inputs) * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(gram, inputs.T @ encoded.context.double()).float()
    model.decoder.weight.copy_(solution[:-1].T)
    model.decoder.bias.copy_(solution[-1])


@torch.no_grad()
def grow_tree(model: Stage, slides: list[Slide], rng: np.random.Generator) -> None:
    """Set the tree from the present embeddings: K-means leaves, then parents by linkage (appendix G.4)."""
    device = model.tree.parent.device
    encoded = _encode(model.cpu(), slides)
    leaves, leaf = cluster_leaves(encoded.h, model.config.levels[-1], rng)
    model.tree.grow(leaves, leaf, encoded.context, model.config.linkage)
    model.to(device)


def cluster_leaves(h: Tensor, n_leaves: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Spherical K-means of embeddings, ``(n, dim)`` of length 1.

    Returns the directions of the centres, ``(n_leaves, dim)``, and the nearest of them for every cell, ``(n,)`` int64.
    """
    cells = h.numpy()
    if len(cells) > KMEANS_CELLS:
        cells = cells[rng.choice(len(cells), KMEANS_CELLS, replace=False)]
    seed = int(rng.integers(2**31))
    centres = KMeans(n_leaves, n_init=1, random_state=seed, max_iter=50).fit(cells).cluster_centers_
    leaves = normalize(torch.from_numpy(centres.astype(np.float32)), dim=1)
    return leaves, (h @ leaves.T).argmax(dim=1)


@torch.no_grad()
def calibrate_slides(model: Stage, slides: list[Slide]) -> list[Panel]:
    """Panels of all slides with their spatial directions, on the CPU; for slides on disk from a sample."""
    return [calibrate(model, *_sampled(model, slide, slides)).to("cpu") for slide in slides]


def encode_slides(model: Stage, slides: list[Slide]) -> list[Encoded]:
    """Encode all cells of slides in memory, and a sample of slides on disk."""
    encoded = []
    for slide in slides:
        window, cells = _sampled(model, slide, slides)
        panel = calibrate(model, window, cells) if slide.stored else None
        pooled, context, niche = (part[cells] for part in encode_slide(model, window, panel)[:3])
        encoded.append(Encoded(pooled, context, niche))
    return encoded


def _encode(model: Stage, slides: list[Slide]) -> Encoded:
    parts = zip(*(one[:3] for one in encode_slides(model, slides)), strict=True)
    pooled, context, niche = map(torch.cat, parts)
    return Encoded(pooled, context, niche)


def _sampled(model: Stage, slide: Slide, slides: list[Slide]) -> tuple[Slide, Tensor | slice]:
    """Slide in memory and all its cells, or a window of a slide on disk and a sample of cells in it."""
    if not slide.stored:
        return slide, slice(None)
    cells = reached = sample(slide, MAX_CELLS // sum(one.stored for one in slides))
    for _ in range(hops_within(model.config.smoothing_reach, slide)):
        reached = np.unique(slide.graph[reached].indices)
    window, position = load_window(slide, reached, model.config.n_layers, window_hops(slide, model.config), rings=False)
    return window, torch.from_numpy(position[np.searchsorted(reached, cells)])
