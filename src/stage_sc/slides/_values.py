"""The kind of values in a slide (counts, logged, linear), and their log-normalisation as in scanpy."""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse as sp

logger = logging.getLogger("stage_sc.pp")

# Counts that went through a scaling and back are integers up to this.
COUNT_TOLERANCE = 2e-3
# log1p of any real count lies below (log1p(10^9) = 20.7); linear values of a section do not.
MAX_LOGGED = 25.0


class Values:
    """What kind of values a slide has: found out block by block, then used to normalise them.

    Whole numbers are counts. Others are taken as already logged where none is above 25 (and kept as they are, with a
    warning), and as linear values otherwise (scaled and logged, with a warning).
    """

    def __init__(self) -> None:
        self.number, self.broken, self.highest = 0, 0, 0.0
        self.exact: list[np.ndarray] = []
        self.rounded: list[np.ndarray] = []

    def add(self, block: sp.csr_matrix) -> None:
        """Look at the next rows, as `to_csr` gives them."""
        whole = np.rint(block.data)
        self.number += block.nnz
        self.highest = max(self.highest, float(block.data.max(initial=0.0)))
        rounded = not np.array_equal(whole, block.data)
        if rounded:
            self.broken += int((np.abs(block.data - whole) > COUNT_TOLERANCE).sum())
        total = np.zeros(block.nnz + 1)  # sums of whole numbers are exact, and the same for any order of the genes
        np.cumsum(whole, dtype=np.float64, out=total[1:])
        self.rounded.append(np.diff(total[block.indptr]))
        self.exact.append(block.astype(np.float64).sum(axis=1).A1 if rounded else self.rounded[-1])

    @property
    def counts(self) -> bool:
        """Whether all values are whole numbers."""
        return self.broken == 0

    def factors(self) -> np.ndarray | None:
        """Return what every row is multiplied by before the logarithm; ``None`` where values are logged already.

        As in scanpy, so that every row has the median total of those that have any.
        """
        if not self.counts:
            share = 100 * self.broken / self.number
            if self.highest <= MAX_LOGGED:
                logger.warning(
                    "Expression is no counts (%.0f %% of the values are not whole, largest %.3g): taken as already "
                    "log-normalised and used as it is. Pass raw counts if you have them.",
                    *(share, self.highest),
                )
                return None
            logger.warning(
                "Expression is no counts (%.0f %% of the values are not whole) and not logged (largest %.3g): scaled "
                "and logged. Pass raw counts if you have them.",
                *(share, self.highest),
            )
        total = np.concatenate(self.rounded if self.counts else self.exact)
        filled = total > 0
        target = float(np.median(total[filled])) if filled.any() else 1.0
        return np.divide(target, total, out=np.zeros_like(total), where=filled)

    def normalize(self, values: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Return ``log(1 + factor x)`` of stored values, float32."""
        return np.log1p((np.rint(values) if self.counts else values) * factor).astype(np.float32)
