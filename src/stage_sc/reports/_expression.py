"""Expression for the page: means of groups, their markers, and quantised values of some genes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stage_sc._matrix import find_counts, holds_counts, read_matrix, to_csr

BLOCK = 100_000  # cells that are normalised at a time
GRADES = 15  # of expression above zero
FEWEST = 10  # cells of a group with markers
LEAST = 0.1  # fraction of the cells of a group that must have a marker


@dataclass(frozen=True)
class Expression:
    """Log-normalised expression of several objects, read in blocks."""

    parts: Sequence[AnnData]
    layer: str | None
    targets: list[float]
    """Counts to which the cells of each object are scaled; 0 for values that are no counts, which stay as they are."""
    genes: list[str]

    def blocks(self) -> Iterator[tuple[int, int, sp.csr_matrix]]:
        """Yield position of the object, row of the first cell over all objects, and values of some cells."""
        offset = 0
        for number, (part, target) in enumerate(zip(self.parts, self.targets, strict=True)):
            matrix = _rows(part, self.layer)
            for start in range(0, part.n_obs, BLOCK):
                values = to_csr(matrix[start : start + BLOCK])
                if target:
                    total = np.asarray(values.sum(axis=1)).ravel()
                    values.data *= np.repeat(target / np.maximum(total, 1), np.diff(values.indptr))
                    np.log1p(values.data, out=values.data)
                yield number, offset + start, values
            offset += part.n_obs

    def columns(self, number: int) -> np.ndarray:
        """Position in `genes` of each gene of an object; of genes with one name the first, the others are -1."""
        names = self.parts[number].var_names.astype(str)
        found = pd.Index(self.genes).get_indexer(names)
        return np.where(names.duplicated(), -1, found)


def open_expression(parts: Sequence[AnnData], layer: str | None) -> Expression:
    """Find the counts to which cells are scaled, the median of each object; negative values are refused."""
    targets = []
    for part in parts:
        matrix = _rows(part, layer)
        counts = holds_counts(matrix)
        advice = partial(find_counts, part, layer)
        blocks = (to_csr(matrix[start : start + BLOCK], advice) for start in range(0, part.n_obs, BLOCK))
        total = np.concatenate([np.zeros(0), *(np.asarray(block.sum(axis=1)).ravel() for block in blocks)])
        targets.append(float(np.median(total[total > 0])) if counts and (total > 0).any() else 0.0)
    genes = sorted(set().union(*(part.var_names.astype(str) for part in parts)))
    return Expression(parts, layer, targets, genes)


def _rows(part: AnnData, layer: str | None) -> Any:
    """Matrix of expression whose rows can be taken fast."""
    matrix = read_matrix(part, layer)
    return matrix.tocsr() if sp.issparse(matrix) and matrix.format not in ("csr", "csc") else matrix


@dataclass(frozen=True)
class Sums:
    """Sums over the cells of groups, each ``(groups, genes)``."""

    values: np.ndarray
    positive: np.ndarray
    """Number of cells with a value above 0."""
    cells: np.ndarray
    """Number of cells in which the gene was measured."""

    def fold(self, groups: Sequence[int], n: int) -> Sums:
        """Join groups: `groups` has the new position of each, -1 for none."""
        onto = np.zeros((n, len(self.values)))
        kept = [(new, old) for old, new in enumerate(groups) if new >= 0]
        onto[tuple(np.array(kept, dtype=int).reshape(-1, 2).T)] = 1
        return Sums(onto @ self.values, onto @ self.positive, onto @ self.cells)


def sum_groups(expression: Expression, codes: np.ndarray, n: int) -> Sums:
    """Sum the values of `n` groups and of the cells without a group, which come last."""
    shape = n + 1, len(expression.genes)
    values, positive, cells = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for number, start, block in expression.blocks():
        column = expression.columns(number)
        own = np.where(codes[start : start + block.shape[0]] < 0, n, codes[start : start + block.shape[0]])
        groups = sp.csr_matrix((np.ones(len(own)), (own, np.arange(len(own)))), shape=(n + 1, len(own)))
        kept = column >= 0
        values[:, column[kept]] += (groups @ block).toarray()[:, kept]
        block.data = np.ones_like(block.data)
        positive[:, column[kept]] += (groups @ block).toarray()[:, kept]
        cells[:, column[kept]] += np.bincount(own, minlength=n + 1)[:, None]
    return Sums(values, positive, cells)


def light_markers(sums: Sums, n: int, genes: Sequence[str], most: int = 12) -> list[list[list[Any]]]:
    """Genes with the largest difference between the mean of a group and that of all other cells.

    Of each of the first `n` groups: name, difference of mean log-normalised expression, fraction of the cells of the
    group and of the others that have the gene. Groups of fewer than 10 cells have none.
    """
    total = Sums(*(part.sum(axis=0) for part in (sums.values, sums.positive, sums.cells)))
    found: list[list[list[Any]]] = []
    for group in range(n):
        own, rest = sums.cells[group], total.cells - sums.cells[group]
        with np.errstate(invalid="ignore", divide="ignore"):
            difference = sums.values[group] / own - (total.values - sums.values[group]) / rest
            inside, outside = sums.positive[group] / own, (total.positive - sums.positive[group]) / rest
        score = np.where((own >= FEWEST) & (inside >= LEAST) & (difference > 0), difference, -np.inf)
        best = [
            gene for gene in np.lexsort((np.arange(len(score)), -score.round(6)))[:most] if np.isfinite(score[gene])
        ]
        found.append(
            [[genes[gene], *(round(float(value[gene]), 4) for value in (difference, inside, outside))] for gene in best]
        )
    return found


def grade(expression: Expression, genes: Sequence[str]) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield name, value of every cell in 15 grades, uint8 ``(n,)``, and value of the highest grade.

    Zero stays zero; the highest grade is the 99.9 % quantile of the values above zero, and all above it. 255 marks
    cells in which the gene was not measured.
    """
    position = {gene: number for number, gene in enumerate(genes)}
    n = sum(part.n_obs for part in expression.parts)
    measured: list[tuple[int, int, np.ndarray]] = []
    blocks: list[tuple[int, sp.csc_matrix]] = []
    for number, start, block in expression.blocks():
        names = [expression.genes[column] if column >= 0 else "" for column in expression.columns(number)]
        taken = [column for column, name in enumerate(names) if name in position]
        onto = [position[names[column]] for column in taken]
        chosen = sp.csr_matrix((np.ones(len(onto), np.float32), (taken, onto)), shape=(len(names), len(genes)))
        blocks.append((start, sp.csc_matrix(block @ chosen)))
        measured.append((start, start + block.shape[0], np.array(onto)))
    for column, gene in enumerate(genes):
        found = [
            (start + part.indices[one], part.data[one]) for start, part in blocks for one in [_column(part, column)]
        ]
        positive = np.concatenate([values for _, values in found])
        top = float(np.quantile(positive, 0.999)) if len(positive) else 1.0
        grades = np.full(n, 255, np.uint8)
        for start, stop, own in measured:
            if column in own:
                grades[start:stop] = 0
        for rows, values in found:
            grades[rows] = np.ceil(GRADES * values / top).clip(1, GRADES)
        yield gene, grades, top


def _column(matrix: sp.csc_matrix, column: int) -> slice:
    return slice(matrix.indptr[column], matrix.indptr[column + 1])


def choose_genes(markers: Sequence[tuple[int, Sequence[Sequence[Any]]]], most: int) -> list[str]:
    """Two markers of each group, the largest groups first, up to `most` genes; `markers` has sizes and markers."""
    largest = sorted(markers, key=lambda group: -group[0])
    turns = (rows[turn][0] for pair in ((0, 1), (2, 3)) for _, rows in largest for turn in pair if turn < len(rows))
    return list(dict.fromkeys(turns))[:most]
