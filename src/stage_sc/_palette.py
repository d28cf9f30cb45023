"""Colours of categories: by the tree for niches, as far apart as possible for other labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_hex, to_rgb

if TYPE_CHECKING:
    import pandas as pd

MISSING_COLOR = "#dcdcdc"

# OKLab to linear sRGB, in two steps: https://bottosson.github.io/posts/oklab
_LAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
# Linear sRGB as seen with red and with green blindness (Machado et al. 2009, severity 1).
_COLOUR_BLIND = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)


def children_of(tree: pd.DataFrame) -> dict[str, list[str]]:
    """Children of each node in the order of the table `tree` of a result; level 1 is under the empty name."""
    grouped = tree.groupby(tree["parent"].astype(str), sort=False)
    return {str(parent): [str(node) for node in nodes] for parent, nodes in grouped.groups.items()}


def tree_colors(tree: pd.DataFrame) -> dict[str, str]:
    """Colour of every node in depth-first order; a function of the tree alone.

    Niches of level 1 divide the hues of OKLCH, a space where equal steps look equal. A descendant has a hue in the
    sector of its level-1 niche; siblings lie far apart in lightness and in chroma, cousins interleave.
    """
    children = children_of(tree)
    roots = children.get("", [])
    # More than ten hues are hard to tell apart: neighbours then share a hue and split the range of lightness.
    bands = 1 if len(roots) <= 10 else 2 if len(roots) <= 24 else 3
    sectors = -(-len(roots) // bands)
    nodes, lightness, chroma, hue = [], [], [], []

    def place(node: str, band: tuple[float, float], start: float, width: float, shade: float, turn: int) -> None:
        """Colour `node`, then each child in its part of the sector with its own shade of the band."""
        low, high = band
        nodes.append(node)
        hue.append(start + width / 2)
        lightness.append(low + shade * (high - low))
        chroma.append((0.17, 0.095)[turn % 2])
        below = children.get(node, [])
        part = width / max(len(below), 1)
        for i, (child, step) in enumerate(zip(below, _far_apart(len(below)), strict=True)):
            place(child, band, start + i * part, part, (step + shade) / len(below), turn + int(step))

    edges = np.linspace(0.40, 0.88, bands + 1)
    for k, root in enumerate(roots):
        sector, band = divmod(k, bands)
        width = 360 / sectors
        place(root, (edges[band], edges[band + 1]), 10 + (sector + 0.08) * width, 0.84 * width, 0.5, 0)
        if bands == 1:  # yellow is a light hue and blue a dark one; hues side by side differ in lightness too
            at = nodes.index(root)
            lightness[at] = 0.66 + 0.09 * np.cos(np.deg2rad(hue[at] - 100)) + 0.04 * (-1) ** k
    rgb = _fit_gamut(np.array(lightness), np.array(chroma), np.array(hue))
    return dict(zip(nodes, (to_hex(color) for color in rgb), strict=True))


def distinct_colors(n: int) -> list[str]:
    """`n` colours by farthest-point sampling in OKLab, for normal and colour-blind vision; the first ignore `n`."""
    lightness, chroma, hue = (
        grid.ravel() for grid in np.meshgrid(np.linspace(0.45, 0.9, 10), [0.10, 0.14, 0.18], np.arange(0, 360, 9))
    )
    linear = _linear_rgb(lightness, chroma, hue)
    linear = linear[_in_gamut(linear)]
    taken = np.array([[1.0] * 3, [0.0] * 3, [0.71] * 3])  # white, black and the grey of missing labels
    views = _views(linear)
    nearest = np.min([_distance(views, _views(color[None])) for color in taken], axis=0)
    chosen: list[int] = []
    for _ in range(min(n, len(linear))):
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, _distance(views, views[:, chosen[-1:]]))
    rgb = _gamma(linear[chosen])
    return [to_hex(rgb[i % len(rgb)]) for i in range(n)]


def shades(color: str, n: int) -> list[str]:
    """`n` colours of the hue of `color`, which comes first; the others are lighter and darker in turn (OKLCH)."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ np.linalg.inv(_LMS_TO_RGB).T) @ np.linalg.inv(_LAB_TO_LMS).T
    chroma, hue = np.hypot(lab[1], lab[2]), np.rad2deg(np.arctan2(lab[2], lab[1]))
    low, high = min(0.35, lab[0]), max(0.9, lab[0])
    turns = np.arange(1, n)
    if high - lab[0] < 0.05:  # as light as a colour can be: all others are darker
        lighter, part = np.zeros(n - 1, bool), turns / n
    else:
        lighter, part = turns % 2 == 1, ((turns + 1) // 2) / max((n + 1) // 2, 1)
    lightness = np.where(lighter, lab[0] + part * (high - lab[0]), lab[0] - part * (lab[0] - low))
    others: list[Any] = list(_fit_gamut(lightness, np.full(n - 1, chroma), np.full(n - 1, hue))) if n > 1 else []
    return [to_hex(color), *(to_hex(one) for one in others)]


def _far_apart(n: int) -> np.ndarray:
    """0…n-1, ordered so that those next to each other differ by about 0.38 n."""
    stride = next((s for s in range(max(1, round(0.382 * n)), n) if np.gcd(s, n) == 1), 1)
    return np.arange(n) * stride % max(n, 1)


def _linear_rgb(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    angle = np.deg2rad(hue)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    return (lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T


def _in_gamut(linear: np.ndarray) -> Any:
    return np.all((linear >= -1e-6) & (linear <= 1 + 1e-6), axis=-1)


def _fit_gamut(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Convert OKLCH to sRGB, with the largest fraction of the chroma inside the gamut."""
    fractions = np.linspace(1, 0, 51)[:, None]
    linear = _linear_rgb(np.broadcast_to(lightness, (51, len(lightness))), fractions * chroma, hue)
    return _gamma(linear[_in_gamut(linear).argmax(axis=0), np.arange(len(lightness))])


def _gamma(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _views(linear: np.ndarray) -> np.ndarray:
    """OKLab coordinates for normal, red-blind and green-blind vision: (3, n, 3)."""
    seen = np.concatenate([linear[None], linear @ _COLOUR_BLIND.transpose(0, 2, 1)]).clip(0, 1)
    return np.cbrt(seen @ np.linalg.inv(_LMS_TO_RGB).T) @ np.linalg.inv(_LAB_TO_LMS).T


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Smaller one of the distance in normal vision and twice the smallest in colour-blind vision."""
    normal, *blind = np.linalg.norm(one - other, axis=-1)
    return np.minimum(normal, 2 * np.min(blind, axis=0))
