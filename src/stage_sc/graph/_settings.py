"""Arguments of `build_graph`, and the parameters of the graph of one slide that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stage_sc._checks import check_choice, check_positive
from stage_sc.graph._platforms import MODE_DEFAULTS, Layout, Mode, find_platform

# Origin of a scale.
ScaleSource = Literal["given", "µm", "grid", "pixels", "guess"]


@dataclass(frozen=True)
class SlideSettings:
    """Parameters that determine the graph of one slide."""

    scale: float
    """µm per unit of the coordinates."""
    scale_source: ScaleSource
    """Given by the user; coordinates are taken as µm; from the pitch of a grid; from a pixel size; or guessed."""
    layout: Layout
    mode: Mode
    radius: float
    """Longest Delaunay edge, µm."""
    local: float
    """Size of the local neighbourhood, µm (mode "radius") or hops (mode "hops")."""
    view: float
    """Outer limit of the view ring, in the same unit."""
    sigma: float | None
    """Bandwidth of the Gaussian weights, µm; ``None``: median edge of the slide."""


@dataclass(frozen=True)
class GraphOptions:
    """Arguments of `build_graph` as given; ``None``: chosen from the data."""

    technology: str | None
    mode: Mode | None
    radius: float
    local: float | None
    view: float | None
    sigma: float | None

    def check(self) -> None:
        """Raise a TypeError or ValueError for an invalid argument."""
        find_platform(self.technology)
        check_positive(self.radius, "radius")
        if self.mode is not None:
            check_choice(self.mode, "mode", MODE_DEFAULTS)
        for name in ("local", "view", "sigma"):
            if getattr(self, name) is not None:
                check_positive(getattr(self, name), name, integer=self.mode == "hops" and name != "sigma")
        if self.local is not None and self.view is not None:
            if self.view < self.local or (self.mode == "radius" and self.view == self.local):
                raise ValueError(f"`view` must reach farther than `local`, got {self.view!r} and {self.local!r}.")
