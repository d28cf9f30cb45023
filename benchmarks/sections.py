"""ARI of the bundled model, of an untrained network and of a trained one, on annotated sections of several studies.

    python benchmarks/sections.py FOLDER [--seeds 3] [--out benchmarks/results/sections.csv]

Every folder in FOLDER is a study, every .h5ad file in it a section: counts in X, coordinates in obsm["spatial"],
expert labels in obs["domain"] (used for scoring alone). The sections of a study are labelled together and cut into as
many domains as there are labels; ARI is the mean over sections.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import stage_sc as st


def main() -> None:
    """Run all methods on all studies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sections.csv"))
    options = parser.parse_args()
    rows = []
    for study in sorted(path for path in options.folder.iterdir() if path.is_dir()):
        sections = [ad.read_h5ad(path) for path in sorted(study.glob("*.h5ad"))]
        for section in sections:
            st.pp.build_graph(section)
        for method, seeds in (("bundled", 1), ("untrained", options.seeds), ("fit", options.seeds)):
            for seed in range(seeds):
                start = time.perf_counter()
                model = None if method == "bundled" else fitted(sections, seed, untrained=method == "untrained")
                ari = score(sections, model)
                rows.append({"study": study.name, "method": method, "seed": seed, "ARI": ari})
                rows[-1]["seconds"] = round(time.perf_counter() - start, 1)
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out, index=False)
    figures = table.groupby(["study", "method"], sort=False)["ARI"].agg(["mean", "std", "min"])
    print(figures.unstack("method").swaplevel(axis=1).sort_index(axis=1).to_string(float_format="{:.2f}".format))


def fitted(sections: list[ad.AnnData], seed: int, *, untrained: bool) -> st.model.Stage:
    """Train on the sections of a study, or only grow a tree for the untrained network."""
    return st.tl.fit(sections, rng=seed, epochs=0 if untrained else None, progress=False)


def score(sections: list[ad.AnnData], model: st.model.Stage | None) -> float:
    """Label with a model, cut to the number of expert labels, and compare."""
    n_domains = len(set().union(*(section.obs["domain"].dropna().unique() for section in sections)))
    st.tl.stage_niches(sections, model=model, n_domains=n_domains)
    return float(np.mean([st.metrics.ari(section, "stage_domain", reference="domain") for section in sections]))


if __name__ == "__main__":
    main()
