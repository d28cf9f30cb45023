"""Graph of an AnnData: written, compared with the coordinates when read, rebuilt if stale."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stage_sc._checks import check_name
from stage_sc._evidence import overlapping, warn_overlap
from stage_sc._input import SlideCodes, planar_coordinates, read_slide_codes
from stage_sc._matrix import read_pairs
from stage_sc.graph._neighbors import SlideGraph, slide_graph, sorted_csr
from stage_sc.graph._settings import GraphOptions, SlideSettings
from stage_sc.graph._units import resolve_settings

logger = logging.getLogger("stage_sc.pp")

# Entries of ``obsp`` and of ``uns``.
KEYS = ("spatial_connectivities", "spatial_distances", "local_connectivities")
UNS_KEYS = ("stage_graph", "spatial_neighbors")
# Columns of the table of slides with numbers, besides those of every graph.
_SETTINGS_NUMBERS = ("radius", "local", "view")


class Graph(NamedTuple):
    """Neighbourhoods of all cells, each ``(n_cells, n_cells)`` csr and symmetric."""

    distances: sp.csr_matrix
    """float64 lengths of the edges of the Delaunay graph in µm; explicit zeros join cells at one place."""
    local: sp.csr_matrix
    """float32 Gaussian weights of the local neighbourhood, 1 on the diagonal."""


def write_graph(
    adata: AnnData, xy: np.ndarray, slides: SlideCodes, settings: list[SlideSettings], params: dict[str, Any]
) -> Graph:
    """Build the graphs of all slides and write them; `adata` is changed only after all of them succeeded."""
    parts, rows = [], []
    for (name, cells), chosen in zip(slides.rows().items(), settings, strict=True):
        part = slide_graph(xy[cells] * chosen.scale, chosen)
        rows.append(_describe(name, chosen, part, len(cells)))
        parts.append((cells, part))
    distances = _assemble([(cells, part.edges) for cells, part in parts])
    local = _assemble([(cells, part.local) for cells, part in parts])
    ones = np.ones(distances.nnz, np.float32)
    spatial = sp.csr_matrix((ones, distances.indices, distances.indptr), shape=distances.shape, copy=False)
    table = pd.DataFrame(rows).set_index("slide")
    state = {"params": params, "slides": table, "fingerprint": fingerprint(xy, slides)}

    adata.obsp["spatial_connectivities"], adata.obsp["spatial_distances"] = spatial, distances
    adata.obsp["local_connectivities"] = local
    adata.uns["spatial_neighbors"] = parts[0][1].squidpy_entry
    adata.uns["stage_graph"] = state
    _log_table(table)
    return Graph(distances, local)


def read_graph(adata: AnnData, *, spatial_key: str | None = None, library_key: str | None = None) -> Graph:
    """Read the graph of `build_graph` (a KeyError without one), and rebuild it if it is stale.

    Subsetting cuts edges, and coordinates or slides may have been changed. Both are detected by the fingerprint of the
    coordinates, the number of edges and the length of every edge. The graph is then rebuilt in place with the recorded
    parameters, with a warning. Reordered cells need no rebuild. The keys are those of `build_graph`; ``None``: as
    recorded, others lead to a rebuild.
    """
    if spatial_key is not None:
        check_name(spatial_key, "spatial_key")
    if library_key is not None and not isinstance(library_key, str):
        check_name(library_key, "library_key")
    if "stage_graph" not in adata.uns or any(key not in adata.obsp for key in KEYS):
        raise KeyError("There is no neighbourhood graph in `adata.obsp` yet: run `st.pp.build_graph(adata)` first.")
    state = _read_state(adata)
    params = dict(state["params"])
    params["spatial_key"] = spatial_key or params["spatial_key"]
    params["library_key"] = library_key or params["library_key"]
    xy, slides = planar_coordinates(adata, params["spatial_key"], params["library_key"])
    table = state["slides"]
    spatial, distances, local = (read_pairs(adata, key) for key in KEYS)
    lengths_agree = _lengths_agree(distances, xy, slides, table)
    whole = spatial.nnz == table["n_edges"].sum()
    if lengths_agree and whole and fingerprint(xy, slides) == state["fingerprint"]:
        return Graph(sp.csr_matrix(distances), sp.csr_matrix(local))
    if not params["library_key"] and (column := _separate_in_graph(adata, xy)):
        params["library_key"] = column
        slides = read_slide_codes(adata, column)
        logger.warning(
            "No edge of the graph joins cells of different obs[%r], which overlap: these are slides.", column
        )
    elif not params["library_key"]:
        warn_overlap(adata, xy, slides.rows(), params["spatial_key"], "")
    logger.warning(
        "The graph in `adata.obsp` does not belong to these cells any more (cells were removed, or coordinates or "
        "slides changed): rebuilding it with the recorded parameters."
    )
    # Removing cells changes the spacing, but not unit, layout and bandwidth of the slide.
    if lengths_agree and len(xy) < table["n_cells"].sum():
        names = [field.name for field in fields(SlideSettings)]
        settings = [SlideSettings(**row) for row in table.loc[slides.names, names].to_dict("records")]
    else:
        options = GraphOptions(**{field.name: params[field.name] for field in fields(GraphOptions)})
        settings = resolve_settings(
            xy, slides, options, _scales(table, slides.names), None, adata, params["spatial_key"]
        )
    return write_graph(adata, xy, slides, settings, params)


def _read_state(adata: AnnData) -> dict[str, Any]:
    """Read ``uns["stage_graph"]``; a ValueError if it is not as `write_graph` made it."""
    state = adata.uns["stage_graph"]
    try:
        params, table = dict(state["params"]), state["slides"].copy()
        table.index = table.index.astype(str)
        if "scale_source" not in table:  # of older versions
            table["scale_source"] = np.where(table["scale_given"].astype(bool), "given", "guess")
        options = GraphOptions(**{field.name: params[field.name] for field in fields(GraphOptions)})
        options.check()
        keys = [params[name] for name in ("spatial_key", "library_key")]
        numbers = table[["scale", "n_cells", "n_edges", "sigma", *_SETTINGS_NUMBERS]].to_numpy(dtype=np.float64)
        valid = all(isinstance(key, str) for key in keys) and isinstance(state["fingerprint"], str)
        if not (valid and np.isfinite(numbers).all() and (table["scale"] > 0).all()):
            raise ValueError("a value is of another type or not finite")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"`adata.uns['stage_graph']` is broken ({type(error).__name__}: {error}): run `st.pp.build_graph(adata)` "
            "again."
        ) from error
    return {"params": params, "slides": table, "fingerprint": state["fingerprint"]}


def _separate_in_graph(adata: AnnData, xy: np.ndarray) -> str:
    """Column of obs that names pieces which lie on one place, but which no edge of the stored graph joins, or ""."""
    edges = sp.coo_matrix(adata.obsp["spatial_connectivities"])
    for column, codes in overlapping(adata, xy):
        if edges.nnz and (codes[edges.row] == codes[edges.col]).all() and (codes >= 0).all():
            return column
    return ""


def _scales(table: pd.DataFrame, names: list[str]) -> list[float | None]:
    """Scales that were given for slides; a single one given for all slides applies to slides of other names too."""
    given = {str(name): float(row["scale"]) for name, row in table.iterrows() if row["scale_source"] == "given"}
    common = next(iter(given.values())) if len(given) == len(table) and len(set(given.values())) == 1 else None
    scales = [given.get(name, common) for name in names]
    unknown = [name for name, scale in zip(names, scales, strict=True) if scale is None]
    if given and unknown:
        logger.warning(
            "No `scale` was given for %s, which is estimated: run `st.pp.build_graph` again with `scale`.",
            ", ".join(map(repr, unknown)),
        )
    return scales


def graph_view(adata: AnnData) -> AnnData:
    """Return an AnnData without expression, in which `read_graph` can rebuild the graph; matrices are shared."""
    return AnnData(
        obs=adata.obs.copy(),
        obsm=dict(adata.obsm),
        obsp={key: adata.obsp[key] for key in KEYS if key in adata.obsp},
        uns={key: adata.uns[key] for key in (*UNS_KEYS, "spatial", "spatialdata_attrs") if key in adata.uns},
    )


def copy_graph(view: AnnData, adata: AnnData) -> None:
    """Write the graph of a `graph_view` to its AnnData."""
    for key in KEYS:
        adata.obsp[key] = view.obsp[key]
    for key in UNS_KEYS:
        adata.uns[key] = view.uns[key]


def graph_scale(adata: AnnData, spatial_key: str) -> dict[str, float]:
    """µm per unit of the coordinates of each slide by name; empty without a graph of these coordinates."""
    graph = adata.uns.get("stage_graph")
    params, table = (graph.get(key) for key in ("params", "slides")) if isinstance(graph, Mapping) else (None, None)
    if not isinstance(params, Mapping) or params.get("spatial_key") != spatial_key:
        return {}
    if not isinstance(table, pd.DataFrame) or "scale" not in table:
        return {}
    return {str(name): float(scale) for name, scale in table["scale"].items()}


def fingerprint(xy: np.ndarray, slides: SlideCodes) -> str:
    """Digest of the coordinates and slides of all cells, independent of the order of the cells."""
    order = np.lexsort((xy[:, 1], xy[:, 0], slides.codes))
    digest = hashlib.sha256(repr((len(xy), slides.names)).encode())
    digest.update(slides.codes[order].astype("<i8").tobytes())
    digest.update((xy[order] + 0.0).astype("<f8").tobytes())  # -0.0 becomes 0.0
    return digest.hexdigest()[:32]


def _lengths_agree(distances: Any, xy: np.ndarray, slides: SlideCodes, table: pd.DataFrame) -> bool:
    """Test if every stored edge connects cells of one slide and its length agrees with the coordinates."""
    if not set(slides.names) <= set(table.index):
        return False
    scale = table.loc[slides.names, "scale"].to_numpy(dtype=float)[slides.codes]
    edges = sp.csr_matrix(distances).tocoo()
    if (slides.codes[edges.row] != slides.codes[edges.col]).any():
        return False
    length = np.hypot(*(xy[edges.row] - xy[edges.col]).T) * scale[edges.row]
    return bool(np.allclose(edges.data, length, rtol=1e-4, atol=1e-6))


def _assemble(parts: list[tuple[np.ndarray, sp.csr_matrix]]) -> sp.csr_matrix:
    """Join the matrices of all slides; explicit zeros stay."""
    if len(parts) == 1:
        return parts[0][1]
    n = sum(len(cells) for cells, _ in parts)
    rows = np.concatenate([np.repeat(cells, np.diff(matrix.indptr)) for cells, matrix in parts])
    cols = np.concatenate([cells[matrix.indices] for cells, matrix in parts])
    return sorted_csr(rows, cols, np.concatenate([matrix.data for _, matrix in parts]), (n, n))


def _describe(name: str, chosen: SlideSettings, part: SlideGraph, n: int) -> dict[str, Any]:
    """Row of the table of slides."""
    degree, in_local = np.diff(part.edges.indptr), np.diff(part.local.indptr) - 1
    return {
        "slide": name,
        "n_cells": n,
        **asdict(chosen),
        "sigma": part.sigma,
        "n_edges": part.edges.nnz,
        "mean_degree": round(float(degree.mean()), 2),
        "mean_local": round(float(in_local.mean()), 2),
        "isolated": int((degree == 0).sum()),
        "no_local": int((in_local == 0).sum()),
    }


def _log_table(table: pd.DataFrame) -> None:
    """Log a summary, and warn if most local neighbourhoods are empty."""
    n = int(table["n_cells"].sum())
    logger.info(
        "Graph of %d cells on %d slide(s): %.1f cells in a local neighbourhood on average; %d cells are isolated. "
        "Details in `adata.uns['stage_graph']['slides']`.",
        *(n, len(table), (table["mean_local"] * table["n_cells"]).sum() / n, table["isolated"].sum()),
    )
    sparse = table.index[table["no_local"] > 0.5 * table["n_cells"]]
    if len(sparse):
        row = table.loc[sparse[0]]
        logger.warning(
            "%d slide(s), e.g. %r: %d of %d cells have an empty local neighbourhood. Check `scale` (%g here), or "
            'pass mode="hops".',
            *(len(sparse), sparse[0], row["no_local"], row["n_cells"], row["scale"]),
        )
