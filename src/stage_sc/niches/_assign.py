"""The decision on labels: one tree and one set of domains for all cells of a call, then the label of every cell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from itertools import starmap
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
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
    def cells(self) -> np.ndarray: ...

    @property
    def niche(self) -> np.ndarray: ...

    @property
    def context(self) -> np.ndarray: ...

    @property
    def flag(self) -> np.ndarray: ...

    @property
    def slides(self) -> pd.DataFrame: ...


class Partition(NamedTuple):
    """Tree and domains of one call, which define the names of its labels."""

    tree: PrototypeTree
    domains: Domains | None

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, the same for the same tree and domains."""
        tensors = [self.tree.prototypes.detach(), self.tree.parent, *(self.domains or ())]
        return hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def find_partition(
    model: Stage,
    items: Sequence[Embedded],
    *,
    settle: bool,
    n_domains: int | None,
    run: Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterable[Any]] = starmap,
) -> Partition:
    """Settle the tree of a model on a sample of the cells of all items, and find domains of another sample.

    The model is not changed. ``settle=False`` takes its tree as it is, ``n_domains=None`` finds no domains. `run` calls
    a function with the arguments of every task and returns the results in order, e.g. from a cluster.
    """
    n_cells = sum(len(item.flag) for item in items)

    def sample(name: str, size: int) -> Tensor:
        cells = sort_cells(torch.cat(list(run(_sample, [(item, name, n_cells, size) for item in items]))))
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
    config, niche = model.config, item.niche  # an item may be a file: read it once
    tree = partition.tree if device.type == "cpu" else deepcopy(partition.tree).to(device)
    h = torch.from_numpy(niche).to(device)
    nodes, confidence = tree.assign(h, how=config.assignment, temperature=config.temperature)
    domains = partition.domains
    domain = None if domains is None else domains.nearest(torch.from_numpy(item.context)).numpy()
    return Labels(item.cells, niche, item.flag, nodes.cpu().numpy(), confidence.cpu().numpy(), domain, item.slides)


def _sample(item: Embedded, name: str, n_cells: int, size: int) -> Tensor:
    return subsample(torch.from_numpy(getattr(item, name)), n_cells, size)
