"""Names and types of the features in ``adata.var``: which are genes, and where their names are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

# Columns of `adata.var` with gene names.
GENE_COLUMNS = (
    *("gene_ids", "gene_id", "ensembl", "ensembl_id", "ensembl_ids", "feature_id"),
    *("gene_symbols", "gene_symbol", "symbol", "feature_name", "gene_name", "gene_names", "gene_short_name"),
)
# Columns of `adata.var` with types of features, in lower case without separators and plural.
TYPE_COLUMNS = {
    *("featuretype", "genetype", "probetype", "targettype", "type", "codeclas", "codewordcategory", "featureclas"),
    *("featurebiotype", "genebiotype", "biotype", "modality", "modalitie", "analyte", "analytetype", "assay"),
}
# Suffix of columns that `AnnData.concatenate` kept from each object.
OBJECT_SUFFIX = re.compile(r"-\d+$")
# Control probes and codewords of 10x, NanoString, Vizgen and in-house panels, by name or type.
CONTROL = re.compile(
    r"^(neg(ative)?[\s_.-]*(control|ctrl|prb|prob|codeword|\d+$|$)|blank|falsecode|(unassigned|deprecated)[\s_.-]*codeword"
    r"|antisense_|intergenic[\s_.-]*region|(genomic|system|positive|technical)[\s_.-]*(control|ctrl)"
    r"|(control|ctrl)[\s_.-]*(probe|codeword|feature|target|gene)|controls?([\s_.-]*\d+)?$|custom[\s_.-]*neg"
    r"|ercc-\d{5}|ercc$|spike[\s_.-]*ins?\b)",
    re.IGNORECASE,
)
# Types of features that are neither genes nor controls: antibodies, hashtags, guides, open chromatin.
NO_GENE = re.compile(
    r"^(antibod|adts?\b|htos?\b|hashtag|proteins?([\s_.-]*(expression|capture|abundance))?$|crispr|s?grnas?\b|guide"
    r"|multiplexing|peaks?\b|atac|chromatin|vdj)",
    re.IGNORECASE,
)
# Names of antibodies and of open chromatin.
NO_GENE_NAME = re.compile(r"(.*totalseq|chr[\dxym]+[:_-]\d+[-_]\d+$|(hashtag|hto|adt)[\s_.-]?\d*$)", re.IGNORECASE)
# Types of genes; in a column with the first, every feature without the second is none.
GENE_TYPE = re.compile(r"(gene([\s_-]*expression)?s?|gex|m?rna|transcript(s|ome)?|endogenous)$", re.IGNORECASE)
LIKE_GENE = re.compile(r"gene|rna|gex|transcript|endogenous|coding|target|^$", re.IGNORECASE)
UNNAMED = "feature without a name"
MISSING = {"nan", "none", "<na>", "na", "n/a", "null"}


def name_columns(var: pd.DataFrame) -> dict[str, list[str]]:
    """Names of every feature: ``var_names``, then those of `GENE_COLUMNS` that tell features apart."""
    kinds: dict[str, list[str]] = {kind: [] for kind in GENE_COLUMNS}
    names = string_columns(var) | {"var_names": to_strings(var.index)}
    for column in names:
        kinds.setdefault(OBJECT_SUFFIX.sub("", column.casefold()), []).append(column)
    used = ["var_names", *(column for kind in GENE_COLUMNS for column in kinds[kind])]
    return {column: names[column] for column in used if column == "var_names" or not repeats(names[column])}


def repeats(values: list[str]) -> bool:
    """Test for names each of which stands for more than ten features on average."""
    named = [value for value in values if value]
    return 10 * len(set(named)) < len(named)


def string_columns(var: pd.DataFrame) -> dict[str, list[str]]:
    """All columns with text, by their names."""
    columns = ((str(column), var.iloc[:, position]) for position, column in enumerate(var.columns))
    return {
        name: to_strings(values)
        for name, values in columns
        if not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values))
    }


def to_strings(values: Iterable[Any]) -> list[str]:
    """Text of every value, ``""`` for missing ones and for several values in one."""
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif pd.api.types.is_list_like(value):
            return to_strings(value)[0] if len(value) == 1 else ""
        elif pd.isna(value):
            return ""
    text = str(value).strip()
    return "" if text.casefold() in MISSING else text


def feature_types(var: pd.DataFrame) -> list[str]:
    """Type of every feature that is no gene, ``""`` for genes.

    Types come from names in any of `name_columns`, from `TYPE_COLUMNS` and from columns of bools that are named after
    a type, e.g. ``is_control``. A column that leaves no gene is ignored: a panel of proteins alone.
    """
    types = list(map(_type_of_names, zip(*name_columns(var).values(), strict=True)))
    for found in types_by_column(var).values():
        joined = [one or other for one, other in zip(types, found, strict=True)]
        if not all(joined):
            types = joined
    return types


def types_by_column(var: pd.DataFrame) -> dict[str, list[str]]:
    """Type of every feature that is no gene, ``""`` for genes, by each column with types."""
    found = {}
    for position, column in enumerate(map(str, var.columns)):
        values, name = var.iloc[:, position], OBJECT_SUFFIX.sub("", column.casefold())
        if re.sub(r"[\W_]", "", name).removesuffix("s") in TYPE_COLUMNS:
            found[column] = _other_types(to_strings(values))
        elif pd.api.types.is_bool_dtype(values) and _is_other(kind := re.sub(r"^is[\s_.-]*", "", name)):
            found[column] = [kind if value else "" for value in values.fillna(False)]
    return found


def _type_of_names(names: tuple[str, ...]) -> str:
    if any(CONTROL.match(name) for name in names):
        return "control probe"
    if any(NO_GENE_NAME.match(name) for name in names):
        return "antibody or peak"
    return "" if any(names) else UNNAMED


def _other_types(types: list[str]) -> list[str]:
    """Types that are not those of genes; ``""`` for genes."""
    distinct = set(types)
    strict = any(GENE_TYPE.match(value) for value in distinct)
    other = {value for value in distinct if _is_other(value) or (strict and not LIKE_GENE.search(value))}
    return [value if value in other else "" for value in types]


def _is_other(value: str) -> bool:
    return bool(CONTROL.match(value) or NO_GENE.match(value))


def is_control(var: pd.DataFrame) -> list[bool]:
    """Test every feature of ``adata.var`` for one that is no gene, such as a control probe or an antibody."""
    return [kind != "" for kind in feature_types(var)]
