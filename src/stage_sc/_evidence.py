"""Evidence in an AnnData about its slides and spots: columns of obs, entries of uns, and the places of cells."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from stage_sc._coordinates import obs_coordinates, stack_columns, words_in

logger = logging.getLogger("stage_sc")

# Words in names of columns that hold the slide, the field of view or the individual of a cell.
FIELD_WORDS = frozenset("fov fovs field tile scene acquisition capture roi".split())
VIEW_WORDS = frozenset("fov fovs tile tiles".split())
SLIDE_WORDS = FIELD_WORDS | frozenset(
    "library libraries sample samples slide slides section sections slice region regions batch donor patient subject "
    "individual animal mouse specimen tissue biopsy replicate rep core tma puck chip block image img run experiment "
    "dataset source file origin ident bregma condition treatment genotype timepoint sex".split()
)
NO_NAME = frozenset(["", "na", "nan", "none", "unknown", "unassigned", "other", "undefined"])
# Crossing neighbours of two groups, relative to chance, above which these lie on one place. Adjoining fields have less
# than 0.5, pieces on one place 0.9-1.
# Thin layers of few spots reach 0.9 for some pairs, but not for all.
MIXED, MIXED_ANATOMY = 0.5, 0.85
ANATOMY_WORDS = frozenset("region regions tissue core".split())
# Fraction of all pairs of neighbours that mixed groups must hold, and cells of a group.
MIXED_PAIRS, GROUP_CELLS = 0.02, 20
SAMPLE, NEIGHBOURS = 2000, 8
# Slides adjoin if cells of both sides lie within this many spacings of each other.
CONTACT = 5.0
FEW_CELLS = 100


class Overlap(NamedTuple):
    """A grouping of the cells of one slide of which several groups lie on one place."""

    column: str
    """Column of obs, or a description of another source."""
    n_groups: int
    mixing: float
    """Fraction of neighbours in another group, relative to chance, over the mixed pairs of groups."""
    crossing: float
    """Fraction of neighbours in another group."""


def slide_column(adata: AnnData, *, graph: bool = True) -> str:
    """Column of obs that names the slides for certain, or "": slides of the stored graph, regions of SpatialData."""
    state = adata.uns.get("stage_graph") if graph else None
    params = state.get("params") if isinstance(state, Mapping) else None
    known = params.get("library_key") if isinstance(params, Mapping) else None
    if isinstance(known, str) and known and known in adata.obs:
        return known
    key = region_column(adata.uns)
    if words_in(key) & VIEW_WORDS:
        return ""  # fields of view are parts of a section
    if key and key in adata.obs and adata.obs[key].nunique() > 1:
        logger.info("`uns['spatialdata_attrs']` names obs[%r] as the region of a cell: regions are slides.", key)
        return key
    return ""


def region_column(uns: Mapping[str, Any]) -> str:
    """Column of the regions of a table of SpatialData, or ""."""
    attrs = uns.get("spatialdata_attrs")
    key = attrs.get("region_key") if isinstance(attrs, Mapping) else None
    return str(key) if key else ""


def may_name_slides(column: str) -> bool:
    """Test if a column has the name of a slide, a field of view or an individual."""
    return bool(words_in(column) & SLIDE_WORDS)


def warn_overlap(adata: AnnData, xy: np.ndarray, rows: Mapping[str, np.ndarray], spatial_key: str, where: str) -> None:
    """Warn if groups of cells of one slide lie on one place, as pieces of different tissue do.

    `xy` are the coordinates of all cells, `rows` the cells of every slide, and `where` is the beginning of the message.
    """
    groups = dict(_groupings(adata))
    for name, cells in rows.items():
        if len(cells) < 2 * NEIGHBOURS:
            continue
        plane = xy[cells]
        found = _overlaps(plane, {key: codes[cells] for key, codes in groups.items()})
        if not found:
            _warn_shared_places(adata, plane, cells, where)
            continue
        most = max(found, key=lambda one: (one.column in adata.obs, one.mixing, one.n_groups))
        piece = f"slide {name!r} of " if name else ""
        logger.warning(
            "%s%d groups of %s lie on one place in %s`adata.obsm[%r]` (they overlap): %.0f %% of neighbours belong to "
            "another group, %.0f %% of what chance would give. Pieces of different tissue would be joined. %s",
            *(where, most.n_groups, _describe(most.column, adata), piece, spatial_key),
            *(100 * most.crossing, 100 * most.mixing, _remedy(adata, most.column, groups, cells, spatial_key)),
        )
        return


def overlapping(adata: AnnData, xy: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Columns of obs of which several groups lie on one place, with the code of every cell."""
    groups = {column: codes for column, codes in _groupings(adata) if column in adata.obs}
    for one in _overlaps(xy, groups):
        yield one.column, groups[one.column]


def _describe(column: str, adata: AnnData) -> str:
    return f"obs[{column!r}]" if column in adata.obs else column


def _remedy(adata: AnnData, column: str, groups: Mapping[str, np.ndarray], cells: np.ndarray, spatial_key: str) -> str:
    """Ways out of an overlap: coordinates in which the groups lie apart, else a slide for each group."""
    by_group = f"`library_key={column!r}`"
    if column not in adata.obs:
        by_group = "`library_key`, with a column of obs that names them"
    apart = []
    for key in (key for key in adata.obsm if key != spatial_key):
        other = adata.obsm[key]
        if getattr(other, "ndim", 0) == 2 and other.shape[1] in (2, 3):
            try:
                plane = np.asarray(other, dtype=np.float64)[cells]
            except (TypeError, ValueError):
                continue
            if np.isfinite(plane).all() and not _overlaps(plane, {column: groups[column][cells]}):
                apart.append(f"`spatial_key={key!r}`")
    pairs = [pair for pair in obs_coordinates(adata.obs) if "global" in pair[0].casefold()]
    apart += [f"`adata.obsm['global'] = {stack_columns(pair)}` and `spatial_key='global'`" for pair in pairs[:1]]
    if apart:
        return f"If they are parts of one section, pass global coordinates: {apart[0]}; otherwise pass {by_group}."
    if words_in(column) & FIELD_WORDS:
        return f"Fields of one section need global coordinates (`spatial_key`); otherwise pass {by_group}."
    return f"Pass {by_group}, or coordinates in which they lie apart (`spatial_key`)."


def _groupings(adata: AnnData) -> Iterator[tuple[str, np.ndarray]]:
    """Yield groupings of the cells that may be pieces of tissue: name and code of every cell, -1 for none."""
    libraries = adata.uns.get("spatial")
    libraries = {str(name) for name in libraries} if isinstance(libraries, Mapping) and len(libraries) > 1 else set()
    for column in (name for name in adata.obs.columns if isinstance(name, str)):
        values = adata.obs[column]
        if not isinstance(values, pd.Series) or pd.api.types.is_float_dtype(values):
            continue
        if not may_name_slides(column) and not (libraries and _names_in(values, libraries)):
            continue
        codes, names = pd.factorize(values.astype(str).where(values.notna()))
        unnamed = np.flatnonzero([str(name).casefold() in NO_NAME for name in names])
        codes = np.where(np.isin(codes, unnamed), -1, codes)
        if 2 <= len(names) - len(unnamed) <= max(2, adata.n_obs / 20):
            yield column, codes
    # `concat(index_unique="-")` and `spaceranger aggr` number the pieces at the end of the names of cells.
    ends = pd.Series(adata.obs_names[:SAMPLE].astype(str)).str.extract(r"[-_/]([^-_/]+)$")[0]
    if ends.notna().all() and ends.nunique() <= 20:
        ends = pd.Series(adata.obs_names.astype(str)).str.extract(r"[-_/]([^-_/]+)$")[0]
        if ends.notna().all() and 2 <= ends.nunique() <= 20 and ends.value_counts().min() >= FEW_CELLS / 2:
            yield "the endings of `adata.obs_names`", pd.factorize(ends)[0]


def _names_in(values: pd.Series, names: set[str]) -> bool:
    """Test if a column holds these names and no other."""
    if pd.api.types.is_numeric_dtype(values) and not isinstance(values.dtype, pd.CategoricalDtype):
        return False
    found = set(values.dropna().astype(str).unique())
    return len(found) > 1 and found <= names


def _overlaps(plane: np.ndarray, groups: Mapping[str, np.ndarray]) -> list[Overlap]:
    """Find groupings of which some groups lie on one place, from the nearest neighbours of a sample of the cells."""
    groups = {name: codes for name, codes in groups.items() if len(np.unique(codes[codes >= 0])) > 1}
    if not groups:
        return []
    some = np.random.default_rng(0).permutation(len(plane))[:SAMPLE]
    near = cKDTree(plane).query(plane[some], min(NEIGHBOURS + 1, len(plane)))[1]
    centre, other = np.repeat(some, near.shape[1]), near.ravel()
    centre, other = centre[centre != other], other[centre != other]
    found = []
    for name, codes in groups.items():
        one, two = codes[centre], codes[other]
        named = (one >= 0) & (two >= 0)
        kinds, one_two = np.unique(np.r_[one[named], two[named]], return_inverse=True)
        half, n = len(one_two) // 2, len(kinds)
        pairs = np.zeros((n, n))
        np.add.at(pairs, (one_two[:half], one_two[half:]), 1)
        pairs = (pairs + pairs.T) / 2  # each pair of neighbours, in both directions
        inner, size = np.diag(pairs), np.bincount(codes[codes >= 0])[kinds]
        cross = 2 * pairs / np.maximum(inner[:, None] + inner + 2 * pairs, 1)
        p = size[:, None] / (size[:, None] + size)
        mixing = cross / (2 * p * (1 - p))
        np.fill_diagonal(mixing, 0)
        limit = MIXED_ANATOMY if words_in(name) & ANATOMY_WORDS else MIXED
        mixed = (mixing > limit) & (np.minimum(size[:, None], size) >= GROUP_CELLS)
        crossing = 1 - inner.sum() / max(pairs.sum(), 1)
        if limit == MIXED_ANATOMY and crossing < limit * (1 - np.square(size / size.sum()).sum()):
            continue
        if pairs[mixed].sum() > MIXED_PAIRS * pairs.sum():
            strength = float(np.average(mixing[mixed], weights=pairs[mixed]))
            found.append(Overlap(name, int(mixed.any(axis=1).sum()), min(strength, 1.0), float(crossing)))
    return found


def _warn_shared_places(adata: AnnData, plane: np.ndarray, cells: np.ndarray, where: str) -> None:
    """Warn if most cells share their exact place with others; name the columns that tell these apart."""
    places, place, count = np.unique(
        np.ascontiguousarray(plane).view(np.complex128).ravel(), return_inverse=True, return_counts=True
    )
    if len(places) > 0.75 * len(plane):
        return
    shared = int((count[place] > 1).sum())
    if shared < 0.5 * len(plane):
        return
    apart = []
    for column in (name for name in adata.obs.columns if isinstance(name, str)):
        values = adata.obs[column]
        if isinstance(values, pd.Series) and not pd.api.types.is_float_dtype(values):
            codes = pd.factorize(values.astype(str))[0][cells]
            if 2 <= len(np.unique(codes)) <= len(cells) / 10 and len(np.unique(np.c_[place, codes], axis=0)) == len(
                cells
            ):
                apart.append(column)
    hint = f"`library_key={apart[0]!r}` separates these" if apart else "if so, name them with `library_key`"
    logger.warning(
        "%s%d of %d cells share their exact place with others. Several pieces of tissue that overlap? %s%s.",
        *(where, shared, len(plane), hint[0].upper() if not apart else hint[0], hint[1:]),
    )


def adjoining(parts: Mapping[str, np.ndarray]) -> list[str]:
    """Names of slides that lie side by side with another slide, like parts of one section.

    Cells on both sides of a border lie within 5 spacings of each other along at least 30 % of the width of a slide;
    slides on one place are no neighbours.
    """
    names = [name for name, xy in parts.items() if len(xy) >= 2 * NEIGHBOURS][:500]
    if len(names) < 2:
        return []
    xy = {name: parts[name] for name in names}
    low, high = (np.array([bound(xy[name], axis=0) for name in names]) for bound in (np.min, np.max))
    trees = {name: cKDTree(xy[name]) for name in names}
    some = {name: np.random.default_rng(0).permutation(len(xy[name]))[:SAMPLE] for name in names}
    spacing = np.array([np.median(trees[name].query(xy[name][some[name]], 2)[0][:, 1]) for name in names])
    touching = set()
    for i, one in enumerate(names):
        reach = CONTACT * np.maximum(spacing[i], spacing)
        gap = np.maximum(low - high[i], low[i] - high).max(axis=1)
        common = np.maximum(np.minimum(high, high[i]) - np.maximum(low, low[i]), 0).prod(axis=1)
        smaller = np.minimum((high - low).prod(axis=1), (high[i] - low[i]).prod())
        for j in np.flatnonzero((gap <= reach) & (common < 0.4 * smaller) & (np.arange(len(names)) != i)):
            if not 0.5 < spacing[i] / max(spacing[j], 1e-300) < 2:
                continue
            distance = trees[names[j]].query(xy[one][some[one]], distance_upper_bound=reach[j])[0]
            border = distance[np.isfinite(distance)]
            width = len(border) / len(some[one]) * np.sqrt(len(xy[one])) / CONTACT
            if width > 0.3 and np.median(border) > 1.8 * spacing[i]:
                touching.add(one)
                break
    return sorted(touching)


def warn_parts(parts: Mapping[str, np.ndarray], library_key: str | None) -> None:
    """Warn if most of several slides are parts of one section, or are too small to be standardised by themselves."""
    by = f"`library_key={library_key!r}`" if library_key else "the slides of `data`"
    whole = "Name whole sections: leave `library_key` out if there is one, or pass the column of the sections."
    if not library_key:
        whole = "Join the parts of a section: `anndata.concat(parts, join='outer')`."
    beside = adjoining(parts)
    small = [name for name, xy in parts.items() if len(xy) < FEW_CELLS]
    if len(beside) >= max(2, 0.7 * len(parts)):
        logger.warning(
            "%d of %d slides, e.g. %s, adjoin others side by side: %s seems to name parts of one section (fields of "
            "view). Expression is standardised on each slide, which takes the differences between the parts away. %s",
            *(len(beside), len(parts), ", ".join(map(repr, beside[:2])), by, whole),
        )
    elif len(parts) > 1 and len(small) > 0.5 * len(parts):
        logger.warning(
            "%d of %d slides, e.g. %r, have fewer than %d cells (median %d): expression is standardised on each slide, "
            "for which these are few. If they are parts of one section: %s",
            *(len(small), len(parts), small[0], FEW_CELLS, np.median([len(xy) for xy in parts.values()])),
            whole[0].lower() + whole[1:],
        )


def warn_background(adata: AnnData, where: str) -> None:
    """Warn of spots beside the tissue by the column ``in_tissue``."""
    for column in adata.obs.columns:
        if str(column).casefold().replace("_", "") in ("intissue", "isintissue", "intissueflag"):
            outside = adata.obs[column].astype(str).str.casefold().isin(["0", "0.0", "false", "no", "out"])
            if outside.any():
                value = adata.obs.loc[outside.to_numpy(), column].iloc[0]
                value = value.item() if isinstance(value, np.generic) else value
                logger.warning(
                    "%s%d of %d spots lie beside the tissue (obs[%r] is %s): they are labelled too, and take part in "
                    "the scaling of genes. Remove them: `adata = adata[adata.obs[%r] != %r].copy()`.",
                    *(
                        where,
                        outside.sum(),
                        adata.n_obs,
                        column,
                        value,
                        column,
                        value,
                    ),
                )
