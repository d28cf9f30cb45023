"""All parameters that decide labels, in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from stage_sc._checks import check_choice, check_positive

Modality: TypeAlias = Literal["rna", "protein"]
# Numbers must be above 0, these may be 0 too.
MAY_BE_ZERO = (
    *("n_layers", "epochs", "warmup_epochs", "swav_weight", "reconstruction_weight", "path_weight"),
    *("constant_component", "noise_scale", "power", "spot_power", "spot_edge", "null_margin", "min_sd", "prior_weight"),
    *("domain_shrinkage", "smoothing_reach"),
)
# At most 1.
FRACTIONS = ("panel_fraction", "min_fraction", "selection_threshold", "domain_shrinkage")
# Largest numbers; all others are at most 10⁹, so that sizes and products stay finite.
AT_MOST = {
    **dict.fromkeys(("test_reach", "context_reach", "domain_reach", "smoothing_reach"), 1e6),
    **{"n_layers": 100, "sinkhorn_iterations": 10_000, "dim": 10_000, "n_axes": 10_000},
    **{"domain_starts": 100_000, "domain_refined": 100_000, "levels": 10_000_000, "noise_rate": float("inf")},
}
# Smallest values of divisors.
AT_LEAST = {"temperature": 1e-6, "epsilon": 1e-6}


@dataclass(frozen=True)
class StageConfig:
    """All parameters that decide labels: network, context, tree, losses, schedule, domains.

    Defaults are those of the paper (Table 2) unless another value was measured to be better; `paper` gives the
    configuration as printed. The method page of the documentation lists all differences.
    """

    modality: Modality = "rna"
    """Counts of RNA, or intensities of proteins; a model of one refuses the other."""
    dim: int = 32
    """Length of gene vectors, embeddings and prototypes."""
    n_layers: int = 2
    """Number of attention layers, without residual connections. Each extends the receptive field of an embedding by one
    hop beyond the local neighbourhood."""
    n_heads: int = 4
    """Number of attention heads of a layer; must divide `dim`."""
    constant_component: float = 1.0
    """Constant component of embeddings before they are scaled to length 1, in units of their initial root mean square.
    With 0, noise alone would separate cells that are close to the average of a slide."""
    scaling: Literal["none", "center", "standardize"] = "standardize"
    """Scaling of log-normalised expression per slide and gene: none, minus the mean, or z-scores."""
    min_sd: float = 1e-3
    """Lower bound of the standard deviation in z-scores."""
    test_reach: float = 22.0
    """Distance in µm over which cells are averaged to test which directions vary in space beyond chance: as many hops
    of the graph as reach it by the median edge of the slide, at least two. The same for the other distances."""
    context_reach: float = 44.0
    """Distance in µm over which embedded cells are averaged to the context of a cell."""
    domain_reach: float = 77.0
    """Distance in µm over which embedded cells are averaged to the contexts from which domains are found."""
    smoothing_reach: float = 44.0
    """Distance in µm over which the embeddings of a trained network are averaged before niches are assigned; 0: niches
    of single cells."""
    spot_edge: float = 50.0
    """Median edge in µm from which a place is a spot of several cells."""
    n_axes: int = 50
    """Maximum number of principal axes of a slide from which these contexts are computed; `dim`, or one for eight cells
    if these are more."""
    axes_cells: int = 5000
    """Maximum number of cells from which the principal axes of a slide are computed."""
    whiten: bool = True
    """Embedded cells by the spatial directions of their slide, see `stage_sc.nn.spatial_directions`, which makes slides
    of any panel and platform comparable. They are computed from the initial gene vectors, or from the axes of the
    slide (`Stage.by_axes`), in training as in inference."""
    null_margin: float = 1.3
    """Factor on the noise floor (the largest eigenvalue of shuffled cells) that the first direction must exceed."""
    null_cells: int = 20_000
    """Number of shuffled cells, in as many shuffles as this takes (1 to 20)."""
    power: float = 1.0
    """Exponent of the variance of a direction in contexts, in units of its variance in cells; 0: all directions have
    equal weight."""
    spot_power: float = 0.5
    """The same for spots."""
    levels: tuple[int, ...] = (8, 64, 512)
    """Number of prototypes of every level of the tree, from the coarsest to the leaves."""
    linkage: Literal["context", "cosine"] = "context"
    """Grouping of leaves by the mean context of their cells, or by the angle between prototypes."""
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
    """Selection of prototypes per slide: by their weight relative to the prototype's best slide, or to the slide's best
    prototype (equation 12)."""
    selection_threshold: float = 0.99
    """Threshold θ of the selection."""
    min_fraction: float = 0.3
    """Minimum fraction of a level's prototypes that a slide keeps."""
    queue_length: int = 2
    """Number T of batches of a slide from which prototype weights are computed (equation 11)."""
    queue_rank: int = 3
    """Rank, among the cells of a batch, of the score that is a prototype's weight."""
    learning_rate: float = 1e-4
    """Peak learning rate of Adam; linear rise over the first twentieth of the steps, then cosine decay to a
    hundredth."""
    batch_size: int = 256
    """Number of cells in a batch."""
    slides_per_batch: int = 1
    """Number of slides in a batch, with equal numbers of cells. With a multiple of the number of
    processes, no slide is split between processes."""
    cells_per_slide: int | None = None
    """Maximum number of cells of a slide in an epoch, drawn anew in each; limits the weight of large slides; ``None``:
    all."""
    cells_per_epoch: int | None = None
    """Maximum number of cells of all slides in an epoch; ``None``: all."""
    epochs: int = 60
    """Number of passes over the training cells; 0: an untrained network with a tree."""
    warmup_epochs: int = 33
    """Number of these epochs with the local loss only and a fixed tree."""
    assignment: Literal["path", "top-down"] = "path"
    """Path of a cell: the greatest sum of cosines over the levels, or the nearest child from node to node."""
    prior_weight: float = 0.04
    """Prior weight of a prototype when the tree settles, as a fraction of the cells."""
    settle_cells: int = 20_000
    """Approximate number of cells on which the tree settles."""
    domain_cells: int = 10_000
    """Approximate number of cells from which domains are found."""
    domain_starts: int = 99
    """Number of K-means runs of the domains, divided among the parts of the sample."""
    domain_samples: int = 3
    """Number of random parts of the sample from which solutions are found, four fifths each; 1: the whole sample."""
    domain_refined: int = 2
    """Number of K-means solutions refined by the criterion of the domains, for every part and shrinkage."""
    domain_shrinkage: float = 0.25
    """Shrinkage ρ of the covariance within domains towards a sphere (1: K-means, 0: a free covariance); solutions are
    found for 0.4, 1, 2 and 4 times this value."""

    def __post_init__(self) -> None:
        """Raise for invalid values."""
        if isinstance(self.levels, str) or not isinstance(self.levels, Iterable):
            raise TypeError(f"`levels` must be a sequence of integers, e.g. (8, 64, 512), got {self.levels!r}.")
        for level in self.levels:
            check_positive(level, "levels", integer=True)
        object.__setattr__(self, "levels", tuple(int(level) for level in self.levels))
        for name, type_ in TYPES.items():
            value = getattr(self, name)
            if get_origin(type_) is Literal:
                check_choice(value, name, get_args(type_))
            elif type_ is bool and not isinstance(value, bool):
                raise TypeError(f"`{name}` must be True or False, got {value!r}.")
            elif type_ in (int, float):
                check_positive(value, name, integer=type_ is int, zero=name in MAY_BE_ZERO)
            elif type_ == int | None and value is not None:
                check_positive(value, name, integer=True)
            if name in FRACTIONS and value > 1:
                raise ValueError(f"`{name}` is a fraction and must be at most 1, got {value!r}.")
            for number in value if name == "levels" else (value,):
                largest = AT_MOST.get(name, 10**9)
                if isinstance(number, int | float) and not AT_LEAST.get(name, 0) <= number <= largest:
                    raise ValueError(f"`{name}` must be from {AT_LEAST.get(name, 0)} to {largest}, got {number!r}.")
        if self.epochs and self.warmup_epochs > self.epochs:
            raise ValueError(
                f"`warmup_epochs` must not be above `epochs`, got {self.warmup_epochs} and {self.epochs}: pass both."
            )
        if self.dim % self.n_heads:
            raise ValueError(f"`dim` must be a multiple of `n_heads`, got {self.dim} and {self.n_heads}.")
        if not self.levels:
            raise ValueError("`levels` needs at least one level.")
        for upper, lower in pairwise(self.levels):
            if lower < 2 * upper:
                raise ValueError(f"Every prototype needs two children, but `levels` has {lower} below {upper}.")

    @classmethod
    def paper(cls, **changes: Any) -> StageConfig:
        """Return the configuration as printed in the paper, with `changes`.

        Log-normalised expression without scaling or whitening, no constant component, no reconstruction loss; a tree by
        cosine linkage, the local loss on leaves only, prototypes selected by slide, top-down paths of single cells.
        """
        printed = {
            "scaling": "none",
            "constant_component": 0.0,
            "whiten": False,
            "linkage": "cosine",
            "swav_levels": "leaves",
            "reconstruction_weight": 0.0,
            "selection": "slide",
            "smoothing_reach": 0.0,
            "assignment": "top-down",
        }
        return cls(**{**printed, **changes})

    def replace(self, **changes: Any) -> StageConfig:
        """Return a copy with other values."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as types of JSON."""
        values = {**asdict(self), "levels": list(self.levels)}
        if self.modality == "rna":  # as in models from before there was another
            del values["modality"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageConfig:
        """Invert `to_dict`; a ValueError names fields that this version does not know."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"Unknown fields {sorted(unknown)}: written by another version of stage_sc?")
        return cls(**values)


TYPES = get_type_hints(StageConfig)
