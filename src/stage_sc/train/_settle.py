"""After fine-tuning, prototypes move to the cells that they stand for."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.model._stage import Stage
from stage_sc.train._adapt import CELLS_PER_LEAF

logger = logging.getLogger("stage_sc.train")

# Rounds at most, if cells still move.
MAX_ROUNDS = 50


@torch.no_grad()
def settle_tree(model: Stage, h: Tensor) -> None:
    r"""Move every prototype to the cells whose path it is on, as far as there are any.

    Fine-tuning is too short for gradients to bring the prototypes of another corpus to new cells. With :math:`m_k^0`
    the prototype that training left, which counts as :math:`\kappa` = 50 cells, and :math:`h_i` the embeddings of the
    cells whose path has the node k,

    .. math:: m_k \propto \kappa \, m_k^0 + \sum_{i : k \in path(i)} h_i,

    until no cell takes another path: spherical K-means in the tree, with its prototypes as prior. Nodes that have few
    cells stay where no cells are, and lose them to those that have many: in the end there are as many niches as there
    are cells for. Numbers and parents are kept.

    Parameters
    ----------
    model
        Fine-tuned. Its prototypes are changed in place.
    h
        ``(n, dim)`` what niches of the cells that it was fine-tuned on are read from.
    """
    tree, how = model.tree, model.config.assignment
    prior = CELLS_PER_LEAF * normalize(tree.prototypes, dim=1)
    paths, _ = tree.assign(h, how=how)
    for _ in range(MAX_ROUNDS):
        total = prior.clone()
        for nodes in paths.T:
            total.index_add_(0, nodes, h)
        tree.prototypes.copy_(normalize(total, dim=1))
        before, (paths, _) = paths, tree.assign(h, how=how)
        if torch.equal(paths, before):
            break
    logger.info("%d of %d leaves are in use.", len(paths[:, -1].unique()), tree.levels[-1])
