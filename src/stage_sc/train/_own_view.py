"""What surrounds cells, seen twice: as the model knows genes, and as the slide itself shows them."""

from __future__ import annotations

import torch
from torch import Tensor

from stage_sc.data._slide import Slide
from stage_sc.model._whitening import whitening
from stage_sc.train._encode import surroundings
from stage_sc.train._prior import own_axes

# Directions that the two views share by less than this, relative to the one that they share most, mean nothing.
SHARED = 1e-4
# Cells whose sums are taken at a time.
BLOCK = 65_536


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

    Notes
    -----
    On the CPU, whatever computes the embeddings. Three more ``(n, dim)`` float32 arrays at a time.
    """
    own = _own_content(slide, content.shape[1], persistence)
    cross = sum(y.double().T @ x.double() for y, x in zip(own.split(BLOCK), content.split(BLOCK), strict=True))
    left, shared, right = torch.linalg.svd(cross)
    kept = shared > SHARED * shared[0]
    turn = (left[:, kept] @ right[kept]).float()
    return (own @ turn).add_(content).add_(content.mean(dim=0)).div_(2)


def _own_content(slide: Slide, dim: int, persistence: float) -> Tensor:
    """Whitened content with the slide's own axes in place of gene vectors, ``(n, dim)``, centred."""
    near, far = surroundings(slide, own_axes(slide, dim))
    own = far @ whitening(near, far, persistence)
    return own.sub_(own.mean(dim=0))
