"""Outlines and labels in files of other programs."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from stage_sc._checks import check_name, check_scale
from stage_sc._files import file_to_write, write_whole
from stage_sc._input import check_anndata, read_labels
from stage_sc._result import default_column
from stage_sc.outlines import category_colors, cell_groups, read_outlines, to_geojson, to_selections

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

logger = logging.getLogger("stage_sc.tl")


def write_outlines(
    outlines: GeoDataFrame, path: str | os.PathLike[str], *, slide: str | None = None, scale: float = 1.0
) -> Path:
    """Write outlines of one slide for QuPath (``.geojson``) or Xenium Explorer (``.csv``).

    Parameters
    ----------
    outlines
        Result of `outline_niches`.
    path
        File to write; its suffix sets the format. ``.geojson`` or ``.json``: a FeatureCollection with an annotation for
        each label, its name as the class, and its colour, which QuPath opens by dragging it onto the image and
        geopandas by ``read_file``. ``.csv``: selections of Xenium Explorer ("Upload selections"), one for each piece,
        named ``"D1"`` or, of several pieces, ``"D1 1"``, ``"D1 2"`` from the largest; these have no holes, so for exact
        labels write the cells by `write_cell_groups` too.
    slide
        Slide of the outlines. ``None``: the only one.
    scale
        Factor of all coordinates. QuPath takes pixels of the full image: for outlines in µm 1 / (µm per pixel), e.g.
        ``1 / 0.2125`` for the morphology image of Xenium. Xenium Explorer takes µm: 1 for coordinates of Xenium.

    Returns
    -------
    The path. An existing file is replaced, as a whole.

    Raises
    ------
    TypeError
        If an argument is of another type.
    KeyError
        If there are no outlines of `slide`.
    ValueError
        If there are outlines of several slides and none is named, of none at all, or the suffix is another.
    OSError
        If the file cannot be written.

    Notes
    -----
    Formats: annotations as QuPath exports them (qupath.readthedocs.io, "Exporting annotations"), selections as Xenium
    Explorer exports them (10x Genomics, "Xenium Explorer": lines ``#Selection names:`` and ``#Areas (µm^2):``, then the
    columns Selection, X and Y).

    Examples
    --------
    >>> import stage_sc as st, tempfile, pathlib
    >>> adata = st.datasets.simulate_tissue(500)
    >>> outlines = st.tl.outline_niches(adata, groupby="domain")
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "domains.geojson"
    >>> st.tl.write_outlines(outlines, path).name
    'domains.geojson'
    """
    if slide is not None and not isinstance(slide, str):
        check_name(slide, "slide")
    check_scale(scale)
    chosen, file = read_outlines(outlines, slide), file_to_write(path, "path")
    kind = file.suffix.lower()
    if kind not in (".geojson", ".json", ".csv"):
        raise ValueError(f"`path`: the suffix must be .geojson, .json or .csv, got {str(path)!r}.")
    if not len(chosen):
        raise ValueError("`outlines` is empty: lower `min_cells` of `st.tl.outline_niches`.")
    write_whole(file, (to_selections if kind == ".csv" else to_geojson)(chosen, float(scale)))
    return file


def write_cell_groups(
    adata: AnnData,
    path: str | os.PathLike[str],
    *,
    groupby: str | None = None,
    key_added: str = "stage",
    cell_key: str | None = None,
) -> Path:
    """Write labels of cells as a CSV that Xenium Explorer reads ("Cells", "Upload cell groups").

    Parameters
    ----------
    adata
        Cells of one Xenium slide with labels.
    path
        File to write, with the columns ``cell_id``, ``group`` and ``color``; cells without a label are left out.
    groupby
        Column of ``obs`` with labels. ``None``: the domains of `stage_niches`, else its niches of level 2.
    key_added
        Name under which the niches were written.
    cell_key
        Column of ``obs`` with the identifiers of the slide, such as ``aaaacgpa-1``. ``None``: ``"cell_id"`` where it
        is there, as in tables of spatialdata-io, else the names of the cells.

    Returns
    -------
    The path. An existing file is replaced, as a whole.

    Raises
    ------
    KeyError
        If a column is missing, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type, or the column holds no labels.
    ValueError
        If identifiers are missing or repeated, or no cell has a label.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import stage_sc as st, tempfile, pathlib
    >>> adata = st.datasets.simulate_tissue(500)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "groups.csv"
    >>> file = st.tl.write_cell_groups(adata, path, groupby="domain")
    >>> file.read_text().splitlines()[0]
    'cell_id,group,color'
    """
    check_anndata(adata)
    check_name(key_added, "key_added")
    for value, name in ((groupby, "groupby"), (cell_key, "cell_key")):
        if value is not None:
            check_name(value, name)
    file = file_to_write(path, "path")
    column = default_column({"": adata}, key_added) if groupby is None else groupby
    labels = read_labels(adata, column, argument="groupby")
    if cell_key is not None and cell_key not in adata.obs:
        raise KeyError(f"`cell_key`: no column {cell_key!r} in adata.obs, which has {list(adata.obs.columns)}.")
    key = cell_key or ("cell_id" if "cell_id" in adata.obs else None)
    cells = adata.obs_names.to_series() if key is None else adata.obs[key]
    if cells.isna().any() or cells.astype(str).duplicated().any():
        raise ValueError(f"`cell_key`: identifiers of cells in {key or 'obs_names'!r} are missing or repeated.")
    labelled = np.flatnonzero(labels.codes >= 0)
    if not len(labelled):
        raise ValueError(f"`groupby`: no cell has a label in obs[{column!r}].")
    names = np.array([str(name) for name in labels.categories], dtype=object)[labels.codes[labelled]]
    colors = category_colors([adata], column, key_added, [str(name) for name in labels.categories])
    write_whole(file, cell_groups(cells.astype(str).to_numpy()[labelled], names, colors))
    return file
