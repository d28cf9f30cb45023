"""Continuity of labels in space: FIDE on the graph, PAS among nearest cells, ASW over all distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree
from sklearn.metrics import f1_score, silhouette_samples

from stage_sc._checks import check_positive, read_rng
from stage_sc._matrix import read_pairs
from stage_sc.metrics import _read

if TYPE_CHECKING:
    from stage_sc._input import Data

N_NEAREST = 10
N_DIFFERENT = 6
BLOCK = 2**22  # entries of the (cells, neighbours) matrices of PAS held at once, about 100 MB
TIE = 1e-6  # relative difference of distances that count as equal: absorbs rounding, not geometry


def fide(
    data: Data,
    key: str,
    connectivities_key: str = "spatial_connectivities",
    library_key: str | None = None,
    *,
    table_key: str | Sequence[str] | None = None,
) -> float:
    r"""Compute the F1 score of the labels at both ends of the edges of the spatial graph.

    .. math:: FIDE(C, A) = F_1\big((C_i, C_j)_{i, j \,:\, A_{ij} > 0}\big)

    One end of an edge is the truth, the other the prediction; the score is the mean over domains, with equal weights
    [1]_.
    On a symmetric graph the F1 of a domain is the fraction of its cells' neighbours that belong to it. 1 means that no
    edge crosses a border; a single domain everywhere scores 1 too, so compare labellings of equally many domains.

    Parameters
    ----------
    data
        Cells with a spatial graph (``st.pp.build_graph``); or a list or a dictionary of such objects, which are slides.
    key
        Column of ``obs`` with the labels. Edges of cells without one are left out.
    connectivities_key
        Key of ``obsp`` with the graph, (n, n). Edges are its positive entries off the diagonal; weights do not matter.
        Scores of different graphs cannot be compared, as long edges lower them.
    library_key
        Column of ``obs`` that names the slides, for the mean over slides; edges between slides are left out.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.

    Returns
    -------
    The score, between 0 and 1; NaN with a log message if no edge joins two labelled cells. Such slides are left out of
    the mean.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the column or the graph is missing, `key` holds continuous numbers, or no cell has a label.

    References
    ----------
    .. [1] Blampey et al. (2025), Novae: a graph-based foundation model for spatial transcriptomics data,
       Nature Methods.

    Examples
    --------
    A row of four cells, cut in the middle: two of the three neighbours of each domain's cells belong to it too.

    >>> import anndata as ad, numpy as np, pandas as pd, stage_sc as st
    >>> from scipy import sparse
    >>> adata = ad.AnnData(obs=pd.DataFrame({"domain": list("aabb")}, index=list("wxyz")))
    >>> adata.obsp["spatial_connectivities"] = sparse.csr_matrix(np.eye(4, k=1) + np.eye(4, k=-1))
    >>> round(st.metrics.fide(adata, "domain"), 3)
    0.667
    """
    adata, rows_of = _read.read(data, library_key, table_key, obsp=[connectivities_key])
    codes, graph = _read.label_codes(adata, key), read_pairs(adata, connectivities_key)
    return _read.mean(fide_of(codes[rows], graph[rows][:, rows]) for rows in rows_of.values())


def pas(
    data: Data,
    key: str,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    *,
    table_key: str | Sequence[str] | None = None,
) -> float:
    """Compute the fraction of abnormal spots: six or more of the ten nearest cells have another label.

    0 means smooth domains [1]_. An expert's labels rarely score 0, as borders bend and domains can be thin.

    Parameters
    ----------
    data
        Cells with coordinates; or a list or a dictionary of such objects, which are slides.
    key
        Column of ``obs`` with the labels. Cells without one are left out before neighbours are searched.
    spatial_key
        Key of ``obsm`` with the coordinates, (n, 2) or (n, 3), in any unit.
    library_key
        Column of ``obs`` that names the slides, for the mean over slides with neighbours of the same slide. Required
        for an object with several slides, as their coordinates overlap.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.

    Returns
    -------
    The fraction, between 0 and 1; NaN with a log message if fewer than 11 cells have a label. Such slides are left out
    of the mean.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the column or the coordinates are missing, `key` holds continuous numbers, no cell has a label, or
        coordinates are NaN, infinite or all equal.

    Notes
    -----
    Cells that tie for the tenth place, as on the grid of Visium, share the open places equally, so that the order of
    cells does not matter. A million cells take a few seconds.

    References
    ----------
    .. [1] Shang and Zhou (2022), Spatially aware dimension reduction for spatial transcriptomics, Nature Communications
       13, 7203.

    Examples
    --------
    One cell of another kind in the middle of a tissue of 25 is the only one out of place.

    >>> import anndata as ad, numpy as np, pandas as pd, stage_sc as st
    >>> adata = ad.AnnData(obs=pd.DataFrame({"domain": ["a"] * 12 + ["b"] + ["a"] * 12}, index=map(str, range(25))))
    >>> adata.obsm["spatial"] = np.argwhere(np.ones((5, 5))).astype(float)
    >>> st.metrics.pas(adata, "domain")
    0.04
    """
    adata, rows_of = _read.read(data, library_key, table_key, obsm=[spatial_key])
    codes, xy = _read.label_codes(adata, key), _read.coordinates(adata, spatial_key)
    return _read.mean(pas_of(codes[rows], xy[rows]) for rows in rows_of.values())


def asw(
    data: Data,
    key: str,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    *,
    table_key: str | Sequence[str] | None = None,
    max_cells: int | None = 20_000,
    rng: int | np.random.Generator | None = 0,
) -> float:
    r"""Compute the average silhouette width of the labels in physical space, rescaled to 0-1.

    With a the mean distance of a cell to the others of its domain, and b that to the cells of the nearest other domain,

    .. math:: SW = \frac{b - a}{\max(a, b)}, \qquad ASW = \frac{\overline{SW} + 1}{2}

    1 means compact, well separated domains. Layers and other long domains are not compact: compare with the value of
    an expert's labels, which can be near 0.5.

    Parameters
    ----------
    data, key, spatial_key, library_key, table_key
        As in :func:`pas`.
    max_cells
        Size of the random sample that represents a slide with more labelled cells (error about 0.002); ``None``: all.
        The time is quadratic: about 3 s for 20,000 cells on two cores, minutes for 140,000.
    rng
        Seed or generator of the sample, which does not depend on the order of cells.

    Returns
    -------
    The width, between 0 and 1; NaN with a log message if there is one domain, or as many as cells. Such slides are left
    out of the mean. A cell alone in its domain has SW 0.

    Raises
    ------
    KeyError, TypeError, ValueError
        As :func:`pas`; or if `max_cells` is below 3.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, stage_sc as st
    >>> adata = ad.AnnData(obs=pd.DataFrame({"domain": list("aabb")}, index=list("wxyz")))
    >>> adata.obsm["spatial"] = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0]])
    >>> round(st.metrics.asw(adata, "domain"), 3)
    0.945
    """
    check_sample(max_cells, rng)
    adata, rows_of = _read.read(data, library_key, table_key, obsm=[spatial_key])
    codes, xy = _read.label_codes(adata, key), _read.coordinates(adata, spatial_key)
    names = np.asarray(adata.obs_names, dtype=str)
    return _read.mean(asw_of(codes[rows], xy[rows], names[rows], max_cells, rng) for rows in rows_of.values())


def fide_of(codes: np.ndarray, graph: sparse.csr_array) -> float:
    """FIDE of codes (n,) on one slide's graph (n, n)."""
    edges = graph.tocoo()
    i, j = edges.coords
    used = (edges.data > 0) & (i != j) & (codes[i] != _read.MISSING) & (codes[j] != _read.MISSING)
    if not used.any():
        return _read.undefined("FIDE", "no edge of the graph joins two labelled cells")
    return float(f1_score(codes[i[used]], codes[j[used]], average="macro"))


def pas_of(codes: np.ndarray, xy: np.ndarray) -> float:
    """PAS of codes (n,) at one slide's coordinates (n, 2 or 3)."""
    labelled = codes != _read.MISSING
    codes, xy = codes[labelled], xy[labelled]
    n = len(codes)
    if n <= N_NEAREST:
        return _read.undefined("PAS", f"{n} labelled cells, where each needs {N_NEAREST} others")
    tree = cKDTree(xy)
    different = np.empty(n)  # number of a cell's ten nearest with another label
    pending, k = np.arange(n), N_NEAREST + 1
    while len(pending):
        k = min(2 * k, n)
        incomplete = []
        for cells in np.array_split(pending, -(-len(pending) * k // BLOCK)):
            different[cells], complete = _different_neighbours(codes, xy, tree, cells, k)
            incomplete.append(cells[~complete])
        pending = np.concatenate(incomplete)
    return float((different >= N_DIFFERENT - TIE).mean())


def _different_neighbours(
    codes: np.ndarray, xy: np.ndarray, tree: cKDTree, cells: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count the ten nearest of `cells` with another label; False where the `k` found may lack ties of the tenth."""
    distance, neighbour = tree.query(xy[cells], k=k)  # (cells, k), ascending; the cell itself is among them
    tenth = distance[:, N_NEAREST, None]
    complete = (distance[:, -1] > tenth[:, 0] * (1 + TIE)) | (k == len(codes))
    others = neighbour != cells[:, None]
    nearer = others & (distance < tenth * (1 - TIE))
    tied = others & ~nearer & (distance <= tenth * (1 + TIE))
    differs = codes[neighbour] != codes[cells, None]
    places = (N_NEAREST - nearer.sum(axis=1)) / tied.sum(axis=1)  # fraction of a place for each tied cell
    return (nearer & differs).sum(axis=1) + places * (tied & differs).sum(axis=1), complete


def asw_of(
    codes: np.ndarray, xy: np.ndarray, names: np.ndarray, max_cells: int | None, rng: int | np.random.Generator | None
) -> float:
    """ASW of codes (n,) at one slide's coordinates (n, 2 or 3), on a sample if there are more than `max_cells`."""
    labelled = np.flatnonzero(codes != _read.MISSING)
    if max_cells is not None and len(labelled) > max_cells:
        _read.logger.info("ASW of a sample of %d of %d cells", max_cells, len(labelled))
        # Sorted, so that the sample is the same for any order of the cells.
        by_place = labelled[np.lexsort((names[labelled], *xy[labelled].T))]
        labelled = read_rng(rng).choice(by_place, size=max_cells, replace=False)
    codes, xy = codes[labelled], xy[labelled]
    n_labels = len(np.unique(codes))
    if not 2 <= n_labels < len(codes):
        return _read.undefined("ASW", f"{n_labels} domains among {len(codes)} labelled cells; it needs 2 to cells - 1")
    width = silhouette_samples(xy - xy.mean(axis=0), codes)  # distances far from the origin lose digits
    return float((width.mean() + 1) / 2)


def check_sample(max_cells: Any, rng: Any) -> None:
    """Raise for a wrong seed, or a sample too small for two domains and one more cell."""
    read_rng(rng)
    if max_cells is None:
        return
    check_positive(max_cells, "max_cells", integer=True)
    if max_cells < 3:
        raise ValueError(f"`max_cells` is {max_cells}: a silhouette needs at least 3 cells, or None for all")
