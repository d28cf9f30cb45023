"""Content of the page: a description of slides, labels and groups, and packed arrays of the cells."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex

from stage_sc._palette import MISSING_COLOR
from stage_sc.pl import Cells
from stage_sc.reports._expression import (
    GRADES,
    Expression,
    choose_genes,
    grade,
    light_markers,
    open_expression,
    sum_groups,
)
from stage_sc.reports._groups import (
    confidence_of,
    count_edges,
    count_pairs,
    light_neighbors,
    read_confidence,
    shares,
    slide_codes,
    stored_rows,
    sum_blocks,
)
from stage_sc.reports._layers import Layer, fold, read_layers
from stage_sc.reports._methods import describe_methods, find_warnings
from stage_sc.reports._pack import pack, smallest
from stage_sc.reports._places import Places, quantise

logger = logging.getLogger("stage_sc")

# Results of other tools: name in the page, tool, and the columns with names and values.
STORED = (("ranked", "rank_niche_genes", "names", "scores"), ("pathways", "pathways", "source", "score"))
CONFIDENCE_STEPS = 254  # 255 is none


@dataclass(frozen=True)
class Options:
    """Choices of the caller."""

    groupby: str | None
    keys: Sequence[str]
    condition_key: str | None
    cell_type_key: str | None
    genes: Sequence[str] | None
    n_genes: int
    layer: str | None
    title: str


@dataclass(frozen=True)
class Content:
    """All that the page shows."""

    facts: dict[str, Any]
    arrays: dict[str, str]
    """Packed arrays by name."""


def compose(cells: Cells, options: Options, heard: list[str]) -> Content:
    """Compute and pack everything; warnings of the package that were `heard` are shown too."""
    others = [key for key in (options.cell_type_key, options.condition_key, *options.keys) if key]
    layers = read_layers(cells, options.groupby, others)
    xy = cells.coordinates()
    leaf = [layer for layer in layers if layer.kind == "level"][-1]
    places = quantise(xy, cells.slides, leaf.codes[:, None])
    confidence = None if options.groupby else read_confidence(cells)
    warnings = find_warnings(cells)
    expression = _open(cells, options, warnings)
    arrays = {"x": pack(places.xy[:, 0], delta=True), "y": pack(places.xy[:, 1], delta=True)}
    described, genes = _describe_layers(cells, layers, options, confidence, expression, places, arrays)
    facts = {
        "title": options.title,
        "version": version("stage-sc"),
        "key_added": cells.key_added if options.groupby is None else "",
        "n": len(xy),
        "slides": _describe_slides(cells, places, xy),
        "layers": described,
        "conditions": _names(layers, options.condition_key),
        "types": _names(layers, options.cell_type_key),
        "condition_key": options.condition_key,
        "type_key": options.cell_type_key,
        "genes": _pack_genes(expression, options.genes or genes, places, arrays),
        "confidence": confidence is not None,
        "missing": MISSING_COLOR,
        "ramp": [to_hex(color) for color in mpl.colormaps["viridis_r"](np.linspace(0.05, 1, GRADES))],
        "methods": describe_methods(cells, len(xy), leaf.key),
        "warnings": list(dict.fromkeys([*heard, *warnings])),
    }
    if confidence is not None:
        steps = np.where(np.isfinite(confidence), np.rint(CONFIDENCE_STEPS * np.nan_to_num(confidence)), 255)
        arrays["confidence"] = pack(steps.astype(np.uint8)[places.order])
    return Content(facts, arrays)


def _open(cells: Cells, options: Options, warnings: list[str]) -> Expression | None:
    """Open the expression; where it cannot be used, and nothing was asked of it, the page says why."""
    try:
        return open_expression(cells.parts, options.layer)
    except (TypeError, ValueError) as error:
        if options.layer is not None or options.genes:
            raise
        warnings.append(f"The page has no genes: {error}")
        logger.warning("The report has no genes: %s", error)
        return None


def _describe_slides(cells: Cells, places: Places, xy: np.ndarray) -> list[dict[str, Any]]:
    scales = cells.scales(xy)
    return [
        {
            **slide,
            "scale": None if (scale := scales[slide["name"]]) is None else scale.micrometres,
            "guessed": scale is not None and scale.guessed,
        }
        for slide in places.slides
    ]


def _names(layers: Sequence[Layer], key: str | None) -> list[str]:
    return next((layer.names for layer in layers if layer.key == key), [])


def _describe_layers(
    cells: Cells,
    layers: Sequence[Layer],
    options: Options,
    confidence: np.ndarray | None,
    expression: Expression | None,
    places: Places,
    arrays: dict[str, str],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Facts about the groups of every layer; fills `arrays`. Returns also the genes to show."""
    levels = [layer for layer in layers if layer.kind == "level"]
    slides = slide_codes(cells, len(places.order))
    by_key = {layer.key: layer for layer in layers}
    described: list[dict[str, Any]] = []
    markers_of: list[tuple[int, list[list[Any]]]] = []
    bases: dict[int, Any] = {}
    for number, layer in enumerate(layers):
        n = len(layer.ids)
        folded = fold(layer, levels[-1]) if layer.kind == "level" and layer is not levels[-1] else None
        base = layers.index(levels[-1]) if folded is not None else number
        if folded is None:
            arrays[f"layer{number}"] = pack(smallest(layer.codes, n)[places.order])
        columns: dict[str, list[Any]] = {
            "id": layer.ids,
            "name": layer.names,
            "color": layer.colors,
            "parent": layer.parents,
            "n": layer.sizes.tolist(),
            "slides": shares(count_pairs(layer.codes, slides, n, len(cells.slides))),
        }
        for column, key in (("conditions", options.condition_key), ("types", options.cell_type_key)):
            if key and key != layer.key:
                other = by_key[key]
                columns[column] = shares(count_pairs(layer.codes, other.codes, n, len(other.ids)))
        if confidence is not None and layer.kind != "column":
            columns["confidence"] = confidence_of(layer.codes, n, confidence)
        if layer.kind != "column":
            if base not in bases:
                own = layers[base]
                sums = sum_groups(expression, own.codes, len(own.ids)) if expression else None
                bases[base] = sums, count_edges(cells, own)
            sums, edges = bases[base]
            if sums is not None:
                onto = sums if folded is None else sums.fold(folded, n + 1)
                columns["markers"] = light_markers(onto, n, expression.genes) if expression else []
                markers_of += zip(layer.sizes.tolist(), columns["markers"], strict=True)
            if edges is not None:
                columns["neighbors"] = light_neighbors(edges if folded is None else sum_blocks(edges, folded, n))
            _add_stored(cells, layer, columns)
        groups = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        head = {"key": layer.key, "title": layer.title, "kind": layer.kind}
        described.append({**head, "base": base, "map": folded, "groups": groups})
    return described, choose_genes(markers_of, options.n_genes)


def _add_stored(cells: Cells, layer: Layer, columns: dict[str, list[Any]]) -> None:
    """Results of other tools in ``uns``, if any: markers beside the light ones, and pathways."""
    for column, tool, name, value in STORED:
        if any(rows := stored_rows(cells.parts, tool, name, value, layer)):
            columns[column] = rows


def _pack_genes(
    expression: Expression | None, genes: Sequence[str], places: Places, arrays: dict[str, str]
) -> list[dict[str, Any]]:
    if expression is None:
        return []
    shown = []
    for number, (gene, grades, top) in enumerate(grade(expression, genes)):
        arrays[f"gene{number}"] = pack(grades[places.order])
        shown.append({"name": gene, "top": round(top, 4)})
    return shown
