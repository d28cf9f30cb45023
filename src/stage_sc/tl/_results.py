"""What labelling writes into an AnnData."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from stage_sc.model._checkpoint import model_digest
from stage_sc.model._stage import Stage
from stage_sc.model._tree import PrototypeTree

FLAGS = ["ok", "empty", "isolated"]


class Labels(NamedTuple):
    """Results of one AnnData, in the order of computation."""

    cells: np.ndarray
    """``(n,)`` position of every cell in the AnnData."""
    embedding: np.ndarray
    """``(n, dim)`` float32, what niches are read from."""
    flag: np.ndarray
    """``(n,)`` int8, position in `FLAGS`."""
    nodes: np.ndarray
    """``(n, L)`` int64 node of every level."""
    confidence: np.ndarray
    """``(n,)`` float32."""
    domain: np.ndarray | None = None
    """``(n,)`` int64, counted from 0 over all data labelled together."""


def write_labels(adata: AnnData, labels: Labels, model: Stage, params: dict[str, Any]) -> None:
    """Write niches, paths, confidence, flags, embedding and tree; names begin with ``params["key_added"]``."""
    key, tree = params["key_added"], model.tree
    back = np.argsort(labels.cells)
    labels = Labels(**{name: column[back] for name, column in labels._asdict().items() if column is not None})
    order = depth_first(tree)
    levels = [f"{key}_l{level + 1}" for level in range(labels.nodes.shape[1])]
    columns = {
        name: _categorical(nodes, order, np.array([f"N{node}" for node in range(tree.n_nodes)], dtype=object))
        for name, nodes in zip(levels, labels.nodes.T, strict=True)
    }
    leaves = np.array([_path_name(tree, node) for node in range(tree.n_nodes)], dtype=object)
    columns[f"{key}_path"] = _categorical(labels.nodes[:, -1], order, leaves)
    columns[f"{key}_confidence"] = labels.confidence.astype(np.float32)
    columns[f"{key}_flag"] = pd.Categorical.from_codes(labels.flag, FLAGS).remove_unused_categories()
    before = [name for name in adata.obs.columns if name in columns or name == f"{key}_domain" or _is_level(name, key)]
    for name in before:
        del adata.obs[name]
        adata.uns.pop(f"{name}_colors", None)  # they belonged to the labels before
    for name, values in columns.items():
        adata.obs[name] = values
    adata.obsm[f"X_{key}"] = labels.embedding
    adata.uns[key] = {
        "params": params,
        "model": {"name": model.name, "digest": model_digest(model), "version": model.version},
        "levels": levels,
        "tree": tree_table(model, labels.nodes),
    }
    if labels.domain is not None:
        add_domains(adata, labels.domain, key, int(labels.domain.max()) + 1)


def has_niches(adata: AnnData, key: str, labels: Labels) -> bool:
    """Whether these niches, in the order of the cells, are what was written before."""
    leaves = adata.obs[f"{key}_l{labels.nodes.shape[1]}"].str[1:].astype(int)
    return bool((leaves == labels.nodes[:, -1]).all() and (adata.obs[f"{key}_confidence"] == labels.confidence).all())


def add_domains(adata: AnnData, domain: np.ndarray, key: str, n: int) -> None:
    """Write domains, counted from 0, of n that there are in all data; colours of those before are dropped."""
    names = np.array([f"D{number + 1}" for number in range(n)], dtype=object)
    adata.obs[f"{key}_domain"] = _categorical(domain, np.arange(n), names)
    adata.uns.pop(f"{key}_domain_colors", None)


def tree_table(model: Stage, nodes: np.ndarray) -> pd.DataFrame:
    """One row per node, used or not: its level (1 is the root level), its parent ("" at the root level), its cells.

    Of a model that began as another, also the niche ``before`` that most of the node's training cells were in ("" where
    there are none), and their share ``shared``.
    """
    tree = model.tree
    columns = {
        "level": np.repeat(np.arange(len(tree.levels)) + 1, tree.levels),
        "parent": _names(tree.parent),
        "n_cells": np.bincount(nodes.ravel(), minlength=tree.n_nodes),
    }
    if (model.before >= 0).any():
        columns |= {"before": _names(model.before), "shared": model.shared.numpy()}
    return pd.DataFrame(columns, index=pd.Index(_names(torch.arange(tree.n_nodes)), dtype=object))


def _names(nodes: torch.Tensor) -> list[str]:
    return [f"N{node}" if node >= 0 else "" for node in nodes.tolist()]


def depth_first(tree: PrototypeTree) -> np.ndarray:
    """All nodes so that those with a common parent follow each other, within every level."""
    parent = tree.parent.numpy()
    rank = np.empty(tree.n_nodes, dtype=np.int64)
    order = []
    for level in range(len(tree.levels)):
        nodes = np.arange(tree.n_nodes)[tree.nodes(level)]
        nodes = nodes[np.lexsort((nodes, rank[parent[nodes]] if level else nodes))]
        rank[nodes] = np.arange(len(nodes))
        order.append(nodes)
    return np.concatenate(order)


def _categorical(values: np.ndarray, order: np.ndarray, names: np.ndarray) -> pd.Categorical:
    """Names as a categorical of those in use, in the given order."""
    used = order[np.isin(order, values)]
    position = np.full(int(order.max()) + 1, -1)
    position[used] = np.arange(len(used))
    return pd.Categorical.from_codes(position[values], categories=names[used])


def _path_name(tree: PrototypeTree, node: int) -> str:
    path: list[str] = []
    while node >= 0:
        path.insert(0, f"N{node}")
        node = int(tree.parent[node])
    return ">".join(path)


def _is_level(name: str, key: str) -> bool:
    start = f"{key}_l"
    return isinstance(name, str) and name.startswith(start) and name[len(start) :].isdigit()
