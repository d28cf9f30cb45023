"""Public function `build_graph`: neighbourhood matrices in ``obsp`` from coordinates."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from anndata import AnnData

from stage_sc._checks import check_bool, check_name, check_scale
from stage_sc._containers import is_spatialdata
from stage_sc._elements import Located, locate
from stage_sc._evidence import slide_column, warn_background, warn_overlap, warn_parts
from stage_sc._input import (
    Attempts,
    SlideCodes,
    about,
    check_errors,
    planar_coordinates,
    read_tables,
    slide_name,
)
from stage_sc.graph._platforms import Mode
from stage_sc.graph._settings import GraphOptions, SlideSettings
from stage_sc.graph._state import copy_graph, graph_view, write_graph
from stage_sc.graph._units import resolve_settings

if TYPE_CHECKING:
    from stage_sc._input import Data, Errors

logger = logging.getLogger("stage_sc.pp")


def build_graph(
    data: Data,
    *,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    coordinate_system: str | None = None,
    technology: str | None = None,
    scale: float | Mapping[str, float] | None = None,
    radius: float = 100.0,
    mode: Mode | None = None,
    local: float | None = None,
    view: float | None = None,
    sigma: float | None = None,
    errors: Errors = "skip",
    copy: bool = False,
) -> Any:
    r"""Build the Delaunay graph and the local neighbourhoods of the cells.

    The encoder passes messages along the Delaunay graph (edges up to `radius`). The niche of a cell is derived from its
    local neighbourhood. In training a second view of the same niche is drawn from the view ring around it, of which
    only the size is stored. Slides are never connected. The result does not depend on the order of the cells.

    Parameters
    ----------
    data
        Cells or spots: an AnnData, a SpatialData, a MuData (its modality of RNA), the path of one (``.h5ad``,
        ``.h5mu``, zarr folders), or a list or a dictionary of these, mixed. Only coordinates and `library_key` are
        read: views and backed objects work, ``adata.X`` may be empty.
    spatial_key
        Entry of ``adata.obsm`` with the coordinates: ``(n_cells, 2)``, or three columns of which the third is constant
        on each slide. Tables of SpatialData without it get it: the centroids of the circles, polygons or labels that
        they annotate. Tables that spatialdata-io read from CosMx have the places within a field there: of these
        ``obsm["global"]`` is taken.
    library_key
        Column of ``adata.obs`` with the slide (whole section) of each cell. ``None``: the regions of a SpatialData
        table that has several, else one slide per object, with a warning if pieces named in obs overlap. ``""``: one
        slide per object in any case.
    table_key
        Tables of a SpatialData (one name or several), or the modality of a MuData. ``None``: the only table, else all
        that annotate elements; a ValueError if these are the same cells or bins of one tissue.
    coordinate_system
        Coordinate system of a SpatialData, in which centroids of the annotated elements are taken as coordinates. They
        are written to ``obsm[spatial_key]`` or, where that holds others, to
        ``obsm[f"{spatial_key}_{coordinate_system}"]``. ``None``: ``obsm[spatial_key]`` where it exists, else the system
        called ``"microns"`` or ``"um"``, ``"global"``, the one named like the element, or the only one. Coordinates are
        in µm in a system called so; in another one the scale follows from such a system, if there is one.
    technology
        Name of the platform, e.g. ``"xenium"``, ``"cosmx"`` or ``"visium_hd"`` (an error lists all), which sets the
        pixel size of the instrument and the pitch of the grid. ``None``: the platform that a SpatialData names (read
        by spatialdata-io), and the bin size in the name of the table (``"square_008um"``); else regular grids, and
        arrays of printed spots (``"spatial_transcriptomics"``), are recognised from the coordinates, other layouts are
        taken as cells.
    scale
        µm per unit of the coordinates, for all slides or as ``{slide: scale}``. ``None``: inferred for each slide. If
        columns of obs hold the same coordinates in a known unit (``x_centroid``, ``CenterX_global_px`` …) or the image
        in ``uns["spatial"]`` a pixel size that fits, these decide. If the median distance to the nearest cell is 2.5-30
        units, the unit is µm (with a warning from 15, where pixels are plausible too); a hexagonal grid is scaled to
        100 µm; square grids and arrays of spots are in µm at 90-220 units; otherwise the distance is scaled to 10 µm
        (arrays of spots: 200 µm), with a warning. With a known unit, places more than 50 µm apart are taken as spots.
    radius
        Longest edge of the Delaunay graph, µm. Long edges cross holes in the tissue. Not used for grids; at least twice
        the median distance to the nearest spot on arrays of spots.
    mode
        ``"radius"``: neighbourhoods within a distance (as in the paper). ``"hops"``: within a number of steps on the
        Delaunay graph, for tissue of very uneven density. ``None``: radius for cells, hops for grids and spots.
    local
        Size of the local neighbourhood: µm (default 25), or hops (default 2; 1 on a hexagonal grid and for spots; as
        many as reach 16 µm on square bins).
    view
        Outer limit of the view ring: µm (default 50 or twice `local`; the ring is all distances above `local`), or the
        exact number of hops (default 2; as many as reach 24 µm on square bins, at least one more than `local`).
    sigma
        Bandwidth of the weights, µm; larger values give distant cells more weight. ``None``: median edge length of the
        graph on each slide.
    errors
        Of several objects, ``"skip"`` leaves out those that are refused or cannot be read, with a warning about each,
        and ``"raise"`` stops at the first. A single object always raises, as does a mistake in all of them.
    copy
        Return a changed copy and leave `data` as it is.

    Returns
    -------
    ``None``, or the changed copy if ``copy=True``. If `data` has paths, the container with the objects that were read;
    files are not changed. Sets the following fields:

    ``adata.obsp["spatial_connectivities"]``, ``adata.obsp["spatial_distances"]``
        csr float32 and float64: Delaunay graph of squidpy and its edge lengths in µm; 0 between cells at one place.
    ``adata.obsp["local_connectivities"]``
        csr float32: weights of the local neighbourhoods, 1 on the diagonal.
    ``adata.uns["spatial_neighbors"]``
        squidpy's entry.
    ``adata.uns["stage_graph"]``
        ``"params"``: arguments except `scale`; ``"slides"``: data frame of scale, its origin (``scale_source``:
        ``"given"``, ``"µm"``, ``"grid"``, ``"pixels"`` or ``"guess"``), layout, sizes, isolated cells … of each slide;
        ``"fingerprint"``: digest of the coordinates, by which stale graphs are detected.

    Raises
    ------
    KeyError
        If the coordinates or the slide column do not exist.
    TypeError
        If `data` holds no AnnData or an argument has the wrong type.
    ValueError
        For NaN or infinite coordinates, a slide with fewer than 4 cells or with all cells on one line, missing slides,
        varying third coordinates, array indices instead of coordinates, more than 1,000 cells at one place or within
        reach of a cell, or an invalid argument. Nothing is written in these cases.

    Notes
    -----
    With :math:`d` the Euclidean distance, equations 1, 2 and 18 to 20 of the STAGE paper are
    :math:`N_L(v) = \{u : d(u, v) \le r_{local}\}`, :math:`N_V(v) = \{u : r_{local} < d(u, v) \le r_{view}\}` and
    :math:`w_{uv} = \exp(-d(u, v)^2 / 2 \sigma^2)`. The exponent is rounded to four decimals, so that rotated or
    shifted coordinates give identical weights.

    About one second for 100,000 cells on one core, mostly the triangulation. Memory is that of the stored pairs: with
    7 µm to the nearest cell, about 6 edges and 20 local cells per cell, 12 and 8 bytes each (some 50 while building).

    Examples
    --------
    >>> import anndata as ad, numpy as np, stage_sc as st
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(np.ones((500, 3)), obsm={"spatial": rng.uniform(0, 400, (500, 2))})
    >>> st.pp.build_graph(adata)
    >>> adata.obsp["local_connectivities"].shape
    (500, 500)
    """
    options = GraphOptions(technology, mode, radius, local, view, sigma)
    options.check()
    check_bool(copy, "copy")
    check_errors(errors)
    if coordinate_system is not None:
        check_name(coordinate_system, "coordinate_system")
    tables = read_tables(data, table_key=table_key, skip=errors == "skip")
    if coordinate_system is not None and not any(map(is_spatialdata, tables.owners.values())):
        raise ValueError(f"`coordinate_system` ({coordinate_system!r}) is of a SpatialData, but there is only AnnData.")
    attempts = Attempts(tables, errors)
    inputs: dict[str, _Input] = {}
    for name, part in tables.by_name.items():
        with attempts.on(name):
            inputs[name] = _read(part, tables.owners[name], name, spatial_key, library_key, coordinate_system)
    scales = _scale_of_each_slide(scale, inputs, bool(attempts.problems))
    settings = {}
    for name, one in inputs.items():
        with attempts.on(name):
            settings[name] = _settings(one, options, [scales[slide] for slide in one.names], attempts.skip)
    _warn_of_evidence({name: inputs[name] for name in settings}, library_key)
    tables = tables.copy() if copy else tables
    params = {"spatial_key": spatial_key, **asdict(options)}
    built = {}  # nothing is written before all graphs are built
    for name, chosen in settings.items():
        one = inputs[name]
        with attempts.on(name):
            own = {"spatial_key": one.place.key, "technology": one.technology(options), "library_key": one.column}
            write_graph(one.view, one.xy, one.slides, chosen, {**params, **own})
            built[name] = one
    attempts.finish()
    for name, one in built.items():
        part = tables.by_name[name]
        copy_graph(one.view, part)
        if one.place.xy is not None:
            part.obsm[one.place.key] = one.place.xy
            logger.info("%sCoordinates are written to obsm[%r].", about(name), one.place.key)
    return tables.given if copy or tables.was_read else None


class _Input(NamedTuple):
    """One object: what its graph is built from."""

    name: str
    view: AnnData
    """Annotations, coordinates and graph; expression is left out."""
    place: Located
    column: str
    """Column of obs with the slides."""
    xy: np.ndarray
    slides: SlideCodes

    @property
    def names(self) -> list[str]:
        """Names of the slides, with that of the object."""
        return [slide_name(self.name, slide) for slide in self.slides.names]

    def technology(self, options: GraphOptions) -> str | None:
        """Platform, given or by the metadata."""
        return options.technology or self.place.technology


def _read(
    part: AnnData, owner: Any, name: str, spatial_key: str, library_key: str | None, coordinate_system: str | None
) -> _Input:
    """Read coordinates and slides of one object."""
    place = locate(part, owner, spatial_key, coordinate_system, name)
    view = graph_view(part)
    if place.xy is not None:
        view.obsm[place.key] = place.xy
    column = slide_column(part, graph=False) if library_key is None else library_key
    return _Input(name, view, place, column, *planar_coordinates(view, place.key, column, prefix=name))


def _settings(one: _Input, options: GraphOptions, scales: Sequence[float | None], strict: bool) -> list[SlideSettings]:
    """Choose unit, layout and neighbourhoods of the slides of one object."""
    regions = list(one.place.scales)
    known = [
        one.place.scales.get(slide or (regions[0] if len(regions) == 1 else ""), None) if scale is None else scale
        for slide, scale in zip(one.slides.names, scales, strict=True)
    ]
    options = replace(options, technology=one.technology(options))
    return resolve_settings(
        *(one.xy, one.slides, options, known, one.names, one.view, one.place.key), pitch=one.place.pitch, strict=strict
    )


def _warn_of_evidence(inputs: Mapping[str, _Input], library_key: str | None) -> None:
    """Warn of background spots, and of slides that are several pieces of tissue or parts of one."""
    cells: dict[str, np.ndarray] = {}
    for key, one in inputs.items():
        rows = one.slides.rows()
        warn_background(one.view, about(key))
        if library_key != "":
            warn_overlap(one.view, one.xy, rows, one.place.key, about(key))
        cells |= {name: one.xy[own] for name, own in zip(one.names, rows.values(), strict=True)}
    warn_parts(cells, library_key)


def _scale_of_each_slide(
    scale: float | Mapping[str, float] | None, inputs: Mapping[str, _Input], incomplete: bool
) -> dict[str, float | None]:
    """µm per unit of every slide by name; ``None``: inferred. Slides of objects that are left out may be named."""
    names = [slide for one in inputs.values() for slide in one.names]
    if not isinstance(scale, Mapping):
        if scale is not None:
            check_scale(scale)
        return dict.fromkeys(names, scale)
    given = {str(key): value for key, value in scale.items()}
    if (unknown := sorted(set(given) - set(names))) and not incomplete:
        raise KeyError(f"`scale` names slides that do not exist: {unknown}. Slides are {names}.")
    for name, value in given.items():
        check_scale(value, f"scale[{name!r}]")
    return {name: given.get(name) for name in names}
