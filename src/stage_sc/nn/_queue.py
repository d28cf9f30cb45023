"""Which prototypes belong to a slide (equations 11 and 12)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class SlideQueue(nn.Module):
    r"""For every slide and prototype, its scores in the slide's last batches.

    .. math:: W_{s,k} = \max_t Q_{s,t,k}

    Parameters
    ----------
    n_slides, n_nodes
        Slides of the training data, and prototypes of all levels.
    length
        T, batches that are remembered.
    """

    scores: Tensor
    """``(S, T, M)`` float32; ``inf`` where nothing was pushed yet, so that a new slide keeps everything."""

    def __init__(self, n_slides: int, n_nodes: int, length: int) -> None:
        super().__init__()
        self.register_buffer("scores", torch.full((n_slides, length, n_nodes), torch.inf))

    def forget(self) -> None:
        """Start anew, after the prototypes were set again."""
        self.scores.fill_(torch.inf)

    @torch.no_grad()
    def push(self, slides: Tensor, scores: Tensor, rank: int) -> None:
        """Remember a batch: for every slide in it and every prototype, the score of the cell that comes `rank`-th.

        Parameters
        ----------
        slides
            ``(B,)`` int64 slide of every cell.
        scores
            ``(B, M)`` cosines of the cells with all prototypes.
        rank
            1 would let a single odd cell keep a prototype alive.
        """
        for slide in slides.unique().tolist():
            here = scores[slides == slide]
            top = here.topk(min(rank, len(here)), dim=0).values[-1]
            self.scores[slide] = torch.cat([top[None], self.scores[slide, :-1]])

    def weights(self) -> Tensor:
        """Weights W of equation 11, ``(S, M)``."""
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
        r"""Select the prototypes of a slide.

        Parameters
        ----------
        slide
            Number of the slide.
        levels
            Nodes of every level.
        parent
            ``(M,)`` parents of the nodes.
        rule
            ``"slide"``: :math:`W_{s,k} > \theta \max_{k'} W_{s,k'}` within a level (equation 12). ``"prototype"``:
            :math:`W_{s,k} > \theta \max_{s'} W_{s',k} - 0.01`, which compares a slide with the others.
        threshold
            θ.
        min_fraction
            Least share of a level that is kept, by greatest weight: with scores that are cosines the printed rule
            would keep next to nothing.

        Returns
        -------
        ``(M,)`` bool. Parents of selected nodes are selected too, and a selected node without a selected child gets
        back all of them, so that every path reaches a leaf.
        """
        weights = self.weights()
        here = weights[slide]
        weights = torch.where(torch.isinf(weights), -torch.inf, weights)  # slides that were not seen yet
        if torch.isinf(here).any() or (rule == "prototype" and len(weights) == 1):
            return torch.ones_like(here, dtype=torch.bool)
        selected = torch.zeros_like(here, dtype=torch.bool)
        for nodes in levels:
            within = here[nodes]
            bar = threshold * within.max() if rule == "slide" else threshold * weights[:, nodes].amax(dim=0) - 0.01
            least = within.topk(max(1, round(min_fraction * len(within)))).values[-1]
            selected[nodes] = (within > bar) | (within >= least)
        for nodes in reversed(levels[1:]):
            chosen = torch.arange(nodes.start, nodes.stop, device=here.device)[selected[nodes]]
            selected[parent[chosen]] = True
        for upper, nodes in zip(levels, levels[1:], strict=False):
            children = torch.zeros(len(here), device=here.device)
            children.index_add_(0, parent[nodes], selected[nodes].float())
            childless = selected.clone()
            childless[: upper.start], childless[upper.stop :] = False, False
            childless &= children == 0
            selected[nodes] |= childless[parent[nodes]]
        return selected
