"""Tree of prototypes: shape, vectors, and paths of cells through it (equations 5 to 8)."""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stage_sc.nn._linkage import group_with_siblings
from stage_sc.nn._sinkhorn import sinkhorn

# Number of cells compared with all prototypes at a time.
BLOCK = 1024


class PrototypeTree(nn.Module):
    """Prototypes of all levels, ``(M, dim)``, and the parent of each.

    Nodes are numbered level by level from the root level to the leaves. A number names a niche and is never reused.
    Every node above the leaves has at least two children. `levels` are the numbers of prototypes per level;
    untrained prototypes are drawn from `generator` (default: that of torch).
    """

    parent: Tensor
    """``(M,)`` int64, number of the parent; -1 at the root level."""

    def __init__(self, levels: tuple[int, ...], dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.offsets = list(accumulate(self.levels, initial=0))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(sum(levels), dim, generator=generator), dim=1))
        self.register_buffer("parent", torch.full((sum(levels),), -1, dtype=torch.int64))

    @property
    def n_nodes(self) -> int:
        """Number of prototypes of all levels."""
        return self.offsets[-1]

    def nodes(self, level: int) -> slice:
        """Nodes of a level, counted from 0 at the root level, or from -1 at the leaves."""
        level %= len(self.levels)
        return slice(self.offsets[level], self.offsets[level + 1])

    def local_parent(self, level: int) -> Tensor:
        """Parent of every node of `level`, as a position within the level above."""
        return self.parent[self.nodes(level)] - self.offsets[level - 1]

    def siblings(self, level: int, upper: Tensor) -> Tensor:
        """``(B, K_l)`` bool: children in `level` of the nodes `upper`, which are positions in the level above."""
        return self.local_parent(level)[None] == upper[:, None]

    def scores(self, h: Tensor, active: Tensor | None = None) -> list[Tensor]:
        """Cosines of embeddings with prototypes, ``(B, K_l)`` for every level; ``-inf`` where not `active`."""
        cosine = h @ F.normalize(self.prototypes, dim=1).T
        if active is not None:
            cosine = torch.where(active, cosine, -torch.inf)
        return [cosine[:, self.nodes(level)] for level in range(len(self.levels))]

    def plans(self, scores: list[Tensor], upper: Tensor, level: int, epsilon: float, n_iterations: int) -> Tensor:
        """Balanced assignment at `level`, of each cell to children of its node `upper` (equation 8)."""
        allowed = torch.where(self.siblings(level, upper), scores[level], -torch.inf) if level else scores[level]
        return sinkhorn(allowed, epsilon, n_iterations)

    @torch.no_grad()
    def sample_paths(
        self, scores: list[Tensor], draws: Tensor, *, epsilon: float = 0.05, n_iterations: int = 3
    ) -> Tensor:
        """E-step: sample a path for every cell from the root level down (equations 6 to 8).

        At every level, cells are assigned in balance to children of their node, and each samples one from its row of
        the plan. `draws` are ``(B, L)`` float32, uniform in [0, 1). The result is ``(B, L)`` int64, positions within
        each level.
        """
        upper = torch.zeros(len(scores[0]), dtype=torch.int64, device=scores[0].device)
        path = []
        for level in range(len(self.levels)):
            plan = self.plans(scores, upper, level, epsilon, n_iterations)
            # inverse of the cumulative distribution, over nodes with mass only
            mass = torch.where(plan > 0, plan.cumsum(dim=1), -1.0)
            drawn = draws[:, level, None] * mass.amax(dim=1, keepdim=True)
            upper = (mass > drawn).to(torch.uint8).argmax(dim=1)
            path.append(upper)
        return torch.stack(path, dim=1)

    @torch.no_grad()
    def assign(
        self, h: Tensor, *, how: Literal["path", "top-down"] = "path", temperature: float = 0.1
    ) -> tuple[Tensor, Tensor]:
        """Nodes of `paths`, and the ``(n,)`` float32 confidence of each path.

        The confidence is the geometric mean over levels of the probability of a node given its parent, at temperature τ
        (equation 7).
        """
        nodes = self.paths(h, how=how)
        blocks = zip(h.split(BLOCK), nodes.split(BLOCK), strict=True)
        return nodes, torch.cat([self._confidence(self.scores(part), path, temperature) for part, path in blocks])

    @torch.no_grad()
    def paths(self, h: Tensor, *, how: Literal["path", "top-down"] = "path") -> Tensor:
        """Assign every cell, ``(n, dim)`` of length 1, to a path of nodes, ``(n, L)`` int64.

        ``"path"``: the path with the greatest sum of cosines over the levels.
        ``"top-down"``: the nearest child from node to node.
        """
        if how == "top-down":
            leaf = torch.cat([self._top_down_leaf(self.scores(block)) for block in h.split(BLOCK)])
        else:
            sums = self._path_sums()
            leaf = torch.cat([(block @ sums.T).argmax(dim=1) for block in h.split(BLOCK)])
        nodes = [leaf + self.offsets[-2]]
        for _ in self.levels[1:]:
            nodes.insert(0, self.parent[nodes[0]])
        return torch.stack(nodes, dim=1)

    def _path_sums(self) -> Tensor:
        """``(K_L, dim)`` sum of prototypes from the root level to each leaf."""
        prototypes = F.normalize(self.prototypes, dim=1)
        total = prototypes[self.nodes(0)]
        for level in range(1, len(self.levels)):
            total = prototypes[self.nodes(level)] + total[self.local_parent(level)]
        return total

    @torch.no_grad()
    def rivals(self, node: int, other: int, *, how: Literal["path", "top-down"] = "path") -> tuple[Tensor, Tensor]:
        """Vectors whose largest product with an embedding decides between two nodes, ``(a, dim)`` and ``(b, dim)``.

        ``"path"``: sums of prototypes along the paths to the leaves below each node. ``"top-down"``: the prototypes of
        the siblings at which the paths to both nodes part. No node may be above the other.
        """
        if how == "path":
            sums = self._path_sums()
            return sums[self._leaves_below(node)], sums[self._leaves_below(other)]
        one, two = self._path_to(node), self._path_to(other)
        parting = next(position for position, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1])
        prototypes = F.normalize(self.prototypes, dim=1)
        return prototypes[[one[parting]]], prototypes[[two[parting]]]

    def _path_to(self, node: int) -> list[int]:
        """Nodes from the root level to `node`."""
        path = [node]
        while (parent := int(self.parent[path[0]])) >= 0:
            path.insert(0, parent)
        return path

    def _leaves_below(self, node: int) -> Tensor:
        """``(K_L,)`` bool: leaves whose path contains `node`."""
        above = torch.arange(self.offsets[-2], self.offsets[-1])
        found = above == node
        for _ in self.levels[1:]:
            above = self.parent[above]
            found = found | (above == node)
        return found

    def _top_down_leaf(self, scores: list[Tensor]) -> Tensor:
        position = scores[0].argmax(dim=1)
        for level in range(1, len(self.levels)):
            position = torch.where(self.siblings(level, position), scores[level], -torch.inf).argmax(dim=1)
        return position

    def _confidence(self, scores: list[Tensor], path: Tensor, temperature: float) -> Tensor:
        """Geometric mean over levels of the probability of the path's node among its siblings."""
        total = torch.zeros_like(scores[0][:, 0])
        for level, score in enumerate(scores):
            chosen = score.gather(1, path[:, level, None] - self.offsets[level])[:, 0]
            if level:
                siblings = self._children(level)[path[:, level - 1] - self.offsets[level - 1]]
                score = torch.where(siblings >= 0, score.gather(1, siblings.clamp(min=0)), -torch.inf)
            total += chosen / temperature - torch.logsumexp(score / temperature, dim=1)
        return torch.exp(total / len(scores))

    def _children(self, level: int) -> Tensor:
        """Children in `level` of each node above, ``(K_{l-1}, C)`` int64 positions; rows are filled with -1."""
        parent, order = torch.sort(self.local_parent(level), stable=True)
        count = torch.bincount(parent, minlength=self.levels[level - 1])
        return pad_sequence(order.split(count.tolist()), batch_first=True, padding_value=-1)

    @torch.no_grad()
    def grow(self, leaves: Tensor, leaf: Tensor, context: Tensor, linkage: Literal["context", "cosine"]) -> None:
        """Set all prototypes and parents from the leaves up, by Ward linkage weighted by cells (appendix G.4).

        `leaves` are ``(K, dim)`` leaf prototypes, `leaf` the ``(n,)`` int64 leaf of every training cell, `context`
        their ``(n, dim)`` contexts. Leaves are joined by the mean context of their cells (``"context"``) or by their
        prototypes (``"cosine"``).
        """
        count = torch.bincount(leaf, minlength=self.levels[-1]).to(context).clamp(min=1)
        prototype = F.normalize(leaves, dim=1)
        mean = torch.zeros_like(prototype).index_add_(0, leaf, context) / count[:, None]
        self.prototypes[self.nodes(-1)] = prototype
        for level in range(len(self.levels) - 1, 0, -1):
            points = mean if linkage == "context" else prototype
            group = torch.from_numpy(group_with_siblings(points.numpy(), count.numpy(), self.levels[level - 1]))
            self.parent[self.nodes(level)] = group + self.offsets[level - 1]
            total = torch.zeros(self.levels[level - 1]).index_add_(0, group, count)
            prototype, mean = (
                torch.zeros(len(total), values.shape[1]).index_add_(0, group, values * count[:, None]) / total[:, None]
                for values in (prototype, mean)
            )
            prototype, count = F.normalize(prototype, dim=1), total
            self.prototypes[self.nodes(level - 1)] = prototype
        self.parent[self.nodes(0)] = -1
