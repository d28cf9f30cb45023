"""Run one method on a folder of sections: python _call.py METHOD.py FOLDER RESULT.json

A method's `label` gives labels for every section, or a dictionary of such lists, of which the first are the domains.
Its `refused`, where there is one, tells of a section that was labelled if the method found nothing to label.
FOLDER has the sections as 0.h5ad, 1.h5ad … and call.json with `n_domains`, `seed`, `options` and the names of the
`packages` whose versions are wanted. Time is that of the method's function, without imports and reading; memory is the
whole process's. Needs nothing but anndata, numpy and pandas, as it runs in every method's environment.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd


def main(method: Path, folder: Path, result: Path) -> None:
    """Read, label, write."""
    call = json.loads((folder / "call.json").read_text())
    sections = [ad.read_h5ad(path) for path in sorted(folder.glob("*.h5ad"), key=lambda path: int(path.stem))]
    spec = importlib.util.spec_from_file_location(f"method_{method.stem}", method)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    wall, cpu = time.perf_counter(), cpu_seconds()
    found = module.label(sections, call["n_domains"], call["seed"], **call["options"])
    used = {"wall_s": round(time.perf_counter() - wall, 2), "cpu_s": round(cpu_seconds() - cpu, 2)}
    labels, *others = [texts(one, sections) for one in (found.values() if isinstance(found, dict) else [found])]
    levels = dict(zip(list(found)[1:], others, strict=True)) if others else {}
    if hasattr(module, "refused"):
        used["refused"] = [module.refused(section) for section in sections]
    used["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if on_mac() else 2**10))
    versions = {"python": platform.python_version()} | {name: version(name) for name in call["packages"]}
    result.write_text(json.dumps({"labels": labels, "levels": levels, **used, "versions": versions}))


def texts(labels: list[np.ndarray], sections: list[ad.AnnData]) -> list[list[str | None]]:
    """Labels of every section as text."""
    parts = [[named(one) for one in np.asarray(part, dtype=object)] for part in labels]
    for part, section in zip(parts, sections, strict=True):
        if len(part) != section.n_obs:
            raise ValueError(f"the method gave {len(part)} labels for {section.n_obs} cells")
    return parts


def named(label: object) -> str | None:
    """Label as text; a cell that the method left out has none."""
    return None if pd.isna(label) else str(label)


def cpu_seconds() -> float:
    """Seconds of all threads of this process and of its children."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def on_mac() -> bool:
    """Tell whether ru_maxrss is in bytes."""
    return platform.system() == "Darwin"


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
