"""Containers of one object, opened: AnnData, SpatialData, MuData, and files of these."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import h5py
import pandas as pd
import zarr
from anndata import AnnData

# Names of the modality of RNA, without punctuation.
RNA = ("rna", "gene", "genes", "geneexpression", "gex", "transcriptome", "transcripts", "mrna", "xenium", "counts")
# Bins of Visium HD, by the names of tables and of their elements.
BINS = re.compile(r"square_0*(\d+)um")


class Opened(NamedTuple):
    """The AnnData objects of one container."""

    tables: dict[str, AnnData]
    """Objects by name; ``""`` if there is one."""
    owner: Any = None
    """The SpatialData or MuData that holds them, or ``None``."""
    rebuild: Callable[[Sequence[AnnData]], Any] = lambda parts: parts[0]
    """Puts one object for each of `tables` into a container of the same kind."""
    read: Any = None
    """The container that was read from a file, or ``None``."""


def open_container(data: Any, name: str, table_key: str | Sequence[str] | None = None) -> Opened:
    """Open an AnnData, SpatialData, MuData or a path; a TypeError for other objects.

    `name` is that of the object in messages. `table_key` names tables of a SpatialData, or the modality of a MuData.
    """
    if isinstance(data, str | os.PathLike):
        if not str(data) or "\0" in str(data) or not Path(data).exists():
            raise FileNotFoundError(f"`{name}`: there is no file {str(data)!r}.")
        read = read_path(Path(data), name)
        return open_container(read, name, table_key)._replace(read=read)
    if is_spatialdata(data):
        return _open_spatialdata(data, name, table_key)
    if is_mudata(data):
        return _open_mudata(data, name, table_key)
    check_anndata(data, name)
    return Opened({"": data})


def check_anndata(adata: Any, name: str = "adata") -> None:
    """Raise a TypeError that says how to get an AnnData in memory unless `adata` is one."""
    if isinstance(adata, AnnData):
        if not isinstance(adata.obs, pd.DataFrame):
            raise TypeError(
                f"`{name}.obs` is a {type(adata.obs).__name__}, not read from disk yet. Read all but the "
                f"expression: `AnnData({name}.X, obs={name}.obs.to_memory(), var={name}.var.to_memory(), "
                f"obsm=dict({name}.obsm))`."
            )
        return
    hint = "Read a file with `scanpy.read_h5ad(path)`."
    if hasattr(adata, "tables"):
        tables = ", ".join(repr(key) for key in adata.tables) or "none"
        hint = f'Pass one of its tables, e.g. `sdata.tables["table"]` (tables here: {tables}).'
    elif isinstance(adata, list | tuple | dict):
        hint = 'Join the slides first: `anndata.concat(slides, label="slide", join="outer")`, and pass `library_key`.'
    raise TypeError(f"`{name}` must be an AnnData object, got {type(adata).__name__}. {hint}")


def is_spatialdata(data: Any) -> bool:
    """Test for a SpatialData, without importing the package, which takes seconds."""
    module = sys.modules.get("spatialdata")
    return module is not None and isinstance(data, module.SpatialData)


def is_mudata(data: Any) -> bool:
    """Test for a MuData; the package need not be installed."""
    module = sys.modules.get("mudata")
    return module is not None and isinstance(data, module.MuData)


def read_path(path: Path, name: str = "data") -> Any:
    """Read an .h5ad or .h5mu file, or a zarr folder of AnnData, SpatialData or MuData, into memory."""
    expected = "Expected is an .h5ad or .h5mu file, or a zarr folder of AnnData, SpatialData or MuData."
    try:
        if path.is_file():
            with h5py.File(path, "r") as file:
                keys = set(file)
        else:
            keys = set(zarr.open_group(path, mode="r"))
        if not keys & {"mod", "tables", "obs"}:
            raise ValueError(f"it holds {', '.join(sorted(keys)) or 'nothing'}, and no table of cells")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ad.OldFormatWarning)
            if "mod" in keys:
                return _mudata().read_h5mu(path) if path.is_file() else _mudata().read_zarr(path)
            if "tables" in keys:
                from spatialdata import read_zarr

                return read_zarr(path)
            return ad.read_h5ad(path) if path.is_file() else ad.read_zarr(path)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"`{name}`: {str(path)!r} cannot be read ({error}). {expected}") from error


def _mudata() -> Any:
    try:
        import mudata
    except ImportError as error:
        raise ImportError("Files of MuData are read by the package mudata: `pip install mudata`.") from error
    return mudata


def _open_spatialdata(sdata: Any, name: str, table_key: str | Sequence[str] | None) -> Opened:
    if table_key is None and not sdata.tables:
        elements = [key for _, key, _ in sdata.gen_spatial_elements()]
        raise ValueError(
            f"`{name}` is a SpatialData without tables (elements: {', '.join(map(repr, elements)) or 'none'}), but "
            "labels need expression: a table of cells by genes. Count transcripts in shapes or labels with "
            "`spatialdata.aggregate`."
        )
    tables = choose_tables(dict(sdata.tables), name, table_key)
    for key, table in tables.items():
        check_anndata(table, f"{name}[{key!r}]")

    def rebuild(parts: Sequence[AnnData]) -> Any:
        from spatialdata import SpatialData

        elements = {key: element for _, key, element in sdata.gen_spatial_elements()}
        replaced = {**sdata.tables, **dict(zip(tables, parts, strict=True))}
        return SpatialData.init_from_elements({**elements, **replaced}, attrs=sdata.attrs)

    named = tables if len(tables) > 1 else {"": next(iter(tables.values()))}
    return Opened(named, sdata, rebuild)


def choose_tables(
    tables: Mapping[str, AnnData], name: str, table_key: str | Sequence[str] | None
) -> dict[str, AnnData]:
    """Tables named by `table_key`; by default the only one, or all that annotate elements of their own.

    `tables` of a SpatialData may be outlines, with ``uns`` alone.
    """
    present = ", ".join(map(repr, tables)) or "none"
    if table_key is not None:
        keys = [table_key] if isinstance(table_key, str) else table_key
        if not isinstance(keys, Sequence) or not keys or not all(isinstance(key, str) for key in keys):
            raise TypeError(f"`table_key` must name a table or several, got {table_key!r}.")
        if unknown := [key for key in keys if key not in tables]:
            raise KeyError(f"`table_key`: `{name}` has no table {unknown[0]!r}; tables are {present}.")
        return {key: tables[key] for key in keys}
    if len(tables) == 1:
        return dict(tables)
    annotating = {key: table for key, table in tables.items() if regions_of(table)}
    if not annotating:
        raise ValueError(
            f"`{name}` has the tables {present}, none of which annotates elements: name the ones with cells in "
            "`table_key`."
        )
    _check_apart(annotating, name)
    return annotating


def _check_apart(tables: Mapping[str, AnnData], name: str) -> None:
    """Raise if tables describe the same tissue: the same elements, or several sizes of bins."""
    found = {key: [BINS.search(text) for text in (key, *regions_of(table))] for key, table in tables.items()}
    bins = {key: max((int(match[1]) for match in some if match), default=0) for key, some in found.items()}
    if any(bins.values()) and len(set(bins.values())) > 1:
        usual = next((key for key, size in bins.items() if size == 8), max(bins, key=lambda key: bins[key]))
        raise ValueError(
            f"`{name}` has the same tissue in several bins or segmentations ({', '.join(map(repr, tables))}), which "
            f"are no slides: name one, e.g. `table_key={usual!r}`."
        )
    uses = Counter(region for table in tables.values() for region in regions_of(table))
    region, number = uses.most_common(1)[0]
    if number > 1:
        sharing = [key for key, table in tables.items() if region in regions_of(table)]
        raise ValueError(
            f"The tables {', '.join(map(repr, sharing))} of `{name}` annotate the same element, {region!r}: they hold "
            f"the same cells, and are no slides. Name one, e.g. `table_key={sharing[0]!r}`."
        )


def regions_of(table: AnnData) -> list[str]:
    """Elements that a table of SpatialData annotates, by its metadata."""
    attrs = table.uns.get("spatialdata_attrs")
    regions = attrs.get("region") if isinstance(attrs, Mapping) else None
    if regions is None:
        return []
    return [regions] if isinstance(regions, str) else [str(region) for region in regions]


def _open_mudata(mdata: Any, name: str, table_key: str | Sequence[str] | None) -> Opened:
    modality = _choose_modality(mdata, name, table_key)
    check_anndata(mdata.mod[modality], f"{name}[{modality!r}]")

    def rebuild(parts: Sequence[AnnData]) -> Any:
        copy = mdata.copy()
        copy.mod[modality] = parts[0]
        return copy

    return Opened({"": mdata.mod[modality]}, mdata, rebuild)


def _choose_modality(mdata: Any, name: str, table_key: str | Sequence[str] | None) -> str:
    names = list(mdata.mod)
    present = ", ".join(map(repr, names)) or "none"
    if table_key is not None:
        if not isinstance(table_key, str):
            raise TypeError(f"`table_key` must name one modality of a MuData ({present}), got {table_key!r}.")
        if table_key not in names:
            raise KeyError(f"`table_key`: `{name}` has no modality {table_key!r}; modalities are {present}.")
        return table_key
    plain = {key: re.sub(r"[^a-z]", "", key.casefold()) for key in names}
    found = names if len(names) == 1 else [key for key in names if plain[key] in RNA]
    if len(found) != 1:
        raise ValueError(
            f"`{name}` is a MuData with the modalities {present}, {'several' if found else 'none'} of which look like "
            f"RNA by name: name the one with counts, e.g. `table_key={(found or names or ['rna'])[0]!r}`."
        )
    return found[0]
