"""Summary of a cohort before it is labelled: a row for each slide."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_name, check_scale
from stage_sc._input import entries_of, open_container, slide_name
from stage_sc._matrix import read_matrix, to_csr
from stage_sc._messages import collected_warnings, element_name
from stage_sc._result import Columns, read_result
from stage_sc.genes import match_genes
from stage_sc.graph import find_platform, measure_slides

if TYPE_CHECKING:
    from stage_sc._input import Data

logger = logging.getLogger("stage_sc.pp")

# Rows of the expression that are looked at.
N_ROWS = 500
# Factor between the spacings of cells on a slide and on the others, from which on another unit is likely.
OTHER_UNIT = 3.0
# Spacing of spots of an array, µm; other places as far apart as spots are cells.
SPOTS = 90.0
COLUMNS = {
    **{"object": str, "slide": str, "cells": int, "genes": int, "matched": int, "species": str},
    **{"scale": float, "unit": str, "layout": str, "spacing": float, "neighbours": float, "labelled": bool},
    **{"flagged": int, "likeness": float, "warning": str, "problem": str},
}


def summarize(
    data: Data,
    *,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
    coordinate_system: str | None = None,
    technology: str | None = None,
    scale: float | Mapping[str, float] | None = None,
    layer: str | None = None,
    key_added: str = "stage",
) -> pd.DataFrame:
    """Describe the slides of a cohort: cells, genes, species, unit, and problems that would stop labelling.

    Nothing is labelled or written. Look at it before `build_graph` and `stage_sc.tl.stage_niches`.

    Parameters
    ----------
    data
        Any container, as in `build_graph`. Files are read one after the other.
    spatial_key, library_key, table_key, coordinate_system, technology, scale
        As in `build_graph`; a stored graph tells the unit where `scale` is not given.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``. The first 500 cells are looked at.
    key_added
        Name of the labels that are summarised, where there are any.

    Returns
    -------
    Data frame with a row for each slide, by name, and for each object that cannot be read:

    ``object``, ``slide``, ``cells``, ``genes``
        Name of the object, of the slide in it (``""`` for one), number of cells and of features.
    ``matched``, ``species``
        Number of human or mouse genes with an official name, and the species of the names.
    ``scale``, ``unit``
        µm per unit of the coordinates, and how it is known: ``"given"``, ``"µm"``, ``"grid"``, ``"pixels"`` or
        ``"guess"``.
    ``layout``, ``spacing``, ``neighbours``
        ``"cells"``, a grid or ``"spots"``; median distance to the nearest cell, µm; median number of neighbours in the
        graph (NaN above 100,000 cells without a stored one).
    ``labelled``, ``flagged``, ``likeness``
        True for slides with labels; number of cells with a flag; correlation of the coexpression of genes with that of
        the model (below 0.05, the slide is unlike the training data; NaN without labels).
    ``warning``, ``problem``
        Doubts, e.g. about the unit; and the error for which the slide is left out of labelling. ``""`` without any.

    Raises
    ------
    FileNotFoundError, KeyError, TypeError, ValueError
        If an argument is invalid or `data` holds nothing that can be read. Problems of single slides are in the table.

    Notes
    -----
    A second for 100,000 cells, mostly the triangulation; files take the time of reading. A spacing of cells that
    differs by a factor of 3 from the median of the other slides is reported as a wrong unit.

    Examples
    --------
    >>> import stage_sc as st
    >>> table = st.pp.summarize(st.datasets.simulate_tissue(200, n_slides=2), library_key="slide")
    >>> table[["cells", "matched", "unit", "problem"]].to_dict("list")
    {'cells': [200, 200], 'matched': [172, 172], 'unit': ['µm', 'µm'], 'problem': ['', '']}
    """
    find_platform(technology)
    check_name(key_added, "key_added")
    if coordinate_system is not None:
        check_name(coordinate_system, "coordinate_system")
    for value in scale.values() if isinstance(scale, Mapping) else [scale]:
        if value is not None:
            check_scale(value)
    reading: dict[str, Any] = {
        "spatial_key": spatial_key,
        "library_key": library_key,
        "coordinate_system": coordinate_system,
    }
    reading |= {"technology": technology, "scale": scale}
    rows: list[dict[str, Any]] = []
    for name, part, owner in _objects(data, table_key):
        if isinstance(part, Exception):
            rows.append({"object": name, "problem": _text(part)})
        else:
            rows += _rows(part, owner, name, layer, key_added, reading)
    empty = {str: "", int: 0, bool: False, float: np.nan}
    blank = {name: empty[kind] for name, kind in COLUMNS.items()}
    table = pd.DataFrame([{**blank, **row} for row in rows], columns=list(COLUMNS)).astype(COLUMNS)
    _compare_spacings(table)
    names = [slide_name(*pair) for pair in table[["object", "slide"]].to_numpy()]
    unknown = sorted(set(map(str, scale)) - set(names)) if isinstance(scale, Mapping) else []
    if unknown and not table["problem"].any():
        raise KeyError(f"`scale` names slides that do not exist: {unknown}. Slides are {names}.")
    table.index = pd.Index(names, name="name")
    _log(table)
    return table


def _objects(data: Any, table_key: Any) -> Iterator[tuple[str, AnnData | Exception, Any]]:
    """Objects of a container with their names and owners; files are read when their turn comes."""
    entries = entries_of(data)
    for key, part in [("", data)] if entries is None else entries:
        try:
            opened = open_container(part, element_name("data", key) or "data", table_key)
        except (KeyError, OSError, ValueError) as error:
            if entries is None:
                raise
            yield key, error, None
            continue
        yield from ((slide_name(key, table), one, opened.owner) for table, one in opened.tables.items())


def _rows(
    part: AnnData, owner: Any, name: str, layer: str | None, key_added: str, reading: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row for each slide of an object."""
    common: dict[str, Any] = {"object": name, "genes": part.n_vars}
    errors, doubts = [], []
    with collected_warnings(divert=True) as logged:
        try:
            match = match_genes(part)
            common |= {"matched": match.n_matched, "species": match.species}
        except (TypeError, ValueError) as error:
            errors.append(_text(error))
        try:
            matrix = read_matrix(part, layer)
            to_csr(matrix[: min(N_ROWS, part.n_obs)])
        except ValueError as error:
            errors.append(_text(error))
        except (KeyError, TypeError) as error:
            if not name:
                raise
            errors.append(_text(error))
    doubts += logged
    rows = []
    try:
        with collected_warnings(divert=True) as logged:
            for one in measure_slides(part, owner, name, **reading):
                row = {"slide": one.name, "cells": len(one.rows), "scale": one.scale, "unit": one.source}
                row |= {"layout": one.layout, "spacing": one.spacing, "neighbours": one.neighbours}
                row |= _labels(part, one.name, name, one.rows, key_added)
                problems = [*errors, *([one.problem] if one.problem else [])]
                rows.append({**common, **row, "warning": " ".join([*doubts, *logged]), "problem": " ".join(problems)})
                logged.clear()
    except (KeyError, TypeError, ValueError) as error:
        if not name and not isinstance(error, ValueError):
            raise
        return [{**common, "cells": part.n_obs, "problem": " ".join([*errors, _text(error)])}]
    if not rows:
        return [{**common, "cells": 0, "problem": " ".join([*errors, "there are no cells."])}]
    return rows


def _labels(part: AnnData, slide: str, name: str, rows: np.ndarray, key_added: str) -> dict[str, Any]:
    """Count flags of the cells `rows`, and read the likeness of their slide, where they are labelled."""
    result, column = read_result(part, key_added), Columns(key_added).flag
    if not result or column not in part.obs:
        return {"labelled": False}
    found: dict[str, Any] = {"labelled": True, "flagged": int((part.obs[column].iloc[rows].astype(str) != "ok").sum())}
    table, whole = result.get("slides"), slide_name(name, slide) or "slide"
    if isinstance(table, pd.DataFrame) and "likeness" in table and whole in table.index:
        found["likeness"] = float(table.loc[whole, "likeness"])
    return found


def _compare_spacings(table: pd.DataFrame) -> None:
    """Warn of slides of cells whose spacing is that of another unit than on the others."""
    irregular = (table["layout"] == "cells") | ((table["layout"] == "spots") & (table["spacing"] < SPOTS))
    cells = table[irregular & (table["problem"] == "")]
    if len(cells) < 3:
        return
    factor = cells["spacing"] / cells["spacing"].median()
    for row, value in factor[(factor > OTHER_UNIT) | (factor < 1 / OTHER_UNIT)].items():
        text = f"Cells lie {value:.2g} times as far apart as on other slides: another unit? Check `scale`."
        table.loc[row, "warning"] = f"{table.loc[row, 'warning']} {text}".strip()


def _log(table: pd.DataFrame) -> None:
    good = table[table["problem"] == ""]
    genes = f"{good['matched'].min()}-{good['matched'].max()}" if len(good) else "no"
    logger.info(
        "%d slides of %d objects, %d cells: %s genes matched, species %s; unit guessed on %d, warnings on %d, problems "
        "with %d.",
        *(len(table), table["object"].nunique(), table["cells"].sum(), genes),
        ", ".join(sorted(set(good["species"]))) or "unknown",
        *((good["unit"] == "guess").sum(), (table["warning"] != "").sum(), len(table) - len(good)),
    )


def _text(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
