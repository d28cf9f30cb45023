"""Evidence about genes and values is used: other species, features that are no genes, kinds of values, damage."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st
from stage_sc.slides._values import Values

SYMBOLS = ["Gad1", "Gad2", "Slc17a7", "Aqp4", "Mbp", "Gfap", "Pvalb", "Sst", "Vip", "Cux2", "Trp53", "Snap25"]


def panel(names: list[object], **columns: list[object]) -> ad.AnnData:
    var = pd.DataFrame(columns, index=pd.Index(names, dtype=object))
    return ad.AnnData(sp.csr_matrix((2, len(names)), dtype=np.float32), var=var)


class TestSpecies:
    @pytest.mark.parametrize(
        "prefix", ["ENSDARG{:011}", "ENSGALG{:011}.2", "FBgn{:07}", "WBGene{:08}", "ENSRNOG{:011}"]
    )
    @pytest.mark.parametrize("column", ["gene_ids", "accession", None])
    def test_other_species(self, prefix, column, caplog):
        ids = [prefix.format(number) for number in range(12)]
        adata = panel(SYMBOLS, **{column: ids}) if column else panel(ids, gene_symbols=SYMBOLS)
        assert st.pp.match_genes(adata).n_matched == 12
        (record,) = caplog.records
        assert "12 of 12 genes have ids of a species" in record.getMessage()
        assert prefix[: prefix.index("{")] in record.getMessage()

    def test_nothing_is_said_of_human_and_mouse(self, caplog):
        ids = [f"ENSMUSG{number:011}" for number in range(12)]
        st.pp.match_genes(panel(SYMBOLS, gene_ids=ids, fish=[f"ENSDARG{number:011}" for number in range(12)]))
        st.pp.match_genes(panel([name.upper() for name in SYMBOLS]))
        assert not caplog.records

    def test_two_species(self, caplog):
        ids = [f"ENSG{number:011}" for number in range(12)] + [f"ENSMUSG{number:011}" for number in range(12)]
        st.pp.match_genes(panel([name.upper() for name in SYMBOLS] + SYMBOLS, gene_ids=ids))
        assert "12 genes have human and 12 mouse" in caplog.text


class TestFeatures:
    @pytest.mark.parametrize(
        ("column", "gene", "other", "status"),
        [
            ("feature_types", "Gene Expression", "Antibody Capture", "other"),
            ("feature_types-0", "Gene Expression", "Custom", "other"),
            ("modality", "rna", "prot", "other"),
            ("feature_type", "Gene Expression", "Negative Control Codeword", "control"),
            ("CodeClass", "Endogenous", "Negative", "control"),
            ("codeword_category", "predesigned_gene", "unassigned_codeword", "control"),
            ("feature_biotype", "gene", "spike-in", "control"),
            ("is_control", False, True, "control"),
        ],
    )
    def test_one_rule_for_columns_of_types(self, column, gene, other, status, caplog):
        adata = panel([*SYMBOLS, "CD4", "x"], **{column: [gene] * 12 + [other] * 2})
        adata.X = sp.csr_matrix(np.ones(adata.shape, np.float32))
        with caplog.at_level(logging.INFO, "stage_sc"):
            assert st.pp.match_genes(adata).table["status"].tolist() == ["matched"] * 12 + [status] * 2
        assert "no genes: 2 " in caplog.text
        assert st.pp.filter_genes(adata) == 2

    @pytest.mark.parametrize("column", ["gene_symbols", "gene_ids", "feature_name"])
    def test_names_of_probes_in_a_column(self, column):
        match = st.pp.match_genes(panel(list("abcdefghijklm"), **{column: [*SYMBOLS, "NegControlProbe_1"]}))
        assert match.table["status"].tolist() == ["matched"] * 12 + ["control"]

    def test_biotypes_are_genes(self):
        kinds = ["protein_coding", "lncRNA", "TEC", "IG_C_gene", "Mt_tRNA", "processed_pseudogene"] * 2
        assert st.pp.match_genes(panel(SYMBOLS, gene_type=kinds)).n_matched == 12

    def test_proteins_alone_are_read(self, caplog):
        assert st.pp.match_genes(panel(SYMBOLS, feature_types=["Antibody Capture"] * 12)).n_matched == 12
        assert "'feature_types'" in caplog.text

    def test_antibodies_change_nothing(self, tissue, small_model):
        proteins = np.random.default_rng(0).poisson(3000, (tissue.n_obs, 3)).astype(np.float32)
        both = ad.AnnData(
            sp.hstack([tissue.X, sp.csr_matrix(proteins)]).tocsr(),
            tissue.obs,
            pd.DataFrame(
                {"feature_types": ["Gene Expression"] * tissue.n_vars + ["Antibody Capture"] * 3},
                index=[*tissue.var_names, *tissue.var_names[:3]],
            ),
            **{name: dict(getattr(tissue, name)) for name in ("obsm", "obsp", "uns")},
        )
        st.tl.stage_niches(both, model=small_model)
        expected = st.tl.stage_niches(tissue, model=small_model, copy=True)
        assert both.obs["stage_path"].tolist() == expected.obs["stage_path"].tolist()


class TestNames:
    NUMBERS = [str(number) for number in range(12)]

    @pytest.mark.parametrize(
        ("names", "columns", "code"),
        [
            (NUMBERS, {"gene": SYMBOLS}, "adata.var['gene'].astype(str)"),
            (
                [f"{name}_ENSMUSG{i:011}" for i, name in enumerate(SYMBOLS)],
                {},
                "adata.var_names.str.rsplit('_', n=1).str[0]",
            ),
            ([f"mm10-{name}" for name in SYMBOLS], {}, "adata.var_names.str.split('-', n=1).str[-1]"),
            ([f"{name}.1" for name in SYMBOLS], {}, "adata.var_names.str.rsplit('.', n=1).str[0]"),
            (NUMBERS, {"id": [f"x|{name}|y" for name in SYMBOLS]}, "adata.var['id'].astype(str).str.split('|').str[1]"),
        ],
    )
    def test_where_known_genes_are(self, names, columns, code):
        adata = panel(names, **columns)
        with pytest.raises(ValueError, match="Known genes are in another place") as raised:
            st.pp.match_genes(adata)
        assert f"`adata.var_names = {code}`" in str(raised.value)
        adata.var_names = eval(code, {"adata": adata})
        assert st.pp.match_genes(adata).n_matched == 12

    def test_training_on_unknown_names_warns(self, tissue, small_config, caplog):
        adata = tissue.copy()
        adata.var["gene"] = list(adata.var_names)
        adata.var_names = [f"f{number}" for number in range(adata.n_vars)]
        st.tl.fit(adata, config=small_config, epochs=0, progress=False)
        assert "adata.var['gene']" in caplog.text

    def test_odd_values(self, caplog):
        match = st.pp.match_genes(panel([*SYMBOLS[:9], np.nan, None, ""], gene_ids=[["a", "b"]] * 12))
        assert match.table["status"].tolist() == ["matched"] * 9 + ["other"] * 3
        assert "3 features have no name" in caplog.text
        assert st.pp.match_genes(panel(self.NUMBERS, gene_ids=[[name] for name in SYMBOLS])).n_matched == 12
        assert st.pp.match_genes(panel(self.NUMBERS, gene_name=[name.encode() for name in SYMBOLS])).n_matched == 12
        with pytest.raises(ValueError, match="None of the 12 genes"):  # one id for all tells nothing
            st.pp.match_genes(panel(self.NUMBERS, gene_ids=["ENSG00000104888"] * 12))


def to_total(counts: np.ndarray, total: float) -> np.ndarray:
    return counts / counts.sum(axis=1, keepdims=True) * total


def corrected(counts: np.ndarray) -> np.ndarray:
    return np.maximum(counts - 0.6 * np.random.default_rng(1).random(counts.shape), 0)


class TestKinds:
    @pytest.mark.parametrize(
        ("change", "logged"),
        [
            (lambda x: 0.7 * x, False),
            (lambda x: x * np.random.default_rng(1).lognormal(-6, 0.7, (len(x), 1)), False),
            (lambda x: to_total(x, 10), False),
            (corrected, False),
            (lambda x: np.where(np.arange(len(x))[:, None] % 3, x, corrected(x)), False),
            (np.log1p, True),
            (lambda x: np.log1p(to_total(x, 1e4)), True),
            (lambda x: np.log2(1 + to_total(x, 100)), True),
            (lambda x: np.log10(1 + to_total(x, 1e6)), True),
            (lambda x: np.log1p(corrected(to_total(x, 100))), True),
        ],
    )
    def test_logged_or_linear(self, change, logged, caplog):
        """For counts of cells of different size, none above 24."""
        rng = np.random.default_rng(0)
        counts = np.minimum(rng.poisson(rng.gamma(0.5, 2, 40) * rng.lognormal(0, 0.7, (300, 1))), 24).astype(float)
        counts[counts.sum(axis=1) == 0, 0] = 1
        values = Values("one")
        values.add(sp.csr_matrix(change(counts), dtype=np.float32))
        assert (values.factors() is None) == logged
        assert caplog.records[-1].getMessage().startswith("Slide 'one': ")

    def test_layers_with_counts_are_named(self, tissue, small_model, caplog):
        adata = tissue.copy()
        adata.X = np.log1p(adata.X)
        st.tl.stage_niches(adata.copy(), model=small_model)
        assert "layer=" not in caplog.text
        adata.layers["umi"] = tissue.X.copy()
        st.tl.stage_niches(adata, model=small_model)
        assert "`layer='umi'`" in caplog.text

    def test_raw_is_named(self, tissue, small_model):
        adata = tissue.copy()
        adata.raw = tissue.copy()
        adata.X = adata.X.toarray() - 1
        for function, arguments in ((st.pp.filter_genes, {}), (st.tl.stage_niches, {"model": small_model})):
            with pytest.raises(ValueError, match=r"adata\.raw\[:, adata\.var_names\]\.X.*layer='counts'"):
                function(adata, **arguments)
        adata.layers["counts"] = adata.raw[:, adata.var_names].X
        st.tl.stage_niches(adata, model=small_model, layer="counts")
        adata.raw, adata.layers = None, {}
        with pytest.raises(ValueError, match="neither"):
            st.pp.filter_genes(adata)


def out_of_range(X: sp.csr_matrix) -> None:
    X.indices[100] = 10**6


def negative_index(X: sp.csr_matrix) -> None:
    X.indices[3] = -1


def falling(X: sp.csr_matrix) -> None:
    X.indptr[5] = X.indptr[6] + 3


class TestRefused:
    @pytest.mark.parametrize("damage", [out_of_range, negative_index, falling])
    @pytest.mark.parametrize("form", ["csr", "csc"])
    def test_damaged_matrices(self, tissue, small_model, damage, form):
        adata = tissue.copy()
        X = adata.X.asformat(form).copy()
        damage(X)
        adata.X = X
        for function, arguments in ((st.pp.filter_genes, {}), (st.tl.stage_niches, {"model": small_model})):
            with pytest.raises(ValueError, match=f"The expression, a {form} matrix .* is damaged"):
                function(adata, **arguments)

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            (lambda X: X.astype(complex), TypeError, "dtype complex128"),
            (lambda X: X.astype(object), TypeError, "dtype object"),
            (lambda X: X.astype("datetime64[s]"), TypeError, "dtype datetime64"),
            (lambda X: X.astype(str), TypeError, "dtype <U"),
            (lambda X: X.astype(np.uint32) - np.uint32(1), ValueError, "overflow"),
            (lambda X: X.astype(np.float64) * 1e39, ValueError, "infinite"),
            (lambda X: np.ma.masked_array(X, mask=X > 3), ValueError, "masked values"),
        ],
    )
    def test_other_numbers(self, tissue, small_model, change, error, match):
        adata = tissue.copy()
        adata.layers["odd"] = change(adata.X.toarray())
        for function, arguments in ((st.pp.filter_genes, {}), (st.tl.stage_niches, {"model": small_model})):
            with pytest.raises(error, match=match):
                function(adata, layer="odd", **arguments)
