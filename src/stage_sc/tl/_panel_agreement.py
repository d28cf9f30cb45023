"""Robustness of labels to the genes that were measured."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_positive, read_rng
from stage_sc._input import check_anndata
from stage_sc._matrix import read_matrix
from stage_sc._result import Columns, label_keys
from stage_sc.genes import match_genes, match_proteins
from stage_sc.graph import graph_view
from stage_sc.metrics import compare_labels
from stage_sc.model import resolve_model
from stage_sc.nn import Stage
from stage_sc.tl._stage_niches import stage_niches


def panel_agreement(
    adata: AnnData,
    model: Stage | str | os.PathLike[str] | None = None,
    *,
    n_splits: int = 3,
    n_domains: int | None = None,
    layer: str | None = None,
    rng: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    """Label the same cells twice, from two disjoint halves of the genes, and compare the labels.

    The halves stand for two platforms with different panels. A model whose niches are those of the tissue gives both
    the same labels; no expert labels are needed.

    Parameters
    ----------
    adata
        Cells with counts, coordinates and the graph of `stage_sc.pp.build_graph`. It is not changed.
    model
        As in `stage_sc.tl.stage_niches`.
    n_splits
        Number of random splits of the genes known to the model; the spread over splits is the uncertainty of a value.
    n_domains
        Number of domains of both labellings together, compared too. ``None``: no domains.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``.
    rng
        Seed or generator of the splits. The same seed gives the same table, for any order of cells and genes.

    Returns
    -------
    Data frame with the float64 columns ARI, NMI and JSD. Rows are indexed by ``split`` and ``labels``: the columns that
    `stage_sc.tl.stage_niches` writes, ``"stage_l1"`` and so on, and with `n_domains` ``"stage_domain"``. ARI and NMI
    are 1 where labels are the same up to their names; JSD, in bits, is 0 where each name has the same number of cells
    in both labellings, and 1 where no name is in both.

    Raises
    ------
    KeyError
        If there is no graph or no such layer.
    TypeError
        If `adata`, `model` or a number is of another type.
    ValueError
        If the model knows fewer than two genes, or as `stage_sc.tl.stage_niches`.

    See Also
    --------
    stage_sc.metrics.ari : Agreement with an expert's labels.

    Notes
    -----
    Each split costs two calls of `stage_sc.tl.stage_niches`; the tree settles on both halves together. Labels of the
    whole panel are more stable than those of its halves. Levels with many niches agree less than levels with few:
    compare models with trees of the same size, or domains.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> model = st.tl.fit(adata, epochs=2, progress=False)
    >>> table = st.tl.panel_agreement(adata, model, n_splits=2, n_domains=4)
    >>> table.loc[0].index.tolist()[-1]
    'stage_domain'
    >>> table.columns.tolist()
    ['ARI', 'NMI', 'JSD']
    """
    check_anndata(adata)
    check_positive(n_splits, "n_splits", integer=True)
    if n_domains is not None:
        check_positive(n_domains, "n_domains", integer=True)
    network, generator = resolve_model(model), read_rng(rng)
    values = read_matrix(adata, layer)
    if network.config.modality == "protein":
        found = match_proteins(adata.var, network.vocabulary.keys())
        tokens = np.array([token if token in network.vocabulary else None for token in found], dtype=object)
    else:
        table = match_genes(adata, vocabulary=network.vocabulary.keys()).table
        tokens = table["token"].where(table["status"].isin(["matched", "ambiguous"])).to_numpy()
    genes = np.unique([token for token in tokens if isinstance(token, str)])
    if len(genes) < 2:
        raise ValueError(f"The model knows only {len(genes)} of {adata.n_vars} genes, too few to split.")
    rows: dict[tuple[int, str], dict[str, float]] = {}
    for split in range(n_splits):
        one, other = halves = [
            _with_genes(adata, values, np.flatnonzero(np.isin(tokens, half)))
            for half in np.array_split(generator.permutation(genes), 2)
        ]
        stage_niches(halves, model=network, n_domains=n_domains, errors="raise")
        for key in label_keys(one):
            rows[split, key] = compare_labels(one.obs[key], other.obs[key])
    return pd.DataFrame(list(rows.values()), index=pd.MultiIndex.from_tuples(rows, names=["split", "labels"]))


def _with_genes(adata: AnnData, values: Any, columns: np.ndarray) -> AnnData:
    """AnnData of some genes; everything else is shared, but results of `stage_niches` are left out."""
    view, names = graph_view(adata), Columns("stage")
    results = [names.path, names.confidence, names.flag, names.domain]
    obs = view.obs.loc[:, [column not in results and not names.is_level(column) for column in view.obs]]
    obsm = {key: value for key, value in view.obsm.items() if key != names.embedding}
    return AnnData(values[:, columns], obs=obs, var=adata.var.iloc[columns], obsm=obsm, obsp=view.obsp, uns=view.uns)
