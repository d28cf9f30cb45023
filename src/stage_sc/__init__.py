"""Spatial niches of tissue at several scales, for one or many slides.

>>> import scanpy as sc, stage_sc as st            # doctest: +SKIP
>>> adata = sc.read_h5ad("slide.h5ad")             # doctest: +SKIP
>>> st.pp.build_graph(adata)                       # doctest: +SKIP
>>> st.tl.stage_niches(adata)                      # doctest: +SKIP
>>> st.pl.spatial_domains(adata)                   # doctest: +SKIP
>>> st.pl.niche_tree(adata)                        # doctest: +SKIP

Counts are in `X` and coordinates in ``obsm["spatial"]``. Parts of the package are loaded when they are first used, so
that importing it takes no time.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage_sc import data, datasets, metrics, model, pl, pp, tl
    from stage_sc.reports import report

    __version__: str

__all__ = ["__version__", "data", "datasets", "metrics", "model", "pl", "pp", "report", "tl"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("stage-sc")
    if name == "report":
        return import_module(f"{__name__}.reports").report
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
