"""Contributions of cells to scores, added up by gene, by hop and by the label of the cell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from stage_sc.explain._patches import MAX_HOPS, Nodes
from stage_sc.slides import Slide


class Lens(NamedTuple):
    """Linear map from the expression of the cells of a slide to what the score is computed from."""

    slide: Slide
    vectors: np.ndarray
    """``(P, d)`` float64, of one unit of scaled expression of each gene."""
    mean: np.ndarray
    """``(P,)`` float64 mean expression on the slide, the baseline."""
    scale: np.ndarray
    """``(P,)`` float64 sd of each gene."""

    def cells(self, cells: np.ndarray) -> np.ndarray:
        """Distance of cells from the baseline, ``(n, d)`` float64."""
        weights = self.vectors / self.scale[:, None]
        return np.asarray(self.slide.take(cells) @ weights - self.mean @ weights)


class Tally:
    """Sums over the cells of the niche (0) and of the reference (1), from the cells themselves (0) and others (1)."""

    def __init__(self, genes: list[str], n_labels: int) -> None:
        self.genes, self._number = genes, {gene: position for position, gene in enumerate(genes)}
        self.by_gene = np.zeros((2, 2, len(genes)))
        self.by_label = np.zeros((2, 2, n_labels + 1))
        """Cells without a label are last."""
        self.by_hop = np.zeros((2, MAX_HOPS + 2))
        self.scaled = np.zeros((2, len(genes)))
        """Scaled expression, averaged over the hops around the cells."""
        self.shares = np.zeros((2, n_labels + 1))
        """Share of the cells of each label in these averages."""
        self.score, self.baseline, self.n_cells = np.zeros(2), np.zeros(2), np.zeros(2, np.int64)

    def add(
        self, lens: Lens, nodes: Nodes, gradient: np.ndarray, *, group: np.ndarray, hop: np.ndarray, label: np.ndarray
    ) -> None:
        """Add patches of which each belongs to a `group` ``(B,)``; `gradient`, `hop` and `label` are of their nodes."""
        cells, place = np.unique(nodes.cell, return_inverse=True)
        values = (lens.cells(cells)[place] * gradient).sum(axis=1)
        expression, columns = lens.slide.take(cells).astype(np.float64), self._columns(lens)
        for number in (0, 1):
            inside = group[nodes.patch] == number
            self.by_hop[number] += np.bincount(hop[inside], values[inside], self.by_hop.shape[1])
            for part, chosen in enumerate((inside & (hop == 0), inside & (hop > 0))):
                self.by_label[number, part] += np.bincount(label[chosen], values[chosen], self.by_label.shape[2])
                weights = _sum_rows(place[chosen], gradient[chosen], len(cells))
                self.by_gene[number, part, columns] += (_scaled(lens, expression, weights) * lens.vectors).sum(axis=1)

    def add_means(self, lens: Lens, around: Nodes, weight: np.ndarray, *, group: np.ndarray, label: np.ndarray) -> None:
        """Add expression and labels around the centres, by the `weight` of each node in the means over hops."""
        cells, place = np.unique(around.cell, return_inverse=True)
        inside = [weight * (group[around.patch] == number) for number in (0, 1)]
        for number, weights in enumerate(inside):
            self.shares[number] += np.bincount(label, weights, self.shares.shape[1])
        sums = np.stack([np.bincount(place, weights, len(cells)) for weights in inside], axis=1)
        expression = lens.slide.take(cells).astype(np.float64)
        self.scaled[:, self._columns(lens)] += _scaled(lens, expression, sums).T

    def add_scores(self, score: np.ndarray, baseline: np.ndarray, group: np.ndarray) -> None:
        """Add scores of centres and of their baselines."""
        self.score += np.bincount(group, score, 2)
        self.baseline += np.bincount(group, baseline, 2)
        self.n_cells += np.bincount(group, minlength=2)

    def _columns(self, lens: Lens) -> np.ndarray:
        return np.array([self._number[gene] for gene in lens.slide.genes])


def _scaled(lens: Lens, expression: sp.csr_matrix, weights: np.ndarray) -> np.ndarray:
    """Sum of scaled expression less the baseline over cells, with weights ``(n, d)``: ``(P, d)``."""
    return np.asarray(expression.T @ weights - np.outer(lens.mean, weights.sum(axis=0))) / lens.scale[:, None]


def _sum_rows(place: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """Add up the rows of `values` with the same place, ``(n, d)``."""
    members = sp.csr_matrix((np.ones(len(place)), (place, np.arange(len(place)))), shape=(n, len(place)))
    return np.asarray(members @ values)
