"""Unit, layout and neighbourhoods of one slide from its coordinates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from anndata import AnnData

from stage_sc._coordinates import image_scale, known_scale
from stage_sc._input import SlideCodes, about
from stage_sc._stack import largest_section
from stage_sc.graph._places import as_complex, measure_spacing
from stage_sc.graph._platforms import (
    BIN_SIGMA,
    FINE_BINS,
    GRID_NEIGHBOURS,
    MODE_DEFAULTS,
    Layout,
    Platform,
    find_platform,
    neighbourhoods,
)
from stage_sc.graph._settings import GraphOptions, ScaleSource, SlideSettings

logger = logging.getLogger("stage_sc.pp")

# Range of the median distance to the nearest cell that is taken as µm. Measured: 3.4-13.5 µm on sections of Xenium,
# CosMx, MERFISH, osmFISH and seqFISH+; from 33 pixels (Xenium, 0.2125 µm) to 150-175 pixels (STARmap).
MICRON_SPACING = (2.5, 30.0)
USUAL_SPACING = 10.0
# Range of this distance over all technologies, µm; outside of it a given scale must be wrong.
SANE_SPACING = (2.0, 220.0)
# The same range on arrays of spots (measured: 186-193 µm on Spatial Transcriptomics, of which the pitch is 200 µm), and
# the distance above which places are no cells, µm.
SPOT_SPACING, MAX_CELL_SPACING = (90.0, 220.0), 50.0
# Pitch that is taken for an array in an unknown unit, µm.
PITCHES: dict[Layout, tuple[float, ...]] = {"hexagonal": (100.0,), "spots": (200.0,)}
# From this median distance, units may be µm or pixels of an image. Cells lie 3.4-13.5 µm apart on real sections.
LOOSE_SPACING = 15.0
# Common pixel sizes, µm: of a microscope at 20x, and of instruments.
PIXELS = {"Xenium": 0.2125, "CosMx": 0.12028, "microscope slides at 20x": 0.5}
# Cells at one place, above which a warning is logged, and refused, as all of them are neighbours of each other.
SHARED_PLACE, MAX_SHARED_PLACE = 20, 1000


def resolve_settings(
    xy: np.ndarray,
    slides: SlideCodes,
    options: GraphOptions,
    scales: Sequence[float | None],
    names: Sequence[str] | None = None,
    adata: AnnData | None = None,
    spatial_key: str = "spatial",
    *,
    pitch: float | None = None,
    strict: bool = False,
) -> list[SlideSettings]:
    """Choose unit, layout and neighbourhoods of every slide, and log guesses.

    `xy` is in the unit of the data, `scales` are µm per unit of each slide (``None``: inferred), and `names` those of
    the slides in messages. `adata` may tell the unit, by the metadata of images or columns with coordinates. Of a stack
    the largest section is measured. A ValueError if `local` and `view` of `options` do not fit the mode of a slide, or
    if very many cells share a place. `pitch` is the size of bins of a grid, µm. With `strict`, a given scale that
    cannot be right is refused.
    """
    settings: list[SlideSettings] = []
    for (own, cells), scale, name in zip(slides.rows().items(), scales, names or slides.names, strict=True):
        cells = largest_section(xy, cells)
        plane = xy[cells, :2]
        places = _separate_places(plane, name, spatial_key)
        told = _Metadata(pitch=pitch)
        if adata is not None and scale is None:
            told = _Metadata(known_scale(adata.obs, cells, plane), image_scale(adata.uns, own), pitch)
        settings.append(_resolve_slide(places, options, scale, told, name, strict))
    return settings


class _Metadata(NamedTuple):
    """µm per unit by the annotations of a slide."""

    columns: float | None = None
    """By columns of obs with the same coordinates in a known unit."""
    image: float | None = None
    """Per pixel of the image."""
    pitch: float | None = None
    """Distance of neighbouring bins, µm."""


def _separate_places(xy: np.ndarray, slide: str, spatial_key: str) -> np.ndarray:
    """Sorted distinct places; warn of places with many cells, and refuse those with very many."""
    places, counts = np.unique(as_complex(xy), return_counts=True)
    places = places.view(np.float64).reshape(-1, 2)
    most = int(counts.argmax())
    if counts[most] > SHARED_PLACE:
        x, y = places[most]
        message = (
            f"{about(slide)}{counts[most]} of {len(xy)} cells lie at the same place, ({x:g}, {y:g}), and "
            f"{int((counts > SHARED_PLACE).sum())} place(s) have more than {SHARED_PLACE} cells; each is joined with "
            "all others at its place. Do they lack a position? Then remove them: `adata = "
            f"adata[(adata.obsm[{spatial_key!r}][:, :2] != [{x:.12g}, {y:.12g}]).any(axis=1)].copy()`."
        )
        if counts[most] > MAX_SHARED_PLACE:
            raise ValueError(f"{message} At most {MAX_SHARED_PLACE} cells of one place can be joined.")
        logger.warning(message)
    return places


def _resolve_slide(
    places: np.ndarray, options: GraphOptions, given: float | None, told: _Metadata, slide: str, strict: bool
) -> SlideSettings:
    platform = find_platform(options.technology)
    if told.pitch is not None:
        platform = replace(platform, layout="square", pitch=(told.pitch,))
    spacing, measured = measure_spacing(places)
    layout = platform.layout or measured
    if layout == "spots" and measured in GRID_NEIGHBOURS:
        layout = measured
    source: ScaleSource
    if given is None:
        scale, source = _infer_scale(spacing, layout, platform, told, slide, np.ptp(places, axis=0))
    else:
        scale, source = float(given), "given"
    if given is not None and not SANE_SPACING[0] <= spacing * scale <= SANE_SPACING[1]:
        message = (
            f"{about(slide)}the median distance to the nearest cell is {spacing * scale:.3g} µm with "
            f"scale={scale:.4g}, outside {SANE_SPACING[0]:g}-{SANE_SPACING[1]:g} µm: `scale` should be the µm per unit "
            "of the coordinates."
        )
        if strict:
            raise ValueError(message)
        logger.warning(message)
    distance, radius = spacing * scale, float(options.radius)
    if platform.layout is None and layout not in GRID_NEIGHBOURS:
        layout = "spots" if _within(distance, (MAX_CELL_SPACING, SPOT_SPACING[1])) else "cells"
    if layout == "spots":  # the diagonals of a square are edges, and holes are not crossed
        radius = max(radius, _rounded(2 * distance))
    _warn_far_apart(distance, scale, layout, measured, platform, radius, slide)
    mode, local, view = neighbourhoods(layout, distance)
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
    sigma = options.sigma
    if layout == "square" and distance < FINE_BINS:
        sigma = BIN_SIGMA if sigma is None else sigma
        logger.warning(
            "%sbins of %.3g µm hold few counts each: bins of 8 or 16 µm give better niches, in a fraction of the time.",
            *(about(slide), distance),
        )
    return SlideSettings(scale, source, layout, mode, radius, float(local), float(view), sigma)


def _warn_far_apart(
    distance: float, scale: float, layout: Layout, measured: Layout, platform: Platform, radius: float, slide: str
) -> None:
    """Log that places lie farther apart than cells do, or than the edges of the graph reach."""
    if layout == "spots" and measured == "cells" and platform.layout is None:
        logger.warning(
            "%sthe median distance to the nearest cell is %.3g µm with scale=%.4g, which is too far for cells: taken "
            "as spots of an array, with neighbourhoods in hops. If so, pass technology='spatial_transcriptomics'; if "
            "these are cells, correct `scale` (µm per unit of the coordinates) or name their `technology`.",
            *(about(slide), distance, scale),
        )
    elif layout == "cells" and distance > radius:
        logger.warning(
            "%sthe median distance to the nearest cell is %.3g µm with scale=%.4g, above radius=%g µm: most cells have "
            "no neighbour. Correct `scale` (µm per unit of the coordinates), pass a `radius` of about %.3g, or "
            "technology='spatial_transcriptomics' for spots of an array.",
            *(about(slide), distance, scale, radius, 2 * distance),
        )


def _infer_scale(
    spacing: float, layout: Layout, platform: Platform, told: _Metadata, slide: str, extent: np.ndarray
) -> tuple[float, ScaleSource]:
    """µm per unit, and its origin: metadata, else the median distance to the nearest cell."""
    if told.columns is not None and SANE_SPACING[0] <= spacing * told.columns <= SANE_SPACING[1]:
        same = abs(told.columns - 1) < 1e-6
        if not same:
            logger.info("%sscale=%g by the columns of obs with coordinates.", about(slide), told.columns)
        return (1.0, "µm") if same else (told.columns, "pixels")
    image = told.image
    if layout == "spots" and platform.layout is None and _beads(spacing, image):
        layout = "cells"
    pitches = platform.pitch or (PITCHES.get(layout, ()) if platform.unit == 1.0 else ())
    if any(abs(spacing - pitch) <= 0.03 * pitch for pitch in pitches):
        return 1.0, "µm"
    if image is not None and layout != "cells":
        bins = pitches or (2.0, 8.0, 16.0)
        if any(abs(spacing * image - pitch) <= 0.03 * pitch for pitch in bins):
            logger.info("%sscale=%g by `microns_per_pixel` of the image.", about(slide), image)
            return image, "pixels"
    if layout in ("spots", "square") and platform.layout in (None, "spots") and platform.unit == 1.0:
        if image is not None and _within(spacing * image, SPOT_SPACING):
            logger.info("%sscale=%g by `microns_per_pixel` of the image.", about(slide), image)
            return image, "pixels"
        if _within(spacing, SPOT_SPACING):
            return 1.0, "µm"
    if pitches:
        scale = _rounded(pitches[0] / spacing)
        if told.pitch is not None:
            logger.info("%sbins of %g µm: scale=%g.", about(slide), told.pitch, scale)
            return scale, "grid"
        kind = "an array of spots" if layout == "spots" else f"a {layout} grid"
        level = logging.INFO if len(platform.pitch) == 1 else logging.WARNING
        logger.log(
            level,
            "%s%s with a spacing of %.4g units, taken as %g µm: scale=%g. Pass `scale` if that is wrong.",
            *(about(slide), kind, spacing, pitches[0], scale),
        )
        return scale, "guess" if layout == "spots" else "grid"
    low, high = MICRON_SPACING if layout == "cells" else (SANE_SPACING[0] * 0.97, MICRON_SPACING[1])
    if platform.unit != 1.0:
        return platform.unit, "pixels"
    if low <= spacing <= high:
        if layout == "cells" and (spacing >= LOOSE_SPACING or image is not None):
            _warn_two_units(spacing, platform.pixel, image, slide, extent)
        return 1.0, "guess" if layout == "cells" and spacing >= LOOSE_SPACING else "µm"
    for pixel in (image, platform.pixel):
        if pixel is not None and low <= spacing * pixel <= high:
            logger.info("%scoordinates look like pixels: scale=%g.", about(slide), pixel)
            return pixel, "pixels"
    scale = _rounded(USUAL_SPACING / spacing)
    other = ""
    if _within(spacing, SPOT_SPACING) and platform.layout is None:
        other = " Spots of an array in µm also lie that far apart: for these pass technology='spatial_transcriptomics'."
    elif abs(spacing - 1) < 1e-6 and layout == "square":
        other = " These may be array indices: pass the distance of neighbouring bins or spots, µm, as `scale`."
    logger.warning(
        "%sthe unit of the coordinates is unknown: the median distance to the nearest cell is %.3g units, cells lie "
        "%g-%g µm apart. Took scale=%g, which makes it %g µm. Pass `scale` (µm per unit) if you know it.%s",
        *(about(slide), spacing, low, high, scale, USUAL_SPACING, other),
    )
    return scale, "guess"


def _beads(spacing: float, image: float | None) -> bool:
    """Test if an irregular array has the spacing of cells: packed beads or a simulation, not printed spots."""
    sizes = (1.0, image or 1.0)
    return any(_within(spacing * size, MICRON_SPACING) for size in sizes) and not _within(
        spacing * sizes[1], SPOT_SPACING
    )


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def _warn_two_units(spacing: float, pixel: float | None, image: float | None, slide: str, extent: np.ndarray) -> None:
    """Log both readings of the unit where cells as far apart as these may be in µm or in pixels."""
    sizes = {"the image in `uns['spatial']`": image} if image else {"the instrument": pixel} if pixel else PIXELS
    readings = [
        f"{spacing * size:.3g} µm in pixels of {name} (scale={size:g}; section {_millimetres(extent * size)})"
        for name, size in sizes.items()
        if size and size != 1 and spacing * size >= MICRON_SPACING[0]
    ]
    if readings:
        logger.warning(
            "%sthe unit of the coordinates is uncertain: cells lie %.3g units apart, which is %.3g µm if the unit is "
            "µm (used here, scale=1; section %s), or %s. Compare the size of the section with that of the tissue, and "
            "pass `scale` (scale=1 for µm).",
            *(about(slide), spacing, spacing, _millimetres(extent), ", or ".join(readings)),
        )


def _millimetres(extent: np.ndarray) -> str:
    return f"{extent[0] / 1000:.2g} x {extent[1] / 1000:.2g} mm"


def _rounded(scale: float) -> float:
    """Six significant digits, so that rotated coordinates give the same scale to the bit."""
    return float(f"{scale:.6g}")
