"""Labels of cells for the page: the levels of the tree, domains and other columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stage_sc._result import Columns
from stage_sc.pl import Cells


@dataclass(frozen=True)
class Layer:
    """One labelling of all cells."""

    key: str
    title: str
    kind: str
    """``"level"``, ``"domain"`` or ``"column"``."""
    ids: list[str]
    """Name of each group that never changes: the node of the tree, or the category."""
    names: list[str]
    colors: list[str]
    parents: list[int]
    """Position of the parent in the layer above, -1 without one."""
    codes: np.ndarray
    """``(n,)`` intp, position in `ids`; -1 for cells without a label."""

    @property
    def sizes(self) -> np.ndarray:
        """Number of cells of each group."""
        return np.bincount(self.codes + 1, minlength=len(self.ids) + 1)[1:]


def read_layers(cells: Cells, groupby: str | None, keys: Sequence[str]) -> list[Layer]:
    """Read levels and domains (or the column `groupby`), then the columns `keys`; groups without cells are left out."""
    layers: list[Layer] = []
    if groupby is None:
        for number, key in enumerate(cells.result["levels"], start=1):
            above = layers[-1] if layers else None
            layers.append(_read(cells, key, f"level {number}", "level", above))
        domain = Columns(cells.key_added).domain
        if any(domain in part.obs for part in cells.parts):
            layers.append(_read(cells, domain, "domains", "domain"))
    else:
        layers.append(_read(cells, groupby, groupby, "level"))
    known = {layer.key for layer in layers}
    return layers + [_read(cells, key, key, "column") for key in dict.fromkeys(keys) if key not in known]


def _read(cells: Cells, key: str, title: str, kind: str, above: Layer | None = None) -> Layer:
    labels = cells.labels(key)
    colors, nodes = cells.colors(key, list(labels.categories), {}), cells.nodes(key, labels)
    used = np.flatnonzero(np.bincount(labels.codes + 1, minlength=len(labels.categories) + 1)[1:])
    position = np.full(len(labels.categories) + 1, -1)
    position[used] = np.arange(len(used))
    codes = position[labels.codes]
    categories = [labels.categories[code] for code in used]
    ids = _domain_ids(cells, [str(nodes.get(name, name)) for name in categories]) if kind == "domain" else None
    return Layer(
        key,
        title,
        kind,
        ids or [str(nodes.get(name, name)) for name in categories],
        [str(name) for name in categories],
        [colors[name] for name in categories],
        _parents(codes, above.codes, len(used)) if above else [-1] * len(used),
        codes,
    )


def _domain_ids(cells: Cells, names: list[str]) -> list[str]:
    """Numbers of domains that were given names."""
    known = {str(name): str(node) for node, name in dict(cells.result.get("domain_names", {})).items()}
    return [known.get(name, name) for name in names]


def _parents(codes: np.ndarray, above: np.ndarray, n: int) -> list[int]:
    """Group of the layer above that holds most cells of each group."""
    both = (codes >= 0) & (above >= 0)
    width = int(above.max(initial=0)) + 1
    pairs = np.bincount(codes[both] * width + above[both], minlength=n * width).reshape(n, width)
    return [int(row.argmax()) if row.any() else -1 for row in pairs]


def fold(layer: Layer, leaf: Layer) -> list[int] | None:
    """Group of `layer` for each group of `leaf`, followed by that of cells without one; None if some have several."""
    n = len(leaf.ids)
    leaf_codes = np.where(leaf.codes < 0, n, leaf.codes)
    width = len(layer.ids) + 1
    counts = np.bincount(leaf_codes * width + layer.codes + 1, minlength=(n + 1) * width).reshape(n + 1, width)
    if (np.count_nonzero(counts, axis=1) > 1).any():
        return None
    return [int(code) - 1 for code in counts.argmax(axis=1)]
