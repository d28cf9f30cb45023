"""The tree of prototypes: its shape, its vectors, and the ways of a cell through it (equations 5 to 8)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage_sc.model._linkage import group_with_siblings
from stage_sc.model._sinkhorn import sinkhorn


class PrototypeTree(nn.Module):
    """Prototypes of all levels, and who is whose child.

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
        """Nodes of a level, counted from 0 at the root level."""
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
        self, scores: list[Tensor], generator: torch.Generator, *, epsilon: float = 0.05, n_iterations: int = 3
    ) -> Tensor:
        """E-step: draw a path for every cell from the root level down, among children only (equations 6 to 8).

        At every level the cells are assigned in balance, and each draws its node from its row of the plan.

        Parameters
        ----------
        scores
            From `scores`.
        generator
            Source of chance.
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
            upper = torch.multinomial(plan.cpu(), 1, generator=generator).squeeze(1).to(plan.device)
            path.append(upper)
        return torch.stack(path, dim=1)

    def log_probabilities(self, scores: list[Tensor], temperature: float) -> list[Tensor]:
        """Log-probability of every node given its parent, per level (equations 6 and 7): softmax among siblings."""
        result = [F.log_softmax(scores[0] / temperature, dim=1)]
        for level in range(1, len(self.levels)):
            logits, parents = scores[level] / temperature, self.local_parent(level)
            parents = parents.expand_as(logits)
            high = logits.new_full((len(logits), self.levels[level - 1]), -torch.inf)
            high = high.scatter_reduce(1, parents, logits, "amax")
            total = torch.zeros_like(high).scatter_add(1, parents, torch.exp(logits - high.gather(1, parents)))
            result.append(logits - high.gather(1, parents) - torch.log(total.gather(1, parents)))
        return result

    @torch.no_grad()
    def assign(
        self, h: Tensor, *, how: Literal["leaf", "top-down", "path"] = "leaf", temperature: float = 0.1
    ) -> tuple[Tensor, Tensor]:
        """Lead every cell through the tree.

        Parameters
        ----------
        h
            ``(n, dim)`` embeddings of length 1.
        how
            ``"leaf"``: the nearest leaf and its ancestors. ``"top-down"``: the nearest child from node to node.
            ``"path"``: the path with the greatest probability.
        temperature
            τ of the probabilities.

        Returns
        -------
        ``(n, L)`` int64 node numbers, and ``(n,)`` float32 confidence: the geometric mean over levels of the
        probabilities of the path's nodes given their parents.
        """
        scores = self.scores(h)
        log_p = self.log_probabilities(scores, temperature)
        n_levels = len(self.levels)
        if how == "top-down":
            position = scores[0].argmax(dim=1)
            for level in range(1, n_levels):
                among = torch.where(self.siblings(level, position), scores[level], -torch.inf)
                position = among.argmax(dim=1)
        elif how == "path":
            total = log_p[0]
            for level in range(1, n_levels):
                total = log_p[level] + total[:, self.local_parent(level)]
            position = total.argmax(dim=1)
        else:
            position = scores[-1].argmax(dim=1)
        path = [position]
        for level in range(n_levels - 1, 0, -1):
            path.insert(0, self.local_parent(level)[path[0]])
        chosen = torch.stack([log_p[level].gather(1, path[level][:, None])[:, 0] for level in range(n_levels)])
        nodes = torch.stack([path[level] + self.offsets[level] for level in range(n_levels)], dim=1)
        return nodes, chosen.mean(dim=0).exp()

    @torch.no_grad()
    def grow(self, leaves: Tensor, leaf: Tensor, content: Tensor, linkage: Literal["content", "cosine"]) -> None:
        """Set all prototypes and parents from the leaves up (appendix G.4).

        Parameters
        ----------
        leaves
            ``(K, dim)`` leaf prototypes.
        leaf, content
            ``(n,)`` int64 leaf of every training cell, and ``(n, dim)`` float32 embedded expression around it.
        linkage
            ``"content"``: leaves whose cells have similar surroundings get a common parent. ``"cosine"``: leaves whose
            prototypes do. Both by Ward linkage weighted with the number of cells.
        """
        count = torch.bincount(leaf, minlength=self.levels[-1]).to(content).clamp(min=1)
        prototype = F.normalize(leaves, dim=1)
        mean = torch.zeros_like(prototype).index_add_(0, leaf, content) / count[:, None]
        self.prototypes[self.nodes(len(self.levels) - 1)] = prototype
        for level in range(len(self.levels) - 1, 0, -1):
            basis = mean if linkage == "content" else prototype
            groups = group_with_siblings(basis.numpy(), count.numpy(), self.levels[level - 1])
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
