"""Scores of labels: of every section, their mean, and of all sections together."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import stage_sc as st

from .scenarios import Scenario, expert

Scores = dict[str, dict[str, float | None]]


def score(scenario: Scenario, groups: Sequence[Sequence[ad.AnnData]], labels: Sequence[Sequence[pd.Series]]) -> Scores:
    """Score the labels of all groups of sections.

    Sections have ARI, NMI, FIDE, PAS, ASW and `patches`; "mean" has their means. "joint" compares all cells at once (a
    domain must keep its name across sections), and has the JSD; "between" the ARI of the two labellings of half panels;
    "specificity" the share of cells that lie in domains of their own tissue, and "JSD within" that of one tissue's
    sections. Where nothing can be computed, there is none.
    """
    scores: dict[str, dict[str, float]] = {}
    joints = []
    for group, parts in zip(groups, labels, strict=True):
        adata = scored(group, parts)
        known = "expert" if adata.obs["expert"].notna().any() else None
        table = st.metrics.evaluate(adata, "label", reference=known, library_key="section").droplevel("key")
        scores |= {str(name): row.drop("JSD").to_dict() for name, row in table.iterrows() if name != "mean"}
        for section, part in zip(group, parts, strict=True):
            scores[str(section.uns["section"])]["patches"] = patches(section, part)
        if scenario.kind == "one-by-one":
            continue
        joint = {"JSD": table.loc["mean", "JSD"]} if len(group) > 1 else {}
        if known:
            joint |= {name: measure(adata, "label", known) for name, measure in AGREEMENT.items()}
        if scenario.kind == "half-panels":
            joint["between"] = agreement(*parts)
        joints.append(joint | by_tissue(adata))
    sections = pd.DataFrame(scores).T
    scores["mean"] = sections.astype(float).mean().to_dict()
    if joints:
        scores["joint"] = pd.DataFrame(joints).mean().to_dict()
    return {name: {key: finite(value) for key, value in row.items()} for name, row in scores.items()}


AGREEMENT = {"ARI": st.metrics.ari, "NMI": st.metrics.nmi}


def scored(group: Sequence[ad.AnnData], labels: Sequence[pd.Series]) -> ad.AnnData:
    """All sections with labels, coordinates and graph, and no genes."""
    slides = []
    for section, part in zip(group, labels, strict=True):
        obs = {"label": np.asarray(part, dtype=object), "expert": np.asarray(expert(section), dtype=object)}
        slide = ad.AnnData(obs=pd.DataFrame(obs, index=section.obs_names))
        slide.obs["section"] = str(section.uns["section"])
        organ = str(section.uns.get("tissue", "")).partition(" (")[0]
        slide.obs["tissue"] = f"{section.uns.get('species', '')} {organ}"
        slide.obsm["spatial"] = np.asarray(section.obsm["spatial"], dtype=np.float64)
        placed = ad.AnnData(
            sp.csr_matrix((section.n_obs, 1), dtype=np.float32), obsm={"spatial": slide.obsm["spatial"]}
        )
        st.pp.build_graph(placed)
        slide.obsp["spatial_connectivities"] = placed.obsp["spatial_connectivities"]
        slides.append(slide)
    adata = ad.concat(slides, pairwise=True, index_unique="-", keys=[str(number) for number in range(len(slides))])
    adata.obs["section"] = adata.obs["section"].astype("category")
    return adata


def agreement(first: pd.Series, second: pd.Series) -> float:
    """ARI of two labellings of the same cells."""
    obs = pd.DataFrame({"first": np.asarray(first, dtype=object), "second": np.asarray(second, dtype=object)})
    return st.metrics.ari(ad.AnnData(obs=obs.set_axis(obs.index.astype(str))), "first", reference="second")


def patches(section: ad.AnnData, labels: pd.Series) -> float:
    """Agreement (ARI) of labels with k-means of the coordinates, less that of the expert's; on cells with both labels.

    Domains that follow position rather than tissue are far above 0. There are as many clusters as expert labels.
    """
    known = expert(section)
    both = (known.notna() & labels.notna()).to_numpy()
    if not both.any():
        return float("nan")
    xy = np.asarray(section.obsm["spatial"], dtype=np.float64)
    places = KMeans(known.nunique(), n_init=10, random_state=0).fit_predict(xy)[both]
    found, drawn = (adjusted_rand_score(places, part[both]) for part in (labels, known))
    return float(found - drawn)


def by_tissue(adata: ad.AnnData) -> dict[str, float]:
    """Specificity of domains, every tissue weighing the same, and the mean JSD within tissues; of two or more."""
    labelled = adata.obs.dropna(subset=["label"])
    if labelled["tissue"].nunique() < 2:
        return {}
    shares = pd.crosstab(labelled["label"], labelled["tissue"], normalize="columns")  # of a tissue's cells, per domain
    within = [
        st.metrics.jsd(adata[cells.index].copy(), "label", library_key="section")
        for _, cells in labelled.groupby("tissue")
        if cells["section"].nunique() > 1
    ]
    figures = {"specificity": float(shares.max(axis=1).sum() / shares.to_numpy().sum())}
    return figures | ({"JSD within": float(np.mean(within))} if within else {})


def finite(value: float) -> float | None:
    """Round, for a file; JSON has no NaN."""
    return round(float(value), 6) if np.isfinite(value) else None
