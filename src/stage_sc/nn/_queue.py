"""Slide-specific selection of prototypes (equations 11 and 12)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class SlideQueue(nn.Module):
    """Scores of the M prototypes in the last T = `length` batches of every slide."""

    scores: Tensor
    """``(S, T, M)`` float32; ``inf`` before the first batches, so that a new slide keeps all prototypes."""

    def __init__(self, n_slides: int, n_nodes: int, length: int) -> None:
        super().__init__()
        self.register_buffer("scores", torch.full((n_slides, length, n_nodes), torch.inf))

    def forget(self) -> None:
        """Empty the queue, for new prototypes."""
        self.scores.fill_(torch.inf)

    @torch.no_grad()
    def push(self, slides: Tensor, scores: Tensor, rank: int) -> None:
        """Add a batch: for every slide and prototype, the score of rank `rank` among the cells.

        `slides` is ``(B,)`` int64, `scores` ``(B, M)`` cosines. With rank 1 a single outlier would keep a prototype.
        """
        for slide in slides.unique().tolist():
            cells = scores[slides == slide]
            top = cells.topk(min(rank, len(cells)), dim=0).values[-1]
            self.scores[slide] = torch.cat([top[None], self.scores[slide, :-1]])

    def weights(self) -> Tensor:
        r"""Weights :math:`W_{s,k} = \max_t Q_{s,t,k}`, ``(S, M)`` (equation 11)."""
        return self.scores.amax(dim=1)

    def active(
        self,
        slide: int,
        levels: list[slice],
        parent: Tensor,
        *,
        rule: Literal["prototype", "slide"] = "prototype",
        threshold: float = 0.99,
        min_fraction: float = 0.3,
    ) -> Tensor:
        r"""Select the prototypes of a slide, ``(M,)`` bool.

        Parameters
        ----------
        slide
            Number of the slide.
        levels, parent
            Nodes of every level, and the ``(M,)`` parents of all nodes. Parents of selected nodes are selected too, and
            all children of a selected node without selected children, so that every path reaches a leaf.
        rule, threshold
            ``"slide"``: :math:`W_{s,k} > \theta \max_{k'} W_{s,k'}` within a level (equation 12). ``"prototype"``:
            :math:`W_{s,k} > \theta \max_{s'} W_{s',k} - 0.01`, a comparison with the other slides.
        min_fraction
            Minimum fraction of a level that is kept, by weight: equation 12 alone would keep few prototypes, because
            scores are cosines.
        """
        weights = self.weights()
        own = weights[slide]
        weights = torch.where(torch.isinf(weights), -torch.inf, weights)  # slides without a batch
        if torch.isinf(own).any() or (rule == "prototype" and len(weights) == 1):
            return torch.ones_like(own, dtype=torch.bool)
        selected = torch.zeros_like(own, dtype=torch.bool)
        for nodes in levels:
            bar = threshold * own[nodes].max() if rule == "slide" else threshold * weights[:, nodes].amax(dim=0) - 0.01
            n_kept = max(1, round(min_fraction * len(own[nodes])))
            selected[nodes] = (own[nodes] > bar) | (own[nodes] >= own[nodes].topk(n_kept).values[-1])
        for nodes in reversed(levels[1:]):
            selected[parent[nodes][selected[nodes]]] = True
        for nodes in levels[1:]:
            childless = selected.clone()
            childless[parent[nodes][selected[nodes]]] = False
            selected[nodes] |= childless[parent[nodes]]
        return selected
