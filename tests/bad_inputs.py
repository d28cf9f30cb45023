"""Generated bad inputs for every public function: ``python tests/bad_inputs.py [NUMBER] [SEED]``.

An input is an argument of a wrong type or value, or a damaged object. Counted as a fault: an error of a library, a bare
Python error, an input accepted that cannot be right, a changed object after an error, an open figure.
"""

from __future__ import annotations

import copy
import inspect
import logging
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp

import stage_sc as st

CLEAR = (TypeError, ValueError, KeyError, OSError, ImportError)
# Values that no argument of the type takes.
WRONG: dict[str, list[Any]] = {
    "text": [3, 1.5, b"x", ["a", "b"], {"a": 1}, object(), np.ones(3)],
    "number": ["many", -1, 0, float("nan"), float("inf"), [1], {}, object(), None, "1"],
    "count": ["many", -1, 0, 2.5, float("nan"), [1], {}, object(), np.array([1, 2])],
    "flag": ["no", 2, [], object(), "True"],
    "data": [None, 3, "slide.h5ad", [], {}, [None], {"a": 3}, pd.DataFrame({"a": [1]}), np.ones((3, 2)), object()],
    "rng": ["seed", -1, 1.5, [], object()],
    "path": [3, 1.5, object(), {}],
}
KINDS = {
    **dict.fromkeys(("spatial_key", "library_key", "layer", "key_added", "connectivities_key", "key", "name"), "text"),
    **dict.fromkeys(("technology", "mode", "device", "reference", "table_key"), "text"),
    **dict.fromkeys(("scale", "radius", "local", "view", "sigma", "size"), "number"),
    **dict.fromkeys(
        ("n_domains", "min_cells", "epochs", "patience", "n_splits", "ncols", "max_level", "n_cells"), "count"
    ),
    **dict.fromkeys(("copy", "settle"), "flag"),
    **dict.fromkeys(("data", "adata"), "data"),
    **dict.fromkeys(("rng",), "rng"),
    **dict.fromkeys(("checkpoint", "path", "out", "model", "init", "config"), "path"),
}
# ``None`` and some numbers are defaults with a meaning.
ALLOWED = {
    ("scale", None), ("local", None), ("view", None), ("sigma", None), ("epochs", 0),
}  # fmt: skip


def tissue() -> ad.AnnData:
    """A labelled section."""
    adata = st.datasets.simulate_tissue(150, n_slides=2, rng=1)
    adata.obs["expert"] = adata.obs["domain"].astype(str)
    st.pp.build_graph(adata, library_key="slide")
    st.tl.stage_niches(adata, n_domains=3)
    return adata


def _x(value: float) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        X = adata.X.toarray()
        X[3, 2] = value
        adata.X = X

    return change


def _xy(values: Callable[[np.ndarray], Any]) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        adata.obsm["spatial"] = values(np.array(adata.obsm["spatial"]))

    return change


def _uns(key: str, value: Any) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        adata.uns[key] = value

    return change


def _out_of_range(adata: ad.AnnData) -> None:
    adata.X.indices[5] = 10**6


def _missing_slides(adata: ad.AnnData) -> None:
    adata.obs["slide"] = adata.obs["slide"].astype(object).where(np.arange(adata.n_obs) > 3)


# Damages of an object, by name.
DAMAGES: dict[str, Callable[[ad.AnnData], None]] = {
    "NaN in X": _x(np.nan),
    "infinite X": _x(np.inf),
    "negative X": _x(-1),
    "index out of range": _out_of_range,
    "complex X": lambda a: setattr(a, "X", a.X.toarray().astype(complex)),
    "coordinates NaN": _xy(lambda xy: np.where(np.arange(len(xy))[:, None] == 4, np.nan, xy)),
    "coordinates text": _xy(lambda xy: xy.astype(str)),
    "coordinates complex": _xy(lambda xy: xy + 1j),
    "coordinates 1 column": _xy(lambda xy: xy[:, :1]),
    "coordinates 4 columns": _xy(lambda xy: np.c_[xy, xy]),
    "coordinates equal": _xy(np.zeros_like),
    "coordinates dates": _xy(lambda xy: xy.astype("datetime64[s]")),
    "no coordinates": lambda a: a.obsm.pop("spatial"),
    "slides missing": _missing_slides,
    "no slide column": lambda a: a.obs.drop(columns="slide", inplace=True),
    "graph broken": _uns("stage_graph", {"params": {}}),
    "graph text": _uns("stage_graph", "graph"),
    "result broken": _uns("stage", {"tree": "none"}),
    "result foreign": _uns("stage", [1, 2]),
    "genes of nothing": lambda a: setattr(a, "var_names", [f"x{i}" for i in range(a.n_vars)]),
    "no X": lambda a: setattr(a, "X", None),
}
# Damages that a function does not read.
UNREAD = {
    "pp.build_graph": {"NaN in X", "infinite X", "negative X", "index out of range", "complex X", "graph broken",
                       "graph text", "result broken", "result foreign", "genes of nothing", "no X"},
    "pp.match_genes": set(DAMAGES) - {"genes of nothing"},
}  # fmt: skip


def targets() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Functions with arguments that work."""
    adata, folder = tissue(), Path(tempfile.mkdtemp())
    adata.write_h5ad(folder / "slide.h5ad")
    config = st.model.StageConfig(dim=16, n_layers=1, levels=(2, 6), epochs=1, warmup_epochs=0, batch_size=64)
    named = {"library_key": "slide"}
    return {
        "pp.build_graph": (st.pp.build_graph, {"data": adata, **named}),
        "pp.filter_cells": (st.pp.filter_cells, {"adata": adata}),
        "pp.filter_genes": (st.pp.filter_genes, {"adata": adata}),
        "pp.match_genes": (st.pp.match_genes, {"adata": adata}),
        "tl.stage_niches": (st.tl.stage_niches, {"data": adata, "n_domains": 3}),
        "tl.fit": (st.tl.fit, {"data": adata, "config": config, "progress": False}),
        "tl.panel_agreement": (st.tl.panel_agreement, {"adata": adata, "n_splits": 1}),
        "tl.label_files": (st.tl.label_files, {"files": [folder / "slide.h5ad"], "out": folder / "out", **named}),
        "data.build_store": (
            st.data.build_store,
            {"files": [folder / "slide.h5ad"], "path": folder / "store", "progress": False, **named},
        ),
        "pl.spatial_domains": (st.pl.spatial_domains, {"data": adata, "return_fig": True}),
        "pl.niche_tree": (st.pl.niche_tree, {"data": adata, "return_fig": True}),
        "metrics.ari": (st.metrics.ari, {"data": adata, "key": "stage_domain", "reference": "expert"}),
        "metrics.jsd": (st.metrics.jsd, {"data": adata, "key": "stage_domain", **named}),
        "metrics.fide": (st.metrics.fide, {"data": adata, "key": "stage_domain", **named}),
        "metrics.pas": (st.metrics.pas, {"data": adata, "key": "stage_domain", **named}),
        "metrics.asw": (st.metrics.asw, {"data": adata, "key": "stage_domain", **named}),
        "metrics.evaluate": (st.metrics.evaluate, {"data": adata, "keys": "stage_domain", **named}),
        "datasets.simulate_tissue": (st.datasets.simulate_tissue, {"n_cells": 100}),
        "model.load_checkpoint": (st.model.load_checkpoint, {"path": folder / "none.safetensors"}),
    }


def generate(number: int, seed: int) -> list[tuple[str, str, Any]]:
    """Function, and argument with a wrong value or the name of a damage."""
    rng, inputs, functions = np.random.default_rng(seed), [], targets()
    for name, (function, good) in functions.items():
        for parameter in inspect.signature(function).parameters:
            for value in WRONG.get(KINDS.get(parameter, ""), []):
                if not any(parameter == key and (value is allowed) for key, allowed in ALLOWED):
                    inputs.append((name, parameter, value))
        if isinstance(good.get("data", good.get("adata")), ad.AnnData):
            inputs += [(name, "damage", damage) for damage in DAMAGES if damage not in UNREAD.get(name, ())]
    return [inputs[position] for position in rng.permutation(len(inputs))[:number]]


def state(adata: ad.AnnData) -> Any:
    """What must not change."""
    X = adata.X.data if sp.issparse(adata.X) else adata.X
    return copy.deepcopy((X, adata.obs, dict(adata.obsm), sorted(adata.uns), sorted(adata.obsp), list(adata.var_names)))


def same(one: Any, other: Any) -> bool:
    """Whether nothing changed."""
    try:
        for left, right in zip(one, other, strict=True):
            if isinstance(left, pd.DataFrame):
                pd.testing.assert_frame_equal(left, right)
            elif isinstance(left, dict):
                assert list(left) == list(right)
                assert all(np.array_equal(left[key], right[key], equal_nan=left[key].dtype.kind == "f") for key in left)
            else:
                np.testing.assert_equal(left, right)
    except (AssertionError, TypeError):
        return False
    return True


def judge(name: str, argument: str, value: Any) -> str:
    """Run one input; return a word for the outcome, ``fault: …`` for a fault."""
    function, good = targets_of()[name]
    arguments = dict(good)
    key = "data" if "data" in arguments else "adata"
    if isinstance(arguments.get(key), ad.AnnData):
        arguments[key] = arguments[key].copy()
        if argument == "damage":
            DAMAGES[value](arguments[key])
    if argument != "damage":
        arguments[argument] = value
    adata = arguments.get(key)
    before = state(adata) if isinstance(adata, ad.AnnData) else None
    try:
        function(**arguments)
    except CLEAR as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome = "clear error"
        if "stage_sc" not in Path(frame.filename).parts:
            outcome = (
                f"fault: error of a library ({Path(frame.filename).name}): {type(error).__name__}: {str(error)[:90]}"
            )
    except Exception as error:  # noqa: BLE001
        outcome = f"fault: {type(error).__name__}: {str(error)[:90]}"
    else:
        outcome = "accepted"
    if outcome != "accepted" and before is not None and not same(before, state(adata)):
        outcome = "fault: the object changed"
    if plt.get_fignums() and outcome != "accepted":
        outcome = "fault: a figure is open"
    plt.close("all")
    return outcome


_TARGETS: dict[str, Any] = {}


def targets_of() -> dict[str, Any]:
    """The targets, made once."""
    if not _TARGETS:
        _TARGETS.update(targets())
    return _TARGETS


def main(number: int = 500, seed: int = 0) -> int:
    """Print the outcomes, and return the number of faults."""
    mpl.use("Agg")
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    outcomes: Counter[str] = Counter()
    for name, argument, value in generate(number, seed):
        outcome = judge(name, argument, value)
        outcomes[outcome.split(":")[0]] += 1
        if outcome != "clear error":
            print(f"{name}({argument}={str(value)[:40]!r}): {outcome}", flush=True)
    print(dict(outcomes))
    return outcomes["fault"]


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
