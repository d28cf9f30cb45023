"""Every choice of the method in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from stage_sc._checks import check_choice, check_positive

CHOICES = {
    "scaling": ("none", "center", "standardize"),
    "swap_levels": ("leaves", "all"),
    "linkage": ("content", "cosine"),
    "selection": ("prototype", "slide"),
    "assignment": ("path", "top-down"),
}


@dataclass(frozen=True)
class StageConfig:
    """Choices of network, tree, losses and schedule.

    Defaults are the paper's (its Table 2) where no other value was measured to be better; `paper` gives the variant as
    it is printed. ``docs/method.md`` lists every difference.
    """

    dim: int = 32
    """Length of gene vectors, embeddings and prototypes."""
    n_layers: int = 2
    """Attention layers, without residual connections: untrained, each takes the mean over one hop more. An embedding
    sees this many hops beyond the local neighbourhood."""
    n_heads: int = 4
    """Attention heads of a layer, must divide `dim`."""
    lift: float = 1.0
    """Constant component that embeddings get before they are brought to length 1, in units of their root mean square
    at the start: with 0, cells near the average of a slide would be told apart by noise alone."""
    scaling: Literal["none", "center", "standardize"] = "standardize"
    """What is done to log-normalised expression per slide and gene: nothing, minus the mean, over the sd as well."""
    whiten: bool = True
    """Whether embedded cells are whitened on each slide, so that slides of any panel and platform are comparable. The
    map follows from the gene vectors as training began, and is the same in training and inference."""
    persistence: float = 0.5
    """How much more those directions count that persist over six hops (γ of ``docs/method.md``); 0: all equally."""
    levels: tuple[int, ...] = (8, 64, 512)
    """Number of prototypes of every level of the tree, from the root level to the leaves."""
    linkage: Literal["content", "cosine"] = "content"
    """How leaves are grouped: by the mean content around their cells (six hops), or by the angle between prototypes."""
    temperature: float = 0.1
    """Temperature τ of softmax over prototypes."""
    epsilon: float = 0.05
    """Entropic regularisation ε of the balanced assignment."""
    sinkhorn_iterations: int = 3
    """Iterations of the balanced assignment."""
    swap_levels: Literal["leaves", "all"] = "all"
    """Levels whose prototypes the swapped prediction uses."""
    swap_weight: float = 1.0
    """Weight of the swapped prediction; 0 leaves it out."""
    anchor_weight: float = 1.0
    """Weight of predicting the content around a cell (six hops) from its embedding; 0 leaves this head out."""
    global_weight: float = 0.1
    """Weight λ of the hierarchical loss in joint training."""
    panel_fraction: float = 0.8
    """Share γ of the panel that a view sees."""
    noise_rate: float = 8.0
    """Rate λ of the exponential background that is added to a gene in a view."""
    noise_scale: float = 0.05
    """Standard deviation σ of the factor that a gene is multiplied by in a view."""
    selection: Literal["prototype", "slide"] = "prototype"
    """A slide keeps a prototype if its weight is near that of the prototype's best slide, or of the slide's best
    prototype (equation 12)."""
    selection_threshold: float = 0.99
    """Threshold θ of that selection."""
    min_share: float = 0.3
    """Least share of a level's prototypes that a slide keeps."""
    queue_length: int = 2
    """Batches of a slide that its prototype weights remember (T of equation 11)."""
    queue_rank: int = 3
    """The weight of a prototype in a batch is its score with this rank."""
    learning_rate: float = 1e-4
    """Of Adam; it rises over the first twentieth of the steps and falls to a hundredth with a cosine."""
    batch_size: int = 256
    """Cells in a batch."""
    slides_per_batch: int = 1
    """Slides that share a batch equally. With as many as there are processes, each process works on a slide of
    its own."""
    cells_per_slide: int | None = None
    """Cells that an epoch takes from a slide at most, drawn anew each time, so that large slides do not rule; ``None``:
    all."""
    cells_per_epoch: int | None = None
    """Cells that an epoch takes of all slides at most; ``None``: as many as the slides give."""
    epochs: int = 60
    """Passes over the training cells; 0 leaves the network as it starts, with a tree."""
    warmup_epochs: int = 33
    """The first of them, with the local loss only and the tree as it is."""
    smoothing: int = 4
    """Hops over which the embeddings of a trained network are averaged before niches are read from them; 0: niches are
    those of each cell's own embedding."""
    assignment: Literal["path", "top-down"] = "path"
    """A cell's path is the one whose nodes are nearest all together (each level counts half of the one below), or leads
    to the nearest child from node to node."""

    def __post_init__(self) -> None:
        """Refuse values that no model can have."""
        if isinstance(self.levels, str) or not isinstance(self.levels, Iterable):
            raise TypeError(f"`levels` must be a sequence of integers, e.g. (8, 64, 512), got {self.levels!r}.")
        for level in self.levels:
            check_positive(level, "levels", integer=True)
        object.__setattr__(self, "levels", tuple(int(level) for level in self.levels))
        for name, choices in CHOICES.items():
            check_choice(getattr(self, name), name, choices)
        if not isinstance(self.whiten, bool):
            raise TypeError(f"`whiten` must be True or False, got {self.whiten!r}.")
        for name in (
            *("dim", "n_heads", "batch_size", "slides_per_batch", "queue_length", "queue_rank", "sinkhorn_iterations"),
        ):
            check_positive(getattr(self, name), name, integer=True)
        for name in ("n_layers", "epochs", "warmup_epochs", "smoothing"):
            if getattr(self, name) != 0:
                check_positive(getattr(self, name), name, integer=True)
        for name in ("cells_per_slide", "cells_per_epoch"):
            if getattr(self, name) is not None:
                check_positive(getattr(self, name), name, integer=True)
        for name in ("temperature", "epsilon", "learning_rate", "noise_rate"):
            check_positive(getattr(self, name), name)
        for name in ("swap_weight", "anchor_weight", "global_weight", "lift", "noise_scale", "persistence"):
            if getattr(self, name) != 0:
                check_positive(getattr(self, name), name)
        for name in ("panel_fraction", "min_share", "selection_threshold"):
            check_positive(getattr(self, name), name)
            if getattr(self, name) > 1:
                raise ValueError(f"`{name}` is a share and must be at most 1, got {getattr(self, name)!r}.")
        if self.epochs and self.warmup_epochs > self.epochs:
            raise ValueError(
                f"`warmup_epochs` must not be above `epochs`, got {self.warmup_epochs} and {self.epochs}: pass both."
            )
        if self.dim % self.n_heads:
            raise ValueError(f"`dim` must be a multiple of `n_heads`, got {self.dim} and {self.n_heads}.")
        if not self.levels:
            raise ValueError("`levels` needs at least one level.")
        for upper, lower in zip(self.levels, self.levels[1:], strict=False):
            if lower < 2 * upper:
                raise ValueError(f"Every prototype needs two children, but `levels` has {lower} below {upper}.")

    @classmethod
    def paper(cls, **changes: Any) -> StageConfig:
        """Return the variant as printed, with `changes`.

        Expression that is only log-normalised, without lift, whitening or anchor; a tree joined by cosine, the local
        loss on leaves alone, prototypes chosen by slide, and paths from the top down for single cells.
        """
        printed = {
            "scaling": "none",
            "lift": 0.0,
            "whiten": False,
            "linkage": "cosine",
            "swap_levels": "leaves",
            "anchor_weight": 0.0,
            "selection": "slide",
            "smoothing": 0,
            "assignment": "top-down",
        }
        return cls(**{**printed, **changes})

    def replace(self, **changes: Any) -> StageConfig:
        """Return a copy with other values."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return what a JSON file can hold."""
        return {**asdict(self), "levels": list(self.levels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageConfig:
        """Read what `to_dict` wrote.

        Raises
        ------
        ValueError
            If there are fields that this version does not know.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"Unknown fields {sorted(unknown)}: written by another version of stage_sc?")
        return cls(**values)
