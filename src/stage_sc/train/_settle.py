"""Prototypes move to the cells that they stand for."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stage_sc.model._tree import PrototypeTree

logger = logging.getLogger("stage_sc.train")

# A prototype as it was found counts as much as this share of the cells.
PRIOR = 0.04
# It settles on about so many cells.
SAMPLE = 20_000
# Rounds at most, if cells still move.
MAX_ROUNDS = 50


@torch.no_grad()
def settle_tree(tree: PrototypeTree, h: Tensor, how: Literal["path", "top-down"]) -> None:
    r"""Move every prototype to the cells whose path it is on, as far as there are any.

    The prototypes of a corpus lie where its cells are, and those of a slide lie elsewhere. With :math:`m_k^0` a
    prototype as it was found, which counts as much as :math:`\kappa` = 4 % of the n cells, and :math:`h_i` the
    embeddings of the cells whose path has the node k,

    .. math:: m_k \propto \kappa n \, m_k^0 + \sum_{i : k \in path(i)} h_i,

    until no cell takes another path: spherical K-means in the tree, with its prototypes as prior. Nodes that have few
    cells stay where no cells are, and lose them to those that have many: in the end there are as many niches as there
    are cells for. Numbers and parents are kept.

    Parameters
    ----------
    tree
        Its prototypes are changed in place.
    h
        ``(n, dim)`` what niches of the cells are read from, or of a sample of them.
    how
        Way through the tree, see `PrototypeTree.assign`.
    """
    prior = PRIOR * len(h) * normalize(tree.prototypes, dim=1)
    paths = tree.paths(h, how=how)
    for _ in range(MAX_ROUNDS):
        total = prior.clone()
        for nodes in paths.T:
            total.index_add_(0, nodes, h)
        tree.prototypes.copy_(normalize(total, dim=1))
        before, paths = paths, tree.paths(h, how=how)
        if torch.equal(paths, before):
            break
    logger.info("%d of %d leaves are in use.", len(paths[:, -1].unique()), tree.levels[-1])
