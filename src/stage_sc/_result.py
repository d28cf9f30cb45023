"""One result out: the layout of labels in an AnnData, written and read here alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from stage_sc._checks import check_name
from stage_sc._messages import element_name, naming
from stage_sc._palette import distinct_colors, tree_colors

if TYPE_CHECKING:  # torch takes seconds to import
    from anndata import AnnData

    from stage_sc.nn import PrototypeTree, Stage

MOST_DOMAINS = 10_000  # a larger number is a name that was given
FLAGS = ["ok", "empty", "isolated"]
# Entries of a result.
RESULT = {"params", "model", "levels", "tree"}


class Labels(NamedTuple):
    """Results of one AnnData, in the order of computation."""

    cells: np.ndarray
    """``(n,)`` position of every cell in the AnnData."""
    embedding: np.ndarray
    """``(n, dim)`` float32, from which niches are read."""
    flag: np.ndarray
    """``(n,)`` int8, position in `FLAGS`."""
    nodes: np.ndarray
    """``(n, L)`` int64 node at every level."""
    confidence: np.ndarray
    """``(n,)`` float32 in [0, 1]."""
    domain: np.ndarray | None = None
    """``(n,)`` int64, counted from 0 over all data labelled together."""
    slides: pd.DataFrame | None = None
    """Number of spatial directions, noise floor, and hops of the context of each slide."""


class Columns:
    """Names of the results under one `key_added`: columns of ``obs``, and the embedding in ``obsm``."""

    def __init__(self, key: str) -> None:
        self.path, self.domain = f"{key}_path", f"{key}_domain"
        self.confidence, self.flag = f"{key}_confidence", f"{key}_flag"
        self.level_prefix, self.embedding = f"{key}_l", f"X_{key}"

    def is_level(self, name: object) -> bool:
        """Tell columns of levels from others."""
        prefix = self.level_prefix
        return isinstance(name, str) and name.startswith(prefix) and name.removeprefix(prefix).isdigit()


def read_result(adata: AnnData, key_added: str = "stage") -> Mapping[str, Any]:
    """Return ``uns[key_added]`` with ``params``, ``model``, ``levels`` and ``tree``; empty if it is no result."""
    found = adata.uns.get(key_added)
    whole = isinstance(found, Mapping) and RESULT <= set(found) and isinstance(found["params"], Mapping)
    return found if whole else {}


def require_result(adata: AnnData, key_added: str = "stage") -> Mapping[str, Any]:
    """Return ``uns[key_added]``, or raise a KeyError that names the call to make."""
    result = read_result(adata, key_added)
    if not result:
        call = "st.tl.stage_niches(adata" + (")" if key_added == "stage" else f", key_added={key_added!r})")
        raise KeyError(f"no niches in adata.uns[{key_added!r}]: run {call} first")
    return result


def label_keys(adata: AnnData, key_added: str = "stage") -> list[str]:
    """Columns of ``obs`` with the niches of all levels and, if any, the domains."""
    domain = Columns(key_added).domain
    return [*require_result(adata, key_added)["levels"], *([domain] if domain in adata.obs else [])]


def default_column(parts: Mapping[str, AnnData], key_added: str = "stage") -> str:
    """Column of labels where no `groupby` is given: the domains if all objects have them, else the niches of level 2.

    Of level 1 if the tree has one level; a KeyError without niches.
    """
    keys: list[list[str]] = []
    for name, part in parts.items():
        with naming(element_name("data", name), repr(name)):
            try:
                keys.append(label_keys(part, key_added))
            except KeyError as error:
                raise KeyError(f"{error.args[0]}, or pass `groupby`, a column of obs with labels") from None
    domain = Columns(key_added).domain
    if all(domain in one for one in keys):
        return domain
    levels = [key for key in keys[0] if key != domain]
    return levels[min(1, len(levels) - 1)]


def label_colors(
    result: Mapping[str, Any], key: str, key_added: str, names: Sequence[object], nodes: Mapping[object, str]
) -> dict[object, str]:
    """Colours of niches, paths or domains, sorted as the tree or by number; empty for other labels.

    `nodes` is the node of each niche or path.
    """
    if nodes:
        colors = tree_colors(result["tree"])
        rank = {node: position for position, node in enumerate(colors)}
        return {name: colors[nodes[name]] for name in sorted(set(names) & set(nodes), key=lambda n: rank[nodes[n]])}
    numbers = {name: str(name).removeprefix("D") for name in names}
    known = all(number.isdecimal() and 0 < int(number) <= MOST_DOMAINS for number in numbers.values())
    if key != Columns(key_added).domain or not known:
        return {}
    palette = distinct_colors(max(map(int, numbers.values()), default=0))
    return {name: palette[int(numbers[name]) - 1] for name in sorted(names, key=lambda name: int(numbers[name]))}


def node_labels_shown(result: Mapping[str, Any], level: int) -> dict[str, str]:
    """Category of each node of a level: its name, with the id where others have this name, or the id."""
    tree = result["tree"]
    nodes = tree.index[tree["level"] == level].astype(str)
    given = (
        tree["name"].astype(str).to_numpy()[(tree["level"] == level).to_numpy()]
        if "name" in tree
        else [""] * len(nodes)
    )
    return tell_apart(dict(zip(nodes, given, strict=True)))


def domain_labels_shown(result: Mapping[str, Any]) -> dict[str, str]:
    """Category of each domain: its name, with the id where others have this name, or the id."""
    named = {str(id_): str(name) for id_, name in dict(result.get("domain_names", {})).items()}
    count = int(result.get("params", {}).get("n_domains", 0))
    return tell_apart({f"D{n}": named.get(f"D{n}", "") for n in range(1, count + 1)})


def tell_apart(names: Mapping[str, str]) -> dict[str, str]:
    """Category of each id: its name, with the id where others have this name; the id itself without a name."""
    counts = Counter(names.values())
    return {id_: id_ if not name else name if counts[name] == 1 else f"{name} ({id_})" for id_, name in names.items()}


def category_nodes(
    adata: AnnData,
    key: str,
    labels: pd.Categorical,
    shown: Mapping[str, str],
    result: Mapping[str, Any],
    key_added: str,
) -> list[str]:
    """Id of each category of a column of niches or domains, of which `shown` has the category of each id.

    Categories that were renamed by hand are found by the paths of their cells; a ValueError where these do not tell.
    Unknown categories without cells are their own ids.
    """
    by_name = {name: id_ for id_, name in shown.items()}
    names = [str(name) for name in labels.categories]
    used = {names[code] for code in np.unique(labels.codes) if code >= 0}
    if used <= set(by_name):
        return [by_name.get(name, name) for name in names]
    if used <= set(shown):
        return names
    path = Columns(key_added).path
    if key in result["levels"] and path in adata.obs:
        depth = list(result["levels"]).index(key)
        steps = [
            (str(one).split(">") + [""] * (depth + 1))[depth] for one in pd.Categorical(adata.obs[path]).categories
        ]
        nodes = np.array([*steps, ""], dtype=object)[pd.Categorical(adata.obs[path]).codes]
        pairs = pd.DataFrame({"name": labels.codes, "node": nodes}).drop_duplicates()
        pairs = pairs[(pairs["name"] >= 0) & (pairs["node"] != "")]
        found = dict(zip(pairs["name"], pairs["node"], strict=True))
        if pairs["name"].is_unique and pairs["node"].is_unique and set(found.values()) <= set(shown):
            return [found.get(code, by_name.get(name, name)) for code, name in enumerate(names)]
    unknown = [name for name in names if name not in by_name][:3]
    raise ValueError(
        f"`obs[{key!r}]` has categories {unknown}, which are no niches of `uns[{key_added!r}]` and were joined or "
        "renamed by hand: label the cells again, or restore the names."
    )


def check_key(parts: Mapping[str, AnnData], key_added: str, argument: str = "data") -> None:
    """Raise unless all names under `key_added` are free in every object, or are those of a result.

    `parts` are the objects of `argument` by their names.
    """
    check_name(key_added, "key_added")
    if "/" in key_added:
        raise ValueError(f"`key_added` must not contain '/', which is a folder inside a file, got {key_added!r}.")
    for name, adata in parts.items():
        where = element_name(argument, name) or "the object"
        if key_added in adata.uns and not read_result(adata, key_added):
            raise ValueError(
                f"`key_added`: `uns[{key_added!r}]` of {where} exists and is no result: choose another name."
            )
        if foreign := _foreign(adata, key_added):
            raise ValueError(
                f"`key_added`: results named {key_added!r} would replace {', '.join(foreign)} of {where}, and "
                f"`uns[{key_added!r}]` does not show that stage_sc wrote them. Choose another `key_added`, or rename "
                "or delete them first."
            )


def written_names(adata: AnnData, key_added: str) -> list[str]:
    """Columns of ``obs`` that belong to the result under `key_added`; none if there is no result."""
    result, columns = read_result(adata, key_added), Columns(key_added)
    if not result:
        return []
    names = [*map(str, result["levels"]), columns.path, columns.confidence, columns.flag]
    return [*names, columns.domain] if result["params"].get("n_domains") else names


def _foreign(adata: AnnData, key_added: str) -> list[str]:
    """Entries with names of results that are not part of the result under `key_added`."""
    columns, ours = Columns(key_added), written_names(adata, key_added)
    reserved = {columns.path, columns.domain, columns.confidence, columns.flag}
    taken = [name for name in adata.obs if (name in reserved or columns.is_level(name)) and name not in ours]
    embedding = [f"`obsm[{columns.embedding!r}]`"] if columns.embedding in adata.obsm and not ours else []
    return [*(f"`obs[{name!r}]`" for name in taken), *embedding]


def write_labels(adata: AnnData, labels: Labels, model: Stage, digest: str, params: dict[str, Any]) -> None:
    """Write labels under ``params["key_added"]`` with their colours; those of the previous result are removed."""
    key, tree = params["key_added"], model.tree
    columns, rows = Columns(key), np.argsort(labels.cells)
    arrays = {name: values[rows] for name, values in labels._asdict().items() if isinstance(values, np.ndarray)}
    labels = Labels(**arrays, slides=labels.slides)
    order = depth_first(tree)
    names = np.array(node_names(np.arange(tree.n_nodes)), dtype=object)
    levels = [f"{columns.level_prefix}{number + 1}" for number in range(labels.nodes.shape[1])]
    written: dict[str, Any] = {
        name: _categorical(nodes, order, names) for name, nodes in zip(levels, labels.nodes.T, strict=True)
    }
    written[columns.path] = _categorical(labels.nodes[:, -1], order, _path_names(tree))
    written[columns.confidence] = labels.confidence.astype(np.float32)
    written[columns.flag] = pd.Categorical.from_codes(labels.flag, FLAGS).remove_unused_categories()
    if labels.domain is not None:
        numbers = np.arange(params["n_domains"])
        written[columns.domain] = _categorical(labels.domain, numbers, np.array([f"D{n + 1}" for n in numbers], object))
    for name in written_names(adata, key):
        if name in adata.obs:
            del adata.obs[name]
        adata.uns.pop(f"{name}_colors", None)
    for name, values in written.items():
        adata.obs[name] = values
    adata.obsm[columns.embedding] = labels.embedding
    adata.uns[key] = {
        "params": params,
        "model": {
            "name": model.name,
            "digest": digest,
            "version": model.version,
            "modality": model.config.modality,
        },
        "levels": levels,
        "tree": tree_table(model, labels.nodes),
    }
    if labels.slides is not None and len(labels.slides):
        adata.uns[key]["slides"] = labels.slides
    for name in (*levels, columns.path, columns.domain):
        if name in written:
            categories = list(written[name].categories)
            nodes = {} if name == columns.domain else {one: one.rsplit(">", 1)[-1] for one in categories}
            colors = label_colors(adata.uns[key], name, key, categories, nodes)
            adata.uns[f"{name}_colors"] = [colors[one] for one in categories]


def tree_table(model: Stage, nodes: np.ndarray) -> pd.DataFrame:
    """One row per node, used or not: level (1 is the coarsest), parent ("" at level 1), number of cells.

    For a model trained from another (`init`) also ``init_node``, the node of that model with most of the node's
    training cells ("" without any), and ``init_share``, the fraction of these cells.
    """
    tree = model.tree
    columns = {
        "level": np.repeat(np.arange(len(tree.levels)) + 1, tree.levels),
        "parent": node_names(tree.parent.numpy()),
        "n_cells": np.bincount(nodes.ravel(), minlength=tree.n_nodes),
    }
    if (model.init_node >= 0).any():
        columns |= {"init_node": node_names(model.init_node.numpy()), "init_share": model.init_share.numpy()}
    return pd.DataFrame(columns, index=pd.Index(node_names(np.arange(tree.n_nodes)), dtype=object))


def node_names(nodes: np.ndarray) -> list[str]:
    """Name of every node; "" for -1."""
    return [f"N{node}" if node >= 0 else "" for node in nodes.tolist()]


def depth_first(tree: PrototypeTree) -> np.ndarray:
    """Nodes, level by level, with those of a common parent side by side."""
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
    """Categorical of the names in use, in the given order."""
    used = order[np.isin(order, values)]
    position = np.full(int(order.max()) + 1, -1)
    position[used] = np.arange(len(used))
    return pd.Categorical.from_codes(position[values], categories=names[used])


def _path_names(tree: PrototypeTree) -> np.ndarray:
    """Path of each node: names from the root to the node, joined by ``>``."""
    names: list[str] = []
    for node, parent in enumerate(tree.parent.tolist()):  # parents have smaller numbers
        names.append(f"{names[parent]}>N{node}" if parent >= 0 else f"N{node}")
    return np.array(names, dtype=object)
