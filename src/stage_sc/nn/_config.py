"""All parameters that decide labels, in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from stage_sc._checks import check_choice, check_positive

CHOICES = {
    "scaling": ("none", "center", "standardize"),
    "swav_levels": ("leaves", "all"),
    "linkage": ("context", "cosine"),
    "selection": ("prototype", "slide"),
    "assignment": ("path", "top-down"),
}
POSITIVE_INTEGERS = (
    *("dim", "n_heads", "context_hops", "axes_cells", "sinkhorn_iterations", "queue_length", "queue_rank"),
    *("batch_size", "slides_per_batch", "settle_cells", "domain_cells", "domain_starts", "domain_refined"),
)
# These may be 0 too.
INTEGERS = ("n_layers", "epochs", "warmup_epochs", "smoothing")
POSITIVE = ("temperature", "epsilon", "learning_rate", "noise_rate")
# These may be 0 too.
WEIGHTS = (
    *("swav_weight", "reconstruction_weight", "path_weight", "constant_component", "noise_scale", "persistence"),
    *("min_sd", "whitening_ridge", "prior_weight"),
)
FRACTIONS = ("panel_fraction", "min_fraction", "selection_threshold", "domain_shrinkage")


@dataclass(frozen=True)
class StageConfig:
    """All parameters that decide labels: network, context, tree, losses, schedule, domains.

    Defaults are the paper's (its Table 2) where no other value was measured to be better; `paper` gives the variant as
    it is printed. The method page of the documentation lists every difference.
    """

    dim: int = 32
    """Length of gene vectors, embeddings and prototypes."""
    n_layers: int = 2
    """Number of attention layers, without residual connections. Each extends the receptive field of an embedding by one
    hop beyond the local neighbourhood."""
    n_heads: int = 4
    """Number of attention heads of a layer; must divide `dim`."""
    constant_component: float = 1.0
    """Constant component of embeddings before they are scaled to length 1, in units of their initial root mean square.
    With 0, cells near the average of a slide would be separated by noise alone."""
    scaling: Literal["none", "center", "standardize"] = "standardize"
    """Scaling of log-normalised expression per slide and gene: none, minus the mean, or z-scores."""
    min_sd: float = 1e-3
    """Lower bound of the standard deviation in z-scores."""
    context_hops: int = 6
    """Number of hops over which embedded cells are averaged to give the context of a cell."""
    axes_cells: int = 5000
    """Maximum number of cells from which the principal axes of a slide are computed."""
    whiten: bool = True
    """Whiten embedded cells on each slide, which makes slides of any panel and platform comparable. The map depends on
    the initial gene vectors, and is the same in training and inference."""
    whitening_ridge: float = 0.01
    """Ridge of the whitening, as a fraction of the mean variance."""
    persistence: float = 0.5
    """Exponent γ of the variance that persists over `context_hops`, see `stage_sc.nn.whitening`; 0: directions count
    equally."""
    levels: tuple[int, ...] = (8, 64, 512)
    """Number of prototypes of every level of the tree, from the coarsest to the leaves."""
    linkage: Literal["context", "cosine"] = "context"
    """Grouping of leaves: by the mean context of their cells, or by the angle between prototypes."""
    temperature: float = 0.1
    """Temperature τ of softmax over prototypes."""
    epsilon: float = 0.05
    """Entropic regularisation ε of the balanced assignment."""
    sinkhorn_iterations: int = 3
    """Number of iterations of the balanced assignment."""
    swav_levels: Literal["leaves", "all"] = "all"
    """Levels whose prototypes the swapped prediction uses."""
    swav_weight: float = 1.0
    """Weight of the swapped prediction; 0 leaves it out."""
    reconstruction_weight: float = 1.0
    """Weight of the prediction of a cell's context from its embedding; 0 leaves it out."""
    path_weight: float = 0.1
    """Weight λ of the hierarchical (path) loss in joint training."""
    panel_fraction: float = 0.8
    """Fraction γ of the panel in a view."""
    noise_rate: float = 8.0
    """Rate λ of the exponential background that is added to a gene in a view."""
    noise_scale: float = 0.05
    """Standard deviation σ of the factor that a gene is multiplied by in a view."""
    selection: Literal["prototype", "slide"] = "prototype"
    """A slide keeps a prototype if its weight is near that of the prototype's best slide, or of the slide's best
    prototype (equation 12)."""
    selection_threshold: float = 0.99
    """Threshold θ of that selection."""
    min_fraction: float = 0.3
    """Minimum fraction of a level's prototypes that a slide keeps."""
    queue_length: int = 2
    """Number of batches of a slide from which its prototype weights are computed (T of equation 11)."""
    queue_rank: int = 3
    """Rank of the score that is the weight of a prototype in a batch."""
    learning_rate: float = 1e-4
    """Peak learning rate of Adam; linear rise over the first twentieth of the steps, then cosine decay to a
    hundredth."""
    batch_size: int = 256
    """Number of cells in a batch."""
    slides_per_batch: int = 1
    """Number of slides in a batch, with equal numbers of cells. With one slide per process, each process computes
    whole slides."""
    cells_per_slide: int | None = None
    """Maximum number of cells of a slide in an epoch, drawn anew each time, which limits the weight of large slides;
    ``None``: all."""
    cells_per_epoch: int | None = None
    """Maximum number of cells of all slides in an epoch; ``None``: all."""
    epochs: int = 60
    """Number of passes over the training cells; 0 gives an untrained network with a tree."""
    warmup_epochs: int = 33
    """Number of epochs, of these, with the local loss only and a fixed tree."""
    smoothing: int = 4
    """Number of hops over which the embeddings of a trained network are averaged before niches are assigned; 0: niches
    of single cells."""
    assignment: Literal["path", "top-down"] = "path"
    """Path of a cell: greatest sum of cosines over the levels (each level has half the weight of the one below), or the
    nearest child from node to node."""
    prior_weight: float = 0.04
    """Prior weight of a prototype when the tree settles, as a fraction of the cells."""
    settle_cells: int = 20_000
    """Approximate number of cells on which the tree settles."""
    domain_cells: int = 10_000
    """Approximate number of cells from which domains are found."""
    domain_starts: int = 99
    """Number of K-means runs."""
    domain_refined: int = 5
    """Number of K-means solutions refined by the criterion of the domains."""
    domain_shrinkage: float = 0.25
    """Shrinkage ρ of the covariance within domains towards a sphere: 1 is K-means, 0 a free covariance."""

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
        for name in POSITIVE_INTEGERS:
            check_positive(getattr(self, name), name, integer=True)
        for name in INTEGERS:
            if getattr(self, name) != 0:
                check_positive(getattr(self, name), name, integer=True)
        for name in ("cells_per_slide", "cells_per_epoch"):
            if getattr(self, name) is not None:
                check_positive(getattr(self, name), name, integer=True)
        for name in POSITIVE:
            check_positive(getattr(self, name), name)
        for name in WEIGHTS:
            if getattr(self, name) != 0:
                check_positive(getattr(self, name), name)
        for name in FRACTIONS:
            if getattr(self, name) != 0 or name != "domain_shrinkage":
                check_positive(getattr(self, name), name)
            if getattr(self, name) > 1:
                raise ValueError(f"`{name}` is a fraction and must be at most 1, got {getattr(self, name)!r}.")
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

        Log-normalised expression without scaling or whitening, no constant component, no reconstruction loss; a tree
        by cosine linkage, the local loss on leaves alone, prototypes selected by slide, top-down paths of single cells.
        """
        printed = {
            "scaling": "none",
            "constant_component": 0.0,
            "whiten": False,
            "linkage": "cosine",
            "swav_levels": "leaves",
            "reconstruction_weight": 0.0,
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
