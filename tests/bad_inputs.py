"""Generated inputs for every public function, most of them bad: ``python tests/bad_inputs.py [NUMBER] [SEED]``.

An input is an argument of a wrong type or value, or a damaged object. Counted as a fault: an error of a library, a bare
Python error, a wrong value that is accepted, a right one that is refused or changes the result, a changed object or
file, an open figure.
"""

from __future__ import annotations

import atexit
import copy
import inspect
import logging
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp
from damages import ALONE, DAMAGES, HARMLESS, READS

import stage_sc as st

CLEAR = (TypeError, ValueError, KeyError, OSError, ImportError)
FOLDER = Path(tempfile.mkdtemp(prefix="bad-inputs-"))
FILE = FOLDER / "slide.h5ad"  # of the user
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

NAN, INF = float("nan"), float("inf")
TEXT = [3, 1.5, True, b"x", ["a", "b"], {"a": 1}, object(), np.ones(3), "", "no such name"]
NUMBER = ["many", "1", -1, False, 0, NAN, INF, True, [1], {}, object(), 1 + 1j, np.ones(2)]
NAMES = [3, 1.5, b"x", {"a": 1}, object(), [1.5], [None], [["a"]], [], "no such name", ["no such name"]]
PATHS: list[Any] = [3, 1.5, True, object(), {}, [], b"x", "", "\0"]
MODEL = [*PATHS, "no such file", FOLDER, FILE, "hf://", "hf://a", pd.DataFrame()]
DATA = [
    3,
    "no such file.h5ad",
    ["no such file.h5ad"],
    FOLDER,
    [],
    {},
    [None],
    {"a": 3},
    pd.DataFrame({"a": [1]}),
    np.ones((3, 2)),
    object(),
    [[]],
]
# Wrong values of an argument, by its annotation. ``None`` is another one where the annotation lacks it.
WRONG: dict[str, list[Any]] = {
    "bool": ["no", "True", 2, 0, 1.0, [], object(), NAN],
    "int": [*NUMBER, 2.5, np.array([1, 2])],
    "float": [*NUMBER, 1e300, 10**400],
    "float | Mapping[str, float]": [*NUMBER, {"slide1": "a"}, {"slide1": -1}, {"no slide": 1.0}, {"slide1": None}],
    **dict.fromkeys(("str", "Mode", "Modality", "Species", "Literal['right margin', 'on data']"), TEXT),
    **dict.fromkeys(("str | Sequence[str]", "Sequence[str]"), NAMES),
    "str | os.PathLike[str]": [*PATHS, FOLDER / "none" / "none", FILE, FOLDER],
    "Iterable[str | os.PathLike[str]]": [3, "slide", FILE, {}, [], [3], [None], [FOLDER / "none"], [FOLDER], object()],
    "bool | str | Path": [3, 1.5, object(), {}, "", "picture.xyz", FOLDER / "none" / "a.png", FILE, FOLDER],
    "Stage | str | os.PathLike[str]": MODEL,
    "int | np.random.Generator": ["seed", -1, 1.5, True, [], [1], object(), NAN, np.ones(2)],
    "Iterable[str]": [3, "gene", object(), [], [3], [None]],
    "list[str]": [3, "gene", None, object(), [3], [None], ["a", "a"]],
    "Mapping[str, str]": [3, "viridis", ["red"], object(), {"N1": "no colour"}, {"N1": 3}],
    "tuple[float, float]": [3, "ab", (1,), (1, 2, 3), (0, 1), (-1, 1), (NAN, 1), (1, INF), ("a", 1), object(), 10**6],
    "Mapping[str, str] | pd.Series | str | os.PathLike[str]": [
        *(3, 1.5, [], {}, "", "no such file", FOLDER, FILE, object()),
        *({"N99999": "x"}, {"N0": 3}, {3: "x"}, {"N0": "N1"}, {"N0": "a\nb"}, pd.Series([1.0], index=["N0"])),
    ],
    "Axes": [3, "ax", object(), [], [None]],
    "StageConfig": [3, "paper", {}, {"dim": 8}, object(), st.model.StageConfig],
    "Callable[[pd.DataFrame], None]": [3, "print", [print], {}],
    "Stage": [3, "bundled", object(), {}],
    "GeoDataFrame": [3, "file", {}, pd.DataFrame({"slide": ["a"]}), object(), []],
    "Stage | pd.DataFrame": [3, "bundled", object(), {}, pd.DataFrame(), pd.DataFrame({"loss": ["a"]})],
    "tuple[int, ...]": [3, "ab", [], [0], [2, 3], [2.5, 9], ["a"], [None], (NAN,), (True, 4), object()],
    "pd.DataFrame": [
        3,
        "hallmark",
        {},
        ["a"],
        object(),
        pd.DataFrame(),
        pd.DataFrame({"source": ["a"], "target": ["b"]}),
    ],
    "str | pd.DataFrame": [
        *(3, 1.5, True, {}, ["a"], object(), "", "no such name"),
        *(pd.DataFrame(), pd.DataFrame({"source": ["a"], "target": ["b"]}), pd.DataFrame({"ligand": ["a"]})),
        pd.DataFrame({"ligand": ["elsewhere"], "receptor": ["elsewhere"]}),
    ],
    **dict.fromkeys(("Literal['dotplot', 'heatmap']", "Literal['bars', 'heatmap']", "Literal['tree', 'tissue']"), TEXT),
    "Literal['contacts', 'cells', 'differences']": TEXT,
    **dict.fromkeys(("Literal['space', 'embedding']", "Literal['auto', 't-test', 'wilcoxon', 'pseudobulk']"), TEXT),
    **dict.fromkeys(("Literal['none', 'center', 'standardize']", "Literal['leaves', 'all']"), TEXT),
    **dict.fromkeys(
        ("Literal['context', 'cosine']", "Literal['prototype', 'slide']", "Literal['path', 'top-down']"), TEXT
    ),
    "Any": [3, 1.5, "no such name", object(), [], {}],
    **dict.fromkeys(("AnnData", "Data", "Data | Store"), DATA),
    "Errors": TEXT,
}
# Right values among the wrong ones, by the argument (of one function, or of all).
MEANT: dict[str, list[Any]] = {
    **dict.fromkeys(("batch_effect", "rotation", "epochs", "seed"), [0]),
    **dict.fromkeys(("n_layers", "warmup_epochs", "smoothing_reach", "swav_weight", "reconstruction_weight"), [0]),
    **dict.fromkeys(
        (
            "path_weight",
            "constant_component",
            "noise_scale",
            "power",
            "spot_power",
            "min_sd",
            "null_margin",
            "spot_edge",
        ),
        [0],
    ),
    **dict.fromkeys(("prior_weight", "domain_shrinkage"), [0]),
    **dict.fromkeys(("noise_rate", "radius", "local", "view", "sigma", "size"), [1e300]),
    **dict.fromkeys(("name", "version", "key_added"), ["no such name"]),
    **dict.fromkeys(("lesion",), [[]]),
    "model.Stage.slides": [[], ["a", "a"]],
    "library_key": [""],
    "tl.label_files.table_key": ["no such name"],
    **dict.fromkeys(("shrinkage", "temperature", "simplify"), [0]),
    "micrometres": [],
    "covariates": [[]],
    "fdr": [1e300],
    "min_connectivity": [0, 1e300],
    **dict.fromkeys(("pl.niche_paga.library", "pl.niche_paga.spatial_key"), ["no such name"]),  # of another layout
    "alpha": [1e300],
    "scheduler": [None],
    "title": ["", "no such name"],
    "pp.build_graph.scale": [{}],
    **dict.fromkeys(
        ("tl.outline_niches.max_gap", "tl.outline_niches.simplify", "tl.correct_embedding.shrinkage"), [1e300]
    ),
    "tl.correct_embedding.temperature": [0, 1e300],
    "tl.correct_embedding.conserve": [[]],
    "tl.write_outlines.path": [FILE],
    "tl.write_cell_groups.path": [FILE],
    "tl.label_regions.key_added": ["no such name"],
    "report.keys": [[]],
    "report.n_genes": [0],
    "report.title": ["no such name"],
    "report.path": [FOLDER / "picture.html"],
    "data.build_store.path": [FOLDER, FOLDER / "none" / "none"],
    "tl.label_files.out": [FOLDER / "none" / "none"],
    "model.save_checkpoint.path": [FILE],
}


# Functions that write a table under their name, with arguments that work.
DESCRIBE: dict[str, dict[str, Any]] = {
    "rank_niche_genes": {"groupby": "stage_domain", "method": "t-test", "min_cells": 2},
    "spatial_genes": {"groupby": "stage_domain"},
    "pathways": {"groupby": "stage_domain", "min_cells": 2},
    "niche_paga": {"groupby": "stage_domain", "min_cells": 2, "n_neighbors": 5},
    "composition": {"groupby": "stage_domain"},
    "differential_abundance": {"groupby": "stage_domain", "condition_key": "slide"},
    "niche_neighbors": {"groupby": "stage_domain", "condition_key": "slide"},
    "cell_type_enrichment": {"groupby": "stage_domain", "cell_type_key": "expert"},
}
if find_spec("liana"):
    DESCRIBE["interactions"] = {"groupby": "stage_domain", "min_cells": 2, "expr_prop": 0.01}

WRITES_TABLE = [f"tl.{name}" for name in DESCRIBE]


@cache
def targets() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Public functions with arguments that work."""
    adata = st.datasets.simulate_tissue(150, n_slides=2, rng=1)
    adata.obs["expert"] = adata.obs["domain"].astype(str)
    st.pp.build_graph(adata, library_key="slide")
    config = st.model.StageConfig(dim=16, n_layers=1, levels=(2, 6), epochs=1, warmup_epochs=0, batch_size=64)
    model = st.tl.fit(adata, config=config, progress=False)
    st.tl.stage_niches(adata, n_domains=3, model=model)
    explained = {"niche": "D1", "groupby": "stage_domain", "model": model, "n_cells": 5}
    st.tl.explain_niche(adata, **explained)
    net = pd.DataFrame({"source": "set", "target": adata.var_names[:20]})
    describe = {name: {**given, **({"net": net} if name == "pathways" else {})} for name, given in DESCRIBE.items()}
    for name, arguments in describe.items():
        getattr(st.tl, name)(adata, **arguments, library_key="slide")
    adata.write_h5ad(FILE)
    model_file = st.model.save_checkpoint(model, FOLDER / "model")
    st.data.build_store([FILE], FOLDER / "corpus", library_key="slide", progress=False)
    outlines = st.tl.outline_niches(adata, groupby="expert", library_key="slide")
    good: dict[str, dict[str, Any]] = {
        "tl.stage_niches": {"model": model, "n_domains": 3},
        "tl.fit": {"config": config, "progress": False},
        "tl.panel_agreement": {"model": model, "n_splits": 1},
        "tl.label_regions": {"regions": outlines},
        "tl.write_outlines": {"outlines": outlines, "path": FOLDER / "o.csv", "slide": outlines["slide"].iloc[0]},
        "tl.write_cell_groups": {"path": FOLDER / "groups.csv"},
        "tl.distance_to_niche": {"niche": "D1", "groupby": "stage_domain"},
        "tl.explain_niche": explained,
        "pl.explain_niche": {"return_fig": True},
        "tl.label_files": {"files": [FILE], "out": FOLDER / "out", "model": model},
        "tl.annotate_niches": {"names": {"D1": "core"}},
        "tl.propose_names": {"cell_type_key": "cell_type"},
        "report": {"path": FOLDER / "report.html", "n_genes": 3},
        "data.build_store": {"files": [FILE], "path": FOLDER / "store", "progress": False},
        "data.Store": {"path": FOLDER / "corpus"},
        "pl.training_curves": {"history": model, "return_fig": True},
        "metrics.evaluate": {"keys": "stage_domain"},
        "datasets.simulate_tissue": {"n_cells": 100},
        "datasets.simulate_cohort": {"n_cells": 100},
        "model.Stage": {"config": config, "genes": ["a", "b"], "slides": ["one"]},
        "model.load_checkpoint": {"path": model_file},
        "model.save_checkpoint": {"model": model, "path": FOLDER / "saved"},
        **{f"pl.{name}": {"return_fig": True} for name in ("spatial_domains", "niche_tree", *describe)},
        **{f"tl.{name}": arguments for name, arguments in describe.items()},
        **{f"metrics.{name}": {"key": "stage_domain"} for name in ("jsd", "fide", "pas", "asw")},
        **{f"metrics.{name}": {"key": "stage_domain", "reference": "expert"} for name in ("ari", "nmi")},
    }
    found = {}
    for module in ("pp", "tl", "pl", "metrics", "datasets", "data", "model"):
        for name in sorted(set(getattr(st, module).__all__) - {"GeneMatch"}):  # a result
            function = getattr(getattr(st, module), name)
            if name == "interactions" and name not in DESCRIBE:  # an extra that is not installed
                continue
            parameters, arguments = inspect.signature(function).parameters, good.get(f"{module}.{name}", {})
            arguments |= {key: adata for key in ("data", "adata") if key in parameters}
            if "library_key" in parameters and name not in ("fit", "stage_niches"):
                arguments["library_key"] = "slide"
            found[f"{module}.{name}"] = function, arguments
    found["report"] = st.report, {**good["report"], "data": adata, "library_key": "slide"}
    return found


def wrong_values(name: str, parameter: inspect.Parameter) -> list[Any]:
    """Values that an argument does not take; a KeyError for an annotation without any."""
    meant = MEANT.get(parameter.name, []) + MEANT.get(f"{name}.{parameter.name}", [])
    values = [value for value in WRONG[parameter.annotation.removesuffix(" | None")] if not _among(value, meant)]
    return values + [None] * ("None" not in parameter.annotation and not _among(None, meant))


def _among(value: Any, meant: list[Any]) -> bool:
    return any(type(value) is type(other) and repr(value) == repr(other) for other in meant)


def takes_a_list(name: str, function: Callable[..., Any]) -> bool:
    """Tell functions that take a list; regions are those of one object alone."""
    return "data" in inspect.signature(function).parameters and name != "tl.label_regions"


def generate(number: int, seed: int) -> list[tuple[str, str, Any]]:
    """Function, and argument with a wrong value, or ``"damage"`` with its name."""
    inputs: list[tuple[str, str, Any]] = []
    for name, (function, _) in targets().items():
        for parameter in inspect.signature(function).parameters.values():
            inputs += [(name, parameter.name, value) for value in wrong_values(name, parameter)]
        inputs += [(name, "damage", damage) for damage in DAMAGES if name in READS]
        inputs += [(name, "second", damage) for damage in DAMAGES if takes_a_list(name, function)]
    return [inputs[position] for position in np.random.default_rng(seed).permutation(len(inputs))[:number]]


def state(adata: ad.AnnData) -> Any:
    """All that must not change."""
    parts = {"X": adata.X, "uns": dict(adata.uns), "obsm": dict(adata.obsm), "obsp": dict(adata.obsp._data)}
    return copy.deepcopy([adata.obs, adata.var, parts])


def same(one: Any, other: Any) -> bool:
    """Compare two nested objects."""
    if type(one) is not type(other):
        return False
    if isinstance(one, pd.DataFrame):
        return one.equals(other) and one.index.equals(other.index) and (one.dtypes == other.dtypes).all()
    if sp.issparse(one):
        names = ("row", "col", "data") if one.format == "coo" else ("data", "indices", "indptr")
        return all(same(getattr(one, name, None), getattr(other, name, None)) for name in names)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return bool(one == other) or repr(one) == repr(other)


def prepare(name: str, changed: dict[str, Any], damage: str = "", second: bool = False) -> dict[str, Any]:
    """Arguments with copies of objects and files, some of them changed, or damaged: alone or `second` in a list."""
    arguments = {**targets()[name][1], **changed}
    for key in {"data", "adata"} & (set(arguments) - set(changed)):
        arguments[key] = arguments[key].copy()
        if damage:
            DAMAGES[damage].change(arguments[key])
        if second:
            arguments[key] = [targets()[name][1][key].copy(), arguments[key]]
            if "errors" in inspect.signature(targets()[name][0]).parameters:
                arguments["errors"] = "raise"
    if damage and "files" in arguments:
        adata = ad.read_h5ad(FILE)
        DAMAGES[damage].change(adata)
        adata.write_h5ad(FOLDER / "damaged.h5ad")
        arguments["files"] = [FOLDER / "damaged.h5ad"]
    for key in {"out", "path"} & (set(arguments) - set(changed)) if "files" in arguments else ():
        arguments[key] = Path(tempfile.mkdtemp(dir=FOLDER)) / key
    return arguments


def answer(result: Any, adata: ad.AnnData | None) -> Any:
    """Result of a call, to compare."""
    if isinstance(result, st.model.Stage):
        return result.digest
    if isinstance(result, st.data.Store):
        return [header["sizes"] for header in result.headers]
    if isinstance(result, list) and all(isinstance(path, Path) for path in result):
        return [ad.read_h5ad(path).obs["stage_path"].tolist() for path in result]
    if isinstance(result, Path):
        return result.read_bytes() if result.suffix == ".html" else None
    if result is None and adata is not None and "annotation_regions" in adata.uns:
        return adata.obs["annotation"].astype(str).tolist()
    if result is None and adata is not None:
        graph = adata.obsp.get("local_connectivities")
        tables = [adata.uns[name]["table"] for name in (*DESCRIBE, "explain_niche") if name in adata.uns]
        entries = [graph.indptr, graph.indices, graph.data] if sp.issparse(graph) else graph  # damaged ones too
        return entries, adata.obs["stage_path"].tolist(), tables
    return None if isinstance(result, mpl.figure.Figure) else result


@cache
def usual(name: str) -> Any:
    """Result for the object as it is."""
    arguments = prepare(name, {})
    return answer(targets()[name][0](**arguments), arguments.get("data", arguments.get("adata")))


class Warned(logging.Handler):
    """Number of warnings of the package."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.levelno >= logging.WARNING


def judge(name: str, argument: str, value: Any) -> str:
    """Run one input; return a word for the outcome, ``fault: …`` for a fault."""
    plt.close("all")  # of the caller
    damage = value if argument in ("damage", "second") else ""
    expected = DAMAGES[damage].outcome if damage else "error"
    if damage and (not set(DAMAGES[damage].part) & set(READS[name]) or damage in HARMLESS.get(name, ())):
        expected = "right"
    if damage and name == "pp.summarize":  # which reports most of them in its table
        expected = "any"
    if name == "tl.explain_niche" and (argument == "second" or expected == "right"):  # labels of other cells
        expected = "any"
    if argument == "second" and expected == "same":
        expected = "right"
    alone = {*ALONE, "unknown genes"} if name in WRITES_TABLE else ALONE
    others = ("metrics", "pl", "report", "tl.annotate", "tl.correct", "tl.distance", "tl.outline", "tl.propose")
    if argument == "second" and name.startswith((*others, *WRITES_TABLE)) and damage in alone:
        expected = "any"
    usual(name)
    try:
        arguments = prepare(name, {} if damage else {argument: value}, damage, argument == "second")
    except Exception:  # noqa: BLE001 (of anndata, which does not write such an object)
        return "not written"
    given, before = arguments.get("data", arguments.get("adata")), FILE.read_bytes()
    objects = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, ad.AnnData)]
    kept, warned = [state(one) for one in objects], Warned()
    logging.getLogger("stage_sc").addHandler(warned)
    try:
        found = answer(targets()[name][0](**arguments), objects[0] if len(objects) == 1 else None)
    except CLEAR as error:
        frame = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if "stage_sc" not in frame.parts:
            return f"fault: error of {frame.name}: {type(error).__name__}: {str(error)[:150]}"
        if expected in ("right", "same"):
            return f"fault: refused: {type(error).__name__}: {str(error)[:150]}"
        named = [argument] + [str(value)] * isinstance(value, str | Path)
        if not damage and argument not in ("data", "adata", "files") and not any(map(str(error).__contains__, named)):
            return f"fault: not named: {type(error).__name__}: {str(error)[:150]}"
        if not same(kept, [state(one) for one in objects]):
            return "fault: the object changed"
        return "fault: a figure is open" if plt.get_fignums() else "clear error"
    except Exception as error:  # noqa: BLE001
        return f"fault: {type(error).__name__}: {str(error)[:150]}"
    finally:
        logging.getLogger("stage_sc").removeHandler(warned)
        plt.close("all")
        if FILE.read_bytes() != before:
            FILE.write_bytes(before)
            print("fault: the file of the user changed")
    if expected == "error" or (expected == "warning" and not warned.count):
        return "fault: accepted"
    return "fault: another result" if expected == "same" and not same(found, usual(name)) else "accepted"


def main(number: int = 500, seed: int = 0) -> int:
    """Print the outcomes, and return the number of faults."""
    mpl.use("Agg")
    logger, outcomes = logging.getLogger("stage_sc"), Counter[str]()
    logger.propagate, before = False, logger.propagate
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, argument, value in generate(number, seed):
                outcome = judge(name, argument, value)
                outcomes[outcome.split(":")[0]] += 1
                if outcome.startswith("fault"):
                    print(f"{name}({argument}={str(value)[:60]!r}): {outcome}", flush=True)
    finally:
        logger.propagate = before
    print(dict(outcomes))
    return outcomes["fault"]


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
