"""Gene names of any panel as tokens shared by all panels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_choice
from stage_sc._input import check_anndata
from stage_sc.genes._evidence import other_species, two_species, where_names_are
from stage_sc.genes._features import CONTROL, UNNAMED, feature_types, name_columns, types_by_column
from stage_sc.genes._table import ENSEMBL, Species, is_id, load_gene_table, look_up

logger = logging.getLogger("stage_sc.pp")


@dataclass(frozen=True)
class GeneMatch:
    """Genes of the data in the vocabulary, from `match_genes`."""

    table: pd.DataFrame
    """One row per gene, in the order of ``adata.var_names``: ``token``, ``source`` (``"var_names"`` or column of
    ``adata.var``) and ``status``: "matched", "ambiguous" (several genes share the token), "missing", "control" (control
    probe) or "other" (antibody or other feature that is no gene)."""
    species: Species
    """Given or guessed."""
    kinds: dict[str, int]
    """Number of names by kind: "symbol" (known), "Ensembl id", "unknown"."""

    @property
    def n_genes(self) -> int:
        """Number of genes of the data."""
        return len(self.table)

    @property
    def n_matched(self) -> int:
        """Number of genes in the vocabulary, including ambiguous ones."""
        return int(self.table["status"].isin(["matched", "ambiguous"]).sum())

    @property
    def missing(self) -> list[str]:
        """Genes that are not in the vocabulary."""
        return self._with_status("missing")

    @property
    def ambiguous(self) -> list[str]:
        """Genes that share their token with another gene of the data."""
        return self._with_status("ambiguous")

    def _with_status(self, status: str) -> list[str]:
        return self.table.index[self.table["status"] == status].tolist()

    def __repr__(self) -> str:
        percent = 100 * self.n_matched / self.n_genes
        lines = [
            f"GeneMatch: {self.n_matched} of {self.n_genes} genes are in the vocabulary ({percent:.0f} %)",
            f"  species: {self.species}; names: {_count_text(self.kinds)}",
        ]
        titles = {"missing": "missing", "ambiguous": "ambiguous", "control": "control probes", "other": "no genes"}
        for status, title in titles.items():
            if genes := self._with_status(status):
                shown = ", ".join(genes[:8]) + (", …" if len(genes) > 8 else "")
                lines.append(f"  {title}: {len(genes)} ({shown})")
        return "\n".join(lines)


def match_genes(
    adata: AnnData, *, vocabulary: Iterable[str] | None = None, species: Species | None = None
) -> GeneMatch:
    """Match the genes of the data to a vocabulary by symbols or Ensembl ids.

    Human and mouse symbols (in any case) and Ensembl ids (with or without version) are read from ``adata.var_names``
    or, if unknown, from common columns of ``adata.var`` (``gene_ids``, ``gene_symbols`` …). One-to-one orthologues of
    human and mouse share a token: the case-folded human symbol.

    Parameters
    ----------
    adata
        Data; only ``adata.var`` is read.
    vocabulary
        Tokens of a model. ``None``: all human and mouse genes with an official symbol.
    species
        Species of the symbols. ``None``: guessed from Ensembl ids and the case of the symbols. Pass it for a few genes
        with names in upper or lower case only.

    Returns
    -------
    Table of all genes, printed as a summary.

    Raises
    ------
    TypeError
        If `adata` is no AnnData or `vocabulary` a single string.
    ValueError
        If no gene is in the vocabulary.

    Notes
    -----
    Expression of "ambiguous" genes (two Ensembl ids with one symbol, or a repeated name) is summed. The table is from
    Ensembl BioMart (``scripts/make_gene_table.py``); of outdated symbols only those of common panels are known.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, stage_sc as st
    >>> var = pd.DataFrame(index=["Slc17a7", "ENSMUSG00000059552.14", "Blank-1"])
    >>> match = st.pp.match_genes(ad.AnnData(np.ones((2, 3)), var=var))
    >>> match.table["token"].tolist()
    ['slc17a7', 'tp53', 'blank-1']
    >>> match
    GeneMatch: 2 of 3 genes are in the vocabulary (67 %)
      species: mouse; names: 1 symbol, 1 Ensembl id, 1 unknown
      control probes: 1 (Blank-1)
    """
    check_anndata(adata)
    if adata.n_vars == 0:
        raise ValueError("`adata` has no genes.")
    if isinstance(vocabulary, str) or not isinstance(vocabulary, Iterable | None):
        given = "a single string" if isinstance(vocabulary, str) else f"{vocabulary!r:.200}"
        raise TypeError(f"`vocabulary` must be a collection of tokens, got {given}.")
    match, types = _read_names(adata.var, species)
    tokens = match.table["token"].tolist()
    vocabulary = load_gene_table().by_id.values() if vocabulary is None else vocabulary
    vocabulary = list(vocabulary)
    if wrong := [token for token in vocabulary if not isinstance(token, str)]:
        raise TypeError(f"`vocabulary` must be a collection of strings, but holds {wrong[0]!r}.")
    known = {token.casefold() for token in vocabulary}
    is_gene = match.table["status"] == ""
    uses = Counter(match.table["token"][is_gene])
    status = np.where([uses[token] > 1 for token in tokens], "ambiguous", "matched").astype(object)
    status[[token not in known for token in tokens]] = "missing"
    match.table["status"] = match.table["status"].where(~is_gene, status)
    if not match.n_matched:
        hints = [other_species(adata.var), where_names_are(adata.var, match.species)]
        raise ValueError(
            f"None of the {adata.n_vars} genes is in the vocabulary of {len(known)} genes. Names: "
            f"{_count_text(match.kinds)}; `adata.var_names` starts with {', '.join(map(repr, adata.var_names[:5]))}. "
            "Expected are human or mouse symbols or Ensembl ids, also in `adata.var['gene_ids']` or ['gene_symbols']."
            + "".join(f" {hint}" for hint in hints if hint)
        )
    _report(adata.var, match, types)
    return match


def gene_tokens(var: pd.DataFrame, species: Species | None = None) -> list[str | None]:
    """Token of every gene of ``adata.var``, for unknown genes their case-folded name; ``None`` for other features."""
    match, types = _read_names(var, species)
    _report(var, match, types)
    return [None if status else token for token, status in match.table[["token", "status"]].itertuples(index=False)]


def _report(var: pd.DataFrame, match: GeneMatch, types: list[str]) -> None:
    """Log features that were left out, and signs that names were not read as meant."""
    left_out = Counter(filter(None, types))
    if left_out:
        logger.info("Left out, as they are no genes: %s.", _count_text(dict(left_out.most_common())))
    if unnamed := left_out[UNNAMED]:
        logger.warning("%d features have no name (missing in `adata.var_names`) and were left out.", unnamed)
    for column, found in types_by_column(var).items():
        if all(found):
            logger.warning(
                "No feature is a gene by `adata.var[%r]` (%s): names were read as those of genes all the same.",
                *(column, _count_text(dict(Counter(found).most_common(3)))),
            )
    hints = [other_species(var), two_species(var)]
    if 2 * match.kinds["unknown"] > match.n_genes:
        hints.append(where_names_are(var, match.species))
    for hint in filter(None, hints):
        logger.warning(hint)


def _count_text(kinds: dict[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)


def _read_names(var: pd.DataFrame, species: Species | None) -> tuple[GeneMatch, list[str]]:
    """First known name of every gene, in `var_names`, then in the columns, and the types of features that are no genes.

    The status of genes is empty.
    """
    if species is not None:
        check_choice(species, "species", ("human", "mouse"))
    names = name_columns(var)
    species = species or _guess_species(names.values())
    types = feature_types(var)
    rows, kinds = [], {"symbol": 0, "Ensembl id": 0, "unknown": 0}
    for row, other in zip(zip(*names.values(), strict=True), types, strict=True):
        hits = ((*look_up(name, species), str(source)) for source, name in zip(names, row, strict=True))
        first = next(filter(None, row), "")
        unknown = ENSEMBL.sub(r"\1", first).casefold(), "unknown", ""
        token, kind, source = next((hit for hit in hits if hit[0]), unknown)
        rows.append((token, source, ("control" if CONTROL.match(other) else "other") if other else ""))
        kinds[kind] += 1
    table = pd.DataFrame(rows, pd.Index(var.index, name="gene"), ["token", "source", "status"])
    return GeneMatch(table, species, kinds), types


def _guess_species(sources: Iterable[Sequence[str]]) -> Species:
    """Majority of Ensembl prefixes and of symbols in human or mouse case; in a tie, of symbols in any case."""
    table = load_gene_table()
    names = [name for source in sources for name in source]
    human = sum(is_id(name, "ENSG") or name in table.symbols["human"] for name in names)
    mouse = sum(is_id(name, "ENSMUSG") or name in table.symbols["mouse"] for name in names)
    if human == mouse:
        folded = [name.casefold() for name in names]
        human, mouse = (sum(name in table.by_symbol[species] for name in folded) for species in ("human", "mouse"))
    return "mouse" if mouse > human else "human"
