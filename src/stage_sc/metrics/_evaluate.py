"""All metrics of several labellings in one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stage_sc._checks import read_names
from stage_sc._matrix import read_pairs
from stage_sc.metrics import _read
from stage_sc.metrics._agreement import ari_of, both, jsd_of, nmi_of
from stage_sc.metrics._space import asw_of, check_sample, fide_of, pas_of

if TYPE_CHECKING:
    from stage_sc._input import Data

COLUMNS = ["ARI", "NMI", "FIDE", "JSD", "PAS", "ASW"]


def evaluate(
    data: Data,
    keys: str | Sequence[str],
    *,
    reference: str | None = None,
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    connectivities_key: str = "spatial_connectivities",
    spatial_key: str = "spatial",
    max_cells: int | None = 20_000,
    rng: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    """Compute all metrics for one or more labellings, for each slide and on average.

    Put the reference among the `keys` too: FIDE, JSD, PAS and ASW have no best value, and over-smoothed labels beat an
    expert's in all of them. Good is close to the row of the expert.

    Parameters
    ----------
    data
        Cells with coordinates and a spatial graph (``st.pp.build_graph``); or a list or a dictionary of such objects,
        which are slides.
    keys
        Columns of ``obs`` with the labels to score.
    reference
        Column of ``obs`` to compare them with. Default: none, ARI and NMI are NaN.
    library_key
        Column of ``obs`` that names the slides. Required for an object with several slides, as their coordinates
        overlap.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    connectivities_key
        Key of ``obsp`` with the graph for FIDE.
    spatial_key
        Key of ``obsm`` with the coordinates for PAS and ASW.
    max_cells, rng
        Sample for ASW on large slides, see :func:`asw`, which takes most of the time.

    Returns
    -------
    Data frame with the float64 columns ARI, NMI, FIDE, JSD, PAS and ASW. Rows are the `keys`; for several slides,
    ``key`` and ``slide`` (sorted names), then ``"mean"``, the mean of the slides with a value. JSD compares slides and
    is in the row ``"mean"`` alone. The mean ARI and NMI allow other names on each slide, unlike :func:`ari` without
    `library_key`.

    Raises
    ------
    KeyError, TypeError, ValueError
        As the single metrics; or if `keys` is empty, or a slide is called "mean".

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, stage_sc as st
    >>> from scipy import sparse
    >>> obs = pd.DataFrame({"found": list("aaabbb") * 2, "expert": list("xxxyyx") * 2}, index=list("abcdefghijkl"))
    >>> adata = ad.AnnData(obs=obs)
    >>> adata.obsm["spatial"] = np.column_stack([np.arange(12.0), np.zeros(12)])
    >>> adata.obsp["spatial_connectivities"] = sparse.csr_matrix(np.eye(12, k=1) + np.eye(12, k=-1))
    >>> table = st.metrics.evaluate(adata, ["found", "expert"], reference="expert")
    >>> table["ARI"].round(2).to_dict()
    {'found': 0.4, 'expert': 1.0}
    """
    keys = read_names(keys, "keys")
    if not keys:
        raise ValueError("`keys` is empty: name at least one column of adata.obs")
    check_sample(max_cells, rng)
    adata, rows_of = _read.read(data, library_key, table_key, obsm=[spatial_key], obsp=[connectivities_key])
    codes_of = {key: _read.label_codes(adata, key, "keys") for key in keys}
    known_of = {} if reference is None else {key: both(adata, key, reference)[1] for key in keys}
    xy, graph = _read.coordinates(adata, spatial_key), read_pairs(adata, connectivities_key)
    if "mean" in rows_of:
        raise ValueError("a slide is called 'mean', like the last row of the table: rename it")
    names = np.asarray(adata.obs_names, dtype=str)

    table: dict[tuple[str, str], dict[str, float]] = {}
    for slide, rows in rows_of.items():
        slide_graph = graph[rows][:, rows]
        for key, all_codes in codes_of.items():
            codes, known = all_codes[rows], known_of[key][rows] if known_of else None
            table[key, slide] = {
                "ARI": np.nan if known is None else ari_of(codes, known),
                "NMI": np.nan if known is None else nmi_of(codes, known),
                "FIDE": fide_of(codes, slide_graph),
                "JSD": np.nan,
                "PAS": pas_of(codes, xy[rows]),
                "ASW": asw_of(codes, xy[rows], names[rows], max_cells, rng),
            }
    if list(rows_of) == [""]:
        return pd.DataFrame([table[key, ""] for key in keys], index=pd.Index(keys, name="key"), columns=COLUMNS)
    index = [(key, slide) for key in keys for slide in (*rows_of, "mean")]
    for key in keys:
        means = {name: _read.mean([table[key, slide][name] for slide in rows_of]) for name in COLUMNS}
        table[key, "mean"] = means | {"JSD": jsd_of(codes_of[key], rows_of)}
    rows = pd.MultiIndex.from_tuples(index, names=["key", "slide"])
    return pd.DataFrame([table[entry] for entry in index], index=rows, columns=COLUMNS)
