"""Filters remove what they say, and nothing else."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc.pp as pp


def section(n: int = 400) -> ad.AnnData:
    """Gene ``g<k>`` is seen in exactly k cells."""
    seen = [0, 3, 4, 49, 50, n]
    counts = (np.arange(n)[:, None] < seen).astype(np.float32) * 2
    adata = ad.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=[f"g{number}" for number in seen]))
    adata.obs_names = [f"c{number}" for number in range(n)]
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 100, (n, 2))
    return adata


class TestGenes:
    @pytest.mark.parametrize(
        ("n", "arguments", "kept"),
        [
            pytest.param(400, {}, ["g4", "g49", "g50", "g400"], id="1 % of the cells"),
            pytest.param(10_000, {}, ["g50", "g10000"], id="50 cells"),
            pytest.param(400, {"min_cells": 1}, ["g3", "g4", "g49", "g50", "g400"], id="one cell"),
        ],
    )
    @pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, lambda x: x.toarray(), lambda x: x.astype(int)])
    def test_threshold(self, n, arguments, kept, convert):
        adata = section(n)
        adata.X = convert(adata.X)
        assert pp.filter_genes(adata, **arguments) == 6 - len(kept)
        assert adata.var_names.tolist() == kept
        assert adata.shape == (n, len(kept))

    def test_stored_zeros_are_not_seen(self):
        adata = section()
        adata.X[300:, 5] = 0
        adata.X = adata.X.tocsr()
        assert adata.X.nnz > adata.X.count_nonzero()
        adata.X[4:, 4] = 0
        pp.filter_genes(adata, min_cells=5)
        assert adata.var_names.tolist() == ["g4", "g49", "g50", "g400"]

    def test_control_probes_go_and_copy(self):
        adata = section()
        adata.var_names = ["a", "b", "c", "d", "e", "NegControlProbe_1"]
        assert pp.filter_genes(adata, copy=True).var_names.tolist() == ["c", "d", "e"]
        assert adata.n_vars == 6
        assert pp.filter_genes(adata) == 3
        assert adata.var_names.tolist() == ["c", "d", "e"]

    def test_layer(self):
        adata = section()
        adata.layers["raw"] = adata.X.copy()
        adata.X = np.ones(adata.shape)
        assert pp.filter_genes(adata.copy()) == 0
        assert pp.filter_genes(adata, layer="raw") == 2
        with pytest.raises(KeyError, match="'raw'"):
            pp.filter_genes(adata, layer="counts")

    def test_refusals(self):
        adata = section()
        adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
        with pytest.raises(ValueError, match="6 genes.* 4 of 400 cells"):
            pp.filter_genes(adata)
        with pytest.raises(TypeError, match="`min_cells`"):
            pp.filter_genes(adata, min_cells=0.5)
        assert adata.n_vars == 6


class TestCells:
    def test_removes_cells_without_a_place_and_keeps_empty_ones(self):
        adata = section()
        adata.obsm["spatial"][[3, 7], 0] = [np.nan, np.inf]
        assert adata.X[:, :5].sum(axis=1).min() == 0
        for removed in (2, 0):  # nothing the second time
            assert pp.filter_cells(adata) == removed
            assert adata.n_obs == 398
        assert not {"c3", "c7"} & set(adata.obs_names)
        pp.build_graph(adata)

    def test_copy_of_a_frame(self):
        adata = section()
        frame = pd.DataFrame(adata.obsm["spatial"], index=adata.obs_names, columns=["x", "y"])
        frame.iloc[0, 1] = np.nan
        adata.obsm["spatial"] = frame
        assert pp.filter_cells(adata, copy=True).n_obs == 399
        assert adata.n_obs == 400

    def test_refusals(self, tmp_path):
        adata = section()
        with pytest.raises(KeyError, match="'xy'.*'spatial'"):
            pp.filter_cells(adata, spatial_key="xy")
        adata.write_h5ad(tmp_path / "a.h5ad")
        backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        for function in (pp.filter_cells, pp.filter_genes):
            with pytest.raises(ValueError, match="to_memory"):
                function(backed)
        backed.file.close()
        adata.obsm["spatial"][:] = np.nan
        with pytest.raises(ValueError, match="400 cells"):
            pp.filter_cells(adata)
        assert adata.n_obs == 400
