"""Activity of sets of genes in niches."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stage_sc._checks import check_bool, check_positive
from stage_sc._input import Data, read_tables
from stage_sc.analysis._expression import LogExpression, as_frame, group_moments, read_log_expression
from stage_sc.analysis._labels import Groups, read_groups, warn_left_out
from stage_sc.analysis._store import check_key, write_stored

logger = logging.getLogger("stage_sc.tl")

TOOL = "pathways"


def pathways(
    data: Data,
    net: pd.DataFrame,
    *,
    groupby: str | None = None,
    min_genes: int = 5,
    min_cells: int = 10,
    library_key: str | None = None,
    layer: str | None = None,
    table_key: str | Sequence[str] | None = None,
    key_added: str = TOOL,
    copy: bool = False,
) -> Any:
    r"""Score the activity of sets of genes in each niche, relative to the other cells of its slides.

    Needs decoupler: ``pip install "stage-sc[pathways]"``.

    Parameters
    ----------
    data
        Cells with counts and labels; or a list or a dictionary of such objects, of which the common genes are used.
    net
        Sets of genes: a data frame with the columns ``source`` (name of the set), ``target`` (name of a gene as in
        ``var_names``) and optionally ``weight``, in the form of decoupler. None is bundled, as the licences of the
        usual collections do not allow it for all uses. ``decoupler.op.hallmark()``, ``decoupler.op.progeny()`` and
        ``decoupler.op.collectri()`` download one (mind their licences; ``organism="mouse"`` for mouse), and
        ``decoupler.pp.read_gmt(path)`` reads the files of MSigDB, of WikiPathways (CC0) and others.
    groupby
        Column of ``obs`` with labels; cells without one are left out. ``None``: the domains of
        `stage_sc.tl.stage_niches` if there are any, else its niches of level 2.
    min_genes
        Sets with fewer genes among those of `data` are left out, and named in a warning. Panels hold few genes of a
        set: scores of five genes say little.
    min_cells
        Niches with fewer cells with counts are left out, and named in a warning.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one of the niches or of the graph.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    key_added
        Name of the result in ``uns``.
    copy
        Return a copy of `data` with the result instead of writing into `data`.

    Returns
    -------
    ``None``, or with `copy` a copy of `data`. Written into every object is ``uns[key_added]``, about all of them:

    ``"table"``
        Data frame with a row for each niche and set: ``group``, ``source``, ``score`` (a t-statistic, positive where
        the genes of the set are higher than the other genes), ``pvals_adj`` (of decoupler), ``n_genes`` of the set,
        and over the slides with `min_cells` of the niche their number ``n_slides``, and ``slide_mean`` and
        ``slide_sd`` of the scores of each slide.
    ``"params"``
        Arguments.

    Raises
    ------
    KeyError
        If a column or layer does not exist, or there are no niches and no `groupby`.
    TypeError
        If an argument is of another type.
    ValueError
        If `net` has no set with `min_genes` genes of `data`, no niche has `min_cells` cells, expression is not valid,
        the objects have no common gene, or ``uns[key_added]`` holds something else.
    ImportError
        If decoupler is not installed.

    See Also
    --------
    stage_sc.pl.pathways : Heat map of niches and sets.
    stage_sc.tl.rank_niche_genes : Single genes.

    Notes
    -----
    Log-normalised expression is standardised for each gene on each slide, over the cells with counts, so that levels of
    genes and slides do not count. The mean over the cells of a niche is a profile of how its genes deviate; of this
    profile, decoupler's univariate linear model takes t of the slope on membership (or on ``weight``),

    .. math:: \bar z_g = a + b \, w_g + \varepsilon_g, \qquad t = b / \mathrm{se}(b), \qquad g = 1 \dots P.

    Genes are the sample: a small p-value says that the set stands out among the genes of the panel, not that it would
    in other tissue, which ``slide_sd`` tells. Cells without counts are left out. Linear in the cells; only niches are
    scored, not cells.

    Examples
    --------
    >>> import pandas as pd, stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> net = pd.DataFrame({"source": "first ten", "target": adata.var_names[:10]})
    >>> st.tl.pathways(adata, net, groupby="domain")
    >>> adata.uns["pathways"]["table"].columns.tolist()[:3]
    ['group', 'source', 'score']
    """
    check_positive(min_genes, "min_genes", integer=True)
    check_positive(min_cells, "min_cells", integer=True)
    check_bool(copy, "copy")
    net = _check_net(net)
    _require_decoupler()
    tables = read_tables(data, table_key=table_key)
    check_key(tables, key_added, TOOL, copy=copy)
    groups = read_groups(tables, groupby, library_key)
    expression = read_log_expression(tables, groups.slides, layer)
    net = _choose_sets(net, expression, int(min_genes))
    profiles = _profiles(expression, groups, int(min_cells))
    scores, pvals = _score(profiles, net, int(min_genes))
    table = _tabulate(scores, pvals, net, groups)
    params = {"groupby": groups.groupby, "min_genes": int(min_genes), "min_cells": int(min_cells), "layer": layer}
    tables = tables.copy() if copy else tables
    write_stored(tables, key_added, TOOL, table, params)
    return tables.given if copy else None


def _require_decoupler() -> None:
    import matplotlib as mpl

    try:
        with mpl.rc_context():  # the import sets parameters of all figures
            import decoupler  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "`st.tl.pathways` needs the package decoupler: `pip install 'stage-sc[pathways]'` or "
            "`pip install decoupler`."
        ) from error


def _check_net(net: Any) -> pd.DataFrame:
    """Read sets of genes as strings, without repeated pairs; a TypeError or ValueError for other forms."""
    how = (
        "a data frame with the columns 'source' (name of the set) and 'target' (gene), as of `decoupler.op.hallmark()`"
    )
    if not isinstance(net, pd.DataFrame):
        raise TypeError(f"`net` must be {how}, got {type(net).__name__}.")
    if missing := [name for name in ("source", "target") if name not in net]:
        raise ValueError(f"`net` must be {how}: {missing} not in its columns {list(map(str, net.columns))}.")
    if "weight" in net and not (
        pd.api.types.is_numeric_dtype(net["weight"]) and np.isfinite(net["weight"].to_numpy(dtype=float)).all()
    ):
        raise ValueError("`net`: the column 'weight' must hold finite numbers.")
    columns = ["source", "target", *(["weight"] if "weight" in net else [])]
    net = net[columns].dropna(subset=["source", "target"])
    net = net.astype({"source": str, "target": str})
    return net.drop_duplicates(["source", "target"]).sort_values(["source", "target"], ignore_index=True)


def _choose_sets(net: pd.DataFrame, expression: LogExpression, min_genes: int) -> pd.DataFrame:
    """Leave out genes that are not in the data, and sets with too few."""
    found = net[net["target"].isin(expression.genes)]
    number = found["source"].value_counts().reindex(sorted(net["source"].unique()), fill_value=0)
    small = list(number.index[number < min_genes])
    if len(small) == len(number):
        raise ValueError(
            f"`net`: no set has {min_genes} genes of `data`. Targets are e.g. {net['target'].head(3).tolist()}, genes "
            f"e.g. {expression.genes[:3]}: are names and species the same? Or lower `min_genes`."
        )
    if small:
        shown = ", ".join(small[:8]) + (" …" if len(small) > 8 else "")
        logger.warning(
            "%d of %d sets have fewer than %d genes here, and are left out: %s.",
            *(len(small), len(number), min_genes, shown),
        )
    return found[~found["source"].isin(small)]


def _profiles(expression: LogExpression, groups: Groups, min_cells: int) -> pd.DataFrame:
    """Mean standardised expression, ``(n_rows, n_genes)``, indexed by niche and slide; slide -1 is all of them."""
    names, matrix = groups.labels.names, expression.matrix
    filled = np.diff(matrix.indptr) > 0
    total, number = np.zeros((len(names), matrix.shape[1])), np.zeros(len(names))
    rows: dict[tuple[Any, Any], np.ndarray] = {}
    for slide in range(len(groups.slides.names)):
        cells = np.flatnonzero((groups.slides.codes == slide) & filled)
        if len(cells) < 2:
            continue
        part = matrix if len(cells) == matrix.shape[0] else matrix[cells]
        whole = group_moments(part, np.zeros(len(cells), dtype=np.intp), 1)
        inside = group_moments(part, groups.labels.codes[cells], len(names))
        deviation = np.where(whole.deviation > 1e-6, whole.deviation, np.inf)
        profile = np.nan_to_num((inside.mean - whole.mean) / deviation)
        total += inside.n_cells * profile
        number += inside.n_cells.ravel()
        rows |= {(code, slide): profile[code] for code in np.flatnonzero(inside.n_cells.ravel() >= min_cells)}
    large = np.flatnonzero(number >= min_cells)
    warn_left_out([names[code] for code in np.flatnonzero(number < min_cells)], min_cells)
    if not len(large):
        raise ValueError(
            f"`min_cells`: no niche of obs[{groups.groupby!r}] has {min_cells} cells with counts. Lower it."
        )
    rows = {(code, -1): total[code] / number[code] for code in large} | {
        key: profile for key, profile in rows.items() if key[0] in set(large)
    }
    varies = np.any(list(rows.values()), axis=0)
    genes = [gene for gene, used in zip(expression.genes, varies, strict=True) if used]
    return pd.DataFrame(np.stack(list(rows.values()))[:, varies], pd.MultiIndex.from_tuples(rows), genes)


def _score(profiles: pd.DataFrame, net: pd.DataFrame, min_genes: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and adjusted p-values of decoupler's univariate linear model, rows as of `profiles`."""
    import decoupler as dc

    rows = profiles.set_axis([str(row) for row in range(len(profiles))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores, pvals = dc.mt.ulm(data=rows, net=net, tmin=min_genes, empty=False)
    return tuple(one.loc[rows.index].set_axis(profiles.index) for one in (scores, pvals))


def _tabulate(scores: pd.DataFrame, pvals: pd.DataFrame, net: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """One row for each niche and set."""
    sources = sorted(scores.columns)
    slide = scores.index.get_level_values(1)
    whole, parts = scores[slide < 0].droplevel(1)[sources], scores[slide >= 0][sources].groupby(level=0)
    codes = whole.index.to_numpy()
    size = net["source"].value_counts()
    columns = {
        "group": np.repeat(codes, len(sources)),
        "source": np.tile(np.arange(len(sources)), len(codes)),
        "score": whole.to_numpy(dtype=float).ravel(),
        "pvals_adj": pvals[slide < 0][sources].to_numpy(dtype=float).ravel(),
        "n_genes": np.tile(size[sources].to_numpy(dtype=np.int64), len(codes)),
        "n_slides": np.repeat(parts.size().reindex(codes, fill_value=0).to_numpy(dtype=np.int64), len(sources)),
        "slide_mean": parts.mean().reindex(codes).to_numpy(dtype=float).ravel(),
        "slide_sd": parts.std().reindex(codes).to_numpy(dtype=float).ravel(),
    }
    return as_frame(columns, group=groups.labels.names, source=sources)
