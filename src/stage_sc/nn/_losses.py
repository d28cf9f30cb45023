"""Losses: swapped prediction, hierarchical loss on paths, reconstruction of the context."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stage_sc.nn._sinkhorn import sinkhorn

# Mean square below which contexts are rounding errors.
NEGLIGIBLE = 1e-9


def swav_loss(
    scores_i: Tensor, scores_j: Tensor, *, temperature: float = 0.1, epsilon: float = 0.05, n_iterations: int = 3
) -> Tensor:
    r"""Cross-entropy between the balanced assignment of a view and the prediction from the other (equation 4).

    .. math:: L_{swav} = -\frac{1}{2B} \sum_{(i,j)} \sum_k (q_{ik} \log p_{jk} + q_{jk} \log p_{ik})

    Scores are ``(B, K)`` cosines of the two views with the prototypes, ``-inf`` for prototypes left out;
    ``p = softmax(scores / τ)``, and q is from `sinkhorn`, without gradient. The mean over pairs, where the paper has
    the sum, does not grow with the batch.
    """
    loss = scores_i.new_zeros(())
    for target, source in ((scores_i, scores_j), (scores_j, scores_i)):
        q = sinkhorn(target.detach(), epsilon, n_iterations)
        log_p = F.log_softmax(source / temperature, dim=1)
        loss = loss - 0.5 * torch.where(q > 0, q * log_p, 0.0).sum(dim=1).mean()
    return loss


def path_loss(scores: list[Tensor], paths: Tensor, siblings: list[Tensor], *, temperature: float = 0.1) -> Tensor:
    r"""Negative log-probability of sampled paths given their first node (equation 10).

    .. math:: L_{global} = \frac{1}{N} \sum_i \sum_{l=1}^{L-1}
        -\log \frac{\exp(h_i^\top c_{z_i^{l+1}} / \tau)}{\sum_{c \in Child(z_i^l)} \exp(h_i^\top c / \tau)}

    For every level, `scores` are ``(B, K_l)`` cosines and `siblings` ``(B, K_l)`` bool, the children of the path's node
    one level above; `paths` is ``(B, L)`` int64, positions within each level. 0 for a tree of one level.
    """
    loss = scores[0].new_zeros(())
    for level in range(1, len(scores)):
        children = torch.where(siblings[level], scores[level] / temperature, -torch.inf)
        loss = loss + F.cross_entropy(children, paths[:, level])
    return loss


def reconstruction_loss(predicted: Tensor, context: Tensor) -> Tensor:
    """Squared error of predicted contexts, ``(B, dim)``, as a fraction of their sum of squares; 0 if that is 0."""
    total = context.square().sum()
    fraction = (predicted - context).square().sum() / total.clamp(min=NEGLIGIBLE * context.numel())
    return torch.where(total > NEGLIGIBLE * context.numel(), fraction, 0.0)
