"""The network: gene embedder, graph attention encoder, prototype tree."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from importlib.metadata import version as package_version
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from stage_sc._checks import check_name, read_seed
from stage_sc.nn._augment import Panel, View, clean_view
from stage_sc.nn._config import StageConfig
from stage_sc.nn._embedder import GeneEmbedder
from stage_sc.nn._encoder import Encoder, Neighbours
from stage_sc.nn._queue import SlideQueue
from stage_sc.nn._sparse import Sparse
from stage_sc.nn._tree import PrototypeTree

# Largest absolute value of a weight.
LARGEST = 1e9


class Batch(NamedTuple):
    """Centres of one slide with all cells of their receptive field; a whole slide is a batch too."""

    slide: int
    """Number of the slide."""
    expression: Sparse
    """``(n, P)`` log-normalised expression of the cells."""
    panel: Panel
    """Genes of the slide and their scaling."""
    neighbours: Neighbours
    """Graph among the n cells, and the local neighbourhoods of the B centres."""


class Stage(nn.Module):
    """STAGE: gene embedder, graph attention encoder and prototype tree.

    Parameters
    ----------
    config
        All choices of the method.
    genes
        Vocabulary: tokens as `stage_sc.pp.match_genes` gives them.
    slides
        Names of the training slides.
    name
        Name of the model, written with its labels.
    version
        Version of the package that made the model. ``None``: this one.
    seed
        Seed of the untrained weights, drawn from a generator of their own.
    """

    vocabulary: dict[str, int]
    """Position of every gene."""
    history: pd.DataFrame | None
    """Losses and health metrics per epoch, of a model that was just trained."""
    initial_vectors: Tensor
    """``(G, dim)`` float32, gene vectors at the start of training."""
    init_node: Tensor
    """``(M,)`` int64, for a model trained from another (`init`): the node of that model with most of a node's training
    cells; -1 without cells."""
    init_share: Tensor
    """``(M,)`` float32, the fraction of the node's cells in it."""

    def __init__(
        self,
        config: StageConfig,
        genes: list[str],
        slides: list[str],
        name: str = "custom",
        version: str | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(config, StageConfig):
            raise TypeError(f"`config` must be a stage_sc.model.StageConfig, got {type(config).__name__}.")
        for values, argument in ((genes, "genes"), (slides, "slides")):
            if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
                raise TypeError(f"`{argument}` must be a list of strings, got {values!r:.200}.")
        if not genes or len(set(genes)) < len(genes):
            raise ValueError("`genes` must be at least one name, and no name twice.")
        check_name(name, "name")
        if version is not None:
            check_name(version, "version")
        generator = torch.Generator().manual_seed(read_seed(seed, "seed"))
        super().__init__()
        self.config, self.genes, self.slides, self.name = config, list(genes), list(slides), name
        self.vocabulary = {gene: position for position, gene in enumerate(genes)}
        self.version = version or package_version("stage-sc")
        self.history = None
        self.embedder = GeneEmbedder(len(genes), config.dim, generator)
        self.encoder = Encoder(config.dim, config.n_layers, config.n_heads, generator)
        self.decoder = skip_init(nn.Linear, config.dim, config.dim)
        nn.init.kaiming_uniform_(self.decoder.weight, a=5**0.5, generator=generator)
        nn.init.uniform_(self.decoder.bias, -(config.dim**-0.5), config.dim**-0.5, generator=generator)
        self.tree = PrototypeTree(config.levels, config.dim, generator)
        self.register_buffer("initial_vectors", self.embedder.vectors.detach().clone())
        self.register_buffer("init_node", torch.full((self.tree.n_nodes,), -1, dtype=torch.int64))
        self.register_buffer("init_share", torch.zeros(self.tree.n_nodes))
        self.queue = SlideQueue(len(slides), self.tree.n_nodes, config.queue_length)

    def forward(self, batch: Batch, view: View | None = None) -> Tensor:
        """Embed the neighbourhoods of the centres, h = Encoder(embed(x, P)): ``(B, dim)`` float32 of length 1.

        `view` is an augmentation of the panel. ``None``: none, as in inference.
        """
        cells = self.embed(batch.expression, batch.panel, view)
        return self.encoder(cells, batch.neighbours)

    def embed(self, expression: Sparse, panel: Panel, view: View | None = None) -> Tensor:
        """Embed single cells, ``(n, dim)`` (equation 17)."""
        view = view or clean_view(len(panel.genes)).to(self.tree.parent.device)
        return self.embedder(expression, panel, view)

    def active(self, slides: Tensor) -> Tensor:
        """Prototypes of the training slide of every cell, ``(B, M)`` bool (equation 12); `slides` is ``(B,)`` int64."""
        config, tree = self.config, self.tree
        select = partial(
            self.queue.active,
            levels=[tree.nodes(level) for level in range(len(tree.levels))],
            parent=tree.parent,
            rule=config.selection,
            threshold=config.selection_threshold,
            min_fraction=config.min_fraction,
        )
        present, position = slides.unique(return_inverse=True)
        return torch.stack([select(slide) for slide in present.tolist()])[position]

    @torch.no_grad()
    def set_vectors(self, vectors: Tensor) -> None:
        """Set the initial gene vectors, ``(G, dim)``."""
        self.embedder.vectors.copy_(vectors)
        self.initial_vectors.copy_(vectors)

    @property
    def by_axes(self) -> bool:
        """Whether cells enter by the principal axes of their slide, turned onto the gene vectors of the model.

        True where the gene vectors leave components free, as common factors of several panels do. The vectors of a
        model of one panel are its principal axes and use all components: cells enter by these.
        """
        used = int((self.initial_vectors != 0).any(dim=0).sum()) + bool(self.config.constant_component)
        return self.config.whiten and used < min(self.config.dim, len(self.genes))

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify weights, vocabulary, slides and configuration."""
        header = {"config": self.config.to_dict(), "genes": self.genes, "slides": self.slides}
        return content_digest(header, self.state_dict())


def content_digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Digest of the ``config``, ``genes`` and ``slides`` of a header, and of named tensors."""
    content = {key: header[key] for key in ("config", "genes", "slides")}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().float().numpy()
        digest.update(f"{name} {values.shape}".encode())
        digest.update(values.astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def check_weights(tensors: dict[str, Tensor], config: StageConfig) -> None:
    """Raise a ValueError unless the state of a model can be used: finite weights, and a tree with all its nodes."""
    for name, values in tensors.items():
        whole = name in ("tree.parent", "init_node")
        if whole != (values.dtype == torch.int64) or not (whole or values.is_floating_point()):
            raise ValueError(f"`{name}` has the type {values.dtype}")
        if name == "queue.scores":  # infinite before the first batches
            usable = not torch.isnan(values).any()
        else:
            usable = not values.numel() or float(values.abs().max()) <= LARGEST  # false for NaN too
        if not usable:
            raise ValueError(f"`{name}` has values that are not finite, or above {LARGEST:g}")
    if not (tensors["tree.prototypes"].float().norm(dim=1) > 0).all():
        raise ValueError("`tree.prototypes` has prototypes of length 0")
    parent, start, above = tensors["tree.parent"], 0, torch.tensor([-1])
    for size in config.levels:
        found = parent[start : start + size]
        if not torch.equal(found.unique(), above):
            raise ValueError("`tree.parent` is no tree: a node has no child, or a parent of another level")
        above, start = torch.arange(start, start + size), start + size
