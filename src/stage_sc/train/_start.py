"""Starting point of training: constant component and decoder, and a tree grown from the embeddings."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch.nn.functional import normalize

from stage_sc.embed import Encoded, calibrate, coexpression_vectors, encode_slide
from stage_sc.nn import Panel, SlideQueue, Stage, StageConfig
from stage_sc.slides import Slide, load_window, sample

# Approximate number of cells that are read of slides on disk, all together.
MAX_CELLS = 200_000
# Number of cells on which K-means runs.
KMEANS_CELLS = 50_000


def new_model(config: StageConfig, slides: list[Slide], rng: np.random.Generator, name: str, *, vectors: bool) -> Stage:
    """Untrained model, with gene vectors from coexpression unless a checkpoint has them."""
    genes = sorted({gene for slide in slides for gene in slide.genes})
    seed = int(rng.integers(2**62))
    model = Stage(config, genes, [slide.name for slide in slides], name, seed=seed)
    if vectors:
        model.set_vectors(torch.from_numpy(coexpression_vectors(slides, genes, config.dim, seed)))
    return model


def copy_model(start: Stage, config: StageConfig, slides: list[Slide], name: str) -> Stage:
    """Copy of a trained model, with a new queue for new slides."""
    model = Stage(config, start.genes, [slide.name for slide in slides], name)
    state = {key: value for key, value in start.state_dict().items() if not key.startswith("queue.")}
    model.load_state_dict(state, strict=False)
    model.queue = SlideQueue(len(slides), model.tree.n_nodes, config.queue_length)
    return model


@torch.no_grad()
def initialize_network(model: Stage, slides: list[Slide]) -> None:
    """Give the embeddings their constant component, and the decoder the least-squares fit to what it shall predict."""
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
    """Set the tree from the embeddings as they are: K-means leaves, agglomerated parents (appendix G.4)."""
    device = model.tree.parent.device
    encoded = _encode(model.cpu(), slides)
    leaves, leaf = cluster_leaves(encoded.h, model.config.levels[-1], rng)
    model.tree.grow(leaves, leaf, encoded.context, model.config.linkage)
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
    window, position = load_window(slide, around, model.config.n_layers, model.config.context_hops, rings=False)
    return window, torch.from_numpy(position[np.searchsorted(around, cells)])


def cluster_leaves(h: torch.Tensor, n_leaves: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster embeddings into leaves.

    Parameters
    ----------
    h
        ``(n, dim)`` embeddings of length 1.
    n_leaves
        Number of clusters.
    rng
        Source of chance.

    Returns
    -------
    ``(n_leaves, dim)`` directions of the centres, and ``(n,)`` int64 the nearest of them for every cell.
    """
    sample = h.numpy()
    if len(sample) > KMEANS_CELLS:
        sample = sample[rng.choice(len(sample), KMEANS_CELLS, replace=False)]
    seed = int(rng.integers(2**31))
    centres = KMeans(n_leaves, n_init=1, random_state=seed, max_iter=50).fit(sample).cluster_centers_
    leaves = normalize(torch.from_numpy(centres.astype(np.float32)), dim=1)
    return leaves, (h @ leaves.T).argmax(dim=1)
