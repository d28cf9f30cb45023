"""The public function: coordinates to neighbourhood matrices in ``obsp``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from anndata import AnnData

from stage_sc._checks import check_positive
from stage_sc._input import planar_coordinates, read_tables, slide_name
from stage_sc.graph._platforms import Mode
from stage_sc.graph._state import write_graph
from stage_sc.graph._units import GraphOptions, resolve_settings


def build_graph(
    data: AnnData | Sequence[AnnData] | Mapping[str, AnnData],
    *,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    technology: str | None = None,
    scale: float | Mapping[str, float] | None = None,
    radius: float = 100.0,
    mode: Mode | None = None,
    local: float | None = None,
    view: float | None = None,
    sigma: float | None = None,
    copy: bool = False,
) -> AnnData | list[AnnData] | dict[str, AnnData] | None:
    r"""Connect every cell with its neighbours: Delaunay graph and local neighbourhood.

    The Delaunay graph (edges up to `radius`) is what the encoder passes messages on. The local neighbourhood of a cell
    is what its niche is read from. The ring around it is where training looks for a second view of the same niche: only
    its size is written down, because rings hold most pairs of all and are found again in a moment.
    Slides are never connected with each other. The result does not depend on the order of the cells.

    Parameters
    ----------
    adata
        Cells or spots, with coordinates in ``adata.obsm[spatial_key]``. Only these (and `library_key`) are read: views
        and backed objects work, and ``adata.X`` may be empty.
    spatial_key
        Entry of ``adata.obsm`` with the coordinates: ``(n_cells, 2)``, or three columns of which the third is constant
        on each slide.
    library_key
        Column of ``adata.obs`` that names the slide (section, field of view) of each cell. ``None``: all cells are one
        slide.
    technology
        Name of the platform, such as ``"xenium"``, ``"cosmx"`` or ``"visium_hd"``; an unknown name gives an error that
        lists all. Only needed where the coordinates leave doubt: it tells the pixel size of an instrument and the pitch
        of a grid. ``None``: regular grids are recognised from the coordinates, everything else is taken as cells.
    scale
        µm per unit of the coordinates, for all slides or as ``{slide: scale}``. ``None``: inferred for each slide.
        Where the median distance to the nearest cell is 2.5-30 units, the unit is taken as µm; a hexagonal grid is
        scaled to 100 µm; otherwise the scale is chosen that makes this distance 10 µm, and a warning says so.
    radius
        Longest edge of the Delaunay graph in µm. Long edges cross holes in the tissue. Not used for grids.
    mode
        ``"radius"``: neighbourhoods are all cells within a distance (the paper's definition). ``"hops"``: within a
        number of steps on the Delaunay graph, which suits data whose density differs a lot. ``None``: radius for cells,
        hops for grids.
    local
        Size of the local neighbourhood: µm (default 25), or hops (default 2; 1 on a hexagonal grid).
    view
        Outer limit of the view ring: µm (default 50 or twice `local`; the ring holds distances above `local`), or the
        exact number of hops (default 2; 3 on square grids).
    sigma
        Bandwidth of the weights in µm. ``None``: the median edge length of the graph, for each slide, which adapts it
        to the platform's resolution. Larger values make far cells count more.
    copy
        Return a changed copy instead of writing into `adata`.

    Returns
    -------
    ``None``, or the changed copy if ``copy=True``. Sets the following fields:

    ``adata.obsp["spatial_connectivities"]``, ``adata.obsp["spatial_distances"]``
        csr float32 and float64: the Delaunay graph built by squidpy, and its edge lengths in µm. Cells at exactly the
        same place are connected with each other at distance 0.
    ``adata.obsp["local_connectivities"]``
        csr float32, weights of the local neighbourhood; the cell itself has weight 1.
    ``adata.uns["spatial_neighbors"]``
        squidpy's entry.
    ``adata.uns["stage_graph"]``
        ``"params"``: the arguments but `scale`; ``"slides"``: a data frame of what was used and found on each slide
        (scale, layout, sizes, isolated cells …); ``"fingerprint"``: digest of the coordinates, by which a graph that no
        longer belongs to its cells is noticed.

    Raises
    ------
    KeyError
        If the coordinates or the slide column do not exist.
    TypeError
        If `adata` is no AnnData or an argument has the wrong type.
    ValueError
        For NaN or infinite coordinates, a slide with fewer than 4 cells or with all cells on one line, missing slides,
        varying third coordinates, or a bad argument. Nothing is written in these cases.

    Notes
    -----
    With :math:`d` the Euclidean distance, equations 1, 2 and 18 to 20 of the STAGE paper are
    :math:`N_L(v) = \{u : d(u, v) \le r_{local}\}`, :math:`N_V(v) = \{u : r_{local} < d(u, v) \le r_{view}\}` and
    :math:`w_{uv} = \exp(-d(u, v)^2 / 2 \sigma^2)`. The exponent is rounded to four decimals, so that rotated or
    shifted coordinates give identical weights.

    The triangulation takes most of the time: a slide of 100,000 cells about one second on one core. Memory is that of
    the stored pairs: where cells lie 7 µm from the nearest other, about 6 edges and 20 local cells per cell, 12 and 8
    bytes each (while building, some 50).

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
    tables = read_tables(data)
    read = [
        planar_coordinates(part, spatial_key, library_key, prefix=prefix) for prefix, part in tables.by_name.items()
    ]
    names = [
        [slide_name(prefix, name) for name in slides.names]
        for prefix, (_, slides) in zip(tables.by_name, read, strict=True)
    ]
    scales = _scale_of_each_slide(scale, [name for part in names for name in part])
    settings = [
        resolve_settings(xy, slides, options, [scales[name] for name in part], part)
        for (xy, slides), part in zip(read, names, strict=True)
    ]
    tables = tables.copy() if copy else tables
    params = {"spatial_key": spatial_key, "library_key": library_key or "", **asdict(options)}
    for part, (xy, slides), chosen in zip(tables.by_name.values(), read, settings, strict=True):
        write_graph(part, xy, slides, chosen, dict(params))
    return tables.given if copy else None


def _scale_of_each_slide(scale: float | Mapping[str, float] | None, names: list[str]) -> dict[str, float | None]:
    """µm per unit of every slide; ``None`` where it is to be inferred."""
    if not isinstance(scale, Mapping):
        if scale is not None:
            check_positive(scale, "scale")
        return dict.fromkeys(names, scale)
    given = {str(key): value for key, value in scale.items()}
    if unknown := sorted(set(given) - set(names)):
        raise KeyError(f"`scale` names slides that do not exist: {unknown}. Slides are {names}.")
    for name, value in given.items():
        check_positive(value, f"scale[{name!r}]")
    return {name: given.get(name) for name in names}
