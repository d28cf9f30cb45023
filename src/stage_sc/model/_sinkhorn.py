"""Balanced assignment of cells to prototypes (equations 3 and 8)."""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn(
    scores: Tensor, epsilon: float = 0.05, n_iterations: int = 3, *, column_mass: Tensor | None = None
) -> Tensor:
    r"""Entropic optimal transport between cells and prototypes, in the log domain.

    .. math:: Q^* = \arg\max_{Q} \langle Q, S \rangle + \epsilon H(Q), \quad
        Q \mathbf{1} = \tfrac{1}{B} \mathbf{1}, \; Q^\top \mathbf{1} = m

    Parameters
    ----------
    scores
        ``(B, K)`` similarities S; ``-inf`` where a cell must not go. Every row needs a finite entry.
    epsilon
        Regularisation: the smaller, the harder the assignment.
    n_iterations
        Alternating normalisations of columns and rows.
    column_mass
        ``(K,)`` mass m of the prototypes, summing to 1. ``None``: the same for every column that has a finite entry.

    Returns
    -------
    ``(B, K)``: B times Q*, so that every row sums to 1 (to rounding); zero where `scores` is ``-inf``.

    Notes
    -----
    Equation 3 of the paper, whose sign of the entropy is that of a minimisation; Cuturi (2013). Logarithms instead of
    the exponentials of the printed form keep small ε from under- and overflowing. Rows are normalised last.
    """
    log_q = scores / epsilon
    if column_mass is None:
        reachable = torch.isfinite(scores).any(dim=0)
        column_mass = reachable / reachable.sum()
    log_mass = torch.log(column_mass) + torch.log(torch.tensor(float(len(scores)), device=scores.device))
    for _ in range(n_iterations):
        total = torch.logsumexp(log_q, dim=0)
        log_q = log_q + torch.where(torch.isfinite(total) & torch.isfinite(log_mass), log_mass - total, 0.0)
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return torch.exp(log_q)


def children_mass(parents: Tensor, parent_of: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mass of every prototype when each parent's cells are shared equally among its children (equation 8).

    Parameters
    ----------
    parents
        ``(B,)`` node of the upper level that each cell is in.
    parent_of
        ``(K,)`` node of the upper level that each prototype is a child of.
    allowed
        ``(K,)`` bool, prototypes in use. ``None``: all.

    Returns
    -------
    ``(K,)`` float32, summing to 1.
    """
    n_parents = int(max(parents.max(), parent_of.max())) + 1
    used = torch.ones_like(parent_of, dtype=torch.bool) if allowed is None else allowed
    cells = torch.bincount(parents, minlength=n_parents).float()
    children = torch.bincount(parent_of[used], minlength=n_parents).clamp(min=1).float()
    return torch.where(used, (cells / children)[parent_of], 0.0) / len(parents)
