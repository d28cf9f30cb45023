"""Public function `build_graph`: neighbourhood matrices in ``obsp`` from coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from anndata import AnnData

from stage_sc._checks import check_bool, check_scale
from stage_sc._evidence import slide_column, warn_background, warn_overlap, warn_parts
from stage_sc._input import SlideCodes, Tables, about, planar_coordinates, read_tables, slide_name
from stage_sc._stack import check_stacks, split_stacks
from stage_sc.graph._platforms import Mode
from stage_sc.graph._state import copy_graph, graph_view, write_graph
from stage_sc.graph._units import GraphOptions, resolve_settings


def build_graph(
    data: AnnData | Sequence[AnnData] | Mapping[str, AnnData],
    *,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    z_key: str | None = None,
    technology: str | None = None,
    scale: float | Mapping[str, float] | None = None,
    radius: float = 100.0,
    mode: Mode | None = None,
    local: float | None = None,
    view: float | None = None,
    sigma: float | None = None,
    copy: bool = False,
) -> AnnData | list[AnnData] | dict[str, AnnData] | None:
    r"""Build the Delaunay graph and the local neighbourhoods of the cells.

    The encoder passes messages along the Delaunay graph (edges up to `radius`). The niche of a cell is derived from its
    local neighbourhood. In training a second view of the same niche is drawn from the view ring around it, of which
    only the size is stored. Slides are never connected. The result does not depend on the order of the cells.

    With `z_key` a slide is a stack of aligned serial sections: each section has the graph that it would have alone, and
    every cell is joined with its three nearest cells in the sections above and below, so that niches and domains are
    consistent along z.

    Parameters
    ----------
    data
        Cells or spots with coordinates in ``adata.obsm[spatial_key]``; or a list or a dictionary of such objects. Only
        the coordinates and `library_key` are read: views and backed objects work, ``adata.X`` may be empty.
    spatial_key
        Entry of ``adata.obsm`` with the coordinates: ``(n_cells, 2)``, or three columns of which the third is constant
        on each slide.
    library_key
        Column of ``adata.obs`` with the slide (whole section) of each cell. ``None``: the regions of a SpatialData
        table that has several, else one slide per object, with a warning if pieces named in obs overlap. ``""``: one
        slide per object in any case.
    z_key
        Height of the section of every cell: a column of ``adata.obs``, in µm, or the name of `spatial_key` for the
        third column of the coordinates, in their unit. A slide is then a whole stack: ``library_key=""`` for a single
        one, or the column that names the stacks. Sections must be aligned (the same x and y are the same place in all)
        and flat (one height each); a warning names adjacent sections that hardly lie above each other, or farther apart
        than `radius`. Expression is standardised over the stack. ``None``: no stacks.
    technology
        Name of the platform, e.g. ``"xenium"``, ``"cosmx"`` or ``"visium_hd"`` (an error lists all), which sets the
        pixel size of the instrument and the pitch of the grid. ``None``: regular grids, and arrays of printed spots
        (``"spatial_transcriptomics"``), are recognised from the coordinates, other layouts are taken as cells.
    scale
        µm per unit of the coordinates, for all slides or as ``{slide: scale}``. ``None``: inferred for each slide. If
        columns of obs hold the same coordinates in a known unit (``x_centroid``, ``CenterX_global_px`` …) or the image
        in ``uns["spatial"]`` a pixel size that fits, these decide. If the median distance to the nearest cell is 2.5-30
        units, the unit is µm (with a warning from 15, where pixels are plausible too); a hexagonal grid is scaled to
        100 µm; square grids and arrays of spots are in µm at 90-220 units; otherwise the distance is scaled to 10 µm
        (arrays of spots: 200 µm), with a warning. With a known unit, places more than 50 µm apart are taken as spots.
    radius
        Longest edge of the graph, µm, within sections and between those of a stack. Long edges cross holes in the
        tissue. Not used within grids; at least twice the median distance to the nearest spot on arrays of spots.
    mode
        ``"radius"``: neighbourhoods within a distance (as in the paper). ``"hops"``: within a number of steps on the
        Delaunay graph, for tissue of very uneven density. ``None``: radius for cells, hops for grids and spots.
    local
        Size of the local neighbourhood: µm (default 25), or hops (default 2; 1 on a hexagonal grid and for spots).
    view
        Outer limit of the view ring: µm (default 50 or twice `local`; the ring is all distances above `local`), or the
        exact number of hops (default 2; 3 on square grids up to 50 µm).
    sigma
        Bandwidth of the weights, µm; larger values give distant cells more weight. ``None``: median edge length of the
        graph on each slide.
    copy
        Return a changed copy and leave `data` as it is.

    Returns
    -------
    ``None``, or the changed copy if ``copy=True``. Sets the following fields:

    ``adata.obsp["spatial_connectivities"]``, ``adata.obsp["spatial_distances"]``
        csr float32 and float64: Delaunay graph of squidpy and its edge lengths in µm; 0 between cells at one place. In
        stacks also the pairs of cells of adjacent sections, with their distance in space.
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
        If the coordinates, the slide column or the heights do not exist.
    TypeError
        If `data` holds no AnnData or an argument has the wrong type.
    ValueError
        For NaN or infinite coordinates, a slide with fewer than 4 cells or with all cells on one line, missing slides,
        varying third coordinates without `z_key`, heights of single cells, slides of one height with `z_key`, array
        indices instead of coordinates, more than 1,000 cells at one place or within reach of a cell, or an invalid
        argument. Nothing is written in these cases.

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
    tables = read_tables(data)
    columns = [
        slide_column(part, graph=False) if library_key is None else library_key for part in tables.by_name.values()
    ]
    read = [
        planar_coordinates(part, spatial_key, column, z_key=z_key, prefix=key)
        for (key, part), column in zip(tables.by_name.items(), columns, strict=True)
    ]
    if z_key is not None:
        for key, (xyz, slides) in zip(tables.by_name, read, strict=True):
            check_stacks(xyz, slides.rows(), z_key, about(key))
    names = [
        [slide_name(key, name) for name in slides.names] for key, (_, slides) in zip(tables.by_name, read, strict=True)
    ]
    scales = _scale_of_each_slide(scale, [name for part in names for name in part])
    settings = [
        resolve_settings(xy, slides, options, [scales[name] for name in part], part, adata, spatial_key)
        for (xy, slides), part, adata in zip(read, names, tables.by_name.values(), strict=True)
    ]
    _warn_of_evidence(tables, read, names, spatial_key, library_key, z_key)
    tables = tables.copy() if copy else tables
    params = {"spatial_key": spatial_key, "z_key": z_key, **asdict(options)}
    views = [graph_view(part) for part in tables.by_name.values()]  # nothing is written before all graphs are built
    for view, (xy, slides), chosen, column in zip(views, read, settings, columns, strict=True):
        write_graph(view, xy, slides, chosen, {**params, "library_key": column})
    for view, part in zip(views, tables.by_name.values(), strict=True):
        copy_graph(view, part)
    return tables.given if copy else None


def _warn_of_evidence(
    tables: Tables,
    read: Sequence[tuple[np.ndarray, SlideCodes]],
    names: Sequence[Sequence[str]],
    spatial_key: str,
    library_key: str | None,
    z_key: str | None,
) -> None:
    """Warn of background spots, and of slides (or sections) that are several pieces of tissue or parts of one."""
    cells: dict[str, np.ndarray] = {}
    for (key, part), (xy, slides), own in zip(tables.by_name.items(), read, names, strict=True):
        warn_background(part, about(key))
        if library_key != "":
            pieces = slides.rows() if z_key is None else split_stacks(xy, slides.rows(), z_key)
            warn_overlap(part, np.ascontiguousarray(xy[:, :2]), pieces, spatial_key, about(key))
        cells |= {name: xy[rows, :2] for name, rows in zip(own, slides.rows().values(), strict=True)}
    warn_parts(cells, library_key)


def _scale_of_each_slide(scale: float | Mapping[str, float] | None, names: list[str]) -> dict[str, float | None]:
    """µm per unit of every slide by name; ``None``: inferred."""
    if not isinstance(scale, Mapping):
        if scale is not None:
            check_scale(scale)
        return dict.fromkeys(names, scale)
    given = {str(key): value for key, value in scale.items()}
    if unknown := sorted(set(given) - set(names)):
        raise KeyError(f"`scale` names slides that do not exist: {unknown}. Slides are {names}.")
    for name, value in given.items():
        check_scale(value, f"scale[{name!r}]")
    return {name: given.get(name) for name in names}
