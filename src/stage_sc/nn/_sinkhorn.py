"""Balanced assignment of cells to prototypes (equations 3 and 8)."""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn(scores: Tensor, epsilon: float = 0.05, n_iterations: int = 3) -> Tensor:
    r"""Entropic optimal transport between cells and prototypes, in the log domain.

    .. math:: Q^* = \arg\max_{Q} \langle Q, S \rangle + \epsilon H(Q), \quad
        Q \mathbf{1} = \tfrac{1}{B} \mathbf{1}, \; Q^\top \mathbf{1} = \tfrac{1}{K} \mathbf{1}

    Parameters
    ----------
    scores
        ``(B, K)`` similarities S; ``-inf`` where a cell must not go. Every row needs a finite entry.
    epsilon
        Regularisation: the smaller, the harder the assignment.
    n_iterations
        Alternating normalisations of columns and rows.

    Returns
    -------
    ``(B, K)``: B times Q*, so that every row sums to 1 (to rounding); zero where `scores` is ``-inf``. Where the finite
    entries form blocks, as for cells among the children of their node (equation 8), each block is balanced by itself.

    Notes
    -----
    Equation 3 of the paper, whose sign of the entropy is that of a minimisation; Cuturi (2013). Logarithms instead of
    the exponentials of the printed form keep small ε from under- and overflowing. Rows are normalised last, so that
    the masses of the columns need no name: a factor common to a block's columns cancels.
    """
    log_q = scores / epsilon
    for _ in range(n_iterations):
        total = torch.logsumexp(log_q, dim=0)
        log_q = log_q - torch.where(torch.isfinite(total), total, 0.0)
        log_q = torch.log_softmax(log_q, dim=1)
    return torch.exp(log_q)
