"""Tables of mean contributions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from stage_sc.explain._tally import Tally

logger = logging.getLogger("stage_sc.tl")

# Largest error of the sum of contributions, as a fraction of the score difference, without a warning.
LARGE = 0.02


class Result(NamedTuple):
    table: pd.DataFrame
    neighbors: pd.DataFrame
    hops: pd.DataFrame
    sums: dict[str, float]


def assemble(tally: Tally, names: Mapping[str, str], labels: list[str]) -> Result:
    """Mean contributions in the niche less those in the reference; `names` are those of the genes."""
    number = tally.n_cells.astype(np.float64)
    by_gene, by_label = (values / number[:, None, None] for values in (tally.by_gene, tally.by_label))
    table = pd.DataFrame({"names": [names.get(gene, gene) for gene in tally.genes], **_columns(by_gene)})
    table["niche_mean"], table["reference_mean"] = tally.scaled / number[:, None]
    table = table.iloc[np.lexsort((table["names"], -table["contribution"].abs()))].reset_index(drop=True)
    neighbors = pd.DataFrame({"label": [*labels, "unlabelled"], **_columns(by_label)})
    neighbors["niche_share"], neighbors["reference_share"] = tally.shares / number[:, None]
    neighbors = neighbors[(neighbors["niche_share"] + neighbors["reference_share"] > 0) | (neighbors["niche"] != 0)]
    order = np.lexsort((neighbors["label"], -neighbors["contribution"].abs()))
    by_hop = tally.by_hop / number[:, None]
    last = int(np.flatnonzero(by_hop.any(axis=0)).max(initial=0)) + 1
    hops = pd.DataFrame({"hops": range(last), "contribution": by_hop[0, :last] - by_hop[1, :last]})
    hops["niche"], hops["reference"] = by_hop[:, :last]
    score, baseline, total = tally.score / number, tally.baseline / number, by_gene.sum(axis=(1, 2))
    error = score - baseline - total
    sums = {
        "score_niche": score[0],
        "score_reference": score[1],
        "score_difference": score[0] - score[1],
        "baseline_niche": baseline[0],
        "baseline_reference": baseline[1],
        "baseline_difference": baseline[0] - baseline[1],
        "sum_contributions": total[0] - total[1],
        "error": error[0] - error[1],
    }
    if abs(sums["error"]) > LARGE * abs(sums["score_difference"]):
        logger.warning(
            "Contributions add up to %.4g, and the score difference is %.4g: the score is far from smooth between the "
            "mean cell and these cells. Take contributions as approximate.",
            *(sums["sum_contributions"] + sums["baseline_difference"], sums["score_difference"]),
        )
    return Result(
        table, neighbors.iloc[order].reset_index(drop=True), hops, {key: float(value) for key, value in sums.items()}
    )


def _columns(values: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of contributions, from those in niche and reference of cells themselves and others, ``(2, 2, n)``."""
    niche, reference = values
    difference = niche - reference
    return {
        "contribution": difference.sum(axis=0),
        "own": difference[0],
        "neighbors": difference[1],
        "niche": niche.sum(axis=0),
        "reference": reference.sum(axis=0),
    }
