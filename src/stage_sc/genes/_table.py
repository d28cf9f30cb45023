"""The shipped table of human and mouse genes: names and tokens."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import pandas as pd

Species = Literal["human", "mouse"]

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


def look_up(name: str, species: Species) -> tuple[str, str]:
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


def is_id(name: str, prefix: str) -> bool:
    """Test for an Ensembl id by its beginning, ``"ENSG"`` or ``"ENSMUSG"``."""
    return name[: len(prefix)].upper() == prefix and name[len(prefix) : len(prefix) + 1].isdigit()


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
