"""Intensities of proteins: their normalisation, found block by block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from stage_sc._input import about

# Finite positive float32 numbers are sorted by their leading 14 bits into bins, each 3 % wide.
SHIFT, BINS = 18, 8160
# Cofactor of a protein in units of its median intensity.
COFACTOR = 3.0
# Whole numbers of which at least half are below this are counts of RNA.
FEW = 4


class Intensities:
    r"""Cofactors of the proteins of a slide, and their transformation.

    The intensity :math:`x_{ig}` of protein g becomes :math:`\operatorname{arcsinh}(x_{ig} / c_g)`, where the cofactor
    :math:`c_g` is three times the median of its intensities above 0 on the slide: linear in the background, logarithmic
    in bright cells, and the same in any unit. Cells are not scaled to a total, which would be that of the few brightest
    proteins.

    Parameters
    ----------
    name
        Name of the slide, for messages.
    n_proteins
        Number of columns of the blocks.
    """

    def __init__(self, name: str, n_proteins: int) -> None:
        self.name, self.n_proteins = name, n_proteins
        self.histogram = np.zeros(0, dtype=np.int32)
        self.number = self.entries = self.above = 0
        self.whole = True

    def add(self, block: sp.csr_matrix) -> None:
        """Add rows in the form of `to_csr`."""
        if not len(self.histogram):
            self.histogram = np.zeros(self.n_proteins * BINS, dtype=np.int32)
        self.number += block.nnz
        self.above += int((block.data >= FEW).sum())
        self.entries += block.shape[0] * block.shape[1]
        self.whole = self.whole and np.array_equal(block.data, np.rint(block.data))
        bins = (block.data.view(np.uint32) >> SHIFT).astype(np.int64)
        self.histogram += np.bincount(block.indices * np.int64(BINS) + bins, minlength=len(self.histogram)).astype(
            np.int32
        )

    def cofactors(self) -> np.ndarray:
        """Cofactor of every protein, float64; 1 for a protein without intensities above 0."""
        counts = self.histogram.reshape(self.n_proteins, BINS).cumsum(axis=1)
        half = counts[:, -1] / 2
        position = np.minimum((counts < half[:, None]).sum(axis=1), BINS - 1)
        rows = np.arange(self.n_proteins)
        before = np.where(position > 0, counts[rows, np.maximum(position - 1, 0)], 0)
        share = (half - before) / np.maximum(counts[rows, position] - before, 1)
        edges = (np.arange(BINS + 1, dtype=np.uint32) << np.uint32(SHIFT)).view(np.float32).astype(np.float64)
        low, high = edges[position], edges[position + 1]
        return np.where(counts[:, -1] > 0, COFACTOR * (low + share * (high - low)), 1.0)

    def normalizer(self) -> Callable[[sp.csr_matrix, int], np.ndarray]:
        """Return the transformation of the stored values of a block of rows; a ValueError for counts of RNA."""
        if self.number and self.whole and self.above < 0.5 * self.entries:
            raise ValueError(
                f"{about(self.name)}the values are whole numbers, and {100 - 100 * self.above / self.entries:.0f} % "
                f"are below {FEW}: counts of RNA, but `modality` is 'protein'. Use a model of RNA (leave out `modality`"
                " in `st.tl.fit`), or pass the intensities of the proteins."
            )
        cofactors = self.cofactors()
        return lambda block, start: np.arcsinh(block.data / cofactors[block.indices]).astype(np.float32)
