"""Signs in ``adata.var`` that gene names are not read as meant: ids of another species, names in another place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from stage_sc.genes._features import is_control, name_columns, repeats, string_columns, to_strings
from stage_sc.genes._table import Species, is_id, look_up

# Beginning of the ids of genes of other species than human and mouse: Ensembl, FlyBase, WormBase, ZFIN, Xenbase …
OTHER_ID = re.compile(
    r"(ENS(?!MUS)[A-Z]{3,4}[GTP](?=\d{11})|FB(gn|tr)(?=\d{7})|WBGene(?=\d{8})|ZDB-GENE-|XB-?GENE-?(?=\d{6})|RGD:?(?=\d{5})"
    r"|AT[1-5MC]G(?=\d{5}$)|AGAP(?=\d{6})|Y[A-P][LR](?=\d{3}[WC]\b)|NCBITaxon:(?!(?:9606|10090|32630|2697049)$)\d+$)",
    re.IGNORECASE,
)
# Fraction of the genes with ids of a species from which on this is reported.
MIN_SPECIES = 0.05
# Number of names that are tested for parts that are known, and smallest fraction of them that is reported.
N_TESTED, MIN_KNOWN = 1000, 0.2
SEPARATORS = "_|:;/ ,-."
PARTS: dict[str, Callable[[pd.Series, str], pd.Series]] = {
    ".str.rsplit({0!r}, n=1).str[0]": lambda names, sep: names.str.rsplit(sep, n=1).str[0],
    ".str.split({0!r}, n=1).str[-1]": lambda names, sep: names.str.split(sep, n=1).str[-1],
    ".str.split({0!r}).str[0]": lambda names, sep: names.str.split(sep).str[0],
    ".str.split({0!r}).str[1]": lambda names, sep: names.str.split(sep).str[1],
    ".str.split({0!r}).str[-1]": lambda names, sep: names.str.split(sep).str[-1],
}


def other_species(var: pd.DataFrame) -> str:
    """Warn if genes have ids of a species other than human and mouse, and none of these; ``""`` if not."""
    columns = {"`adata.var_names`": to_strings(var.index)}
    columns |= {f"`adata.var[{name!r}]`": values for name, values in string_columns(var).items()}
    counted = np.any(
        [[is_id(name, "ENSG") or is_id(name, "ENSMUSG") for name in names] for names in columns.values()], 0
    )
    prefixes: Counter[tuple[str, str]] = Counter()
    for column, values in columns.items():
        for row, value in enumerate(values):
            if not counted[row] and (found := OTHER_ID.match(value)):
                prefixes[found[0], column] += 1
                counted[row] = True
    if prefixes.total() < max(2, MIN_SPECIES * len(var)):
        return ""
    (prefix, column), _ = prefixes.most_common(1)[0]
    return (
        f"{prefixes.total()} of {len(var)} genes have ids of a species other than human and mouse ({prefix}… in "
        f"{column}): names are read as those of human or mouse orthologues by their spelling alone. Check that equal "
        "names mean orthologues, or translate the ids and put human or mouse names into `adata.var_names`; niches "
        "were learnt from human and mouse tissue."
    )


def two_species(var: pd.DataFrame) -> str:
    """Warn if some genes have human and others mouse ids; ``""`` if not."""
    columns = name_columns(var).values()
    human, mouse = (
        np.any([[is_id(name, prefix) for name in names] for names in columns], axis=0) for prefix in ("ENSG", "ENSMUSG")
    )
    n_human, n_mouse = int((human & ~mouse).sum()), int((mouse & ~human).sum())
    if min(n_human, n_mouse) < max(10, MIN_SPECIES * len(var)):
        return ""
    return (
        f"{n_human} genes have human and {n_mouse} mouse Ensembl ids: counts of orthologues are added up. If the "
        "section is a graft or was aligned to both genomes, keep the genes of one species."
    )


def where_names_are(var: pd.DataFrame, species: Species) -> str:
    """Name the column of ``adata.var``, or the part of joined names, that holds known genes; ``""`` if none."""
    genes = var[[not other for other in is_control(var)]]
    sample = genes.iloc[:: max(1, len(genes) // N_TESTED)]
    used = name_columns(sample)
    best = max([MIN_KNOWN * len(sample), *(_count_known(names, species) for names in used.values())])
    code = ""
    columns = {column: values for column, values in string_columns(sample).items() if not repeats(values)}
    for column, values in (columns | {"var_names": used["var_names"]}).items():
        names = pd.Series(values, dtype=object)
        found = {} if column in used else {"": names}
        for sep in SEPARATORS:
            if names.str.contains(sep, regex=False).mean() > 0.5:
                found |= {part.format(sep): split(names, sep).fillna("") for part, split in PARTS.items()}
        for part, candidates in found.items():
            if (known := _count_known(candidates, species)) > best:
                place = "adata.var_names" if column == "var_names" else f"adata.var[{column!r}].astype(str)"
                best, code = known, place + part
    if not code:
        return ""
    place = "part of the joined names" if ".str." in code else "column"
    return (
        f"Known genes are in another place, {round(100 * best / len(sample))} % of the names in this {place}: "
        f"`adata.var_names = {code}`."
    )


def _count_known(names: Iterable[str], species: Species) -> int:
    return sum(look_up(name, species)[0] != "" for name in names)
