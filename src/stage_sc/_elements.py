"""Coordinates of the cells of a container: in the object, or by the elements that a table of SpatialData annotates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._containers import BINS, is_mudata, is_spatialdata, regions_of

logger = logging.getLogger("stage_sc.pp")

# Names of coordinate systems in µm, in lower case.
MICROMETRES = frozenset(
    "µm μm um micron microns micrometer micrometers micrometre micrometres physical_um global_um".split()
)
# Platforms by the names of readers of spatialdata-io, which these write into ``sdata.attrs``.
READERS = {
    "xenium": "xenium",
    "cosmx": "cosmx",
    "merscope": "merscope",
    "seqfish": "seqfish",
    "visium": "visium",
    "visium_hd": "visium_hd",
    "curio": "slide_seq",
    "stereoseq": "stereo_seq",
}
# Readers that store the centres of cells in µm in ``obsm["spatial"]``.
IN_MICROMETRES = ("xenium", "merscope")
# Cells named in messages.
SHOWN = 3


class Located(NamedTuple):
    """Coordinates that an object lacks, and what its container says about their unit."""

    key: str
    """Entry of obsm for the coordinates."""
    xy: np.ndarray | None = None
    """``(n_cells, 2 or 3)`` float64, to be written to this entry; ``None``: it exists."""
    scales: Mapping[str, float | None] = {}
    """µm per unit by region, where it is known."""
    technology: str | None = None
    """Platform by the metadata of the reader."""
    pitch: float | None = None
    """Size of the bins of a grid by the name of the table, µm."""


def locate(adata: AnnData, owner: Any, spatial_key: str, coordinate_system: str | None, name: str = "") -> Located:
    """Find the coordinates of the cells of an object in its container `owner`; the object is not changed.

    Entries of obsm have precedence, unless a coordinate system is named. `name` is that of the table.
    """
    if is_mudata(owner) and spatial_key not in adata.obsm and spatial_key in owner.obsm:
        rows = owner.obs_names.get_indexer(adata.obs_names)
        if (rows >= 0).all():
            return Located(spatial_key, np.asarray(owner.obsm[spatial_key], dtype=np.float64)[rows])
    if not is_spatialdata(owner):
        return Located(spatial_key)
    reader = str(owner.attrs.get("spatialdata_io_reader", ""))
    pitch = _bin_size([name, *regions_of(adata)])
    technology = READERS.get(reader)
    known = Located(spatial_key, technology=technology, pitch=pitch)
    if reader == "visium_hd" and pitch is None:  # segmented cells, in the pixels of the bins
        known = known._replace(technology=None, scales=dict.fromkeys(regions_of(adata), _pixel_by_bins(owner)))
    if coordinate_system is None and spatial_key in adata.obsm:
        fields = reader == "cosmx" and spatial_key == "spatial" and "global" in adata.obsm
        if fields:
            logger.info("Coordinates are those of the section, obsm['global']; obsm['spatial'] are those in a field.")
        return known._replace(key="global") if fields else known
    xy, scales = _by_elements(adata, owner, coordinate_system)
    if spatial_key not in adata.obsm:
        return known._replace(xy=xy, scales=scales)
    stored = np.asarray(adata.obsm[spatial_key])
    if stored.shape == xy.shape and np.allclose(stored, xy, rtol=1e-9, atol=1e-9):
        return known._replace(scales=scales)
    if reader in IN_MICROMETRES and spatial_key == "spatial":
        scales = {**_relative(adata, stored, xy), **scales}
    return known._replace(key=f"{spatial_key}_{coordinate_system}".replace("/", "_"), xy=xy, scales=scales)


def _bin_size(names: list[str]) -> float | None:
    """Size of bins in names such as ``square_008um``."""
    sizes = {float(match[1]) for name in names if (match := BINS.search(name))}
    return sizes.pop() if len(sizes) == 1 else None


def _pixel_by_bins(sdata: Any) -> float | None:
    """µm per pixel by the size of the bins of Visium HD, circles or squares in pixels."""
    for name, element in sdata.shapes.items():
        if (size := _bin_size([name])) and len(element):
            first = element.iloc[0]
            width = 2 * first["radius"] if "radius" in element else np.sqrt(first.geometry.area)
            return float(f"{size / width:.6g}")
    return None


def _by_elements(table: AnnData, sdata: Any, coordinate_system: str | None) -> tuple[np.ndarray, dict[str, float]]:
    """Centroids of the elements of all cells, and µm per unit of each region where it is known."""
    annotated, instances = _links(table)
    xy: np.ndarray | None = None
    scales = {}
    for region, rows in annotated.items():
        if region not in sdata:
            present = ", ".join(repr(key) for _, key, _ in sdata.gen_spatial_elements()) or "none"
            raise KeyError(
                f"The table annotates {region!r}, which the SpatialData does not have (elements: {present}). Add the "
                "element, or the coordinates: `table.obsm['spatial']`, an (n_cells, 2) array."
            )
        element, ids = sdata[region], instances.iloc[rows]
        systems = _systems(element, region)
        system = _choose_system(systems, region, coordinate_system)
        centroids = _centroids(element, region, system)
        found = _match(ids, centroids, region)
        if xy is None:
            xy = np.full((table.n_obs, found.shape[1]), np.nan)
        if found.shape[1] != xy.shape[1]:
            raise ValueError(f"{region!r} has {found.shape[1]} dimensions, other elements {xy.shape[1]}.")
        xy[rows] = found
        if _is_micrometres(system):
            scales[region] = 1.0
        elif known := next(filter(_is_micrometres, systems), None):
            ratio = _spread(_centroids(element, region, known)) / _spread(centroids)
            scales[region] = float(f"{ratio:.10g}")
        logger.info("Coordinates of %d cells are centroids of %r in %r.", len(rows), region, system)
    assert xy is not None
    return xy, scales


def _links(table: AnnData) -> tuple[dict[str, np.ndarray], pd.Series]:
    """Rows of the cells of each region, and the instance of every cell."""
    attrs = table.uns.get("spatialdata_attrs")
    keys = [attrs.get(f"{part}_key") for part in ("region", "instance")] if isinstance(attrs, Mapping) else []
    if not regions_of(table) or None in keys:
        raise KeyError(
            "The table has no coordinates, and annotates no element: link it with shapes or labels by "
            "`spatialdata.models.TableModel.parse(table, region=, region_key=, instance_key=)`, or store coordinates "
            "as `table.obsm['spatial']`."
        )
    for key in keys:
        if key not in table.obs:
            raise KeyError(f"`uns['spatialdata_attrs']` names {key!r}, which is no column of obs.")
    region, instance = (table.obs[key] for key in keys)
    lost = int(region.isna().sum() + instance.isna().sum())
    if lost:
        raise ValueError(f"{lost} cells have no region or instance (obs[{keys[0]!r}], obs[{keys[1]!r}]).")
    codes, names = pd.factorize(region.astype(str))
    return {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}, instance


def _systems(element: Any, region: str) -> list[str]:
    from spatialdata.transformations import get_transformation

    try:
        found = get_transformation(element, get_all=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{region!r} has no coordinate system: {error}") from error
    return sorted(map(str, found))


def _choose_system(systems: list[str], region: str, given: str | None) -> str:
    """Coordinate system of an element: the one named, one in µm, "global", its own, or the only one."""
    if given is not None:
        if given not in systems:
            raise KeyError(f"`coordinate_system`: {region!r} is not in {given!r}; it is in {', '.join(systems)}.")
        return given
    micrometres = [name for name in systems if _is_micrometres(name)]
    preferred = [*micrometres, *(name for name in ("global", region) if name in systems)]
    if preferred or len(systems) == 1:
        return (preferred or systems)[0]
    raise ValueError(f"{region!r} is in several coordinate systems ({', '.join(systems)}): name `coordinate_system`.")


def _is_micrometres(system: str) -> bool:
    return system.casefold() in MICROMETRES


def _centroids(element: Any, region: str, system: str) -> pd.DataFrame:
    """Centroids x, y (and z) of the instances of an element, by instance."""
    from spatialdata import get_centroids

    try:
        found = get_centroids(element, coordinate_system=system).compute()
    except (AssertionError, TypeError, ValueError, IndexError) as error:
        kind = type(element).__name__
        raise ValueError(
            f"{region!r} ({kind}) gives no places of cells ({error}): tables need circles, polygons, labels or points."
        ) from error
    return found[[axis for axis in ("x", "y", "z") if axis in found]]


def _match(ids: pd.Series, centroids: pd.DataFrame, region: str) -> np.ndarray:
    """Centroid of every cell by its instance."""
    wanted, there = pd.Index(np.asarray(ids)), pd.Index(np.asarray(centroids.index))
    if there.has_duplicates:
        raise ValueError(
            f"{region!r} has several shapes of one instance, e.g. {_plain(there[there.duplicated()][0])!r}."
        )
    found = there.get_indexer(wanted)
    lost = wanted[found < 0]
    if not len(lost):
        return centroids.to_numpy(dtype=np.float64)[found]
    column = f"obs[{ids.name!r}]"
    if len(lost) == len(wanted) and len(wanted.astype(str).intersection(there.astype(str))):
        raise TypeError(
            f"Instances of cells are of another type than those of {region!r}: {column} holds {_kind(wanted)} "
            f"({_plain(wanted[0])!r}), the index of the element {_kind(there)} ({_plain(there[0])!r}). Convert "
            f"the column: `table.{column} = table.{column}.astype({'int' if there.dtype.kind in 'iu' else 'str'})`."
        )
    shown = ", ".join(repr(_plain(one)) for one in lost[:SHOWN]) + (" …" if len(lost) > SHOWN else "")
    raise ValueError(
        f"{len(lost)} of {len(wanted)} cells have no shape in {region!r}: {column} {shown}. Keep the others, "
        f"`sdata.tables[key] = spatialdata.match_table_to_element(sdata, {region!r}, key)` with the `key` of the "
        "table, or store coordinates as `table.obsm['spatial']`."
    )


def _kind(index: pd.Index) -> str:
    return {"i": "integers", "u": "integers", "f": "numbers"}.get(index.dtype.kind, "text")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _spread(xy: Any) -> float:
    """Median distance to the centre."""
    values = np.asarray(xy, dtype=np.float64)
    return float(np.median(np.linalg.norm(values - values.mean(axis=0), axis=1)))


def _relative(table: AnnData, stored: np.ndarray, xy: np.ndarray) -> dict[str, float]:
    """µm per unit of `xy` of each region, of which `stored` are the coordinates in µm."""
    found = {}
    for region, rows in _links(table)[0].items():
        if len(rows) > 1 and (spread := _spread(xy[rows])):
            found[region] = float(f"{_spread(stored[rows]) / spread:.5g}")
    return found
