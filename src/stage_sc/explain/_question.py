"""The question: a niche, the one that it is compared with, and the cells of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_name
from stage_sc._input import Tables, read_labels
from stage_sc._messages import element_name, naming
from stage_sc._result import Columns, category_nodes, node_labels_shown, require_result, tell_apart
from stage_sc.analysis import find_result
from stage_sc.nn import Stage


class Labelled(NamedTuple):
    """Labels of one call of `stage_sc.tl.stage_niches`, on all objects."""

    key: str
    """Prefix of the names of the results."""
    result: Mapping[str, Any]
    """``uns`` entry of the first object."""
    parts: dict[str, AnnData]

    @property
    def columns(self) -> Columns:
        """Names of the results."""
        return Columns(self.key)

    @property
    def n_domains(self) -> int:
        """Number of domains that were asked for, or 0."""
        return int(self.result["params"].get("n_domains") or 0)

    def names(self, column: str) -> dict[str, str]:
        """Name of every id of a column, which is the id itself where there is no other."""
        if column == self.columns.domain:
            named = {str(id_): str(name) for id_, name in dict(self.result.get("domain_names", {})).items()}
            return tell_apart({f"D{n}": named.get(f"D{n}", "") for n in range(1, self.n_domains + 1)})
        return node_labels_shown(self.result, list(self.result["levels"]).index(column) + 1)

    def paths(self) -> np.ndarray:
        """``(n_cells, L)`` number of the node of every cell at each level; -1 without a path."""
        found = []
        for name, part in self.parts.items():
            with naming(element_name("data", name), repr(name)):
                labels = read_labels(part, self.columns.path, integers=False, argument="data")
                found.append(
                    np.vstack([[_nodes(path, self.result) for path in labels.categories], self._none])[labels.codes]
                )
        return np.concatenate(found)

    @property
    def _none(self) -> np.ndarray:
        return np.full((1, len(self.result["levels"])), -1)

    def domains(self) -> np.ndarray:
        """``(n_cells,)`` number of the domain of every cell, counted from 0; -1 without one."""
        column, found = self.columns.domain, []
        for name, part in self.parts.items():
            with naming(element_name("data", name), repr(name)):
                labels = read_labels(part, column, integers=False, argument="data")
                ids = category_nodes(part, column, labels, self.names(column), self.result, self.key)
                numbers = [int(id_[1:]) - 1 if id_[:1] == "D" and id_[1:].isdecimal() else -1 for id_ in ids]
                found.append(np.array([*numbers, -1])[labels.codes])
        return np.concatenate(found)

    def embeddings(self) -> list[np.ndarray]:
        """``(n, dim)`` float32 niche embeddings of each object."""
        key, found = self.columns.embedding, []
        for name, part in self.parts.items():
            with naming(element_name("data", name), repr(name)):
                if key not in part.obsm:
                    raise KeyError(f"no embeddings in adata.obsm[{key!r}]: label the cells again, or keep this entry")
                found.append(np.ascontiguousarray(part.obsm[key], dtype=np.float32))
        return found


def read_labelled(tables: Tables, model: Stage, groupby: str | None) -> Labelled:
    """Read results that the model wrote in one call; errors for others."""
    key = "stage"
    if groupby is not None:
        found = find_result(tables, groupby)
        if not found:
            raise ValueError(
                f"`groupby`: obs[{groupby!r}] is no column of `st.tl.stage_niches`. Only its niches and domains can be "
                "explained, as they follow from a model; `st.tl.rank_niche_genes` describes other labels."
            )
        key = str(found["params"].get("key_added", "stage"))
    digest, first = model.digest, None
    for name, part in tables.by_name.items():
        with naming(element_name("data", name), repr(name)):
            result = require_result(part, key)
            theirs = result["model"] if isinstance(result["model"], Mapping) else {}
            if theirs.get("digest") != digest:
                raise ValueError(
                    f"`model`: the niches in uns[{key!r}] were made with the model {theirs.get('name')!r} (digest "
                    f"{theirs.get('digest')}), not with {model.name!r} ({digest}). Pass the model that "
                    "`st.tl.stage_niches` was called with."
                )
            first = first or result
            if any(first["params"].get(name) != result["params"].get(name) for name in ("settle", "n_domains")):
                raise ValueError("Its niches were not made in one call with those of the first object.")
    assert first is not None  # containers have at least one object
    return Labelled(key, first, dict(tables.by_name))


def find_niche(labelled: Labelled, given: Any, argument: str, groupby: str | None) -> tuple[str, str]:
    """Column and id of a niche that is given by its id or its name."""
    check_name(given, argument)
    domain = labelled.columns.domain
    columns = [*labelled.result["levels"], *([domain] if labelled.n_domains else [])]
    names = {column: labelled.names(column) for column in columns}
    for column, by_id in names.items():
        if given in by_id:
            return column, given
    found = [(column, id_) for column, by_id in names.items() for id_, name in by_id.items() if name == given]
    if len(found) > 1 and argument == "niche":
        found = [one for one in found if one[0] == groupby] or found
    if not found:
        some = ", ".join(list(names[groupby if groupby in names else columns[-1]].values())[:5])
        hint = "" if labelled.n_domains or given[:1] != "D" else " There are no domains, see `n_domains`."
        raise KeyError(f"`{argument}`: no niche has the id or name {given!r}. Some are {some} ….{hint}")
    if len(found) > 1:
        raise ValueError(
            f"`{argument}`: {given!r} is the name of several niches: use an id, {[id_ for _, id_ in found]}."
        )
    return found[0]


def siblings_of(tree: pd.DataFrame, niche: str) -> list[str]:
    """Other children of the parent of a node that have cells."""
    same = (tree["parent"].astype(str) == str(tree.loc[niche, "parent"])) & (tree["level"] == tree.loc[niche, "level"])
    return [str(node) for node in tree.index[same] if str(node) != niche]


def _nodes(path: Any, result: Mapping[str, Any]) -> list[int]:
    """Numbers of the nodes of a path."""
    steps = str(path).split(">")
    if len(steps) != len(result["levels"]) or not all(one[:1] == "N" and one[1:].isdecimal() for one in steps):
        raise ValueError(f"the paths of cells were changed: {path!r} is none. Label the cells again.")
    return [int(one[1:]) for one in steps]
