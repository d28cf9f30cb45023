"""Presets of technologies: layout of the measurements and unit of the coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layout = Literal["cells", "hexagonal", "square", "spots"]
Mode = Literal["radius", "hops"]


@dataclass(frozen=True)
class Platform:
    """Presets of one technology; arguments of `build_graph` have precedence."""

    layout: Layout | None = None
    """Cells at free positions, a grid, or spots of an irregular array; ``None``: recognised from the coordinates."""
    pitch: tuple[float, ...] = ()
    """Distances between neighbouring spots of a grid that are sold, µm, the usual one first."""
    pixel: float | None = None
    """µm per pixel of the images, tried if the coordinates cannot be µm."""
    unit: float = 1.0
    """µm per unit of the coordinates in the output of the instrument."""


PLATFORMS: dict[str, Platform] = {
    "xenium": Platform("cells", pixel=0.2125),
    "merscope": Platform("cells", pixel=0.108),
    "merfish": Platform("cells"),
    "cosmx": Platform("cells", pixel=0.12028),
    "starmap": Platform("cells"),
    "osmfish": Platform("cells"),
    "seqfish": Platform("cells", pixel=0.103),
    "verafish": Platform("cells"),
    "slide_seq": Platform("cells"),
    # Unit is a square of 0.5 µm; squares are binned (a grid) or summed over segmented cells (free positions).
    "stereo_seq": Platform(unit=0.5),
    "visium": Platform("hexagonal", pitch=(100.0,)),
    "visium_hd": Platform("square", pitch=(8.0, 16.0, 2.0)),
    # Printed spots, 1,000 (200 µm apart) or 2,000 (150 or 200 µm) an array.
    "spatial_transcriptomics": Platform("spots", pitch=(200.0, 100.0, 150.0)),
}
ALIASES = {"st": "spatialtranscriptomics"}

# (mode, local, view) by layout. Cells: 25 and 50 µm as in the paper. Visium and other spots: hops, as these are 100 µm
# apart and more. Square bins: hops that correspond to these distances along the axes, whatever the bin.
NEIGHBOURHOODS: dict[Layout, tuple[Mode, float, float]] = {
    "cells": ("radius", 25.0, 50.0),
    "hexagonal": ("hops", 1, 2),
    "spots": ("hops", 1, 2),
}
# Reach of the local neighbourhood and of the view ring on square bins, µm: 2 and 3 hops on bins of 8 µm.
BIN_REACH, BIN_VIEW = 16.0, 24.0
# Size below which bins are fine, and bandwidth of weights on these (that of bins of 8 µm), µm.
FINE_BINS, BIN_SIGMA = 4.0, 8.0
# Most hops on bins: 17 x 17 of them, 289 pairs for each.
MAX_BIN_HOPS = 8
# (local, view) if the mode asked for is not the preset of the layout.
MODE_DEFAULTS: dict[Mode, tuple[float, float]] = {"radius": (25.0, 50.0), "hops": (2, 2)}
# Neighbours on a regular grid; on other layouts edges are those of the Delaunay graph.
GRID_NEIGHBOURS: dict[Layout, int] = {"hexagonal": 6, "square": 8}


def neighbourhoods(layout: Layout, pitch: float) -> tuple[Mode, float, float]:
    """Mode, local and view size of a layout; `pitch` is the distance of neighbours, µm."""
    if layout != "square":
        return NEIGHBOURHOODS[layout]
    local = min(max(round(BIN_REACH / pitch), 1), MAX_BIN_HOPS)
    return "hops", local, max(local + 1, min(round(BIN_VIEW / pitch), MAX_BIN_HOPS + 4))


def find_platform(technology: str | None) -> Platform:
    """Look up a technology by name (a ValueError if unknown); case, spaces, ``-`` and ``_`` are ignored."""
    if technology is None:
        return Platform()
    if not isinstance(technology, str):
        raise TypeError(f"`technology` must be a string, got {type(technology).__name__}.")
    plain = {name.replace("_", ""): platform for name, platform in PLATFORMS.items()}
    key = "".join(character for character in technology.casefold() if character.isalnum())
    key = ALIASES.get(key, key)
    if key not in plain:
        raise ValueError(
            f"Unknown `technology` {technology!r}. Valid names: {', '.join(PLATFORMS)}. "
            "Leave it out to let the coordinates decide."
        )
    return plain[key]
