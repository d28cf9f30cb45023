"""Settling: prototypes of a tree move to the cells of a call."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.nn import PrototypeTree, StageConfig

logger = logging.getLogger("stage_sc.tl")

# Maximum number of rounds.
MAX_ROUNDS = 50


@torch.no_grad()
def settle_tree(tree: PrototypeTree, h: Tensor, config: StageConfig) -> None:
    r"""Move every prototype, in place, to the mean of the cells whose path contains it, under a prior.

    This is MAP spherical K-means. With :math:`m_k^0` the initial prototype, :math:`\kappa` its prior weight as a
    fraction of the n cells (`prior_weight`), and :math:`h_i` the niche embeddings ``(n, dim)`` of the cells whose path
    contains node k,

    .. math:: m_k \propto \kappa n \, m_k^0 + \sum_{i : k \in path(i)} h_i,

    until no path changes. Nodes with few cells stay near their prior and lose these cells to nodes with many, so that
    the number of niches in use follows the number of cells. Numbers and parents of nodes are kept.
    """
    prior = config.prior_weight * len(h) * normalize(tree.prototypes, dim=1)
    paths = tree.paths(h, how=config.assignment)
    for _ in range(MAX_ROUNDS):
        total = prior.clone()
        for nodes in paths.T:
            total.index_add_(0, nodes, h)
        tree.prototypes.copy_(normalize(total, dim=1))
        previous, paths = paths, tree.paths(h, how=config.assignment)
        if torch.equal(paths, previous):
            break
    logger.info("%d of %d leaves are in use.", len(paths[:, -1].unique()), tree.levels[-1])
