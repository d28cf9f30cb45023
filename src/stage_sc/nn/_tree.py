"""The tree of prototypes: its shape, its vectors, and the ways of a cell through it (equations 5 to 8)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage_sc.nn._linkage import group_with_siblings
from stage_sc.nn._sinkhorn import sinkhorn

# Cells that are compared with all prototypes at a time.
BLOCK = 1024


class PrototypeTree(nn.Module):
    """Prototypes of all levels, and the parent of each.

    Nodes are numbered level by level from the root level to the leaves, and a number is never used twice: it is the
    name of a niche. Every node above the leaves has at least two children.

    Parameters
    ----------
    levels
        Number of prototypes of every level.
    dim
        Length of a prototype.
    """

    parent: Tensor
    """``(M,)`` int64, node number of the parent; -1 at the root level."""

    def __init__(self, levels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.offsets = np.concatenate([[0], np.cumsum(self.levels)]).tolist()
        self.prototypes = nn.Parameter(F.normalize(torch.randn(sum(levels), dim), dim=1))
        self.register_buffer("parent", torch.full((sum(levels),), -1, dtype=torch.int64))

    @property
    def n_nodes(self) -> int:
        """Number of prototypes of all levels."""
        return self.offsets[-1]

    def nodes(self, level: int) -> slice:
        """Nodes of a level, counted from 0 at the root level, or from -1 at the leaves."""
        level %= len(self.levels)
        return slice(self.offsets[level], self.offsets[level + 1])

    def scores(self, h: Tensor, active: Tensor | None = None) -> list[Tensor]:
        """Cosine of embeddings with the prototypes, one ``(B, K_l)`` tensor per level; ``-inf`` where not `active`."""
        cosine = h @ F.normalize(self.prototypes, dim=1).T
        if active is not None:
            cosine = torch.where(active, cosine, -torch.inf)
        return [cosine[:, self.nodes(level)] for level in range(len(self.levels))]

    def local_parent(self, level: int) -> Tensor:
        """For every node of `level`, its parent's position within the level above."""
        return self.parent[self.nodes(level)] - self.offsets[level - 1]

    def siblings(self, level: int, upper: Tensor) -> Tensor:
        """``(B, K_l)`` bool: the nodes of `level` that are children of `upper`, positions in the level above."""
        return self.local_parent(level)[None] == upper[:, None]

    def plans(self, scores: list[Tensor], upper: Tensor, level: int, epsilon: float, n_iterations: int) -> Tensor:
        """Balanced assignment at `level`, each cell among the children of its node `upper` (equation 8)."""
        if level == 0:
            return sinkhorn(scores[0], epsilon, n_iterations)
        among = torch.where(self.siblings(level, upper), scores[level], -torch.inf)
        return sinkhorn(among, epsilon, n_iterations)

    @torch.no_grad()
    def sample_paths(
        self, scores: list[Tensor], draws: Tensor, *, epsilon: float = 0.05, n_iterations: int = 3
    ) -> Tensor:
        """E-step: draw a path for every cell from the root level down, among children only (equations 6 to 8).

        At every level the cells are assigned in balance, and each draws its node from its row of the plan.

        Parameters
        ----------
        scores
            From `scores`.
        draws
            ``(B, L)`` float32, even in [0, 1): the source of chance.
        epsilon, n_iterations
            Of the assignment, see `sinkhorn`.

        Returns
        -------
        ``(B, L)`` int64, positions within each level.
        """
        upper = torch.zeros(len(scores[0]), dtype=torch.int64, device=scores[0].device)
        path = []
        for level in range(len(self.levels)):
            plan = self.plans(scores, upper, level, epsilon, n_iterations)
            # the first node, of those with any mass, up to which there is more than the drawn share of it
            mass = torch.where(plan > 0, plan.cumsum(dim=1), -1.0)
            share = draws[:, level, None] * mass.amax(dim=1, keepdim=True)
            upper = (mass > share).to(torch.uint8).argmax(dim=1)
            path.append(upper)
        return torch.stack(path, dim=1)

    @torch.no_grad()
    def assign(
        self, h: Tensor, *, how: Literal["path", "top-down"] = "path", temperature: float = 0.1
    ) -> tuple[Tensor, Tensor]:
        """Lead every cell through the tree.

        Parameters
        ----------
        h
            ``(n, dim)`` embeddings of length 1.
        how
            ``"path"``: the path whose nodes have the greatest sum of cosines, each level above counting half as much.
            ``"top-down"``: the nearest child from node to node.
        temperature
            τ of the confidence.

        Returns
        -------
        ``(n, L)`` int64 node numbers, and ``(n,)`` float32 confidence: the geometric mean over levels of the
        probabilities of the path's nodes given their parents (equation 7).
        """
        parts = [self._assign(block, how, temperature) for block in h.split(BLOCK)]
        nodes, confidence = (torch.cat(column) for column in zip(*parts, strict=True))
        return nodes, confidence

    @torch.no_grad()
    def paths(self, h: Tensor, *, how: Literal["path", "top-down"] = "path") -> Tensor:
        """Nodes of `assign` alone, ``(n, L)`` int64."""
        return torch.cat([self._paths(block, how) for block in h.split(BLOCK)])

    def _assign(self, h: Tensor, how: str, temperature: float) -> tuple[Tensor, Tensor]:
        nodes = self._paths(h, how)
        path = [node - offset for node, offset in zip(nodes.T, self.offsets, strict=False)]
        return nodes, self._confidence(self.scores(h), path, temperature)

    def _paths(self, h: Tensor, how: str) -> Tensor:
        """From the leaf, which is found first, up."""
        position = self._last_of_top_down(h) if how == "top-down" else (h @ self._sums_of_paths().T).argmax(dim=1)
        nodes = [position + self.offsets[-2]]
        for _ in self.levels[1:]:
            nodes.insert(0, self.parent[nodes[0]])
        return torch.stack(nodes, dim=1)

    def _sums_of_paths(self) -> Tensor:
        """``(K_L, dim)`` sum of the prototypes from each leaf to the root level, each level counting half as much."""
        prototypes = F.normalize(self.prototypes, dim=1)
        total = prototypes[self.nodes(0)]
        for level in range(1, len(self.levels)):
            total = prototypes[self.nodes(level)] + total[self.local_parent(level)] / 2
        return total

    def _last_of_top_down(self, h: Tensor) -> Tensor:
        scores = self.scores(h)
        position = scores[0].argmax(dim=1)
        for level in range(1, len(self.levels)):
            position = torch.where(self.siblings(level, position), scores[level], -torch.inf).argmax(dim=1)
        return position

    def _confidence(self, scores: list[Tensor], path: list[Tensor], temperature: float) -> Tensor:
        """Geometric mean over levels of the probability of the path's node among its siblings."""
        total = torch.zeros_like(scores[0][:, 0])
        for level, (score, position) in enumerate(zip(scores, path, strict=True)):
            chosen = score.gather(1, position[:, None])[:, 0]
            if level:
                siblings = self._children(level)[path[level - 1]]
                score = torch.where(siblings >= 0, score.gather(1, siblings.clamp(min=0)), -torch.inf)
            total += chosen / temperature - torch.logsumexp(score / temperature, dim=1)
        return torch.exp(total / len(scores))

    def _children(self, level: int) -> Tensor:
        """``(K_{l-1}, most children)`` int64, nodes of `level` under each node above; -1 where there are fewer."""
        parent, order = torch.sort(self.local_parent(level), stable=True)
        count = torch.bincount(parent, minlength=self.levels[level - 1])
        column = torch.arange(len(parent), device=parent.device) - (torch.cumsum(count, 0) - count)[parent]
        table = torch.full((len(count), int(count.max())), -1, device=parent.device)
        table[parent, column] = order
        return table

    @torch.no_grad()
    def grow(self, leaves: Tensor, leaf: Tensor, context: Tensor, linkage: Literal["context", "cosine"]) -> None:
        """Set all prototypes and parents from the leaves up (appendix G.4).

        Parameters
        ----------
        leaves
            ``(K, dim)`` leaf prototypes.
        leaf, context
            ``(n,)`` int64 leaf of every training cell, and its ``(n, dim)`` float32 context.
        linkage
            Leaves get a common parent whose cells have similar contexts (``"context"``), or whose prototypes are
            similar (``"cosine"``). Both by Ward linkage weighted with the number of cells.
        """
        count = torch.bincount(leaf, minlength=self.levels[-1]).to(context).clamp(min=1)
        prototype = F.normalize(leaves, dim=1)
        mean = torch.zeros_like(prototype).index_add_(0, leaf, context) / count[:, None]
        self.prototypes[self.nodes(len(self.levels) - 1)] = prototype
        for level in range(len(self.levels) - 1, 0, -1):
            points = mean if linkage == "context" else prototype
            groups = group_with_siblings(points.numpy(), count.numpy(), self.levels[level - 1])
            group = torch.from_numpy(groups)
            self.parent[self.nodes(level)] = group + self.offsets[level - 1]
            total = torch.zeros(self.levels[level - 1]).index_add_(0, group, count)
            prototype, mean = (
                torch.zeros(len(total), values.shape[1]).index_add_(0, group, values * count[:, None]) / total[:, None]
                for values in (prototype, mean)
            )
            prototype, count = F.normalize(prototype, dim=1), total
            self.prototypes[self.nodes(level - 1)] = prototype
        self.parent[self.nodes(0)] = -1
