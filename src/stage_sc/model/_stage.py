"""The network: embed cells, encode neighbourhoods, compare with the tree."""

from __future__ import annotations

from importlib.metadata import version as package_version
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from stage_sc.model._augment import Panel, View, clean_view
from stage_sc.model._config import StageConfig
from stage_sc.model._embedder import GeneEmbedder, embed_cells
from stage_sc.model._encoder import Encoder, Neighbours
from stage_sc.model._queue import SlideQueue
from stage_sc.model._sparse import Sparse
from stage_sc.model._tree import PrototypeTree


class Batch(NamedTuple):
    """Centres of one slide with everything that their embeddings depend on; a whole slide is a batch too."""

    slide: int
    """Number of the slide."""
    expression: Sparse
    """``(n, P)`` log-normalised expression of the centres and of all cells within reach."""
    panel: Panel
    """Genes of the slide and their scaling."""
    neighbours: Neighbours
    """Graph among the n cells, and the local neighbourhoods of the B centres."""


class Stage(nn.Module):
    """STAGE: gene embedder, graph attention encoder and prototype tree.

    Parameters
    ----------
    config
        Choices of the method.
    genes
        Vocabulary: tokens as `stage_sc.pp.match_genes` gives them.
    slides
        Names of the training slides.
    name
        Name of the model, written beside its labels.
    version
        Version of the package that the model was made with. ``None``: this one.
    seed
        Of the untrained weights. The state of torch's own generator is left as it is.
    """

    vocabulary: dict[str, int]
    """Position of every gene."""
    history: pd.DataFrame | None
    """Losses and health figures per epoch, of a model that was just trained."""
    basis: Tensor
    """``(G, dim)`` float32, gene vectors as training began."""

    def __init__(
        self,
        config: StageConfig,
        genes: list[str],
        slides: list[str],
        name: str = "custom",
        version: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.genes, self.slides, self.name = config, list(genes), list(slides), name
        self.vocabulary = {gene: position for position, gene in enumerate(genes)}
        self.version = version or package_version("stage-sc")
        self.history: pd.DataFrame | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedder = GeneEmbedder(len(genes), config.dim, config.embedder_norm)
            self.encoder = Encoder(config.dim, config.n_layers, config.n_heads)
            self.decoder = nn.Linear(config.dim, config.dim)
            self.tree = PrototypeTree(config.levels, config.dim)
        self.register_buffer("basis", self.embedder.vectors.detach().clone())
        self.queue = SlideQueue(len(slides), self.tree.n_nodes, config.queue_length)

    @torch.no_grad()
    def set_vectors(self, vectors: Tensor) -> None:
        """Start from these gene vectors, ``(G, dim)``."""
        self.embedder.vectors.copy_(vectors)
        self.basis.copy_(vectors)

    def forward(self, batch: Batch, view: View | None = None) -> Tensor:
        """Embed the neighbourhoods of the centres.

        Parameters
        ----------
        batch
            From `stage_sc.data`.
        view
            What augmentation does to the panel. ``None``: nothing, as in inference.

        Returns
        -------
        ``(B, dim)`` float32 with rows of length 1.
        """
        view = view or clean_view(len(batch.panel.genes)).to(self.tree.parent.device)
        cells = self.embedder(batch.expression, batch.panel, view)
        return self.encoder(cells, batch.neighbours)

    def content(self, batch: Batch) -> Tensor:
        """Embed all cells of a batch with the vectors that the genes started from, ``(n, dim)``.

        What leaves contain is compared in this fixed map, whatever training makes of the embeddings.
        """
        view = clean_view(len(batch.panel.genes)).to(self.basis.device)
        vectors = self.basis[batch.panel.genes]
        return embed_cells(batch.expression, batch.panel, view, vectors, self.config.embedder_norm)

    def active(self, slide: int) -> Tensor:
        """Prototypes of a training slide, ``(M,)`` bool."""
        config, tree = self.config, self.tree
        return self.queue.active(
            slide,
            [tree.nodes(level) for level in range(len(tree.levels))],
            tree.parent,
            rule=config.selection,
            threshold=config.selection_threshold,
            min_share=config.min_share,
        )
