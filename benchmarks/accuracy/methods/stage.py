# /// script
# requires-python = ">=3.11"
# [tool.benchmark]
# panels = "any"
# ///
"""stage_sc, in the interpreter of the benchmark.

`mode` "zero-shot" labels with a trained model: the bundled one, or that of `checkpoint`; "fine-tune" trains it further
on the sections, "fit" trains from scratch on them, and "untrained" only grows a tree. `config` has the fields of
StageConfig that are changed: after the tree and the schedule were made as small as the data, as they are without it.
`graph` has arguments of ``st.pp.build_graph``, and `vectors` "random" replaces co-expression as the start of the gene
vectors. Besides the domains, the niches of all levels of the tree are given.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import anndata as ad
import numpy as np

import stage_sc as st
from stage_sc.train._adapt import adapt
from stage_sc.weights import resolve_model

MODES = ("zero-shot", "fine-tune", "fit", "untrained")


def label(
    sections: list[ad.AnnData],
    n_domains: int,
    seed: int,
    mode: str = "fit",
    checkpoint: str | None = None,
    config: dict[str, Any] | None = None,
    graph: dict[str, Any] | None = None,
    vectors: str = "co-expression",
) -> dict[str, list[np.ndarray]]:
    """Label every section."""
    for section in sections:
        st.pp.build_graph(section, **(graph or {}))
    with patch("stage_sc.tl._fit.gene_prior", random_vectors) if vectors == "random" else nullcontext():
        model = trained(sections, seed, mode, checkpoint, config or {})
    st.tl.stage_niches(sections, model=model, n_domains=n_domains)
    levels = sections[0].uns["stage"]["levels"]
    return {name: [section.obs[name].to_numpy() for section in sections] for name in ("stage_domain", *levels)}


def random_vectors(slides: object, genes: list[str], dim: int) -> np.ndarray:
    """Vectors that know nothing of co-expression."""
    return np.random.default_rng(0).normal(size=(len(genes), dim)).astype(np.float32)


def trained(
    sections: list[ad.AnnData], seed: int, mode: str, checkpoint: str | None, changes: dict[str, Any]
) -> st.model.Stage:
    """Return the model of a mode."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: choose one of {MODES}")
    if mode == "zero-shot":
        return resolve_model(checkpoint)
    start = resolve_model(checkpoint) if mode == "fine-tune" else None
    n_cells = [section.n_obs for section in sections]
    base = st.model.StageConfig() if start is None else start.config
    config = adapt(base, n_cells, tuning=start is not None).replace(**changes)
    epochs = 0 if mode == "untrained" else None
    return st.tl.fit(sections, init=start, config=config, epochs=epochs, rng=seed, progress=False)
