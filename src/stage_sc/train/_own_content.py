"""What surrounds cells, as the slide itself shows it, in the directions of a model."""

from __future__ import annotations

import torch
from torch import Tensor

from stage_sc.data._slide import Slide
from stage_sc.model._whitening import whitening
from stage_sc.train._encode import surroundings
from stage_sc.train._prior import own_axes

# Directions that the slide and the model share by less than this, relative to the one that they share most, mean
# nothing.
SHARED = 1e-4
# Cells whose sums are taken at a time.
BLOCK = 65_536


@torch.no_grad()
def own_content(slide: Slide, content: Tensor, persistence: float) -> Tensor:
    r"""Content of a slide by its own axes, turned onto the content that a model gives.

    With :math:`X` the model's content and :math:`Y` what `own_axes` in place of its gene vectors make of the slide,
    whitened in the same way and both centred,

    .. math:: X' = \bar x + Y Q, \quad Q = \arg\min_{Q^\top Q = I} \|Y Q - X\|
        = U V^\top \;\text{with}\; Y^\top X = U S V^\top

    (orthogonal Procrustes; directions that one of the two lacks are left out of U and V, so that Q only turns those
    that both have). Both are whitened, so that only a turn is left between them: Y says what there is on the slide, X
    what directions mean on every slide and panel.

    Parameters
    ----------
    slide
        The slide.
    content
        ``(n, dim)`` float32 content of its cells by a model, whitened, on the CPU.
    persistence
        γ of the whitening.

    Returns
    -------
    ``(n, dim)`` float32.

    Notes
    -----
    On the CPU, whatever computes the embeddings. Four more ``(n, dim)`` float32 arrays at a time.
    """
    near, far = surroundings(slide, own_axes(slide, content.shape[1]))
    own = far @ whitening(near, far, persistence)
    own -= own.mean(dim=0)
    cross = sum(y.double().T @ x.double() for y, x in zip(own.split(BLOCK), content.split(BLOCK), strict=True))
    left, shared, right = torch.linalg.svd(cross)
    kept = shared > SHARED * shared[0]
    turn = (left[:, kept] @ right[kept]).float()
    return (own @ turn).add_(content.mean(dim=0))
