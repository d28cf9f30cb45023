"""Gene names of any panel as tokens shared by all panels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_choice
from stage_sc._input import check_anndata

Species = Literal["human", "mouse"]

# Columns of `adata.var` with gene names.
GENE_COLUMNS = (
    *("gene_ids", "gene_id", "ensembl", "ensembl_id", "ensembl_ids", "feature_id"),
    *("gene_symbols", "gene_symbol", "symbol", "feature_name", "gene_name", "gene_names", "gene_short_name"),
)
# Control probes and codewords of 10x, NanoString, Vizgen and in-house panels.
CONTROL = re.compile(
    r"^(neg(ative)?[\s_.-]*(control|ctrl|prb|prob|codeword|\d+$)|blank|systemcontrol|falsecode|unassigned[\s_.-]*codeword"
    r"|deprecated[\s_.-]*codeword|antisense_|intergenic_region|genomic[\s_.-]*control|custom[\s_.-]*neg)",
    re.IGNORECASE,
)
# Symbols of common panels that were renamed since -> official symbol (HGNC); the mouse orthologues changed too.
RENAMED = {
    **{"arntl": "bmal1", "btbd11": "abtb3", "c1orf194": "cfap276", "c9orf16": "bbln", "clecl1": "clecl1p"},
    **{"ctgf": "ccn2", "cyr61": "ccn1", "nov": "ccn3", "wisp1": "ccn4", "wisp2": "ccn5", "ddx58": "rigi"},
    **{"fam19a1": "tafa1", "fam19a2": "tafa2", "fam19a5": "tafa5", "fam49a": "cyria", "fam49b": "cyrib"},
    **{"hars": "hars1", "mars": "mars1", "wars": "wars1", "fam213a": "prxl2a"},
    **{"casc4": "golm2", "h2afz": "h2az1", "tmem2": "cemip2", "tmem173": "sting1"},
}
# Ensembl id, without version and pseudo-autosomal suffix.
ENSEMBL = re.compile(r"^(ENS(?:MUS)?G\d{11})(?:\.\d+)?(?:_PAR_Y)?$", re.IGNORECASE)


class GeneTable(NamedTuple):
    """Look-ups of the shipped table."""

    by_id: dict[str, str]
    """Ensembl id without version -> token."""
    by_symbol: dict[Species, dict[str, str]]
    """Case-folded symbol -> token."""
    symbols: dict[Species, frozenset[str]]
    """Symbols in their official case."""


@dataclass(frozen=True)
class GeneMatch:
    """Genes of the data in the vocabulary, from `match_genes`."""

    table: pd.DataFrame
    """One row per gene, in the order of ``adata.var_names``: ``token``, ``source`` (``"var_names"`` or column of
    ``adata.var``) and ``status``: "matched", "ambiguous" (several genes share the token), "missing" or "control"."""
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
        for title, status in (("missing", "missing"), ("ambiguous", "ambiguous"), ("control probes", "control")):
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
    if isinstance(vocabulary, str):
        raise TypeError("`vocabulary` must be a collection of tokens, got a single string.")
    match = _read_names(adata.var, species)
    tokens = match.table["token"].tolist()
    vocabulary = load_gene_table().by_id.values() if vocabulary is None else vocabulary
    known = {str(token).casefold() for token in vocabulary}
    uses = Counter(tokens)
    status = np.where([uses[token] > 1 for token in tokens], "ambiguous", "matched").astype(object)
    status[[token not in known for token in tokens]] = "missing"
    status[is_control(adata.var)] = "control"
    match.table["status"] = status.tolist()
    if not match.n_matched:
        raise ValueError(
            f"None of the {adata.n_vars} genes is in the vocabulary of {len(known)} genes. Names: "
            f"{_count_text(match.kinds)}; `adata.var_names` starts with {', '.join(map(repr, adata.var_names[:5]))}. "
            "Expected are human or mouse symbols or Ensembl ids, also in `adata.var['gene_ids']` or ['gene_symbols']."
        )
    return match


def gene_tokens(var: pd.DataFrame, species: Species | None = None) -> list[str]:
    """Token of every gene of ``adata.var``; for unknown genes their case-folded name."""
    return _read_names(var, species).table["token"].tolist()


def is_control(var: pd.DataFrame) -> list[bool]:
    """Test every name of ``adata.var`` for a control probe."""
    return [CONTROL.match(name) is not None for name in _strings(var.index)]


def _count_text(kinds: dict[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)


def _read_names(var: pd.DataFrame, species: Species | None) -> GeneMatch:
    """First known name of every gene, in `var_names`, then in the columns; without the status."""
    if species is not None:
        check_choice(species, "species", ("human", "mouse"))
    columns = {str(column).casefold(): column for column in var.columns}
    names = {"var_names": _strings(var.index)}
    names |= {columns[key]: _strings(var[columns[key]]) for key in GENE_COLUMNS if key in columns}
    species = species or _guess_species(names.values())
    rows, kinds = [], {"symbol": 0, "Ensembl id": 0, "unknown": 0}
    for row in zip(*names.values(), strict=True):
        hits = ((*_look_up(name, species), str(source)) for source, name in zip(names, row, strict=True))
        unknown = ENSEMBL.sub(r"\1", row[0]).casefold(), "unknown", ""
        token, kind, source = next((hit for hit in hits if hit[0]), unknown)
        rows.append((token, source))
        kinds[kind] += 1
    return GeneMatch(pd.DataFrame(rows, pd.Index(var.index, name="gene"), ["token", "source"]), species, kinds)


def _strings(values: pd.Index | pd.Series) -> list[str]:
    return ["" if pd.isna(value) else str(value).strip() for value in values]


def _look_up(name: str, species: Species) -> tuple[str, str]:
    """Token (``""``: unknown) and kind of one name."""
    table = load_gene_table()
    if ensembl := ENSEMBL.match(name):
        return table.by_id.get(ensembl[1].upper(), ""), "Ensembl id"
    symbol = name.casefold()
    for spelling in (symbol, RENAMED.get(symbol), symbol.replace(".", "-")):  # HLA.A in R
        for known in (table.by_symbol[species], *table.by_symbol.values()):
            if spelling in known:
                return known[spelling], "symbol"
    return "", "symbol"


def _guess_species(sources: Iterable[Sequence[str]]) -> Species:
    """Majority of Ensembl prefixes and of symbols in human or mouse case; in a tie, of symbols in any case."""
    table = load_gene_table()
    names = [name for source in sources for name in source]
    human = sum(name[:4].upper() == "ENSG" or name in table.symbols["human"] for name in names)
    mouse = sum(name[:7].upper() == "ENSMUSG" or name in table.symbols["mouse"] for name in names)
    if human == mouse:
        folded = [name.casefold() for name in names]
        human, mouse = (sum(name in table.by_symbol[species] for name in folded) for species in ("human", "mouse"))
    return "mouse" if mouse > human else "human"


@cache
def load_gene_table() -> GeneTable:
    """Read the shipped table (0.2 s, cached)."""
    with files("stage_sc.genes").joinpath("genes.csv.gz").open("rb") as file:
        table = pd.read_csv(file, compression="gzip", dtype=str, keep_default_na=False)
    folded = table["symbol"].str.casefold()
    token = table["token"].where(table["token"] != "", folded)
    mouse = table["gene_id"].str.startswith("ENSMUS")
    parts: dict[Species, pd.Series] = {"human": ~mouse, "mouse": mouse}
    return GeneTable(
        dict(zip(table["gene_id"], token, strict=True)),
        {name: dict(zip(folded[rows], token[rows], strict=True)) for name, rows in parts.items()},
        {name: frozenset(table.loc[rows, "symbol"]) for name, rows in parts.items()},
    )
