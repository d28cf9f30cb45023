"""What is known about each technology: how its measurements lie in the plane, and what its unit is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layout = Literal["cells", "hexagonal", "square"]
Mode = Literal["radius", "hops"]


@dataclass(frozen=True)
class Platform:
    """Presets of one technology; `build_graph` arguments that the user gives win over them."""

    layout: Layout | None = None
    """Free positions, or the grid of the spots; ``None``: look at the coordinates."""
    pitch: tuple[float, ...] = ()
    """µm between neighbouring spots of the grid; several where the maker sells several, the usual one first."""
    pixel: float | None = None
    """µm per pixel of the instrument's images, tried when the coordinates cannot be µm."""
    unit: float = 1.0
    """µm per unit of the coordinates that the instrument's software writes."""


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
    # Squares of 0.5 µm, binned (a grid) or summed over segmented cells (free positions); always counted in squares.
    "stereo_seq": Platform(unit=0.5),
    "visium": Platform("hexagonal", pitch=(100.0,)),
    "visium_hd": Platform("square", pitch=(8.0, 16.0, 2.0)),
}

# Neighbourhoods by layout. Free positions: the paper's 25 and 50 µm. Grids: hops, because 25 µm holds no second Visium
# spot, and of square bins 2 hops of 8 µm are the paper's 25 µm (5 x 5 bins) and the third hop begins its ring.
NEIGHBOURHOODS: dict[Layout, tuple[Mode, float, float]] = {
    "cells": ("radius", 25.0, 50.0),
    "hexagonal": ("hops", 1, 2),
    "square": ("hops", 2, 3),
}
# (local, view) where the user asks for a mode that is not the preset of the layout.
MODE_DEFAULTS: dict[Mode, tuple[float, float]] = {"radius": (25.0, 50.0), "hops": (2, 2)}
GRID_NEIGHBOURS: dict[Layout, int] = {"hexagonal": 6, "square": 8}


def find_platform(technology: str | None) -> Platform:
    """Look a technology up by name; case, spaces, ``-`` and ``_`` do not matter.

    Raises
    ------
    TypeError
        If `technology` is not a string.
    ValueError
        If it is not known; the message lists the valid names.
    """
    if technology is None:
        return Platform()
    if not isinstance(technology, str):
        raise TypeError(f"`technology` must be a string, got {type(technology).__name__}.")
    plain = {name.replace("_", ""): platform for name, platform in PLATFORMS.items()}
    key = "".join(character for character in technology.casefold() if character.isalnum())
    if key not in plain:
        raise ValueError(
            f"Unknown `technology` {technology!r}. Valid names: {', '.join(PLATFORMS)}. "
            "Leave it out to let the coordinates decide."
        )
    return plain[key]
