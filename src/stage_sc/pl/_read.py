"""What the plots read from an AnnData, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stage_sc._checks import read_coordinates, read_slides

if TYPE_CHECKING:
    from anndata import AnnData


def result_of(adata: AnnData, key_added: str) -> Mapping[str, Any]:
    """`uns[key_added]`, as `st.tl.stage_niches` writes it; empty where something else has that name."""
    found = adata.uns.get(key_added)
    return found if isinstance(found, Mapping) and "tree" in found else {}


def niche_result(adata: AnnData, key_added: str) -> Mapping[str, Any]:
    """`uns[key_added]`, which has to be there."""
    result = result_of(adata, key_added)
    if not result:
        call = "st.tl.stage_niches(adata" + (")" if key_added == "stage" else f", key_added={key_added!r})")
        raise KeyError(f"no niches in adata.uns[{key_added!r}]: run {call} first")
    return result


def children_of(tree: pd.DataFrame) -> dict[str, list[str]]:
    """Children of each node in the table's order; those of level 1 under the empty name."""
    grouped = tree.groupby(tree["parent"].astype(str), sort=False)
    return {str(parent): [str(node) for node in nodes] for parent, nodes in grouped.groups.items()}


def labels(adata: AnnData, key: str) -> pd.Categorical:
    """`obs[key]` as categories; strings and bools are taken as such, numbers are refused."""
    if key not in adata.obs:
        raise KeyError(f"no column {key!r} in adata.obs, which has {list(adata.obs.columns)}")
    column = adata.obs[key]
    if isinstance(column.dtype, pd.CategoricalDtype):
        return pd.Categorical(column)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        raise TypeError(
            f"adata.obs[{key!r}] holds numbers ({column.dtype}), but categories are needed: use .astype('category'), "
            "or squidpy.pl.spatial_scatter(adata, color=..., shape=None) to draw values"
        )
    return pd.Categorical(column.astype(object))


def categories(adata: AnnData, key: str) -> list[Any]:
    """Return the categories of `obs[key]`, in their order."""
    return list(labels(adata, key).categories)


def drawn_key(adata: AnnData, key_added: str) -> str:
    """Key of the coordinates that the niches were computed with."""
    return str(result_of(adata, key_added).get("params", {}).get("spatial_key", "spatial"))


def coordinates(adata: AnnData, spatial_key: str | None, key_added: str = "stage") -> np.ndarray:
    """Return x and y of each cell, float64 (n, 2); a third coordinate is left out."""
    xy = read_coordinates(adata, spatial_key or drawn_key(adata, key_added))
    if len(xy) == 0:
        raise ValueError("adata has no cells to draw")
    return xy[:, :2]


def slides(
    adata: AnnData, library_key: str | None, key_added: str, libraries: Sequence[str] | None
) -> dict[str, np.ndarray]:
    """Cells of each slide to draw as boolean masks, by name; all cells under "" where there is one slide only.

    Without `library_key`, it is the one with which the niches were computed. Slides come in the order of the
    categories.
    """
    if library_key is None:
        library_key = result_of(adata, key_added).get("params", {}).get("library_key") or None
    if library_key is None and libraries is not None:
        raise ValueError(
            "`libraries` chooses slides by name and needs `library_key`, the column of obs that names them"
        )
    names, codes = read_slides(adata, library_key)
    present = names
    if library_key is not None:
        present = [str(name) for name in pd.Categorical(adata.obs[library_key]).remove_unused_categories().categories]
    chosen = present if libraries is None else [str(name) for name in np.atleast_1d(libraries)]
    if not chosen:
        raise ValueError(f"`libraries` is empty: name some of {present}, or leave it out for all")
    unknown = [name for name in chosen if name not in present]
    if unknown:
        raise KeyError(f"no slides {unknown} in adata.obs[{library_key!r}], which has {present}")
    return {name: codes == names.index(name) for name in chosen}
