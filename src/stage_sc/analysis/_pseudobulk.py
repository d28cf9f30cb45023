"""Genes of niches compared between slides: sums of counts inside and outside, and a negative binomial model."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from stage_sc._input import Tables
from stage_sc._matrix import find_counts, holds_counts, read_matrix
from stage_sc._messages import element_name
from stage_sc.analysis._expression import LogExpression, Moments, group_moments, sum_counts
from stage_sc.analysis._labels import Groups, warn_left_out
from stage_sc.analysis._rank_tests import tidy

REPLICATES = 3  # least number of slides
LEAST = 10  # counts of a gene in all samples; others have no p-value


def rank_replicates(
    tables: Tables,
    groups: Groups,
    codes: np.ndarray,
    expression: LogExpression,
    layer: str | None,
    min_cells: int,
    cell_type: str,
) -> pd.DataFrame | None:
    """Compare sums of counts in and outside of each niche over slides; ``None`` if no niche is on enough slides.

    `codes` are those of the labels, -1 for cells that are left out.
    """
    _require_counts(tables, layer)
    names, n_slides = groups.labels.names, len(groups.slides.names)
    place = np.where(codes >= 0, groups.slides.codes * len(names) + codes, -1)
    n_cells = np.bincount(place[place >= 0], minlength=n_slides * len(names)).reshape(n_slides, len(names))
    others = n_cells.sum(axis=1, keepdims=True) - n_cells
    usable = (n_cells >= min_cells) & (others >= min_cells)  # (slides, niches)
    enough = usable.sum(axis=0) >= REPLICATES
    small = [names[code] for code in np.flatnonzero(n_cells.any(axis=0) & ~enough)]
    warn_left_out(small, min_cells, cell_type, f"on {REPLICATES} slides, inside or outside, fewer")
    chosen = np.flatnonzero(enough)
    if not len(chosen):
        return None
    sums = sum_counts(tables, place, n_slides * len(names), expression.genes, layer)
    sums = sums.reshape(n_slides, len(names), -1)
    tested = [_fit(sums[usable[:, code]], int(code)) for code in chosen]
    scores, change, pvals = (np.stack(values) for values in zip(*tested, strict=True))
    inside = group_moments(expression.matrix, codes, len(names))
    one, other = (Moments(*(values[chosen] for values in each)) for each in (inside, inside.rest()))
    return tidy(groups.labels, chosen, expression.genes, scores, change, pvals, one.fraction, other.fraction)


def _fit(sums: np.ndarray, code: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wald statistic, log2 fold change and p-value of every gene, inside a niche against outside on each slide.

    `sums` are counts, ``(n_slides, n_niches, n_genes)``.
    """
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats

    inside = sums[:, code]
    counts = np.concatenate([inside, sums.sum(axis=1) - inside])
    tested = counts.sum(axis=0) >= LEAST
    n_slides = len(sums)
    samples = pd.Index([f"sample{row}" for row in range(len(counts))])
    design = pd.DataFrame({"intercept": np.ones(len(counts))}, index=samples)
    for slide in range(1, n_slides):
        design[f"slide{slide}"] = (np.arange(len(counts)) % n_slides == slide).astype(float)
    design["inside"] = (np.arange(len(counts)) < n_slides).astype(float)
    settings: dict[str, Any] = {"inference": DefaultInference(n_cpus=1), "quiet": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        genes = [f"gene{column}" for column in np.flatnonzero(tested)]
        frame = pd.DataFrame(counts[:, tested].astype(np.int64), samples, genes)
        model = DeseqDataSet(counts=frame, metadata=design.copy(), design=design, refit_cooks=False, **settings)
        _fit_dispersions(model, counts.sum(axis=1))
        contrast = (design.columns == "inside").astype(float)
        result = DeseqStats(model, contrast=contrast, independent_filter=False, **settings)
        result.summary()
    found = [np.zeros(len(tested)), np.zeros(len(tested)), np.ones(len(tested))]
    for values, (key, missing) in zip(found, {"stat": 0, "log2FoldChange": 0, "pvalue": 1}.items(), strict=True):
        values[tested] = result.results_df[key].fillna(missing)
    return found[0], found[1], found[2]


def _fit_dispersions(model: Any, totals: np.ndarray) -> None:
    """Fit a model of pydeseq2 with samples scaled by their totals, as cells are.

    Its own medians of ratios assume that most genes do not change, which a panel of markers does not hold to.
    """
    model.obs["size_factors"] = totals / np.exp(np.log(totals).mean())
    model.layers["normed_counts"] = model.X / model.obs["size_factors"].to_numpy()[:, None]
    model.var["_normed_means"] = model.layers["normed_counts"].mean(axis=0)
    model.fit_genewise_dispersions()
    model.fit_dispersion_trend()
    model.fit_dispersion_prior()
    model.fit_MAP_dispersions()
    model.fit_LFC()
    model.calculate_cooks()
    model.cooks_outlier()


def _require_counts(tables: Tables, layer: str | None) -> None:
    """Raise unless every object has whole numbers."""
    for name, part in tables.by_name.items():
        if not holds_counts(read_matrix(part, layer)):
            where = element_name("data", name)
            raise ValueError(
                f"`method`: 'pseudobulk' adds up counts, but {where or 'the expression'} holds other numbers. "
                f"{find_counts(part, layer)} Or pass `method='t-test'`."
            )
