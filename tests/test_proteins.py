"""Intensities of proteins: names, normalisation, training, and the refusal of other data."""

import anndata as ad
import dask.array
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stage_sc as st
from benchmarks.proteins import simulate_panel
from stage_sc.genes import protein_tokens
from stage_sc.slides import read_slides

CONFIG = st.model.StageConfig(modality="protein")


@pytest.fixture(scope="module")
def section():
    adata = simulate_panel(33, n_cells=600)
    st.pp.build_graph(adata)
    return adata


@pytest.fixture(scope="module")
def model(section):
    return st.tl.fit(section, modality="protein", epochs=2, progress=False)


@pytest.fixture(scope="module")
def labelled(section, model):
    adata = section.copy()
    st.tl.stage_niches(adata, model=model, n_domains=6)
    return adata


@pytest.fixture(scope="module")
def rna():
    adata = st.datasets.simulate_tissue(500)
    st.pp.build_graph(adata)
    return adata


def domains(adata, model, n_domains=6):
    st.tl.stage_niches(adata, model=model, n_domains=n_domains)
    return adata.obs["stage_domain"]


class TestNames:
    def test_antibodies_of_two_laboratories_have_one_token(self):
        one = ["CD3", "CD8", "E-cadherin", "Ki-67", "PanCK", "141Pr_CD38", "CD45RO"]
        other = ["CD3E", "CD8A", "CDH1", "MKI67", "pan-cytokeratin", "CD38(Pr141Di)", "cd45ro"]
        tokens = [protein_tokens(pd.DataFrame(index=names)) for names in (one, other)]
        assert tokens[0] == tokens[1] and len(set(tokens[0])) == 7

    @pytest.mark.parametrize(
        "name", ["DAPI-01", "DNA1", "191Ir", "Histone H3", "Blank-2", "empty_1", "Hoechst1", "IgG isotype"]
    )
    def test_stains_and_empty_channels_are_left_out(self, name):
        assert protein_tokens(pd.DataFrame(index=["CD3", name])) == ["cd3e", None]

    def test_antibodies_among_genes_are_read_alone(self):
        var = pd.DataFrame({"feature_types": ["Gene Expression", "Antibody Capture"]}, index=["CD4", "CD4-1"])
        assert protein_tokens(var) == [None, "cd41"]


class TestValues:
    def test_cofactors_are_three_medians_of_each_slide(self, section):
        values = section.X.astype(np.float64)
        (slide,) = read_slides(section, CONFIG)
        order = [section.var_names.get_loc(gene) for gene in slide.genes]
        expected = np.arcsinh(values / (3 * np.median(values, axis=0)))[:, order]
        found = slide.take(np.arange(slide.n_cells)).toarray()
        assert np.abs(found - expected[slide.cells]).max() < 0.02
        assert np.allclose(slide.mean, found.mean(axis=0), atol=1e-4)

    def test_zeros_do_not_shift_the_cofactor(self, section):
        sparse = section.copy()
        sparse.X[:400, 0] = 0
        (slide,) = read_slides(sparse, CONFIG)
        column = slide.genes.index("protein0")
        found = slide.take(np.argsort(slide.cells))[:, column].toarray().ravel()
        kept = section.X[400:, 0].astype(np.float64)
        assert np.allclose(found[400:], np.arcsinh(kept / (3 * np.median(kept))), atol=0.02)

    @pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix])
    def test_form_of_the_matrix_changes_nothing(self, section, form):
        other = section.copy()
        other.X = form(other.X)
        one, two = (read_slides(adata, CONFIG)[0] for adata in (section, other))
        assert (one.expression != two.expression).nnz == 0 and np.array_equal(one.cells, two.cells)

    def test_units_of_proteins_change_nothing(self, section):
        other = section.copy()
        other.X = other.X * np.exp2(np.random.default_rng(0).integers(-8, 9, other.n_vars)).astype(np.float32)
        one, two = (
            slide.take(np.argsort(slide.cells)).toarray()
            for adata in (section, other)
            for slide in read_slides(adata, CONFIG)
        )
        assert np.abs(one - two).max() < 1e-5

    def test_order_of_cells_and_proteins_changes_nothing(self, section, model, labelled):
        rng = np.random.default_rng(0)
        cells, proteins = rng.permutation(section.n_obs), rng.permutation(section.n_vars)
        other = section[cells, proteins].copy()
        assert domains(other, model).tolist() == labelled.obs["stage_domain"].to_numpy()[cells].tolist()
        assert st.tl.fit(other, modality="protein", epochs=2, progress=False).digest == model.digest


class TestWithoutModality:
    """Linear values that never were counts are read as intensities, whatever the model."""

    @pytest.fixture(scope="class")
    def panel(self, rna):
        adata = rna[:, :40].copy()
        noise = np.random.default_rng(0).gamma(4, 0.25, adata.shape)
        adata.X = sp.csr_matrix(((adata.X.toarray() + 0.3) * noise * 40).astype(np.float32))
        return adata

    @pytest.mark.parametrize("chunk", [None, 90])
    def test_as_of_proteins(self, panel, chunk, caplog):
        data = panel.copy()
        if chunk:
            data.X = dask.array.from_array(data.X, chunks=(chunk, -1))
        (slide,) = read_slides(data, st.model.StageConfig())
        assert slide.intensities
        assert "taken as intensities" in caplog.text and 'modality="protein"' in caplog.text
        x = panel.X.toarray()
        expected = np.arcsinh(x / (3 * np.median(x, axis=0)))
        order = np.argsort(slide.genes)
        tokens = st.pp.match_genes(panel).table["token"].to_numpy()
        expected = expected[slide.cells][:, np.argsort(tokens)][:, order]
        np.testing.assert_allclose(slide.take(np.arange(slide.n_cells)).toarray(), expected, rtol=0.02)

    @pytest.mark.parametrize(
        "kind", ["counts", "multiples", "per cell", "ten thousand", "logged", "some whole", "many genes"]
    )
    def test_not_of_rna(self, rna, panel, kind):
        """Counts in any form are not taken as intensities, nor are more features than panels of antibodies have."""
        adata, rng = rna.copy(), np.random.default_rng(1)
        counts = adata.X.toarray()
        factor = rng.uniform(0.5, 2, (len(counts), 1))
        total = counts.sum(axis=1, keepdims=True)
        adata.X = {
            "counts": counts,
            "multiples": counts * 31.7,
            "per cell": counts * factor * 30,
            "ten thousand": counts / total * 1e4,
            "logged": np.log1p(counts / total * 100),
            "some whole": np.where(
                np.arange(len(counts))[:, None] % 3 == 0, counts, counts * rng.uniform(0.8, 1, counts.shape)
            ),
            "many genes": counts * rng.uniform(10, 90, counts.shape),
        }[kind].astype(np.float32)
        if kind == "many genes":
            names = [f"gene{number}" for number in range(1100)]
            adata = ad.AnnData(np.tile(adata.X, 7)[:, :1100], adata.obs, pd.DataFrame(index=names), obsm=adata.obsm)
            st.pp.build_graph(adata)
        (slide,) = read_slides(adata, st.model.StageConfig())
        assert not slide.intensities


class TestModels:
    def test_training_and_labels(self, section, model, labelled, tmp_path):
        assert model.config.modality == "protein" and np.isfinite(model.history["loss"]).all()
        adata = labelled
        assert adata.uns["stage"]["model"]["modality"] == "protein"
        assert st.metrics.ari(adata, "domain", "stage_domain") > 0.3
        path = st.model.save_checkpoint(model, tmp_path / "proteins")
        loaded = st.model.load_checkpoint(path)
        other = section.copy()
        assert loaded.config == model.config and loaded.digest == model.digest
        assert domains(other, loaded).tolist() == adata.obs["stage_domain"].tolist()
        adata.write_h5ad(tmp_path / "labels.h5ad")
        assert ad.read_h5ad(tmp_path / "labels.h5ad").uns["stage"]["model"]["modality"] == "protein"

    def test_nine_proteins_and_panels_that_differ(self):
        slides = {str(size): simulate_panel(size, n_cells=400, seed=size) for size in (9, 15)}
        st.pp.build_graph(slides)
        model = st.tl.fit(slides, modality="protein", epochs=2, progress=False)
        st.tl.stage_niches(slides, model=model, n_domains=6)
        for slide in slides.values():
            assert np.isfinite(slide.obsm["X_stage"]).all() and slide.obs["stage_domain"].nunique() > 1

    def test_fine_tuning_keeps_the_modality(self, section, model):
        assert st.tl.fit(section, init=model, epochs=0, progress=False).config.modality == "protein"

    def test_panel_agreement(self, section, model):
        table = st.tl.panel_agreement(section, model, n_splits=1, n_domains=6)
        assert table.loc[(0, "stage_domain"), "ARI"] > 0.1

    def test_models_of_rna_keep_their_digest(self):
        assert "modality" not in st.model.StageConfig().to_dict()
        assert st.model.StageConfig.from_dict(CONFIG.to_dict()) == CONFIG


class TestRefusals:
    def test_a_model_of_proteins_refuses_rna(self, rna, model):
        with pytest.raises(ValueError, match="knows none of the"):
            st.tl.stage_niches(rna.copy(), model=model)
        named = rna[:, :33].copy()
        named.var_names = model.genes
        with pytest.raises(ValueError, match="counts of RNA, but `modality` is 'protein'"):
            st.tl.stage_niches(named, model=model)
        declared = rna.copy()
        declared.var["feature_types"] = "Gene Expression"
        with pytest.raises(ValueError, match="genes by `adata.var"):
            st.tl.stage_niches(declared, model=model)
        assert "stage" not in declared.uns and "stage" not in named.uns

    def test_training_on_counts_is_refused(self, rna):
        with pytest.raises(ValueError, match="counts of RNA"):
            st.tl.fit(rna, modality="protein", epochs=0, progress=False)

    def test_a_model_of_rna_refuses_proteins(self, rna, section):
        declared = section.copy()
        declared.var["feature_types"] = "Antibody Capture"
        for call in (lambda: st.tl.stage_niches(declared), lambda: st.tl.fit(declared, epochs=0, progress=False)):
            with pytest.raises(ValueError, match='modality="protein"'):
                call()
        assert "stage" not in declared.uns

    def test_init_of_the_other_modality(self, section, rna, model):
        with pytest.raises(ValueError, match="`modality` is 'protein', but `init`"):
            st.tl.fit(section, modality="protein", init="bundled", progress=False)
        with pytest.raises(ValueError, match="`modality` is 'rna', but `init`"):
            st.tl.fit(rna, modality="rna", init=model, progress=False)

    @pytest.mark.parametrize(("value", "error"), [("adt", ValueError), (1, (TypeError, ValueError))])
    def test_other_modalities(self, section, value, error):
        with pytest.raises(error, match="modality"):
            st.tl.fit(section, modality=value, progress=False)

    def test_negative_intensities_name_the_way_out(self, section):
        adata = section.copy()
        adata.X[3, 3] = -1
        with pytest.raises(ValueError, match="np.maximum"):
            st.tl.fit(adata, modality="protein", epochs=0, progress=False)

    def test_a_whole_transcriptome_is_refused(self, section):
        adata = ad.AnnData(
            np.ones((section.n_obs, 1200), np.float32),
            obs=section.obs,
            obsm=dict(section.obsm),
            uns=section.uns,
            obsp=section.obsp,
        )
        with pytest.raises(ValueError, match="1200 features"):
            st.tl.fit(adata, modality="protein", epochs=0, progress=False)


def test_annotated_section(dev_data):
    adata = ad.read_h5ad(dev_data / "imc_pancreas/image1.h5ad")
    st.pp.build_graph(adata)
    model = st.tl.fit(adata, modality="protein", epochs=0, progress=False)
    domains(adata, model, 2)
    assert st.metrics.ari(adata, "domain", "stage_domain") > 0.7
