"""Unit, layout and neighbourhoods of one slide from its coordinates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from stage_sc._checks import check_choice, check_positive
from stage_sc._input import SlideCodes, about
from stage_sc.graph._platforms import MODE_DEFAULTS, NEIGHBOURHOODS, Layout, Mode, Platform, find_platform

logger = logging.getLogger("stage_sc.pp")

# Range of the median distance to the nearest cell that is taken as µm. Measured: 3.4-13.5 µm on sections of Xenium,
# CosMx, MERFISH, osmFISH and seqFISH+; from 33 pixels (Xenium, 0.2125 µm) to 150-175 pixels (STARmap).
MICRON_SPACING = (2.5, 30.0)
USUAL_SPACING = 10.0
# Range of this distance over all technologies, µm; outside of it a given scale must be wrong.
SANE_SPACING = (2.0, 200.0)
MIN_GRID_PLACES = 16


@dataclass(frozen=True)
class SlideSettings:
    """Parameters that determine the graph of one slide."""

    scale: float
    """µm per unit of the coordinates."""
    scale_given: bool
    """True if given by the user."""
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


def measure_spacing(places: np.ndarray) -> tuple[float, Layout]:
    """Median distance to the nearest place and layout of ``(n_places, 2)`` distinct places.

    On a grid the distance to the nearest place is constant (80 % within 5 % of the median; cells vary by 30 %), with or
    without holes. The next distance is 1.73 times as long on a hexagonal grid and 1.41 times on a square one.
    """
    tree = cKDTree(places)
    nearest = tree.query(places, 2)[0][:, 1]  # column 0 is the place itself
    spacing = float(np.median(nearest))
    if len(places) < MIN_GRID_PLACES or np.mean(np.abs(nearest - spacing) <= 0.05 * spacing) < 0.8:
        return spacing, "cells"
    distance = tree.query(places, 7)[0][:, 1:]
    steps = distance[distance < 1.6 * spacing] / spacing
    direct, diagonal = (np.mean(np.abs(steps - length) <= 0.05 * length) for length in (1, np.sqrt(2)))
    if direct > 0.95:
        return spacing, "hexagonal"
    return spacing, "square" if direct + diagonal > 0.95 else "cells"


def sorted_places(xy: np.ndarray) -> np.ndarray:
    """``np.unique(xy, axis=0)``, ten times as fast."""
    return np.unique(_as_complex(xy)).view(np.float64).reshape(-1, 2)


def distinct_places(xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``np.unique(xy, axis=0, return_inverse=True)``, five times as fast."""
    places, place = np.unique(_as_complex(xy), return_inverse=True)
    return places.view(np.float64).reshape(-1, 2), place


def _as_complex(xy: np.ndarray) -> np.ndarray:
    """Places as complex numbers, which numpy sorts by real, then imaginary part; -0.0 becomes 0.0."""
    return np.ascontiguousarray(xy + 0.0).view(np.complex128).ravel()


def resolve_settings(
    xy: np.ndarray,
    slides: SlideCodes,
    options: GraphOptions,
    scales: Sequence[float | None],
    names: Sequence[str] | None = None,
) -> list[SlideSettings]:
    """Choose unit, layout and neighbourhoods of every slide, and log guesses.

    `xy` is in the unit of the data, `scales` are µm per unit of each slide (``None``: inferred), and `names` those of
    the slides in messages. A ValueError if `local` and `view` of `options` do not fit the mode of a slide.
    """
    return [
        _resolve_slide(sorted_places(xy[cells]), options, scale, name)
        for cells, scale, name in zip(slides.rows().values(), scales, names or slides.names, strict=True)
    ]


def _resolve_slide(places: np.ndarray, options: GraphOptions, given: float | None, slide: str) -> SlideSettings:
    platform = find_platform(options.technology)
    spacing, measured = measure_spacing(places)
    layout = platform.layout or measured
    scale = _infer_scale(spacing, layout, platform, slide) if given is None else float(given)
    if given is not None and not SANE_SPACING[0] <= spacing * scale <= SANE_SPACING[1]:
        logger.warning(
            "%sthe median distance to the nearest cell is %.3g µm with scale=%.4g, outside %g-%g µm: `scale` should be "
            "the µm per unit of the coordinates.",
            *(about(slide), spacing * scale, scale, *SANE_SPACING),
        )
    mode, local, view = NEIGHBOURHOODS[layout]
    if options.mode is not None and options.mode != mode:
        mode = options.mode
        local, view = MODE_DEFAULTS[mode]
    if options.local is not None:  # `view` grows with it unless given
        local = options.local
        view = 2 * local if mode == "radius" else max(view, local)
    view = view if options.view is None else options.view
    if view < local or (mode == "radius" and view == local) or (mode == "hops" and (local % 1 or view % 1)):
        raise ValueError(
            f"{about(slide)}local={local:g} and view={view:g} do not fit mode={mode!r} on a {layout} layout: "
            f"`view` must reach farther than `local`, and hops are whole numbers. Pass `mode` too."
        )
    radius, local, view = float(options.radius), float(local), float(view)
    return SlideSettings(scale, given is not None, layout, mode, radius, local, view, options.sigma)


def _infer_scale(spacing: float, layout: Layout, platform: Platform, slide: str) -> float:
    """µm per unit from the median distance to the nearest cell."""
    pitches = platform.pitch or ((100.0,) if layout == "hexagonal" else ())
    if any(abs(spacing - pitch) <= 0.03 * pitch for pitch in pitches):
        return 1.0
    if pitches:
        scale = _rounded(pitches[0] / spacing)
        logger.warning(
            "%sa %s grid with a spacing of %.4g units, taken as %g µm: scale=%g. Pass `scale` if that is wrong.",
            *(about(slide), layout, spacing, pitches[0], scale),
        )
        return scale
    low, high = MICRON_SPACING if layout == "cells" else (SANE_SPACING[0] * 0.97, MICRON_SPACING[1])
    if platform.unit != 1.0:
        return platform.unit
    if low <= spacing <= high:
        return 1.0
    if platform.pixel is not None and low <= spacing * platform.pixel <= high:
        logger.info("%scoordinates look like pixels: scale=%g.", about(slide), platform.pixel)
        return platform.pixel
    scale = _rounded(USUAL_SPACING / spacing)
    logger.warning(
        "%sthe unit of the coordinates is unknown: the median distance to the nearest cell is %.3g units, cells lie "
        "%g-%g µm apart. Took scale=%g, which makes it %g µm. Pass `scale` (µm per unit) if you know it.",
        *(about(slide), spacing, low, high, scale, USUAL_SPACING),
    )
    return scale


def _rounded(scale: float) -> float:
    """Six significant digits, so that rotated coordinates give the same scale to the bit."""
    return float(f"{scale:.6g}")
