"""Names and colours of niches that people gave."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_bool, check_name
from stage_sc._input import Data, read_labels, read_tables
from stage_sc._palette import MISSING_COLOR, distinct_colors, shades
from stage_sc._result import Columns, category_nodes, label_colors, require_result, tell_apart
from stage_sc.tl._saved_names import find_cells, read_saved

logger = logging.getLogger("stage_sc.tl")


def annotate_niches(
    data: Data,
    names: Mapping[str, str] | pd.Series | str | os.PathLike[str] | None = None,
    *,
    match_to: str | None = None,
    key_added: str = "stage",
    table_key: str | Sequence[str] | None = None,
    copy: bool = False,
) -> Any:
    """Give niches names, and colours of an expert's labels.

    Names become the categories of the columns of labels, so that all plots, tables and later calls use them. The ids of
    niches are kept in the tree and in the paths.

    Parameters
    ----------
    data
        Cells with niches from `stage_niches`: an AnnData, SpatialData or MuData, or a list or a dictionary of these,
        all of which get the names.
    names
        Names by id, as ``{"N61": "T zone"}``; a domain has an id too, ``"D1"``. A present name can stand for an id
        where no other niche has it. ``""`` or ``None`` takes a name away. Also a series, e.g. the column ``"proposal"``
        of `propose_names`, or the path of a JSON or GeoJSON file that was saved by the page of ``st.report``. Other
        niches keep their names.
    match_to
        Column of ``obs`` with an expert's labels. Each niche gets the colour of the label that most of its cells have;
        niches of one label differ in lightness, the one with most cells has the exact colour. Niches without labelled
        cells keep the colour of the tree.
    key_added
        Name under which the niches were written.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    copy
        Return an annotated copy instead of writing into `data`.

    Returns
    -------
    ``None``, or with `copy` an annotated copy of `data`. Written are, for `key_added` ``"stage"``:

    ``obs["stage_l1"]``, ``obs["stage_l2"]`` …, ``obs["stage_domain"]``
        Names instead of ids. Where niches of one level would have the same name, the ids are added, as in
        ``"stroma (N12)"``: labels are not joined.
    ``uns["stage"]["tree"]["name"]``, ``uns["stage"]["domain_names"]``
        Name of each id, ``""`` without one. ``obs["stage_path"]`` has ids.
    ``obs["stage_region"]``
        From a GeoJSON file with regions: categorical, name of the smallest region around each cell; missing outside.
    ``uns["stage_l1_colors"]`` …
        Colours, with `match_to`.

    Raises
    ------
    KeyError
        If there are no niches, an id does not exist, a column is missing, or a region lies on an unknown slide.
    TypeError
        If an argument is of another type.
    ValueError
        If there is nothing to do, a name is the id of another niche, a file is not from a report, or labels were joined
        by hand so that their ids are uncertain. `data` is then unchanged.
    FileNotFoundError
        If there is no such file.

    See Also
    --------
    propose_names : Names from markers and cell types.
    stage_sc.report : A page to give names on.

    Notes
    -----
    `stage_niches` writes niches anew, without names: the same id can then be another niche.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, stage_sc as st
    >>> adata = ad.AnnData(np.ones((3, 1)))
    >>> adata.obs["stage_l1"] = pd.Categorical(["N0", "N0", "N1"])
    >>> tree = pd.DataFrame({"level": [1, 1], "parent": ["", ""]}, index=["N0", "N1"])
    >>> adata.uns["stage"] = {"levels": ["stage_l1"], "tree": tree, "params": {}, "model": {}}
    >>> st.tl.annotate_niches(adata, {"N1": "T zone"})
    >>> adata.obs["stage_l1"].tolist()
    ['N0', 'N0', 'T zone']
    """
    check_name(key_added, "key_added")
    check_bool(copy, "copy")
    if match_to is not None:
        check_name(match_to, "match_to")
    tables = read_tables(data, table_key=table_key)
    if not copy:
        tables.check_in_memory()
    for part in tables.by_name.values():
        require_result(part, key_added)
    saved = read_saved(names)
    if not saved.names and not saved.regions and match_to is None:
        raise ValueError(
            "`names` and `match_to`: nothing to write. Pass names by id, or the column to match colours to."
        )
    parts = list(tables.by_name.values())
    written = [_Names(part, key_added) for part in parts]
    for one in _resolve(saved.names, written):
        for names_of in written:
            names_of.set(*one)
    columns = [names_of.columns() for names_of in written]
    colors = _matched_colors(parts, written, match_to) if match_to is not None else {}
    regions = find_cells(tables, saved, key_added) if saved.regions else None
    if copy:
        tables = tables.copy()
        parts = list(tables.by_name.values())
    for number, part in enumerate(parts):
        written[number].write(part, columns[number])
        for key, by_id in colors.items():
            if key in part.obs:
                part.uns[f"{key}_colors"] = [by_id.get(id_, MISSING_COLOR) for id_ in written[number].ids[key]]
        if regions is not None:
            part.obs[f"{key_added}_region"] = regions[number]
            part.uns.pop(f"{key_added}_region_colors", None)
    return tables.given if copy else None


class _Names:
    """Names of the niches and domains of one object, by column."""

    def __init__(self, adata: AnnData, key_added: str) -> None:
        self.result, self.key_added = require_result(adata, key_added), key_added
        self.labels: dict[str, pd.Categorical] = {}
        self.ids: dict[str, list[str]] = {}
        self.known: dict[str, dict[str, str]] = {}  # name or "" of every id, used or not
        tree = self.result["tree"]
        stored = tree["name"].astype(str) if "name" in tree else pd.Series("", tree.index)
        for number, key in enumerate(self.result["levels"], start=1):
            if key in adata.obs:
                self._add(adata, key, {str(id_): stored[id_] for id_ in tree.index[tree["level"] == number]})
        domain = Columns(key_added).domain
        if domain in adata.obs:
            count = int(self.result["params"].get("n_domains", 0))
            named = {str(id_): str(name) for id_, name in dict(self.result.get("domain_names", {})).items()}
            self._add(adata, domain, {f"D{n}": named.get(f"D{n}", "") for n in range(1, count + 1)})

    def _add(self, adata: AnnData, key: str, known: dict[str, str]) -> None:
        self.labels[key] = read_labels(adata, key, integers=False, argument="key_added")
        self.ids[key] = category_nodes(adata, key, self.labels[key], tell_apart(known), self.result, self.key_added)
        shown = tell_apart(known)
        for id_, name in zip(self.ids[key], map(str, self.labels[key].categories), strict=True):
            if name != shown.get(id_):  # renamed by hand, or unknown
                known[id_] = "" if name == id_ else name
        self.known[key] = known

    def set(self, id_: str, name: str) -> None:
        """Name an id, if it is one of this object."""
        for known in self.known.values():
            if id_ in known:
                known[id_] = name

    def columns(self) -> dict[str, pd.Categorical]:
        """Labels with the names."""
        renamed = {}
        for key, labels in self.labels.items():
            shown = tell_apart(self.known[key])
            renamed[key] = labels.rename_categories([shown[id_] for id_ in self.ids[key]])
        return renamed

    def write(self, adata: AnnData, columns: Mapping[str, pd.Categorical]) -> None:
        """Write labels and names."""
        result = {**adata.uns[self.key_added]}
        domain = Columns(self.key_added).domain
        for key, labels in columns.items():
            if key == domain and f"{key}_colors" not in adata.uns:  # which follow from the numbers
                numbered = [id_ for id_ in self.ids[key] if id_.removeprefix("D").isdecimal()]
                default = label_colors(self.result, key, self.key_added, numbered, {})
                adata.uns[f"{key}_colors"] = [default.get(id_, MISSING_COLOR) for id_ in self.ids[key]]
            adata.obs[key] = labels
        tree = result["tree"].copy()
        names = {id_: name for key, known in self.known.items() if key != domain for id_, name in known.items()}
        tree["name"] = [names.get(str(id_), "") for id_ in tree.index]
        result["tree"] = tree
        if named := {id_: name for id_, name in self.known.get(domain, {}).items() if name}:
            result["domain_names"] = named
        else:
            result.pop("domain_names", None)
        adata.uns[self.key_added] = result


def _resolve(names: Mapping[str, str], written: Sequence[_Names]) -> list[tuple[str, str]]:
    """Id and new name for each entry of `names`, whose keys are ids or present names."""
    known = {id_: name for one in written for by_id in one.known.values() for id_, name in by_id.items()}
    shown: dict[str, set[str]] = {}
    for one in written:
        for by_id in one.known.values():
            for id_, name in tell_apart(by_id).items():
                shown.setdefault(name, set()).add(id_)
    found: dict[str, str] = {}
    for key, name in names.items():
        ids = {key} if key in known else shown.get(key, set())
        if not ids:
            some = ", ".join([*known][:3])
            raise KeyError(f"`names`: no niche has the id or name {key!r}. Ids are {some} … in `uns[…]['tree']`.")
        if len(ids) > 1:
            raise ValueError(f"`names`: {key!r} is the name of {len(ids)} niches, {sorted(ids)}: use an id.")
        (id_,) = ids
        if name in known and name != id_:
            raise ValueError(f"`names`: {name!r}, for {key!r}, is the id of another niche: choose another name.")
        if found.setdefault(id_, name) != name:
            raise ValueError(f"`names`: {id_!r} gets two names, {found[id_]!r} and {name!r}.")
    return [(id_, "" if name == id_ else name) for id_, name in found.items()]


def _matched_colors(parts: Sequence[AnnData], written: Sequence[_Names], match_to: str) -> dict[str, dict[str, str]]:
    """Colour of every id of each column: that of the expert's label with most cells."""
    holders = [part for part in parts if match_to in part.obs] or list(parts)
    labels = {id(part): read_labels(part, match_to, integers=False, argument="match_to") for part in holders}
    experts = sorted({str(name) for values in labels.values() for name in values.categories})
    palette = dict(zip(experts, distinct_colors(len(experts)), strict=True))
    for part in reversed(holders):
        stored, names = part.uns.get(f"{match_to}_colors"), labels[id(part)].categories
        if stored is not None and len(stored) == len(names):
            palette |= dict(zip(map(str, names), map(str, stored), strict=True))
    colors: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(key for one in written for key in one.labels):
        ids = list(dict.fromkeys(id_ for one in written for id_ in one.ids.get(key, [])))
        counts = pd.DataFrame(0, index=ids, columns=experts)
        for part, one in zip(parts, written, strict=True):
            if id(part) in labels and key in one.labels:
                own = np.array([*one.ids[key], ""], dtype=object)[one.labels[key].codes]
                expert = labels[id(part)].rename_categories(str)
                table = pd.crosstab(pd.Series(own), pd.Series(np.asarray(expert, dtype=object)))
                counts = counts.add(table.reindex(index=ids, columns=experts, fill_value=0), fill_value=0)
        colors[key] = _shade(counts.loc[ids, experts], palette) | _tree_colors(written, key, counts)
    return colors


def _shade(counts: pd.DataFrame, palette: Mapping[str, str]) -> dict[str, str]:
    """Colour of each row: a shade of the colour of its largest column."""
    best, most = counts.idxmax(axis=1), counts.max(axis=1)
    found: dict[str, str] = {}
    for expert in dict.fromkeys(best[most > 0]):
        own = most[(best == expert) & (most > 0)].sort_values(ascending=False, kind="stable")
        found |= dict(zip(own.index, shades(palette[expert], len(own)), strict=True))
    return found


def _tree_colors(written: Sequence[_Names], key: str, counts: pd.DataFrame) -> dict[str, str]:
    """Usual colours of the rows without counts."""
    ids = [id_ for id_ in counts.index if not counts.loc[id_].any()]
    one = next(one for one in written if key in one.labels)
    nodes = {} if key == Columns(one.key_added).domain else {id_: id_ for id_ in ids}
    return {str(id_): color for id_, color in label_colors(one.result, key, one.key_added, ids, nodes).items()}
