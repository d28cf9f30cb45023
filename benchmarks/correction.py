"""Correction of the embedding between slides, beside Harmony's.

    python benchmarks/correction.py FOLDER [--out FILE.json]

FOLDER has starmap_mpfc/BZ5.h5ad, BZ9.h5ad, BZ14.h5ad and osmfish_cortex/SScortex.h5ad, with counts in X and an expert's
regions in obs["domain"]. Harmony is measured if harmonypy can be imported; it is GPL-3 and no dependency.

Cases: two simulated slides with disjoint halves of the genes and a batch effect; two STARmap sections with disjoint
halves of the genes; STARmap with osmFISH, cells of the layers that both have. Slides are labelled in one call, and only
the embedding is corrected. Measures are means over cells, from 30 nearest neighbours of up to 10,000 cells: mixing of
slides among cells of one region (entropy over the expected), fraction of neighbours of the same region, silhouette of
regions, and transfer: the region of most neighbours on other slides is the cell's own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

import stage_sc as st

K = 30
LAYERS = {
    **{"L1": "L1", "L2/3": "L2/3", "L5": "L5", "L6": "L6"},
    **{"Pia Layer 1": "L1", "Layer 2-3 medial": "L2/3", "Layer 2-3 lateral": "L2/3", "Layer 5": "L5", "Layer 6": "L6"},
}


def halves(one: ad.AnnData, other: ad.AnnData) -> dict[str, ad.AnnData]:
    """Two slides, each with another half of the genes that both have."""
    genes = np.random.default_rng(0).permutation(one.var_names.intersection(other.var_names).sort_values())
    half = len(genes) // 2
    return {"one": one[:, genes[:half]].copy(), "other": other[:, genes[half:]].copy()}


def cases(folder: Path) -> dict[str, dict[str, ad.AnnData]]:
    """Slides of every case."""
    cohort = st.datasets.simulate_tissue(3000, n_slides=2, batch_effect=0.5, rng=0)
    simulated = [cohort[cohort.obs["slide"] == name].copy() for name in sorted(cohort.obs["slide"].unique())]
    mice = {name: ad.read_h5ad(folder / "starmap_mpfc" / f"{name}.h5ad") for name in ("BZ5", "BZ9", "BZ14")}
    cortex = ad.read_h5ad(folder / "osmfish_cortex" / "SScortex.h5ad")
    return {
        "simulated, half panels": halves(*simulated),
        "STARmap, half panels": halves(mice["BZ5"], mice["BZ9"]),
        "STARmap and osmFISH": {**mice, "osmFISH": cortex},
    }


def measure(x: np.ndarray, slides: np.ndarray, regions: np.ndarray) -> dict[str, float]:
    """Mixing of slides and conservation of regions."""
    near = NearestNeighbors(n_neighbors=K).fit(x).kneighbors(return_distance=False)
    mixing = []
    for region in np.unique(regions):
        rows = np.flatnonzero(regions == region)
        inside = NearestNeighbors(n_neighbors=min(K, len(rows) - 1)).fit(x[rows]).kneighbors(return_distance=False)
        found = (slides[rows][inside][..., None] == np.arange(slides.max() + 1)).mean(axis=1)
        mixing.append(entropy(found) / entropy(np.bincount(slides[rows])[None] / len(rows)))
    right = []
    for slide in np.unique(slides):
        own, rest = slides == slide, slides != slide
        across = NearestNeighbors(n_neighbors=K).fit(x[rest]).kneighbors(x[own], return_distance=False)
        votes = (regions[rest][across][..., None] == np.arange(regions.max() + 1)).sum(axis=1)
        right.append(votes.argmax(axis=1) == regions[own])
    return {
        "mixing": float(np.concatenate(mixing).mean()),
        "purity": float((regions[near] == regions[:, None]).mean()),
        "silhouette": float(silhouette_score(x, regions)),
        "transfer": float(np.concatenate(right).mean()),
    }


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropy of each row."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)


def harmony(x: np.ndarray, slides: np.ndarray) -> np.ndarray | None:
    """Embedding corrected by Harmony with its defaults; None if it is not installed."""
    try:
        import harmonypy
    except ImportError:
        return None
    batches = pd.DataFrame({"slide": slides.astype(str)})
    found = np.asarray(harmonypy.run_harmony(x.astype(np.float64), batches, ["slide"], verbose=False).Z_corr)
    return found if found.shape == x.shape else found.T


def run(slides: dict[str, ad.AnnData], shrinkages: list[float]) -> dict[str, dict[str, float]]:
    """Measures before and after every correction of one case."""
    st.pp.build_graph(slides)
    st.tl.stage_niches(slides, n_domains=6)
    code = np.repeat(np.arange(len(slides)), [part.n_obs for part in slides.values()])
    expert = pd.concat([part.obs["domain"].astype(str) for part in slides.values()])
    expert = expert.map(LAYERS) if "osmFISH" in slides else expert
    regions = pd.factorize(expert.to_numpy(), sort=True)[0]
    known = np.flatnonzero(regions >= 0)

    def stacked(key: str) -> np.ndarray:
        return np.concatenate([part.obsm[key] for part in slides.values()])

    embeddings: dict[str, np.ndarray | None] = {"none": stacked("X_stage")}
    for key, temperature in (("stage_l2", 0.03), ("stage_l2", 0.0), ("stage_domain", 0.03)):
        for shrinkage in shrinkages:
            st.tl.correct_embedding(slides, groupby=key, shrinkage=shrinkage, temperature=temperature)
            embeddings[f"{key}, κ {shrinkage:g}, τ {temperature:g}"] = stacked("X_stage_corrected")
    embeddings["Harmony"] = harmony(embeddings["none"], code)
    return {name: measure(x[known], code[known], regions[known]) for name, x in embeddings.items() if x is not None}


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shrinkage", type=float, nargs="+", default=[10.0])
    parser.add_argument("--out", type=Path, help="JSON of all values")
    options = parser.parse_args()
    tables: dict[str, Any] = {}
    for name, slides in cases(options.folder).items():
        tables[name] = run(slides, options.shrinkage)
        print(f"\n{name}\n{pd.DataFrame(tables[name]).T.round(3).to_string()}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
