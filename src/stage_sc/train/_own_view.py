"""What surrounds cells, seen twice: as the model knows genes, and as the slide itself shows them."""

from __future__ import annotations

import torch
from torch import Tensor

from stage_sc.data._slide import Slide
from stage_sc.model._whitening import whitening
from stage_sc.train._encode import surroundings
from stage_sc.train._prior import own_axes

# Directions that the two views share by less than this, relative to the one that they share most, mean nothing.
SHARED = 1e-6


@torch.no_grad()
def add_own_view(content: Tensor, slide: Slide, persistence: float) -> Tensor:
    r"""Mean of the content that a model gives and of what the slide's own axes give, turned onto it.

    With :math:`X` the content and :math:`Y` what `own_axes` in place of the model's gene vectors make of the slide,
    whitened in the same way and both centred,

    .. math:: X' = \bar x + \tfrac12 (X + Y Q), \quad Q = \arg\min_{Q^\top Q = I} \|Y Q - X\|
        = U V^\top \;\text{with}\; Y^\top X = U S V^\top

    (orthogonal Procrustes; directions that one of the two lacks are left out of Q). Both are whitened, so that only a
    turn is left between them: Y brings what the slide shows better than the model knows it, and X what directions mean,
    the same on every slide and panel.

    Parameters
    ----------
    content
        ``(n, dim)`` float32 content of the slide's cells, whitened, on the CPU.
    slide
        The slide.
    persistence
        γ of the whitening.

    Returns
    -------
    ``(n, dim)`` float32.
    """
    near, far = surroundings(slide, torch.from_numpy(own_axes(slide, content.shape[1])))
    own = far @ whitening(near, far, persistence)
    own -= own.mean(dim=0)
    mean = content.mean(dim=0)
    left, shared, right = torch.linalg.svd(own.double().T @ (content - mean).double())
    kept = shared > SHARED * shared[0]
    turn = (left[:, kept] @ right[kept]).float()
    return (content + mean + own @ turn) / 2
