"""False discoveries and power of differential abundance on simulated cohorts, beside other tests.

``python benchmarks/abundance.py [--samples 3 4 8] [--cohorts 100] [--peers 20] [--edge-python PATH] [--out FILE]``

A cohort has 3, 4 or 8 samples in each of two conditions, and niches on three levels (8, 32, 128). Shares of the
children of a parent vary over samples as a Dirichlet distribution (even numbers of cohorts) or a logistic normal one
(odd), with another variance in each family. In the cohorts with difference, the weight of one child in four families is
multiplied or divided by 4. All rates are at a promised share of false discoveries of 10 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse, stats

import stage_sc as st

LEVELS, SAMPLES, RATE = (8, 32, 128), (3, 4, 8), 0.1
COLUMNS = [f"level{level + 1}" for level in range(len(LEVELS))]
EDGE = """
import sys, json, warnings
import numpy as np, edgepython as ep
warnings.simplefilter("ignore")
found = []
for path in sys.argv[1:]:
    stored = np.load(path)
    design = np.c_[np.ones(len(stored["condition"])), stored["condition"]]
    counts = ep.make_dgelist(stored["cells"].astype(float), lib_size=stored["sizes"].astype(float))
    counts = ep.calc_norm_factors(counts)
    fit = ep.glm_ql_fit(ep.estimate_disp(counts, design), design)
    table = ep.glm_ql_ftest(fit, coef=1)["table"]
    found.append(np.asarray(table["PValue"], float).tolist())
print(json.dumps(found))
"""


class Cohort(NamedTuple):
    """Counts and truth."""

    cells: np.ndarray
    """``(n_niches, n_samples)``."""
    parent: np.ndarray
    condition: np.ndarray
    changed: np.ndarray
    """``(n_niches,)`` bool: the share within the parent differs."""
    target: np.ndarray
    """``(n_niches,)`` bool: the weight was changed by a factor of 4."""
    moved: np.ndarray
    """``(n_niches,)`` bool: the share of all cells differs."""

    @property
    def level(self) -> np.ndarray:
        return np.repeat(np.arange(len(LEVELS)), LEVELS)

    @property
    def sizes(self) -> np.ndarray:
        return self.cells[self.level == 0].sum(axis=0)


def simulate(per_condition: int, difference: bool, number: int) -> Cohort:
    """Draw a tree, shares and counts."""
    rng = np.random.default_rng([number, per_condition, difference])
    parent = np.concatenate([[-1] * LEVELS[0], *_parents(rng)]).astype(int)
    families = [np.flatnonzero(parent == one) for one in np.unique(parent)]
    share = np.zeros((len(parent), 2))
    for family in families:
        share[family] = rng.dirichlet(np.full(len(family), 1.5))[:, None]
    changed, target = np.zeros(len(parent), bool), np.zeros(len(parent), bool)
    if difference:
        several = [family for family in families if len(family) > 1]
        for family in (several[i] for i in rng.choice(len(several), 4, replace=False)):
            child = rng.choice(family)
            share[child, 1] *= rng.choice([4.0, 0.25])
            share[family, 1] /= share[family, 1].sum()
            changed[family] = target[child] = True
    condition = np.repeat([0, 1], per_condition)
    size = np.exp(rng.normal(np.log(4000), 0.6, len(condition))).astype(int)
    cells = np.zeros((len(parent), len(condition)), int)
    for family in families:
        precision, deviation = np.exp(rng.normal(np.log(30), 0.7)), np.exp(rng.normal(np.log(0.5), 0.4))
        for sample, code in enumerate(condition):
            mean = share[family, code]
            if number % 2:
                weight = mean * np.exp(deviation * rng.normal(size=len(family)))
            else:
                weight = rng.dirichlet(np.maximum(precision * mean, 1e-3))
            above = size[sample] if parent[family[0]] < 0 else cells[parent[family[0]], sample]
            cells[family, sample] = rng.multinomial(above, weight / weight.sum())
    overall = share.copy()
    for node in np.flatnonzero(parent >= 0):  # parents have smaller numbers
        overall[node] *= overall[parent[node]]
    return Cohort(cells, parent, condition, changed, target, ~np.isclose(overall[:, 0], overall[:, 1]))


def _parents(rng: np.random.Generator) -> list[np.ndarray]:
    starts = np.cumsum([0, *LEVELS])
    pairs = zip(starts, LEVELS, LEVELS[1:], strict=False)
    return [start + np.sort(np.r_[np.arange(n), rng.integers(0, n, below - n)]) for start, n, below in pairs]


def to_cells(cohort: Cohort) -> AnnData:
    """One row per cell, as a user has them."""
    leaves = np.flatnonzero(cohort.level == len(LEVELS) - 1)
    node = np.repeat(np.repeat(leaves, len(cohort.condition)), cohort.cells[leaves].ravel())
    sample = np.repeat(np.tile(np.arange(len(cohort.condition)), len(leaves)), cohort.cells[leaves].ravel())
    names = [f"N{number}" for number in range(len(cohort.parent))]
    obs = {"sample": pd.Categorical.from_codes(sample, [f"s{one}" for one in range(len(cohort.condition))])}
    obs["condition"] = pd.Categorical.from_codes(cohort.condition[sample], ["a", "b"])
    for column in reversed(COLUMNS):
        obs[column] = pd.Categorical.from_codes(node, names)
        node = cohort.parent[node]
    frame = pd.DataFrame(obs)
    frame.index = frame.index.astype(str)
    return AnnData(sparse.csr_matrix((len(frame), 1), dtype=np.float32), obs=frame)


def by_stage(cohort: Cohort) -> dict[str, np.ndarray]:
    """Rates of `differential_abundance`, p-values, and whether intervals have the truth; NaN for untested niches."""
    adata = to_cells(cohort)
    st.tl.differential_abundance(adata, condition_key="condition", sample_key="sample", groupby=COLUMNS)
    table = adata.uns["differential_abundance"]["table"].set_index("group")
    table = table.reindex([f"N{number}" for number in range(len(cohort.parent))])
    return {name: table[name].to_numpy(float) for name in ("p_value", "fdr", "lower_within", "upper_within")}


def by_logit(cohort: Cohort, used: np.ndarray) -> np.ndarray:
    """p-values of t-tests of the log odds of the share of all cells, half a cell added."""
    cells = cohort.cells[used]
    logit = np.log((cells + 0.5) / (cohort.sizes - cells + 0.5))
    return stats.ttest_ind(logit[:, cohort.condition == 1], logit[:, cohort.condition == 0], axis=1).pvalue


def by_pydeseq2(cohort: Cohort, used: np.ndarray) -> np.ndarray:
    """Adjusted p-values of pydeseq2 as it is."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats

    names = [f"s{one}" for one in range(len(cohort.condition))]
    counts = pd.DataFrame(cohort.cells[used].T, index=names, columns=[f"N{one}" for one in used])
    samples = pd.DataFrame({"condition": np.where(cohort.condition, "b", "a")}, index=names)
    inference = DefaultInference(n_cpus=1)
    dataset = DeseqDataSet(counts=counts, metadata=samples, design="~condition", inference=inference, quiet=True)
    dataset.deseq2()
    tested = DeseqStats(dataset, contrast=["condition", "b", "a"], inference=inference, quiet=True)
    tested.summary()
    return tested.results_df["padj"].to_numpy(float)


def by_edgepython(python: Path, cohorts: list[tuple[Cohort, np.ndarray]]) -> list[np.ndarray]:
    """p-values of edgepython's quasi-likelihood F-test with TMM, in its own interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}.npz" for number in range(len(cohorts))]
        for path, (cohort, used) in zip(paths, cohorts, strict=True):
            np.savez(path, cells=cohort.cells[used], sizes=cohort.sizes, condition=cohort.condition)
        output = subprocess.run([python, "-c", EDGE, *paths], capture_output=True, text=True, check=True).stdout
    return [np.array(p, float) for p in json.loads(output.splitlines()[-1])]


def score(cohort: Cohort, used: np.ndarray, rates: np.ndarray) -> dict[str, float]:
    """Shares of one cohort; `rates` are those of the niches `used`."""
    found = used[np.nan_to_num(rates, nan=1.0) <= RATE]
    either = cohort.changed | cohort.moved
    return {
        "false": float((~either[found]).mean()) if len(found) else 0.0,
        "elsewhere": float((~cohort.changed[found]).mean()) if len(found) else 0.0,
        "power": float(np.isin(np.flatnonzero(cohort.target), found).mean()) if cohort.target.any() else np.nan,
        "found": float(len(found)),
    }


def run(samples: list[int], n_cohorts: int, n_peers: int, edge_python: Path | None) -> list[dict[str, object]]:
    """Mean scores of every test, number of samples and kind of cohort."""
    rows: list[dict[str, object]] = []
    for per_condition in samples:
        for difference in (False, True):
            scores: dict[str, list[dict[str, float]]] = defaultdict(list)
            peers: list[tuple[Cohort, np.ndarray]] = []
            for number in range(n_cohorts):
                cohort = simulate(per_condition, difference, number)
                everything = np.arange(len(cohort.parent))
                used = np.flatnonzero(cohort.cells.sum(axis=1) >= 10)
                own = by_stage(cohort)
                p = own["p_value"][~np.isnan(own["p_value"])]
                extra = {"p_below_.05": float((p < 0.05).mean()), "p_below_.001": float((p < 0.001).mean())}
                scores["stage_sc"].append(score(cohort, everything, own["fdr"]) | ({} if difference else extra))
                flat = np.full(len(everything), np.nan)
                tested = ~np.isnan(own["p_value"])
                flat[tested] = stats.false_discovery_control(own["p_value"][tested])
                scores["stage_sc, tree ignored (BH)"].append(score(cohort, everything, flat))
                logit = by_logit(cohort, used)
                scores["logit t-test"].append(score(cohort, used, stats.false_discovery_control(logit)))
                if number < n_peers:
                    scores["pydeseq2"].append(score(cohort, used, by_pydeseq2(cohort, used)))
                    peers.append((cohort, used))
            if edge_python and peers:
                for (cohort, used), p in zip(peers, by_edgepython(edge_python, peers), strict=True):
                    scores["edgepython"].append(score(cohort, used, stats.false_discovery_control(p)))
            for test, found in scores.items():
                means = pd.DataFrame(found).mean().round(4).to_dict()
                row = {"samples": per_condition, "difference": difference, "test": test, "cohorts": len(found)}
                rows.append(row | means)
                print(row | means, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=list(SAMPLES), help="per condition")
    parser.add_argument("--cohorts", type=int, default=100, help="of each size, without and with difference")
    parser.add_argument("--peers", type=int, default=20, help="cohorts of pydeseq2 and edgepython, which are slow")
    parser.add_argument("--edge-python", type=Path, help="interpreter with edgepython")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = run(arguments.samples, arguments.cohorts, arguments.peers, arguments.edge_python)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
