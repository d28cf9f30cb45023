"""From the gene names of any panel to tokens that all panels share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import pandas as pd
from anndata import AnnData

from stage_sc._checks import check_choice
from stage_sc._input import check_anndata

Species = Literal["human", "mouse"]

# Columns of `adata.var` in which people keep the names that are not in `var_names`.
GENE_COLUMNS = (
    *("gene_ids", "gene_id", "ensembl", "ensembl_id", "ensembl_ids", "feature_id"),
    *("gene_symbols", "gene_symbol", "symbol", "feature_name", "gene_name", "gene_names", "gene_short_name"),
)
# Probes and codewords that measure the instrument, not a gene (10x, NanoString, Vizgen and in-house names).
CONTROL = re.compile(
    r"^(neg(ative)?[\s_.-]*(control|ctrl|prb|prob|codeword|\d+$)|blank|systemcontrol|falsecode|unassigned[\s_.-]*codeword"
    r"|deprecated[\s_.-]*codeword|antisense_|intergenic_region|genomic[\s_.-]*control|custom[\s_.-]*neg)",
    re.IGNORECASE,
)
# Renamed genes of common panels: symbols that were official when the panels were designed -> official now (HGNC). The
# orthologues of the mouse changed with them.
RENAMED = {
    **{"arntl": "bmal1", "btbd11": "abtb3", "c1orf194": "cfap276", "c9orf16": "bbln", "clecl1": "clecl1p"},
    **{"ctgf": "ccn2", "cyr61": "ccn1", "nov": "ccn3", "wisp1": "ccn4", "wisp2": "ccn5", "ddx58": "rigi"},
    **{"fam19a1": "tafa1", "fam19a2": "tafa2", "fam19a5": "tafa5", "fam49a": "cyria", "fam49b": "cyrib"},
    **{"hars": "hars1", "mars": "mars1", "wars": "wars1", "fam213a": "prxl2a"},
    **{"casc4": "golm2", "h2afz": "h2az1", "tmem2": "cemip2", "tmem173": "sting1"},
}
# Version and pseudo-autosomal suffix do not belong to the identity of a gene.
ENSEMBL = re.compile(r"^(ENS(?:MUS)?G\d{11})(?:\.\d+)?(?:_PAR_Y)?$", re.IGNORECASE)


class GeneTable(NamedTuple):
    """The shipped table as look-ups."""

    by_id: dict[str, str]
    """Ensembl id without version -> token."""
    by_symbol: dict[Species, dict[str, str]]
    """Case-folded symbol -> token."""
    symbols: dict[Species, frozenset[str]]
    """Symbols as they are written."""


@dataclass(frozen=True)
class GeneMatch:
    """Which genes of the data the vocabulary knows; made by `match_genes`."""

    table: pd.DataFrame
    """One row per gene, in the order of ``adata.var_names``: ``token``, ``source`` (where the name was found) and
    ``status``: "matched", "ambiguous" (in the vocabulary, but several genes share the token), "missing" or "control"
    (a control probe, no gene)."""
    species: Species
    """Guessed, unless it was given."""
    kinds: dict[str, int] = field(repr=False)
    """Number of names by kind: "symbol" (known), "Ensembl id", "unknown"."""

    @property
    def n_genes(self) -> int:
        """Genes of the data."""
        return len(self.table)

    @property
    def n_matched(self) -> int:
        """Genes in the vocabulary, ambiguous ones included."""
        return int(self.table["status"].isin(["matched", "ambiguous"]).sum())

    @property
    def missing(self) -> list[str]:
        """Genes that are not in the vocabulary."""
        return self.table.index[self.table["status"] == "missing"].tolist()

    @property
    def ambiguous(self) -> list[str]:
        """Genes that share their token with another gene of the data."""
        return self.table.index[self.table["status"] == "ambiguous"].tolist()

    def __repr__(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.kinds.items() if number)
        lines = [
            f"GeneMatch: {self.n_matched} of {self.n_genes} genes are in the vocabulary "
            f"({100 * self.n_matched / self.n_genes:.0f} %)",
            f"  species: {self.species}; names: {kinds}",
        ]
        control = self.table.index[self.table["status"] == "control"].tolist()
        for what, genes in (("missing", self.missing), ("ambiguous", self.ambiguous), ("control probes", control)):
            if genes:
                shown = ", ".join(genes[:8]) + (", …" if len(genes) > 8 else "")
                lines.append(f"  {what}: {len(genes)} ({shown})")
        return "\n".join(lines)


def match_genes(
    adata: AnnData, *, vocabulary: Iterable[str] | None = None, species: Species | None = None
) -> GeneMatch:
    """Find the genes of the data in a vocabulary, whatever their names are.

    Symbols (in any case) and Ensembl ids (with or without version) of human and mouse are understood. They are looked
    up in ``adata.var_names``, and where a name is not known there, in the usual columns of ``adata.var``
    (``gene_ids``, ``gene_symbols``, ``feature_name`` …). Human and mouse one-to-one orthologues are the same gene here:
    both have the case-folded human symbol as their token.

    Parameters
    ----------
    adata
        Data; only ``adata.var`` is read.
    vocabulary
        Tokens that a model knows. ``None``: all human and mouse genes that have an official symbol.
    species
        Decides how symbols are read. ``None``: guessed from the Ensembl ids and from the writing of the symbols. Pass
        it for a handful of genes whose names are all upper or all lower case.

    Returns
    -------
    Report with a table of all genes; printing it gives a summary.

    Raises
    ------
    TypeError
        If `adata` is no AnnData or `vocabulary` a single string.
    ValueError
        If not a single gene is in the vocabulary; the message says what kind of names was found.

    Notes
    -----
    Where several genes of the data share a token (two Ensembl ids with one symbol, or a name that occurs twice), models
    use the sum of their expression; they are reported as "ambiguous". The table comes from Ensembl BioMart
    (``scripts/make_gene_table.py``). Of old
    names that are not official symbols any more, only those common in panels are known.

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
    names = _read_names(adata.var, species)
    known = _all_tokens() if vocabulary is None else {str(token).casefold() for token in vocabulary}
    uses = Counter(names.tokens)
    status = [
        "missing" if token not in known else "ambiguous" if uses[token] > 1 else "matched" for token in names.tokens
    ]
    status = ["control" if control else value for control, value in zip(is_control(adata.var), status, strict=True)]
    table = pd.DataFrame(
        {"token": names.tokens, "source": names.sources, "status": status}, index=pd.Index(adata.var_names, name="gene")
    )
    if not {"matched", "ambiguous"} & set(status):
        examples = ", ".join(map(repr, adata.var_names[:5]))
        kinds = ", ".join(f"{number} {kind}" for kind, number in names.kinds.items() if number)
        raise ValueError(
            f"None of the {adata.n_vars} genes is in the vocabulary of {len(known)} genes. Names seen: {kinds}; "
            f"`adata.var_names` begins with {examples}. Expected are human or mouse gene symbols or Ensembl gene ids, "
            "in `adata.var_names` or in a column of `adata.var` such as 'gene_ids' or 'gene_symbols'."
        )
    return GeneMatch(table, names.species, names.kinds)


def gene_tokens(var: pd.DataFrame, species: Species | None = None) -> list[str]:
    """Token of every gene of ``adata.var``, in its order; unknown genes have their case-folded name.

    Parameters
    ----------
    var
        Genes, see `match_genes`.
    species
        See `match_genes`.
    """
    return _read_names(var, species).tokens


def is_control(var: pd.DataFrame) -> list[bool]:
    """Whether each name of ``adata.var`` is that of a control probe, which belongs to no vocabulary."""
    return [CONTROL.match(name) is not None for name in _strings(var.index)]


class _Names(NamedTuple):
    tokens: list[str]
    sources: list[str]
    species: Species
    kinds: dict[str, int]


def _read_names(var: pd.DataFrame, species: Species | None) -> _Names:
    """For every gene the first name, in `var_names` and then in the columns, that the table knows."""
    if species is not None:
        check_choice(species, "species", ("human", "mouse"))
    columns = {str(column).casefold(): column for column in var.columns}
    names = {"var_names": _strings(var.index)}
    names |= {columns[key]: _strings(var[columns[key]]) for key in GENE_COLUMNS if key in columns}
    species = species or _guess_species(names.values())
    tokens = [ENSEMBL.sub(r"\1", name).casefold() for name in names["var_names"]]
    sources = [""] * len(tokens)
    kinds = {"symbol": 0, "Ensembl id": 0, "unknown": 0}
    for position in range(len(tokens)):
        for source, column in names.items():
            token, kind = _look_up(column[position], species)
            if token is not None:
                tokens[position], sources[position] = token, str(source)
                kinds[kind] += 1
                break
        else:
            kinds["unknown"] += 1
    return _Names(tokens, sources, species, kinds)


def _strings(values: pd.Index | pd.Series) -> list[str]:
    return ["" if pd.isna(value) else str(value).strip() for value in values]


def _look_up(name: str, species: Species) -> tuple[str | None, str]:
    """Token and kind of one name; the token is ``None`` where no table knows it."""
    table = load_gene_table()
    if ensembl := ENSEMBL.match(name):
        return table.by_id.get(ensembl[1].upper()), "Ensembl id"
    symbol = name.casefold()
    for spelling in (symbol, RENAMED.get(symbol), symbol.replace(".", "-")):  # R writes HLA-A as HLA.A
        for known in (table.by_symbol[species], table.by_symbol["mouse" if species == "human" else "human"]):
            if spelling in known:
                return known[spelling], "symbol"
    return None, "symbol"


def _guess_species(sources: Iterable[Sequence[str]]) -> Species:
    """Count Ensembl prefixes and symbols written the human or the mouse way; without any, known symbols in any case."""
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
    """Read the shipped table (0.2 s, once)."""
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


@cache
def _all_tokens() -> frozenset[str]:
    return frozenset(load_gene_table().by_id.values())
