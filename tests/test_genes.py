"""Gene names of all kinds become the same tokens; the report tells what happened to each."""

from __future__ import annotations

import gzip
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stage_sc.pp as pp
from stage_sc.genes import gene_tokens, is_control

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_gene_table.py"


def panel(names: list[str], **columns: list[str]) -> ad.AnnData:
    return ad.AnnData(var=pd.DataFrame(columns, index=pd.Index(names)))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """The table that is shipped, with the tokens of all genes."""
    with files("stage_sc.genes").joinpath("genes.csv.gz").open("rb") as file:
        found = pd.read_csv(file, compression="gzip", dtype=str, keep_default_na=False)
    found["mouse"] = found["gene_id"].str.startswith("ENSMUS")
    found["token"] = found["token"].where(found["token"] != "", found["symbol"].str.casefold())
    return found


def tokens(names: list[str], species: str | None = None, **columns: list[str]) -> list[str]:
    return gene_tokens(panel(names, **columns).var, species)


class TestTokens:
    @pytest.mark.parametrize(
        ("human", "mouse"),
        [
            pytest.param("SLC17A7", "Slc17a7", id="same symbol"),
            pytest.param("TP53", "Trp53", id="other symbol"),
            pytest.param("CA4", "Car4", id="prefix differs"),
            pytest.param("FASLG", "Fasl", id="suffix differs"),
            pytest.param("MYCN", "Mycn", id="name wins over a retrocopy said to be the orthologue"),
            pytest.param("TMSB4X", "Tmsb4x", id="name wins over orthology"),
        ],
    )
    def test_orthologues_share_a_token(self, human, mouse):
        assert tokens([human], "human") == tokens([mouse], "mouse") == [human.casefold()]

    def test_mhc_has_no_one_to_one_orthologues(self):
        assert tokens(["HLA-A", "HLA-B"], "human") == ["hla-a", "hla-b"]
        assert tokens(["H2-K1", "H2-D1"], "mouse") == ["h2-k1", "h2-d1"]

    @pytest.mark.parametrize(
        ("name", "token"),
        [
            *[(name, "slc17a7") for name in ("ENSG00000104888", "ENSG00000104888.10", "ensg00000104888")],
            *[(name, "tp53") for name in ("ENSMUSG00000059552", "ENSMUSG00000059552.14", "trp53", "TRP53")],
            ("ENSG99999999999.3", "ensg99999999999"),  # unknown
            ("HLA.DRA", "hla-dra"),  # as R writes it
            ("AC008080.4", "ac008080.4"),
        ],
    )
    def test_spellings(self, name, token):
        assert tokens([name, "GAD1"], "mouse" if token == "tp53" else None) == [token, "gad1"]

    def test_renamed_genes(self, table):
        """Old names have the token of an official name, and are none themselves."""
        old = "ARNTL BTBD11 C1orf194 C9orf16 CLECL1 CTGF CYR61 NOV WISP1 WISP2 DDX58 FAM19A1 FAM19A2 FAM19A5 FAM49A"
        old = [*old.split(), *"FAM49B HARS MARS WARS FAM213A CASC4 H2AFZ TMEM2 TMEM173".split()]
        official = set(table["symbol"][~table["mouse"]].str.casefold())
        assert not official & {name.casefold() for name in old}
        assert set(tokens(old, "human")) <= official
        assert tokens(["CYR61", "CTGF"]) == tokens(["CCN1", "CCN2"])
        assert tokens(["Cyr61", "Fam19a1"]) == tokens(["Ccn1", "Tafa1"])

    @pytest.mark.parametrize("column", ["gene_ids", "gene_symbols", "Ensembl", "feature_name", "gene_name"])
    def test_columns_are_used_where_names_are_unknown(self, column):
        assert tokens(["1", "2"], **{column: ["Trp53", "ENSMUSG00000070570"]}) == ["tp53", "slc17a7"]

    def test_names_come_before_columns_gene_by_gene(self):
        columns = {"gene_ids": ["ENSG00000104888", "ENSG00000104888", None, np.nan], "note": ["", "", "TP53", "TP53"]}
        names = ["GAD1", "LOC1", "odd", "odder"]
        assert tokens(names, **columns) == ["gad1", "slc17a7", "odd", "odder"]
        reverse = {name: values[::-1] for name, values in columns.items()}
        assert tokens(names[::-1], **reverse) == ["odder", "odd", "slc17a7", "gad1"]


@pytest.mark.parametrize(
    ("names", "species"),
    [
        (["GAD1", "SLC17A7"], "human"),
        (["Gad1", "Slc17a7"], "mouse"),
        (["ENSMUSG00000070570", "x"], "mouse"),
        (["ENSG00000104888", "x"], "human"),
        (["trp53", "car4", "gad1"], "mouse"),
        (["gad1"], "human"),
    ],
)
def test_species(names, species):
    """As guessed; a given one wins."""
    assert pp.match_genes(panel(names)).species == species
    assert pp.match_genes(panel(["GAD1"]), species=species).species == species


class TestMatch:
    def test_report(self):
        names = ["Trp53", "ENSMUSG00000059552.1", "Gad1", "eRNA1", "Blank-3", "Slc17a7"]
        match = pp.match_genes(panel(names), vocabulary=["TP53", "gad1"])
        assert match.table["status"].tolist() == ["ambiguous", "ambiguous", "matched", "missing", "control", "missing"]
        assert match.table.index.tolist() == names
        assert match.table["source"].tolist() == ["var_names", "var_names", "var_names", "", "", "var_names"]
        assert (match.n_genes, match.n_matched) == (6, 3)
        assert match.missing == ["eRNA1", "Slc17a7"]
        assert match.ambiguous == names[:2]
        text = repr(match)
        for part in ("3 of 6 genes", "mouse", "3 symbol", "1 Ensembl id", "missing: 2", "control probes: 1 (Blank-3)"):
            assert part in text

    def test_without_vocabulary_official_genes_match(self, unchanged):
        adata = panel(["GAD1", "eRNA1"], gene_ids=["x", "y"])
        with unchanged(adata):
            assert pp.match_genes(adata).missing == ["eRNA1"]

    def test_repeated_names_are_ambiguous(self):
        with pytest.warns(UserWarning, match="not unique"):
            adata = panel(["GAD1", "GAD1", "PVALB"])
        assert pp.match_genes(adata).ambiguous == ["GAD1", "GAD1"]

    def test_nothing_matches(self):
        with pytest.raises(ValueError, match="2 genes.*2 unknown.*'7157', '2571'.*'gene_ids'"):
            pp.match_genes(panel(["7157", "2571"]))
        with pytest.raises(ValueError, match="1 genes.*1 Ensembl id"):
            pp.match_genes(panel(["ENSG00000104888"]), vocabulary=["gad1"])

    def test_bad_arguments(self):
        with pytest.raises(TypeError, match="AnnData"):
            pp.match_genes(["GAD1"])
        with pytest.raises(TypeError, match="single string"):
            pp.match_genes(panel(["GAD1"]), vocabulary="gad1")
        with pytest.raises(ValueError, match="no genes"):
            pp.match_genes(panel([]))
        with pytest.raises(ValueError, match="'human', 'mouse', got 'rat'"):
            pp.match_genes(panel(["GAD1"]), species="rat")


def test_controls(table):
    names = "NegControlProbe_00042 NegControlCodeword_0500 BLANK_0069 Blank-1 Negative3 NegPrb12 SystemControl4"
    names += " antisense_PROKR2 UnassignedCodeword_0001 DeprecatedCodeword_0001 Intergenic_Region_1 FalseCode7"
    for name in names.split():
        assert is_control(panel([name]).var) == [True], name
    assert not table["symbol"][is_control(table.set_index("symbol"))].tolist()


class TestTable:
    def test_size_and_bytes(self):
        data = files("stage_sc.genes").joinpath("genes.csv.gz").read_bytes()
        assert len(data) < 900_000
        assert data[4:8] == bytes(4)  # no time stamp
        assert gzip.decompress(data).startswith(b"gene_id,symbol,token\n")

    def test_coverage(self, table):
        tokens, mouse = {mouse: set(part["token"]) for mouse, part in table.groupby("mouse")}, table[table["mouse"]]
        assert len(tokens[False]) > 40_000
        assert len(tokens[True]) > 55_000
        assert len(tokens[False] & tokens[True]) > 16_000
        assert mouse["symbol"].str.casefold().groupby(mouse["token"]).nunique().max() == 1  # none is shared

    def test_script(self, tmp_path):
        columns = "Gene stable ID,Gene name,{0} gene name,{0} gene stable ID,{0} homology type\n"
        human = "1,TP53,Trp53,M1,ortholog_one2one 2,MYCN,Mycs,M2,ortholog_one2one 3,GAD1,Gad1,M4,ortholog_one2one 4,,,,"
        mouse = "M1,Trp53,TP53,1,ortholog_one2one M2,Mycs,MYCN,2,ortholog_one2one M3,Mycn,,, "
        mouse += "M4,Gad1,GAD1,3,ortholog_one2one M5,Gm5,A1,,ortholog_one2many"
        paths = [tmp_path / "human.csv", tmp_path / "mouse.csv"]
        for path, other, rows in zip(paths, ("Mouse", "Human"), (human, mouse), strict=True):
            path.write_text(columns.format(other) + "\n".join(rows.split()))
        outs = [tmp_path / "1.csv.gz", tmp_path / "2.csv.gz"]
        for out in outs:
            subprocess.run([sys.executable, SCRIPT, *paths, out], check=True)
        assert outs[0].read_bytes() == outs[1].read_bytes()
        expected = "gene_id,symbol,token 1,TP53, 2,MYCN, 3,GAD1, M1,Trp53,tp53 M2,Mycs, M3,Mycn, M4,Gad1, M5,Gm5,"
        assert gzip.decompress(outs[0].read_bytes()).decode().split() == expected.split()


@pytest.mark.parametrize(
    ("path", "species", "fraction"),
    [
        ("dlpfc_visium/151673", "human", 0.93),
        ("starmap_mpfc/BZ5", "mouse", 0.95),
        ("osmfish_cortex/SScortex", "mouse", 1.0),
        ("xenium_breast_idc/IDC_crop", "human", 0.99),
    ],
)
def test_most_genes_of_real_sections_are_known(dev_data, path, species, fraction):
    match = pp.match_genes(ad.read_h5ad(dev_data / f"{path}.h5ad", backed="r"))
    assert match.species == species
    assert match.n_matched >= fraction * match.n_genes
