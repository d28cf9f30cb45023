"""Distance of every cell to a niche."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from stage_sc._checks import check_bool, check_name, read_names
from stage_sc._input import Data, read_coordinates, read_labels, read_slide_codes, read_tables
from stage_sc._messages import element_name, naming
from stage_sc.analysis._labels import read_groups
from stage_sc.graph import graph_scale

logger = logging.getLogger("stage_sc.tl")


def distance_to_niche(
    data: Data,
    niche: str | Sequence[str],
    *,
    groupby: str | None = None,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = "distance_to_niche",
    copy: bool = False,
) -> Any:
    """Measure the distance from every cell to the nearest cell of a niche on its slide.

    Parameters
    ----------
    data
        Cells with labels and coordinates; or a list or a dictionary of such objects.
    niche
        Label, or several that are taken together.
    groupby
        Column of ``obs`` with labels. ``None``: the domains of `stage_sc.tl.stage_niches` if there are any, else its
        niches of level 2.
    spatial_key
        Entry of ``obsm`` with the coordinates.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one of the niches or of the graph.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Column of ``obs`` to write.
    copy
        Return a copy of `data` with the result instead of writing into `data`.

    Returns
    -------
    ``None``, or with `copy` a copy of `data`. Written into every object:

    `adata.obs[key_added]` : :class:`float`
        Distance in µm, with the scale of the graph of `stage_sc.pp.build_graph`; without a graph of these coordinates
        in their own unit, with a warning. 0 for cells of the niche, NaN on slides without it.

    Raises
    ------
    KeyError
        If a column or the coordinates do not exist, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type.
    ValueError
        If no cell has the label, or coordinates are not finite.

    See Also
    --------
    stage_sc.tl.niche_neighbors : Niches that touch.

    Notes
    -----
    A KD-tree of the cells of the niche on each slide: a second or two for a million cells.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> st.tl.distance_to_niche(adata, "WM", groupby="domain")
    >>> far = adata.obs.groupby("domain", observed=True)["distance_to_niche"].mean()
    >>> bool(far["L1"] > far["L6"] > far["WM"] == 0)
    True
    """
    niches = read_names(niche, "niche")
    check_name(key_added, "key_added")
    check_bool(copy, "copy")
    tables = read_tables(data, table_key=table_key)
    if not copy:
        tables.check_in_memory()
    groups = read_groups(tables, groupby, library_key)
    unknown = [name for name in niches if name not in groups.labels.names]
    if unknown or not niches:
        raise ValueError(f"`niche`: no cell has {unknown} in obs[{groups.groupby!r}], which has {groups.labels.names}.")
    slide_key = library_key
    if slide_key is None:
        slide_key = groups.result.get("params", {}).get("library_key") or None
    columns, unscaled = [], 0
    for name, part in tables.by_name.items():
        with naming(element_name("data", name), repr(name)):
            if key_added == groups.groupby:
                raise ValueError(f"`key_added`: {key_added!r} is the column of labels: choose another name.")
            xy = read_coordinates(part, spatial_key)
            labels = read_labels(part, groups.groupby, argument="groupby")
            inside = np.isin(np.array([*map(str, labels.categories), ""], dtype=object)[labels.codes], niches)
            inside &= labels.codes >= 0
            scale = graph_scale(part, spatial_key)
            distance = np.full(part.n_obs, np.nan)
            for slide, cells in read_slide_codes(part, slide_key).rows().items():
                unscaled += slide not in scale
                if inside[cells].any():
                    nearest = cKDTree(xy[cells[inside[cells]]]).query(xy[cells])[0]
                    distance[cells] = nearest * scale.get(slide, 1.0)
            columns.append(distance)
    if unscaled:
        logger.warning(
            "%d slides have no graph of obsm[%r], which knows the unit: their distances are in the unit of the "
            "coordinates, not in µm. Run `st.pp.build_graph` first.",
            *(unscaled, spatial_key),
        )
    tables = tables.copy() if copy else tables
    for part, distance in zip(tables.by_name.values(), columns, strict=True):
        part.obs[key_added] = distance
    return tables.given if copy else None
