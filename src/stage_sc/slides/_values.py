"""Kind of the values of a slide (counts, logged, linear) and their log-normalisation as in scanpy."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from stage_sc._input import about
from stage_sc.genes import MAX_PROTEINS
from stage_sc.slides._canonical import row_sums

logger = logging.getLogger("stage_sc.pp")

# Largest distance from an integer of a count that was scaled and scaled back.
COUNT_TOLERANCE = 2e-3
# Upper limit of logged values: log1p of any real count is below (log1p(10^9) = 20.7), linear values of a section above.
MAX_LOGGED = 25.0
# Largest number of rows of a block by which the kind of its values is found.
TESTED_ROWS = 4096
# Ways in which counts were transformed, with the factor before expm1 (0: linear).
BASES = {"linear": 0.0, "log1p": 1.0, "log2(1 + x)": np.log(2.0), "log10(1 + x)": np.log(10.0)}
# Least number of ratios that tell, and largest mean distance of ratios of counts from integers (of others: 0.25).
MIN_RATIOS, MAX_DISTANCE = 30, 0.1
# Least number of cells whose totals tell, and largest coefficient of variation of equal totals.
MIN_TOTALS, MAX_VARIATION = 10, 0.02
# Fraction of cells with whole numbers, at least this many counts each, above which the others are no logarithms.
MIN_WHOLE, WHOLE_TOTAL = 0.05, 8
# Largest sd of the log of the totals of cells; that of raw counts of real sections is up to 1.4.
MAX_SPREAD = 1.6


class Values:
    """Kind of the values of a slide, found block by block, and their normalisation.

    Whole numbers are counts. Other values are logged (and used unchanged) or linear (scaled and logged), both with a
    warning. This is found, in this order, from the largest value; from the ratios of the values of a cell to its
    smallest, which are whole for counts that were scaled; from equal totals; from cells with whole numbers; and from
    the spread of the totals. Linear values of a panel that by none of these were counts are intensities.

    Parameters
    ----------
    name
        Name of the slide, for messages.
    advice
        Returns a sentence about where the counts are.
    """

    def __init__(self, name: str = "", advice: Callable[[], str] = lambda: "Pass raw counts if you have them.") -> None:
        self.name, self.advice = name, advice
        self.number, self.broken, self.highest = 0, 0, 0.0
        self.n_features, self.fractional = 0, True
        self.exact: list[np.ndarray] = []
        self.rounded: list[np.ndarray] = []
        self.n_broken_rows = 0
        self.distance, self.n_ratios = np.zeros(len(BASES)), np.zeros(len(BASES))
        self.totals: list[np.ndarray] = []

    def add(self, block: sp.csr_matrix) -> None:
        """Add rows in the form of `to_csr`."""
        whole, self.n_features = np.rint(block.data), block.shape[1]
        self.number += block.nnz
        self.highest = max(self.highest, float(block.data.max(initial=0.0)))
        self.rounded.append(row_sums(whole, block.indptr, np.float64))
        if np.array_equal(whole, block.data):
            self.exact.append(self.rounded[-1])
            self.fractional = self.fractional and not block.nnz
        else:
            broken = np.abs(block.data - whole) > COUNT_TOLERANCE
            self.broken += int(broken.sum())
            self.exact.append(block.astype(np.float64).sum(axis=1).A1)
            rows = np.flatnonzero(row_sums(broken, block.indptr, np.int64))
            self.n_broken_rows += len(rows)
            if len(rows):
                self._test(block[rows[:TESTED_ROWS]])

    def _test(self, block: sp.csr_matrix) -> None:
        """Collect ratios within rows, and totals of rows, for every transformation."""
        values = block.data.astype(np.float64)
        starts, lengths = block.indptr[:-1], np.diff(block.indptr)
        totals = []
        for position, base in enumerate(BASES.values()):
            linear = np.expm1(base * np.minimum(values, MAX_LOGGED)) if base else values
            ratio = linear / np.repeat(np.minimum.reduceat(linear, starts), lengths)
            ratio = ratio[(ratio > 1.5) & (ratio < 10.5)]
            self.distance[position] += np.abs(ratio - np.rint(ratio)).sum()
            self.n_ratios[position] += len(ratio)
            totals.append(np.add.reduceat(linear, starts))
        self.totals.append(np.stack(totals))

    @property
    def counts(self) -> bool:
        """True if all values are whole numbers."""
        return self.broken == 0

    def factors(self) -> np.ndarray | None:
        """Factor of every row before the logarithm; ``None`` for logged values.

        As in scanpy, rows are scaled to the median total of the rows that have counts.
        """
        if not self.counts:
            logged, reason = self._kind()
            self._warn(
                ("" if logged else " and not logged") + f", as {reason}",
                "taken as already log-normalised and used unchanged" if logged else "scaled and logged",
            )
            if logged:
                return None
        total = np.concatenate(self.rounded if self.counts else self.exact)
        filled = total > 0
        target = float(np.median(total[filled])) if filled.any() else 1.0
        return np.divide(target, total, out=np.zeros_like(total), where=filled)

    def warn_of_intensities(self) -> None:
        """Log that the values are taken as intensities."""
        self._warn(
            ", and neither logged nor scaled counts",
            "taken as intensities of proteins, and transformed by arcsinh. A model of RNA knows them by the names of "
            'their genes only: train one of proteins, `st.tl.fit(adata, modality="protein")`',
        )

    def _warn(self, reason: str, taken: str) -> None:
        logger.warning(
            "%sExpression is not counts (%.0f %% of the values are not whole, largest %.3g)%s: %s. %s",
            *(about(self.name), 100 * self.broken / self.number, self.highest, reason, taken, self.advice()),
        )

    def _kind(self) -> tuple[bool, str]:
        """Tell logged (True) from linear values, with the reason."""
        if self.highest > MAX_LOGGED:
            return False, f"logged values are below {MAX_LOGGED:g}"
        before = ["", *(f"before {name} " for name in list(BASES)[1:])]
        distance, variation = self._distances(), self._variations()
        if distance.min() < MAX_DISTANCE:
            best = int(distance.argmin())
            return best > 0, f"{before[best]}the values of a cell are whole multiples of its smallest"
        if variation.min() < MAX_VARIATION:
            best = int(variation.argmin())
            return best > 0, f"{before[best]}all cells have the same total"
        if n_whole := self._n_whole():
            return False, f"{n_whole} cells have whole numbers only"
        spread = float(np.log(np.concatenate(self.totals, axis=1)[1]).std())
        if spread > MAX_SPREAD:
            return False, f"totals of exp(x) - 1 would differ too much between cells (sd of their log {spread:.1f})"
        return True, (
            f"no value is above {MAX_LOGGED:g}, the only sign (if they are linear, log them first: "
            "`sc.pp.normalize_total(adata)`, `sc.pp.log1p(adata)`)"
        )

    @property
    def may_be_intensities(self) -> bool:
        """True for a panel of antibodies as far as seen: every block has values that are not whole."""
        return self.n_features <= MAX_PROTEINS and self.fractional

    @property
    def intensities(self) -> bool:
        """True for linear values of a panel that were never counts, as far as ratios and totals tell."""
        if self.counts or not self.may_be_intensities or self._kind()[0]:
            return False
        scaled = self._distances()[0] < MAX_DISTANCE or self._variations()[0] < MAX_VARIATION
        return not scaled and not self._n_whole()

    def _distances(self) -> np.ndarray:
        """Mean distance from integers of the ratios, by every transformation; 1 where few ratios tell."""
        return np.divide(self.distance, self.n_ratios, out=np.ones(len(BASES)), where=self.n_ratios >= MIN_RATIOS)

    def _variations(self) -> np.ndarray:
        """Coefficient of variation of the totals, by every transformation; 1 where few cells tell."""
        totals = np.concatenate(self.totals, axis=1)
        enough = totals.shape[1] >= MIN_TOTALS
        return totals.std(axis=1) / totals.mean(axis=1) if enough else np.ones(len(BASES))

    def _n_whole(self) -> int:
        """Count cells with whole numbers only; 0 where these are few."""
        rounded = np.concatenate(self.rounded)
        n_whole = int((rounded >= WHOLE_TOTAL).sum()) - self.n_broken_rows
        return n_whole if n_whole > MIN_WHOLE * (rounded > 0).sum() else 0

    def normalizer(self) -> Callable[[sp.csr_matrix, int], np.ndarray]:
        """Return the normalisation of the stored values of a block of rows that begins at some row."""
        factors = self.factors()
        if factors is None:
            return lambda block, start: block.data
        known = factors

        def normalized(block: sp.csr_matrix, start: int) -> np.ndarray:
            return self.normalize(block.data, np.repeat(known[start : start + block.shape[0]], np.diff(block.indptr)))

        return normalized

    def normalize(self, values: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """``log(1 + factor x)`` of stored values, float32."""
        return np.log1p((np.rint(values) if self.counts else values) * factor).astype(np.float32)
