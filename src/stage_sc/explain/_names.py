"""Names of genes as the data has them."""

from __future__ import annotations

from stage_sc._input import Tables
from stage_sc.genes import match_genes, match_proteins
from stage_sc.nn import Stage


def gene_names(tables: Tables, model: Stage) -> dict[str, str]:
    """Name of each token of the model in the first object that has it; of several columns the first by name."""
    names: dict[str, str] = {}
    for part in tables.by_name.values():
        if model.config.modality == "protein":
            tokens = match_proteins(part.var, model.vocabulary)
        else:
            tokens = match_genes(part, vocabulary=model.vocabulary).table["token"].tolist()
        pairs = sorted((str(name), token) for name, token in zip(part.var_names, tokens, strict=True) if token)
        for name, token in pairs:
            names.setdefault(token, name)
    return names
