"""Losses: swapped prediction, path loss of the tree, reconstruction of the context."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stage_sc.nn._sinkhorn import sinkhorn

# Mean square of contexts below which they are rounding errors.
NEGLIGIBLE = 1e-9


def swav_loss(
    scores_i: Tensor, scores_j: Tensor, *, temperature: float = 0.1, epsilon: float = 0.05, n_iterations: int = 3
) -> Tensor:
    r"""Predict the balanced assignment of one view from the other view.

    .. math:: L_{swav} = -\frac{1}{2B} \sum_{(i,j)} \sum_k (q_{ik} \log p_{jk} + q_{jk} \log p_{ik})

    Parameters
    ----------
    scores_i, scores_j
        ``(B, K)`` similarities of the two views' embeddings with the prototypes; ``-inf`` for prototypes left out.
    temperature
        τ of ``p = softmax(scores / τ)``.
    epsilon, n_iterations
        Of the assignment q, see `sinkhorn`. No gradient flows through q.

    Notes
    -----
    Equation 4, averaged over the pairs of a batch so that the loss does not grow with it.
    """
    loss = scores_i.new_zeros(())
    for target, source in ((scores_i, scores_j), (scores_j, scores_i)):
        q = sinkhorn(target.detach(), epsilon, n_iterations)
        log_p = F.log_softmax(source / temperature, dim=1)
        loss = loss - 0.5 * torch.where(q > 0, q * log_p, 0.0).sum(dim=1).mean()
    return loss


def path_loss(scores: list[Tensor], paths: Tensor, siblings: list[Tensor], *, temperature: float = 0.1) -> Tensor:
    r"""Negative log-probability of the sampled paths, below their first node.

    .. math:: L_{global} = \frac{1}{N} \sum_i \sum_{l=1}^{L-1}
        -\log \frac{\exp(h_i^\top c_{z_i^{l+1}} / \tau)}{\sum_{c \in Child(z_i^l)} \exp(h_i^\top c / \tau)}

    Parameters
    ----------
    scores
        For every level, ``(B, K_l)`` similarities with the level's prototypes.
    paths
        ``(B, L)`` int64, the sampled node of every level, counted within the level.
    siblings
        For every level, ``(B, K_l)`` bool: the children of the path's node one level above.
    temperature
        τ.

    Notes
    -----
    Equation 10. A tree of one level has no such loss: it is 0.
    """
    loss = scores[0].new_zeros(())
    for level in range(1, len(scores)):
        among = torch.where(siblings[level], scores[level] / temperature, -torch.inf)
        loss = loss + F.cross_entropy(among, paths[:, level])
    return loss


def reconstruction_loss(predicted: Tensor, context: Tensor) -> Tensor:
    """Fraction of the contexts that is not predicted: squared error over sum of squares.

    Parameters
    ----------
    predicted, context
        ``(B, dim)`` predicted and measured contexts of the cells, from all genes of the panel.

    Notes
    -----
    0 where contexts do not vary, as on a slide of equal cells.
    """
    total = context.square().sum()
    fraction = (predicted - context).square().sum() / total.clamp(min=NEGLIGIBLE * context.numel())
    return torch.where(total > NEGLIGIBLE * context.numel(), fraction, 0.0)
