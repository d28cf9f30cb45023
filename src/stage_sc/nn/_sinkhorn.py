"""Balanced assignment of cells to prototypes (equations 3 and 8)."""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn(scores: Tensor, epsilon: float = 0.05, n_iterations: int = 3) -> Tensor:
    r"""Entropic optimal transport between B cells and K prototypes, in the log domain (equation 3; Cuturi 2013).

    .. math:: Q^* = \arg\max_{Q} \langle Q, S \rangle + \epsilon H(Q), \quad
        Q \mathbf{1} = \tfrac{1}{B} \mathbf{1}, \; Q^\top \mathbf{1} = \tfrac{1}{K} \mathbf{1}

    Parameters
    ----------
    scores
        ``(B, K)`` similarities S, ``-inf`` where an assignment is excluded. Every row needs a finite entry.
    epsilon
        Regularisation ε: the smaller, the harder the assignment.
    n_iterations
        Number of normalisations of columns and rows.

    Returns
    -------
    ``(B, K)``: B times Q*, with rows that sum to 1 (to rounding) and 0 where `scores` is ``-inf``. Blocks of finite
    entries, such as cells and the children of their node (equation 8), are balanced one by one.

    Notes
    -----
    The printed equation has the sign of the entropy reversed. Logarithms avoid under- and overflow at small ε. Rows are
    normalised last, so that the masses of the columns are not needed: a factor common to a block's columns cancels.
    """
    log_q = scores / epsilon
    for _ in range(n_iterations):
        total = torch.logsumexp(log_q, dim=0)
        log_q = log_q - torch.where(torch.isfinite(total), total, 0.0)
        log_q = torch.log_softmax(log_q, dim=1)
    return torch.exp(log_q)
