"""The decision between two niches as it was made: the tree or the domains of the call, found again and compared."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stage_sc.explain._question import Labelled, siblings_of
from stage_sc.niches import Domains, find_partition
from stage_sc.nn import PrototypeTree, Stage
from stage_sc.slides import mix

# Least fraction of cells that get the label that is stored.
SAME = 0.99


class Item(NamedTuple):
    """Cells of one object, as `stage_sc.niches` reads them."""

    cells: np.ndarray
    niche: np.ndarray
    context: np.ndarray
    flag: np.ndarray
    slides: pd.DataFrame


def find_tree(model: Stage, labelled: Labelled, embeddings: list[np.ndarray]) -> tuple[PrototypeTree, float]:
    """Tree that the niches were assigned with, and the fraction of cells that it assigns as stored."""
    items = [_item(niche=one) for one in embeddings]
    settle = bool(labelled.result["params"].get("settle", True))
    tree = find_partition(model, items, settle=settle, n_domains=None).tree
    h = torch.from_numpy(np.concatenate(embeddings))
    if h.shape[1] != tree.prototypes.shape[1]:
        raise ValueError(
            f"obsm[{labelled.columns.embedding!r}] has {h.shape[1]} columns and was not made by this model."
        )
    again = tree.paths(h, how=model.config.assignment).numpy()
    return tree, _check_same(again[:, -1], labelled.paths()[:, -1], "niches")


def find_domain_centres(model: Stage, labelled: Labelled, contexts: list[np.ndarray]) -> tuple[Domains, float]:
    """Domains of the call, and the fraction of cells that they assign as stored."""
    items = [_item(context=one) for one in contexts]
    domains = find_partition(model, items, settle=False, n_domains=labelled.n_domains).domains
    assert domains is not None  # as asked for
    again = domains.nearest(torch.from_numpy(np.concatenate(contexts))).numpy()
    return domains, _check_same(again, labelled.domains(), "domains")


def _item(niche: np.ndarray | None = None, context: np.ndarray | None = None) -> Item:
    given = niche if niche is not None else context
    n = 0 if given is None else len(given)
    none = np.empty((n, 0), np.float32)
    return Item(
        np.arange(n),
        none if niche is None else niche,
        none if context is None else context,
        np.zeros(n),
        pd.DataFrame(),
    )


def _check_same(again: np.ndarray, stored: np.ndarray, what: str) -> float:
    """Return the fraction of labelled cells with the same label; an error if it is low."""
    known = stored >= 0
    same = float((again[known] == stored[known]).mean()) if known.any() else 0.0
    if same < SAME:
        raise ValueError(
            f"The {what} of this call cannot be found again: {1 - same:.1%} of the cells would get another label. "
            "Niches depend on all cells that were labelled together. Pass all objects of the call with all their "
            "cells, and label them again if expression or places have changed."
        )
    return same


def choose_node(tree: PrototypeTree, labelled: Labelled, niche: str, h: np.ndarray, used: np.ndarray, how: str) -> str:
    """Sibling in use that is nearest to the cells ``h`` of a niche: with the smallest mean score difference."""
    siblings = [one for one in siblings_of(labelled.result["tree"], niche) if int(one[1:]) in used]
    if not siblings:
        raise ValueError(
            f"`niche`: {niche} is the only niche with cells below its parent, so there is no sibling to compare it "
            "with. Pass `reference`, any other niche, or explain a niche of another level."
        )
    margin = [_mean_margin(h, tree.rivals(int(niche[1:]), int(one[1:]), how=how)) for one in siblings]  # type: ignore[arg-type]
    return siblings[int(np.argmin(margin))]


def choose_domain(domains: Domains, niche: int, used: np.ndarray) -> int:
    """Domain in use with the nearest centre."""
    others = [int(one) for one in used if one != niche]
    if not others:
        raise ValueError("`niche`: there is only one domain, and nothing to compare it with.")
    distance = (domains.centres[others] - domains.centres[niche]).square().sum(dim=1)
    return others[int(distance.argmin())]


def _mean_margin(h: np.ndarray, rivals: tuple[Tensor, Tensor]) -> float:
    one, other = ((torch.from_numpy(h) @ vectors.T).amax(dim=1) for vectors in rivals)
    return float((one - other).mean())


def draw_cells(embeddings: np.ndarray, rows: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Draw at most `number` of the cells `rows`, by a hash of their embeddings: for any order of the cells the same."""
    if len(rows) <= number:
        return rows
    bits = np.ascontiguousarray(embeddings[rows]).view(np.uint32).astype(np.uint64)
    key = np.full(len(rows), np.uint64(seed))
    for column in bits.T:
        key = mix(key + column)
    return np.sort(rows[np.argsort(key, kind="stable")[:number]])
