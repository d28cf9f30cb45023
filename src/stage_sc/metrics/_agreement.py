"""Agreement of two labellings (ARI, NMI), and of the slides' compositions (JSD)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import entropy
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from stage_sc.metrics import _read

if TYPE_CHECKING:
    from anndata import AnnData

    from stage_sc._input import Data


def ari(data: Data, key: str, reference: str, library_key: str | None = None) -> float:
    r"""Compare two labellings by the adjusted Rand index.

    Of all pairs of cells, the share that both labellings treat alike (together in both, or apart in both), corrected
    for chance:

    .. math:: ARI = \frac{TP + TN - E}{TP + TN + FP + FN - E}

    with E the agreement expected by chance [1]_. 1 is a perfect match, 0 what random labels get; below 0 (at least
    -0.5) is worse than chance. The names of the labels do not matter.

    Parameters
    ----------
    data
        Annotated data; only ``obs`` is read.
    key
        Column of ``obs`` with the predicted labels. Cells missing either label are left out.
    reference
        Column of ``obs`` with the labels to compare with, e.g. an expert's.
    library_key
        Column of ``obs`` that names the slides. With it, the result is the mean of the slides' own indices, in which a
        domain may have another name on every slide. Without it, all cells are compared at once, so that a domain must
        keep its name across slides to score: the stricter question for a joint labelling.

    Returns
    -------
    The index. A slide in which no cell has both labels is left out of the mean, with a log message.

    Raises
    ------
    KeyError
        If a column is missing.
    TypeError
        If a column holds continuous numbers.
    ValueError
        If a column is empty, or no cell has both labels.

    See Also
    --------
    nmi : The same question in terms of information, more lenient to splits of a domain.

    Notes
    -----
    Linear in the number of cells. Equal to Cohen's kappa over pairs of cells, which is how the formula above reads.

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
    adata, rows_of = _read.read(data, library_key, at_once=True)
    codes, known = both(adata, key, reference)
    return _read.mean_over_slides(lambda rows: ari_of(codes[rows], known[rows]), rows_of)


def nmi(data: Data, key: str, reference: str, library_key: str | None = None) -> float:
    r"""Compare two labellings by their normalised mutual information.

    .. math:: NMI(P, T) = \frac{MI(P, T)}{\sqrt{H(P) H(T)}}

    that is, normalised by the geometric mean of the entropies. 1 is a perfect match, 0 independence. Not corrected
    for chance: it grows with the number of labels, so compare labellings of equally many domains.

    Parameters
    ----------
    data
        Annotated data; only ``obs`` is read.
    key
        Column of ``obs`` with the predicted labels. Cells missing either label are left out.
    reference
        Column of ``obs`` with the labels to compare with, e.g. an expert's.
    library_key
        Column of ``obs`` that names the slides; with it, the result is the mean over slides, as in :func:`ari`.

    Returns
    -------
    The information, between 0 and 1; 0 where only one of the labellings has a single label, 1 where both have. A slide
    in which no cell has both labels is left out of the mean, with a log message.

    Raises
    ------
    KeyError
        If a column is missing.
    TypeError
        If a column holds continuous numbers.
    ValueError
        If a column is empty, or no cell has both labels.

    See Also
    --------
    ari : Pairs of cells instead of information, corrected for chance.

    Notes
    -----
    Linear in the number of cells. scikit-learn's default differs: it divides by the arithmetic mean of the entropies.

    Examples
    --------
    >>> import anndata as ad, pandas as pd, stage_sc as st
    >>> obs = pd.DataFrame({"found": list("aabb"), "expert": list("xyxy")}, index=list("1234"))
    >>> st.metrics.nmi(ad.AnnData(obs=obs), "found", reference="expert")
    0.0
    """
    adata, rows_of = _read.read(data, library_key, at_once=True)
    codes, known = both(adata, key, reference)
    return _read.mean_over_slides(lambda rows: nmi_of(codes[rows], known[rows]), rows_of)


def jsd(data: Data, key: str, library_key: str | None = None) -> float:
    r"""Jensen-Shannon divergence between the slides' domain compositions.

    With :math:`P_s` the shares of the domains in slide s, of S slides that all weigh the same,

    .. math:: JSD = H\Big(\frac{1}{S} \sum_s P_s\Big) - \frac{1}{S} \sum_s H(P_s)

    in bits. For two slides this is :math:`\frac{1}{2}(KL(P, M) + KL(Q, M))` with :math:`M = (P + Q) / 2` [1]_. 0 means
    that every slide has the same composition; the largest value, :math:`\log_2 S` (1 for two slides), that no two
    slides share a domain. Low is good only where the slides truly are alike, as replicates are.

    Parameters
    ----------
    data
        Annotated data; only ``obs`` is read.
    key
        Column of ``obs`` with the labels, whose names mean the same on every slide. Cells without one are left out.
    library_key
        Column of ``obs`` that names the slides. ``None``: the objects of a list or dictionary are the slides.

    Returns
    -------
    The divergence in bits, not its square root. A slide without any label is left out, with a log message.

    Raises
    ------
    KeyError
        If a column is missing.
    TypeError
        If `key` holds continuous numbers.
    ValueError
        If fewer than two slides have labels.

    Notes
    -----
    Linear in the number of cells. The range depends on the number of slides: compare labellings of the same slides.

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
    adata, rows_of = _read.read(data, library_key)
    codes = _read.label_codes(adata, key)
    labelled = sum(bool((codes[rows] != _read.MISSING).any()) for rows in rows_of.values())
    if labelled < 2:
        raise ValueError(
            f"JSD compares slides and needs labels on two or more; adata.obs[{key!r}] has labels on {labelled} of the "
            f"{len(rows_of)} slides in adata.obs[{library_key!r}]"
        )
    return jsd_of(codes, rows_of)


def ari_of(codes: np.ndarray, known: np.ndarray) -> float:
    """ARI of two arrays of codes (n,) over the cells that have both."""
    used = (codes != _read.MISSING) & (known != _read.MISSING)
    if not used.any():
        return _read.undefined("ARI", "no cell of this slide has both labels")
    return float(adjusted_rand_score(known[used], codes[used]))


def nmi_of(codes: np.ndarray, known: np.ndarray) -> float:
    """NMI of two arrays of codes (n,) over the cells that have both."""
    used = (codes != _read.MISSING) & (known != _read.MISSING)
    if not used.any():
        return _read.undefined("NMI", "no cell of this slide has both labels")
    return float(normalized_mutual_info_score(known[used], codes[used], average_method="geometric"))


def jsd_of(codes: np.ndarray, rows_of: dict[str, np.ndarray]) -> float:
    """JSD in bits of the codes' shares (n,) among the slides that have labels."""
    n_labels = codes.max() + 1
    labelled = codes != _read.MISSING
    counts = np.stack([np.bincount(codes[rows[labelled[rows]]], minlength=n_labels) for rows in rows_of.values()])
    empty = [name for name, total in zip(rows_of, counts.sum(axis=1), strict=True) if total == 0]
    if empty:
        _read.logger.warning("JSD leaves out %d slides without labels: %s", len(empty), empty)
    counts = counts[counts.sum(axis=1) > 0]
    if len(counts) < 2:
        return float("nan")
    shares = counts / counts.sum(axis=1, keepdims=True)  # (slides, labels)
    divergence = entropy(shares.mean(axis=0), base=2) - entropy(shares, base=2, axis=1).mean()
    return float(max(divergence, 0.0))  # equal compositions can end a rounding error below 0


def both(adata: AnnData, key: str, reference: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the two labellings, each (n,); refused if no cell has both."""
    codes, known = _read.label_codes(adata, key), _read.label_codes(adata, reference)
    if not ((codes != _read.MISSING) & (known != _read.MISSING)).any():
        raise ValueError(
            f"no cell has a label in both adata.obs[{key!r}] and adata.obs[{reference!r}]: there is nothing to compare"
        )
    return codes, known


def compare_labels(one: pd.Series, other: pd.Series) -> dict[str, float]:
    """ARI, NMI and JSD of two labellings of the same cells, whose names mean the same."""
    codes = pd.factorize(np.concatenate([one.astype(str), other.astype(str)]))[0]
    first, second = np.split(np.arange(len(codes)), 2)
    return {
        "ARI": ari_of(codes[first], codes[second]),
        "NMI": nmi_of(codes[first], codes[second]),
        "JSD": jsd_of(codes, {"first": first, "second": second}),
    }
