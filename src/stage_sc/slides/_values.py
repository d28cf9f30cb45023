"""Kind of the values of a slide (counts, logged, linear) and their log-normalisation as in scanpy."""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse as sp

from stage_sc.slides._canonical import row_sums

logger = logging.getLogger("stage_sc.pp")

# Largest distance from an integer of a count that was scaled and scaled back.
COUNT_TOLERANCE = 2e-3
# Upper limit of logged values: log1p of any real count is below (log1p(10^9) = 20.7), linear values of a section above.
MAX_LOGGED = 25.0


class Values:
    """Kind of the values of a slide, found block by block, and their normalisation.

    Whole numbers are counts. Other values are taken as logged if none is above 25 (and used unchanged, with a warning),
    else as linear (scaled and logged, with a warning).
    """

    def __init__(self) -> None:
        self.number, self.broken, self.highest = 0, 0, 0.0
        self.exact: list[np.ndarray] = []
        self.rounded: list[np.ndarray] = []

    def add(self, block: sp.csr_matrix) -> None:
        """Add rows in the form of `to_csr`."""
        whole = np.rint(block.data)
        self.number += block.nnz
        self.highest = max(self.highest, float(block.data.max(initial=0.0)))
        self.rounded.append(row_sums(whole, block.indptr, np.float64))
        if np.array_equal(whole, block.data):
            self.exact.append(self.rounded[-1])
        else:
            self.broken += int((np.abs(block.data - whole) > COUNT_TOLERANCE).sum())
            self.exact.append(block.astype(np.float64).sum(axis=1).A1)

    @property
    def counts(self) -> bool:
        """True if all values are whole numbers."""
        return self.broken == 0

    def factors(self) -> np.ndarray | None:
        """Factor of every row before the logarithm; ``None`` for logged values.

        As in scanpy, rows are scaled to the median total of the rows that have counts.
        """
        if not self.counts:
            percent = 100 * self.broken / self.number
            if self.highest <= MAX_LOGGED:
                logger.warning(
                    "Expression is not counts (%.0f %% of the values are not whole, largest %.3g): taken as already "
                    "log-normalised and used unchanged. Pass raw counts if you have them.",
                    *(percent, self.highest),
                )
                return None
            logger.warning(
                "Expression is not counts (%.0f %% of the values are not whole) and not logged (largest %.3g): scaled "
                "and logged. Pass raw counts if you have them.",
                *(percent, self.highest),
            )
        total = np.concatenate(self.rounded if self.counts else self.exact)
        filled = total > 0
        target = float(np.median(total[filled])) if filled.any() else 1.0
        return np.divide(target, total, out=np.zeros_like(total), where=filled)

    def normalize(self, values: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """``log(1 + factor x)`` of stored values, float32."""
        return np.log1p((np.rint(values) if self.counts else values) * factor).astype(np.float32)
