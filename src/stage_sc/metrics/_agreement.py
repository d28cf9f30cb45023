"""Agreement of two labellings (ARI, NMI), and of the composition of slides (JSD)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import entropy
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from stage_sc.metrics import _read

if TYPE_CHECKING:
    from anndata import AnnData

    from stage_sc._input import Data


def ari(
    data: Data,
    key: str,
    reference: str,
    library_key: str | None = None,
    *,
    table_key: str | Sequence[str] | None = None,
) -> float:
    r"""Compute the adjusted Rand index of two labellings.

    .. math:: ARI = \frac{TP + TN - E}{TP + TN + FP + FN - E}

    over all pairs of cells [1]_: TP have the same label in both labellings, TN different labels in both, and E is the
    expected value of TP + TN for random labels. 1 is a perfect match, 0 chance, -0.5 the minimum. Names of labels do
    not matter.

    Parameters
    ----------
    data
        Cells: an AnnData, SpatialData or MuData, the path of one, or a list or a dictionary of these. Only
        ``obs`` is read.
    key
        Column of ``obs`` with the labels to score.
    reference
        Column of ``obs`` with the labels to compare with, e.g. an expert's. Cells without either label are left out.
    library_key
        Column of ``obs`` that names the slides, for the mean over slides: names of domains may then differ between
        slides. Default: all cells at once, where a domain must have the same name on all slides (stricter).
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.

    Returns
    -------
    The index. Slides without a cell that has both labels are left out, with a log message.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a column is missing, holds continuous numbers, or is empty; or if no cell has both labels.

    References
    ----------
    .. [1] Hubert and Arabie (1985), Comparing partitions, Journal of Classification 2, 193-218.

    Examples
    --------
    >>> import anndata as ad, pandas as pd, stage_sc as st
    >>> obs = pd.DataFrame({"found": list("aabb"), "expert": ["x", "x", "y", None]}, index=list("1234"))
    >>> st.metrics.ari(ad.AnnData(obs=obs), "found", reference="expert")
    1.0
    """
    return _agreement(ari_of, data, key, reference, library_key, table_key)


def nmi(
    data: Data,
    key: str,
    reference: str,
    library_key: str | None = None,
    *,
    table_key: str | Sequence[str] | None = None,
) -> float:
    r"""Compute the normalised mutual information of two labellings.

    .. math:: NMI(P, T) = \frac{MI(P, T)}{\sqrt{H(P) H(T)}}

    (scikit-learn's default is the arithmetic mean of the entropies). 1 is a perfect match, 0 independence. Not
    corrected for chance: NMI grows with the number of labels, so compare labellings of equally many domains.

    Parameters
    ----------
    data, key, reference, library_key, table_key
        As in :func:`ari`.

    Returns
    -------
    The information, between 0 and 1; 0 if only one of the labellings has a single label, 1 if both have. Slides
    without a cell that has both labels are left out, with a log message.

    Raises
    ------
    KeyError, TypeError, ValueError
        As :func:`ari`.

    Examples
    --------
    >>> import anndata as ad, pandas as pd, stage_sc as st
    >>> obs = pd.DataFrame({"found": list("aabb"), "expert": list("xyxy")}, index=list("1234"))
    >>> st.metrics.nmi(ad.AnnData(obs=obs), "found", reference="expert")
    0.0
    """
    return _agreement(nmi_of, data, key, reference, library_key, table_key)


def jsd(data: Data, key: str, library_key: str | None = None, *, table_key: str | Sequence[str] | None = None) -> float:
    r"""Compute the Jensen-Shannon divergence of the slides' compositions, in bits.

    .. math:: JSD = H\Big(\frac{1}{S} \sum_s P_s\Big) - \frac{1}{S} \sum_s H(P_s)

    with :math:`P_s` the fractions of the domains on slide s of S; all slides weigh the same [1]_. 0 if all slides have
    the same composition, :math:`\log_2 S` (1 for two slides) if no two slides share a domain. Low is good only if the
    slides are alike, such as replicates. The range depends on the number of slides.

    Parameters
    ----------
    data
        Cells: an AnnData, SpatialData or MuData, the path of one, or a list or a dictionary of these. Only
        ``obs`` is read.
    key
        Column of ``obs`` with the labels, whose names mean the same on all slides. Cells without one are left out.
    library_key
        Column of ``obs`` that names the slides. Default: the objects of a list or dictionary are the slides.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.

    Returns
    -------
    The divergence, not its square root. Slides without labels are left out, with a log message.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a column is missing, `key` holds continuous numbers, or fewer than two slides have labels.

    References
    ----------
    .. [1] Lin (1991), Divergence measures based on the Shannon entropy, IEEE Trans. Information Theory 37, 145-151.

    Examples
    --------
    >>> import anndata as ad, pandas as pd, stage_sc as st
    >>> obs = pd.DataFrame({"domain": list("aabb"), "slide": list("1122")}, index=list("wxyz"))
    >>> st.metrics.jsd(ad.AnnData(obs=obs), "domain", library_key="slide")
    1.0
    """
    adata, rows_of = _read.read(data, library_key, table_key)
    codes = _read.label_codes(adata, key)
    labelled = sum(bool((codes[rows] != _read.MISSING).any()) for rows in rows_of.values())
    if labelled < 2:
        raise ValueError(
            f"JSD needs two slides: adata.obs[{key!r}] has labels on {labelled} of the {len(rows_of)}; "
            "set `library_key`, or pass a list or a dictionary"
        )
    return jsd_of(codes, rows_of)


def _agreement(
    metric: Callable[[np.ndarray, np.ndarray], float],
    data: Data,
    key: str,
    reference: str,
    library_key: str | None,
    table_key: Any,
) -> float:
    """Mean of `metric` over slides; without `library_key`, its value for all cells."""
    adata, rows_of = _read.read(data, library_key, table_key, at_once=True)
    codes, known = both(adata, key, reference)
    return _read.mean(metric(codes[rows], known[rows]) for rows in rows_of.values())


def both(adata: AnnData, key: str, reference: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the two labellings, each (n,); a ValueError if no cell has both."""
    codes, known = _read.label_codes(adata, key), _read.label_codes(adata, reference, "reference")
    if not ((codes != _read.MISSING) & (known != _read.MISSING)).any():
        raise ValueError(f"no cell has a label in both adata.obs[{key!r}] and adata.obs[{reference!r}]")
    return codes, known


def _compare(name: str, score: Callable[..., float], codes: np.ndarray, known: np.ndarray) -> float:
    """Score of two arrays of codes (n,) over the cells that have both labels."""
    used = (codes != _read.MISSING) & (known != _read.MISSING)
    if not used.any():
        return _read.undefined(name, "no cell of this slide has both labels")
    return float(score(known[used], codes[used]))


ari_of = partial(_compare, "ARI", adjusted_rand_score)
nmi_of = partial(_compare, "NMI", partial(normalized_mutual_info_score, average_method="geometric"))


def jsd_of(codes: np.ndarray, rows_of: dict[str, np.ndarray]) -> float:
    """JSD in bits of the codes (n,) among the slides that have labels; NaN for fewer than two."""
    n_labels = codes.max() + 1
    labelled = codes != _read.MISSING
    counts = np.stack([np.bincount(codes[rows[labelled[rows]]], minlength=n_labels) for rows in rows_of.values()])
    empty = [name for name, total in zip(rows_of, counts.sum(axis=1), strict=True) if total == 0]
    if empty:
        _read.logger.warning("JSD leaves out %d slides without labels: %s", len(empty), empty)
    counts = counts[counts.sum(axis=1) > 0]
    if len(counts) < 2:
        return float("nan")
    fractions = counts / counts.sum(axis=1, keepdims=True)  # (slides, labels)
    divergence = entropy(fractions.mean(axis=0), base=2) - entropy(fractions, base=2, axis=1).mean()
    return float(max(divergence, 0.0))  # rounding can make it negative


def compare_labels(one: pd.Series, other: pd.Series) -> dict[str, float]:
    """ARI, NMI and JSD of two labellings of the same cells, whose names mean the same."""
    codes = pd.factorize(np.concatenate([one.astype(str), other.astype(str)]))[0]
    first, second = np.split(np.arange(len(codes)), 2)
    return {
        "ARI": ari_of(codes[first], codes[second]),
        "NMI": nmi_of(codes[first], codes[second]),
        "JSD": jsd_of(codes, {"first": first, "second": second}),
    }
