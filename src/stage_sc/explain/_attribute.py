"""Contributions to the scores of some cells of a slide, patch by patch."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stage_sc.embed import ContextMap, calibrate, hops_within
from stage_sc.explain._gradients import integrate
from stage_sc.explain._patches import hops_of, make_patches, mean_graph
from stage_sc.explain._tally import Lens, Tally
from stage_sc.niches import Domains
from stage_sc.nn import Stage
from stage_sc.slides import Slide

# Number of patches at a time.
BATCH = 64
# Largest difference between an embedding and the one that is stored.
SAME = 1e-3


class Cells(NamedTuple):
    """Cells of a slide whose scores are explained."""

    centres: np.ndarray
    """``(B,)`` sorted cells of the slide."""
    group: np.ndarray
    """``(B,)`` 0 in the niche, 1 in the reference."""
    label: np.ndarray
    """``(n,)`` position of the label of every cell of the slide."""


def explain_nodes(
    model: Stage, slide: Slide, chosen: Cells, stored: np.ndarray, rivals: tuple[Tensor, Tensor], tally: Tally
) -> None:
    """Add the contributions to differences of cosines; `stored` are the niche embeddings of the centres."""
    panel = calibrate(model, slide)
    vectors = model.embedder.vectors.detach()[panel.genes] if panel.axes is None else panel.axes
    vectors = vectors / torch.sqrt(vectors.square().sum() + 1e-12)
    vectors = vectors if panel.whitening is None else vectors @ panel.whitening
    lens = _lens(model, slide, vectors)
    start = torch.from_numpy((lens.mean - slide.mean) / lens.scale @ lens.vectors).float()
    encoder, means = deepcopy(model.encoder).requires_grad_(False), mean_graph(slide)
    hops = hops_within(model.config.smoothing_reach, slide)
    for first in range(0, len(chosen.centres), BATCH):
        part = slice(first, first + BATCH)
        centres, group = chosen.centres[part], chosen.group[part]
        patches = make_patches(slide, means, centres, hops, model.config.n_layers)
        cells, place = np.unique(patches.nodes.cell, return_inverse=True)
        z = torch.from_numpy(lens.cells(cells)).float()[place] + start
        found = integrate(encoder, patches, z, start, rivals)
        if np.abs(found.embedding - stored[part]).max() > SAME:
            raise ValueError(
                "The stored embeddings do not follow from this expression: it has changed since the niches were "
                "labelled. Pass `layer` with the same counts, or label the cells again."
            )
        hop = hops_of(means, centres, patches.nodes)
        label = chosen.label[patches.nodes.cell]
        tally.add(lens, patches.nodes, found.gradient, group=group, hop=hop, label=label)
        tally.add_means(
            lens, patches.around, patches.average.data, group=group, label=chosen.label[patches.around.cell]
        )
        tally.add_scores(found.score, found.baseline, group)


def explain_domains(
    model: Stage,
    slide: Slide,
    chosen: Cells,
    contexts: ContextMap,
    domains: Domains,
    pair: tuple[int, int],
    tally: Tally,
) -> None:
    """Add the contributions to differences of squared distances, which are linear in expression."""
    one, other = (domains.centres[number].double() for number in pair)
    turned = domains.metric.double() @ (2 * (one - other))
    offset = float(other.square().sum() - one.square().sum())
    lens = _lens(model, slide, contexts.vectors.double() @ turned[:, None])
    shift = ((lens.mean - slide.mean) / lens.scale @ lens.vectors).item()
    baseline = float(contexts.constant.double() @ turned) + offset + shift
    score = (contexts.context[chosen.centres].double() @ turned).numpy() + offset
    means, hops = mean_graph(slide), contexts.hops
    for first in range(0, len(chosen.centres), BATCH):
        part = slice(first, first + BATCH)
        centres, group = chosen.centres[part], chosen.group[part]
        patches = make_patches(slide, means, centres, hops, None)
        weight, label = patches.average.data, chosen.label[patches.nodes.cell]
        hop = hops_of(means, centres, patches.nodes)
        tally.add(lens, patches.nodes, weight[:, None], group=group, hop=hop, label=label)
        tally.add_means(lens, patches.around, weight, group=group, label=label)
        tally.add_scores(score[part], np.full(len(centres), baseline), group)


def _lens(model: Stage, slide: Slide, vectors: Tensor) -> Lens:
    """Map of the expression of a slide, with the mean cell of the slide as baseline."""
    mean = slide.mean.astype(np.float64)
    if model.config.scaling == "none":
        mean = np.zeros(len(mean))
        for _, rows in slide.blocks(65_536):
            mean += np.asarray(rows.sum(axis=0, dtype=np.float64)).ravel() / slide.n_cells
    return Lens(slide, vectors.double().numpy(), mean, slide.scale.astype(np.float64))
