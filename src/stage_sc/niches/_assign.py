"""Where labels are decided: one tree and one set of domains for all cells of a call, then the label of every cell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from stage_sc._result import Labels
from stage_sc.niches._domains import Domains, find_domains
from stage_sc.niches._settle import settle_tree
from stage_sc.nn import PrototypeTree, Stage
from stage_sc.slides import sort_cells, subsample


class Embedded(Protocol):
    """Embeddings of the cells of one AnnData, in memory (`stage_sc.embed.Embeddings`) or in a file."""

    @property
    def cells(self) -> np.ndarray: ...  # noqa: D102

    @property
    def niche(self) -> np.ndarray: ...  # noqa: D102

    @property
    def context(self) -> np.ndarray: ...  # noqa: D102

    @property
    def flag(self) -> np.ndarray: ...  # noqa: D102


class Partition(NamedTuple):
    """What the names of niches and domains stand for in one call."""

    tree: PrototypeTree
    domains: Domains | None

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, the same for the same tree and domains."""
        tensors = [self.tree.prototypes.detach(), self.tree.parent, *(self.domains or ())]
        return hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def in_turn(function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Results of tasks, one after the other."""
    return [function(*task) for task in tasks]


def find_partition(
    model: Stage,
    items: Sequence[Embedded],
    *,
    settle: bool,
    n_domains: int | None,
    run: Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]] = in_turn,
) -> Partition:
    """Settle the tree of a model on the cells of all items, and find domains, from samples of the cells.

    Parameters
    ----------
    model
        It is not changed.
    items
        Embeddings, one for every AnnData.
    settle
        ``False``: the tree of the model as it is.
    n_domains
        Number of domains; ``None``: none.
    run
        Computes tasks (a function and the arguments of every call), e.g. on a cluster.
    """
    n_cells = sum(run(_n_cells, [(item,) for item in items]))

    def sample(name: str, size: int) -> Tensor:
        cells = sort_cells(torch.cat(run(_sample, [(item, name, n_cells, size) for item in items])))
        return cells if len(cells) else torch.from_numpy(getattr(items[0], name)[:1])

    config, tree, domains = model.config, model.tree, None
    if settle:
        tree = deepcopy(tree)
        settle_tree(tree, sample("niche", config.settle_cells), config)
    if n_domains is not None:
        domains = find_domains(sample("context", config.domain_cells), n_domains, config)
    return Partition(tree, domains)


def assign_labels(model: Stage, partition: Partition, item: Embedded, device: torch.device) -> Labels:
    """Assign every cell to its path through the tree, and to its domain."""
    config, niche = model.config, torch.from_numpy(item.niche).to(device)
    tree = partition.tree if device.type == "cpu" else deepcopy(partition.tree).to(device)
    nodes, confidence = tree.assign(niche, how=config.assignment, temperature=config.temperature)
    domain = None
    if partition.domains is not None:
        domain = partition.domains.nearest(torch.from_numpy(item.context)).numpy()
    return Labels(item.cells, item.niche, item.flag, nodes.cpu().numpy(), confidence.cpu().numpy(), domain)


def _n_cells(item: Embedded) -> int:
    return len(item.flag)


def _sample(item: Embedded, name: str, n_cells: int, size: int) -> Tensor:
    return subsample(torch.from_numpy(getattr(item, name)), n_cells, size)
