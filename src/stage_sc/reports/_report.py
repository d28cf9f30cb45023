"""One file to hand over."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stage_sc._checks import check_name, check_positive, read_names
from stage_sc._files import file_to_write, write_whole
from stage_sc._input import read_labels, read_tables
from stage_sc._messages import collected_warnings
from stage_sc._result import require_result
from stage_sc.pl import Cells, read_cells
from stage_sc.reports._content import Options, compose
from stage_sc.reports._page import build_page

if TYPE_CHECKING:
    from stage_sc._input import Data

logger = logging.getLogger("stage_sc")


def report(
    data: Data,
    path: str | os.PathLike[str],
    *,
    key_added: str = "stage",
    groupby: str | None = None,
    keys: str | Sequence[str] = (),
    condition_key: str | None = None,
    cell_type_key: str | None = None,
    genes: str | Sequence[str] | None = None,
    n_genes: int = 60,
    spatial_key: str | None = None,
    library_key: str | None = None,
    layer: str | None = None,
    table_key: str | Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """Write one HTML file that shows the niches of all cells to somebody without Python.

    The page opens in any current browser from a disk or a mail, loads nothing and sends nothing. All cells can be
    zoomed and moved, a slider chooses the level of the tree. A click on a niche shows where it is, its numbers of cells
    by slide and condition, marker genes, pathways, neighbours and confidence. Niches and genes can be searched, niches
    renamed, regions drawn. Names and regions are saved as JSON or GeoJSON, which ``st.tl.annotate_niches`` reads. The
    page also has a paragraph on methods, and the warnings about the data.

    Parameters
    ----------
    data
        Cells with niches from ``st.tl.stage_niches``: an AnnData, SpatialData or MuData, the path of one, or a list or
        a dictionary of these.
    path
        File to write, as ``"cohort.html"``. A file of this name is replaced.
    key_added
        Name under which the niches were written.
    groupby
        Column of ``obs`` with labels to show instead of niches.
    keys
        Further columns of ``obs`` with labels to colour by, e.g. an expert's annotation.
    condition_key
        Column of ``obs`` with the condition, e.g. the treatment: cells of each niche are counted by it.
    cell_type_key
        Column of ``obs`` with cell types: those of each niche are listed.
    genes
        Names of the genes that can be shown on the tissue. Default: markers of niches.
    n_genes
        Largest number of genes without `genes`: two markers of every niche of any level, the largest niches first. A
        gene takes 0.1 to 0.5 bytes for a cell.
    spatial_key
        Entry of ``obsm`` with the coordinates. Default: the one of the niches.
    library_key
        Column of ``obs`` that names the slide of each cell. Default: the one of the niches.
    layer
        Entry of ``layers`` with counts, for genes. Default: ``X``.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    title
        Title of the page. Default: name of the file.

    Returns
    -------
    Path of the file. `data` is not changed.

    Raises
    ------
    KeyError
        If niches, coordinates or a column are missing, or a gene of `genes`.
    TypeError
        If an argument is of another type.
    ValueError
        If `path` has another ending, if there are no cells, or if expression that was asked for (`genes`, `layer`)
        cannot be used. Without these the page has no genes, and says why.
    OSError
        If `path` cannot be written.

    See Also
    --------
    stage_sc.tl.annotate_niches : Read names and regions back.

    Notes
    -----
    Cells are drawn by the script on a canvas, pixel by pixel, so that no graphics card (WebGL) is needed. Coordinates
    are rounded to 1/65,535 of the longer side of a slide (0.2 µm on a slide of 1 cm). Expression is log-normalised
    (counts scaled to the median total of each object; values that are no counts stay as they are) and rounded to 15
    grades, the highest of which is the 99.9 % quantile of values above zero. Arrays are compressed with gzip, and read
    by ``DecompressionStream``: Chrome 80, Firefox 113, Safari 16.4, or later.

    A result of ``rank_niche_genes`` or ``pathways`` in ``uns`` is shown; markers are otherwise genes with the largest
    difference between mean log-normalised expression of a niche and of all other cells, in at least 10 % of the cells
    of a niche with at least 10. Neighbours are groups with most edges of the neighbourhood graph to a niche; beside the
    share of its outer edges is the ratio to the share by size alone.

    A million cells of a panel of 380 genes take 25 bytes each in the file, most of them for 60 genes, and 30 s to
    write; the page opens in 2 s. The same cells give the same file, in any order.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> path = st.report(adata, "tissue.html", groupby="domain")
    >>> path.name
    'tissue.html'
    """
    file = file_to_write(path, "path")
    if file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"`path` must end in .html, got {str(file)!r}: a browser opens the file by its name.")
    for name, value in {"groupby": groupby, "condition_key": condition_key, "cell_type_key": cell_type_key}.items():
        if value is not None:
            check_name(value, name)
    for name, value in {"layer": layer, "title": title}.items():
        if value is not None:
            check_name(value, name)
    check_positive(n_genes, "n_genes", integer=True, zero=True)
    columns = read_names(keys, "keys")
    chosen = None if genes is None else read_names(genes, "genes")
    tables = read_tables(data, table_key=table_key)
    with collected_warnings() as heard:
        cells = read_cells(tables, key_added, library_key, spatial_key)
        _check(cells, groupby, [("condition_key", condition_key), ("cell_type_key", cell_type_key)], columns)
        _check_genes(cells, chosen)
        options = Options(
            groupby, columns, condition_key, cell_type_key, chosen, int(n_genes), layer, title or file.stem
        )
        content = compose(cells, options, heard)
    text = build_page(content).encode()
    write_whole(file, text)
    logger.info("Report of %d cells written to %r: %.1f MB.", content.facts["n"], str(file), len(text) / 1e6)
    return file


def _check(cells: Cells, groupby: str | None, named: Sequence[tuple[str, str | None]], columns: Sequence[str]) -> None:
    """Raise unless there are niches, or `groupby`, and all columns in at least one object."""
    if groupby is None:
        for part in cells.parts:
            require_result(part, cells.key_added)
    for argument, key in [("groupby", groupby), *named, *(("keys", key) for key in columns)]:
        if key is None:
            continue
        holders = [part for part in cells.parts if key in part.obs] or cells.parts
        for part in holders:
            read_labels(part, key, integers=False, argument=argument)
        if groupby == key and all(read_labels(part, key).isna().all() for part in holders):
            raise ValueError(f"`groupby`: no cell has a label in obs[{key!r}].")


def _check_genes(cells: Cells, genes: Sequence[str] | None) -> None:
    if genes is None:
        return
    if not genes:
        raise ValueError("`genes` is empty: leave it out for markers of niches, or pass `n_genes=0` for no genes.")
    known = set().union(*(part.var_names.astype(str) for part in cells.parts))
    if unknown := [gene for gene in genes if gene not in known]:
        raise KeyError(f"`genes`: {unknown[:5]} are not in var_names, e.g. {sorted(known)[:5]}.")
