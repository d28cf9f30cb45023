"""Names of antibodies: which features of ``adata.var`` are proteins, and their tokens."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Literal

import pandas as pd

from stage_sc.genes._features import CONTROL, GENE_TYPE, TYPE_COLUMNS, string_columns, to_strings

logger = logging.getLogger("stage_sc.pp")

# Types of features that are proteins.
PROTEIN_TYPE = re.compile(
    r"(antibod|adts?\b|protein[\s_.-]*(expression|capture|abundance|panel)|proteins?$)", re.IGNORECASE
)
# Channels of an instrument that are no antibodies: nuclear stains, empty channels, background.
STAIN = re.compile(
    r"(dna\d*|dapi[\s_.-]*\d*|hoechst[\s_.-]*\d*|draq5|(191|193)?ir(191|193)?(di)?|iridium|(hh3|h3|histone[\s_.-]*h3)"
    r"|empty[\s_.-]*\d*|blank[\s_.-]*\d*|background|autofluorescence|af\d{3}|ruthenium|1(31xe|31i|90bcko|33cs)|"
    r".*isotype.*)$",
    re.IGNORECASE,
)
# Metal tags beside the name of an antibody, e.g. "141Pr_CD38" or "CD38(Pr141Di)".
TAG = re.compile(r"^\d{2,3}[A-Z][a-z][_\s.-]+|[_\s.-]*\(?[A-Z][a-z]\d{2,3}(Di)?\)?$")
# Usual names of antibodies, cleaned, and the symbols of their genes; other names are their own tokens.
SYMBOLS = {
    **{"asma": "acta2", "sma": "acta2", "alphasma": "acta2", "cd3": "cd3e", "cd8": "cd8a", "cd11b": "itgam"},
    **{"cd11c": "itgax", "cd16": "fcgr3a", "cd20": "ms4a1", "cd21": "cr2", "cd31": "pecam1", "cd45": "ptprc"},
    **{"cd56": "ncam1", "cd138": "sdc1", "ecadherin": "cdh1", "ecad": "cdh1", "fibronectin": "fn1"},
    **{"granzymeb": "gzmb", "glucagon": "gcg", "her2": "erbb2", "insulin": "ins", "ki67": "mki67", "pd1": "pdcd1"},
    **{"pdl1": "cd274", "podoplanin": "pdpn", "somatostatin": "sst", "synaptophysin": "syp", "vimentin": "vim"},
    **{"cytokeratin": "panck", "keratin": "panck", "pancytokeratin": "panck", "pankeratin": "panck"},
}
# Largest number of features of a panel of antibodies.
MAX_PROTEINS = 1000


def declared_modality(var: pd.DataFrame) -> tuple[Literal["rna", "protein"], str] | None:
    """Modality that a column of types in ``adata.var`` gives to all features, and its name; ``None`` without one."""
    for column, kinds in _type_columns(var).items():
        named = [kind for kind in kinds if kind and not CONTROL.match(kind)]
        if named and all(PROTEIN_TYPE.match(kind) for kind in named):
            return "protein", column
        if named and all(GENE_TYPE.match(kind) for kind in named):
            return "rna", column
    return None


def protein_tokens(var: pd.DataFrame) -> list[str | None]:
    """Token of every antibody; ``None`` for genes, controls, nuclear stains and empty channels.

    Of data with a column of types that names antibodies, only these are read. A ValueError if the features are genes.
    """
    declared = declared_modality(var)
    if declared and declared[0] == "rna":
        raise ValueError(
            f"The features are genes by `adata.var[{declared[1]!r}]`, but `modality` is 'protein': pass intensities of "
            "antibodies, or label and train these with a model of modality 'rna'."
        )
    chosen = [True] * len(var)
    for kinds in _type_columns(var).values():
        found = [PROTEIN_TYPE.match(kind) is not None for kind in kinds]
        if any(found):
            chosen = found
    names = to_strings(var.index)
    left_out = [name for name, used in zip(names, chosen, strict=True) if used and _is_no_antibody(name)]
    if left_out:
        logger.info("Left out, as they are no antibodies: %s.", ", ".join(left_out))
    tokens = [
        _token(name) if used and not _is_no_antibody(name) else None for name, used in zip(names, chosen, strict=True)
    ]
    n_proteins = sum(token is not None for token in tokens)
    if not n_proteins:
        raise ValueError(f"There are no proteins among the {len(var)} features: {', '.join(names[:5])} …")
    if n_proteins > MAX_PROTEINS:
        raise ValueError(
            f"`modality` is 'protein', but there are {n_proteins} features; panels of antibodies have at most "
            f"{MAX_PROTEINS}. Is this RNA? Then leave out `modality`, and use a model of RNA."
        )
    return tokens


def match_proteins(var: pd.DataFrame, vocabulary: Collection[str]) -> list[str | None]:
    """Tokens of `protein_tokens`; a ValueError if none is in the vocabulary of a model, a warning if most are not."""
    tokens = protein_tokens(var)
    proteins = [token for token in tokens if token is not None]
    n_known = sum(token in vocabulary for token in proteins)
    if not n_known:
        raise ValueError(
            f"The model knows none of the {len(proteins)} proteins ({', '.join(proteins[:5])} …): it was trained on "
            f"{', '.join(sorted(vocabulary)[:5])} … Rename the features, or train on this data: "
            '`st.tl.fit(adata, modality="protein")`.'
        )
    if n_known < 0.5 * len(proteins):
        logger.warning(
            "The model knows only %d of the %d proteins: niches may be coarse or wrong. Check the names in "
            '`adata.var_names`, or train on this data: `st.tl.fit(adata, modality="protein")`.',
            *(n_known, len(proteins)),
        )
    return tokens


def refuse_proteins(var: pd.DataFrame) -> None:
    """Raise a ValueError if the features are proteins by a column of types, where genes are needed."""
    declared = declared_modality(var)
    if declared and declared[0] == "protein":
        raise ValueError(
            f"The features are proteins by `adata.var[{declared[1]!r}]`, but the model is one of RNA. Train one of "
            'proteins, `model = st.tl.fit(adata, modality="protein")` (with `epochs=0` in seconds, for domains), and '
            "pass it as `model`."
        )


def _type_columns(var: pd.DataFrame) -> dict[str, list[str]]:
    """Columns of text with types of features."""
    return {
        column: values
        for column, values in string_columns(var).items()
        if re.sub(r"[\W_]", "", column.casefold()).removesuffix("s") in TYPE_COLUMNS
    }


def _is_no_antibody(name: str) -> bool:
    return not name or bool(CONTROL.match(name) or STAIN.match(TAG.sub("", name)) or STAIN.match(name))


def _token(name: str) -> str:
    cleaned = re.sub(r"[\s_.-]", "", TAG.sub("", name)).casefold().replace("α", "alpha") or name.casefold()
    return SYMBOLS.get(cleaned, cleaned)
