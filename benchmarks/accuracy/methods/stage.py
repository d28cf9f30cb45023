# /// script
# requires-python = ">=3.11"
# [tool.benchmark]
# panels = "any"
# ///
"""stage_sc, in the interpreter of the benchmark.

`mode` "zero-shot" labels with a trained model: the bundled one, or that of `checkpoint`; "fine-tune" trains it further
on the sections, "fit" trains from scratch on them, and "untrained" only grows a tree. `variant` "paper" starts from
``StageConfig.paper()``. Tree and schedule are fitted to the size of the data, as by ``st.tl.fit``; then `config`
replaces single fields of StageConfig. `graph` has arguments of ``st.pp.build_graph``. `vectors` "random" replaces
co-expression as the start of the gene vectors; it needs "fit" or "untrained". `settle` false reads niches from the tree
as the model has it. Besides the domains, the niches of all levels of the tree are given.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import anndata as ad
import numpy as np

import stage_sc as st
from stage_sc.model import resolve_model
from stage_sc.train import adapt_config

UNCHANGED = ("co-expression", "default")  # vectors, variant
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
    variant: str = "default",
    settle: bool = True,
) -> dict[str, list[np.ndarray]]:
    """Label every section."""
    for section in sections:
        st.pp.build_graph(section, **(graph or {}))
    if (config and mode == "zero-shot") or (mode in ("zero-shot", "fine-tune") and (vectors, variant) != UNCHANGED):
        raise ValueError(f"mode {mode!r} takes its configuration and vectors from a model")
    prior = partial(random_vectors, np.random.default_rng(seed))
    with patch("stage_sc.train._start.coexpression_vectors", prior) if vectors == "random" else nullcontext():
        model = trained(sections, seed, mode, checkpoint, config or {}, variant)
    st.tl.stage_niches(sections, model=model, n_domains=n_domains, settle=settle, errors="raise")
    levels = sections[0].uns["stage"]["levels"]
    return {name: [section.obs[name].to_numpy() for section in sections] for name in ("stage_domain", *levels)}


def refused(section: ad.AnnData) -> bool | None:
    """Tell if no direction of the section varied beyond chance; None where the version of stage_sc does not say."""
    slides = section.uns["stage"].get("slides")
    return None if slides is None else bool((np.asarray(slides["n_directions"]) == 0).all())


def random_vectors(rng: np.random.Generator, slides: object, genes: list[str], dim: int, seed: int) -> np.ndarray:
    """Vectors that know nothing of co-expression."""
    return rng.normal(size=(len(genes), dim)).astype(np.float32)


def trained(
    sections: list[ad.AnnData], seed: int, mode: str, checkpoint: str | None, changes: dict[str, Any], variant: str
) -> st.model.Stage:
    """Return the model of a mode."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: choose one of {MODES}")
    if mode == "zero-shot":
        return resolve_model(checkpoint)
    start = resolve_model(checkpoint) if mode == "fine-tune" else None
    n_cells = [section.n_obs for section in sections]
    if start is not None:
        base = start.config
    else:
        base = st.model.StageConfig.paper() if variant == "paper" else st.model.StageConfig()
    config = adapt_config(base, n_cells, tuning=start is not None).replace(**changes)
    epochs = 0 if mode == "untrained" else None
    return st.tl.fit(sections, init=start, config=config, epochs=epochs, rng=seed, progress=False)
