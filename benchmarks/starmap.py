"""Niches of three mouse cortex sections (STARmap), trained on them and zero-shot, beside an untrained network.

    python benchmarks/starmap.py FOLDER [--seeds 5] [--out benchmarks/results/starmap.csv]

FOLDER holds BZ5.h5ad, BZ9.h5ad and BZ14.h5ad: counts in X, coordinates in obsm["spatial"], the four layers that an
expert drew in obs["domain"]. Labels are used for scoring alone. Everything is labelled jointly and cut into four
domains. ARI, FIDE, PAS and ASW are means over the sections, JSD is over all; the table gives the mean over seeds, and
the sd and the lowest ARI.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.spatial import cKDTree

import stage_sc as st

SECTIONS = ("BZ5", "BZ9", "BZ14")
N_DOMAINS = 4


def main() -> None:
    """Run all methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/starmap.csv"))
    options = parser.parse_args()
    adata = ad.concat({name: ad.read_h5ad(options.folder / f"{name}.h5ad") for name in SECTIONS}, label="slide")
    adata.obs_names_make_unique()
    st.pp.build_graph(adata, library_key="slide")

    rows = [{"method": "expert labels", "seed": 0, **score(adata, "domain")}]
    methods: dict[str, Callable[[ad.AnnData, int], None]] = {
        "smoothed Leiden, joint": smoothed_leiden,
        "smoothed Leiden, each alone": leiden_alone,
        "untrained network": untrained,
        "fit on all three": trained,
        "fit, paper's variant": printed,
        "bundled, zero-shot": bundled,
    }
    for method, label in methods.items():
        for seed in range(options.seeds if method != "bundled, zero-shot" else 1):
            label(adata, seed)
            rows.append({"method": method, "seed": seed, **score(adata, "stage_domain")})
            print(rows[-1], flush=True)
    rows += [row for seed in range(options.seeds) for row in left_out(adata, seed)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out, index=False)
    print(summary(pd.DataFrame(rows)).to_string(float_format="{:.3f}".format))


def trained(adata: ad.AnnData, seed: int) -> None:
    """Fit on the three sections together."""
    st.tl.stage_niches(adata, model=st.tl.fit(adata, rng=seed, progress=False), n_domains=N_DOMAINS)


def untrained(adata: ad.AnnData, seed: int) -> None:
    """Take the network as it starts, with its tree."""
    st.tl.stage_niches(adata, model=st.tl.fit(adata, rng=seed, epochs=0, progress=False), n_domains=N_DOMAINS)


def printed(adata: ad.AnnData, seed: int) -> None:
    """Fit the variant that the paper prints, with the tree and the schedule of small data."""
    config = st.model.StageConfig.paper(levels=(4, 16, 63), epochs=20, warmup_epochs=10, learning_rate=1e-3)
    st.tl.stage_niches(adata, model=st.tl.fit(adata, config=config, rng=seed, progress=False), n_domains=N_DOMAINS)


def bundled(adata: ad.AnnData, seed: int) -> None:
    """Label with the model of the package."""
    st.tl.stage_niches(adata, n_domains=N_DOMAINS)


def smoothed_leiden(adata: ad.AnnData, seed: int) -> None:
    """Leiden on principal components, centred on each section and averaged over each cell and its ten nearest ones.

    The resolution is searched for four clusters. Without centring, the clusters are the sections.
    """
    light = ad.AnnData(adata.X.astype(np.float32), obs=adata.obs[["slide"]].copy())
    sc.pp.normalize_total(light)
    sc.pp.log1p(light)
    sc.pp.pca(light, n_comps=30, random_state=seed)
    smooth = np.empty_like(light.obsm["X_pca"])
    for name in light.obs["slide"].unique():
        here = np.flatnonzero(light.obs["slide"] == name)
        nearest = cKDTree(adata.obsm["spatial"][here]).query(adata.obsm["spatial"][here], 11)[1]
        smooth[here] = light.obsm["X_pca"][here][nearest].mean(axis=1) - light.obsm["X_pca"][here].mean(axis=0)
    light.obsm["smooth"] = smooth
    sc.pp.neighbors(light, use_rep="smooth", random_state=seed)
    low, high = 0.0, 2.0
    for _ in range(20):
        middle = (low + high) / 2
        sc.tl.leiden(light, resolution=middle, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        found = light.obs["leiden"].nunique()
        if found == N_DOMAINS:
            break
        low, high = (middle, high) if found < N_DOMAINS else (low, middle)
    adata.obs["stage_domain"] = light.obs["leiden"]


def leiden_alone(adata: ad.AnnData, seed: int) -> None:
    """Run the same on every section by itself: clusters of different sections have nothing to do with each other."""
    labels = pd.Series("", index=adata.obs_names)
    for name in SECTIONS:
        section = adata[adata.obs["slide"] == name].copy()
        smoothed_leiden(section, seed)
        labels[section.obs_names] = section.obs["stage_domain"].astype(str)
    adata.obs["stage_domain"] = labels.astype("category")


def left_out(adata: ad.AnnData, seed: int) -> list[dict[str, object]]:
    """Train on two sections and label the third with the frozen tree; beside it the model trained on all three."""
    everything = st.tl.fit(adata, rng=seed, progress=False)
    rows = []
    for name in SECTIONS:
        rest = adata[adata.obs["slide"] != name].copy()
        third = adata[adata.obs["slide"] == name].copy()
        st.pp.build_graph(rest, library_key="slide")
        st.pp.build_graph(third, library_key="slide")
        model = st.tl.fit(rest, rng=seed, progress=False)
        for method, used in (("third section, frozen tree", model), ("third section, in training", everything)):
            st.tl.stage_niches(third, model=used, n_domains=N_DOMAINS)
            rows.append({"method": method, "seed": seed, "section": name, **score(third, "stage_domain")})
            print(rows[-1], flush=True)
    return rows


def score(adata: ad.AnnData, key: str) -> dict[str, float]:
    """All figures of one labelling."""
    table = st.metrics.evaluate(adata, [key], reference="domain", library_key="slide")
    return table.loc[(key, "mean")].astype(float).to_dict()


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over seeds, and the lowest ARI of a seed."""
    figures = [name for name in rows.columns if name not in ("method", "seed", "section")]
    seeds = rows.groupby(["method", "seed"], sort=False)[figures].mean()
    by_method = seeds.groupby("method", sort=False)
    spread = [by_method["ARI"].std().rename("ARI sd"), by_method["ARI"].min().rename("ARI min")]
    return pd.concat([by_method.mean(), *spread], axis=1)


if __name__ == "__main__":
    main()
