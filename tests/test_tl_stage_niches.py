"""Labelling: everything that is written, by definition; arguments, models, forms of input, and what is left alone."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import stage_sc as st
from stage_sc.embed import calibrate, embed_slides, encode_slide
from stage_sc.model import Stage
from stage_sc.niches import find_domains, settle_tree
from stage_sc.slides import make_batch, read_slides, subsample

LEVELS = ["stage_l1", "stage_l2", "stage_l3"]
COLUMNS = [*LEVELS, "stage_path", "stage_confidence", "stage_flag"]
EMPTY, ISOLATED = 7, 9  # cells of the tissue


def labelled(data: ad.AnnData, model: object, **arguments: object) -> ad.AnnData:
    return st.tl.stage_niches(data, model=model, copy=True, **arguments)


def assert_same_labels(one: ad.AnnData, other: ad.AnnData, key: str = "stage", other_key: str | None = None) -> None:
    """To the bit, cell by cell."""
    columns = [name for name in one.obs if name.startswith(key)]
    assert len(columns) >= 4
    for name in columns:
        a, b = one.obs[name], other.obs[name.replace(key, other_key or key)]
        pd.testing.assert_series_equal(a, b, check_exact=True, check_names=False)
    np.testing.assert_array_equal(one.obsm[f"X_{key}"], other.obsm[f"X_{other_key or key}"])


def read_slide(data: ad.AnnData, model: Stage):
    (slide,) = read_slides(data, model.config, vocabulary=model.vocabulary.keys())
    mean = (slide.graph.toarray() > 0).astype(float)
    return slide, mean / mean.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def adata(tissue, small_model):
    return labelled(tissue, small_model, n_domains=4)


@pytest.fixture(scope="module")
def tree(adata):
    return adata.uns["stage"]["tree"]


@pytest.fixture(scope="module")
def prototypes(adata, small_model):
    """Directions of all nodes after the tree has settled on the cells."""
    model = deepcopy(small_model)
    settle_tree(model.tree, torch.from_numpy(adata.obsm["X_stage"]), model.config)
    return model.tree.prototypes.detach().numpy()


@pytest.fixture(scope="module")
def other_model(tissue, small_config):
    """Tree of two levels, vectors of another length."""
    config = small_config.replace(levels=(3, 7), dim=8, epochs=1, warmup_epochs=1)
    return st.tl.fit(tissue, config=config, rng=1, name="other", progress=False)


class TestWhatIsWritten:
    def test_names_and_nothing_else(self, adata, tissue, assert_same):
        assert list(adata.obs) == [*tissue.obs, *COLUMNS, "stage_domain"]
        colors = {f"{name}_colors" for name in (*LEVELS, "stage_path", "stage_domain")}
        assert set(adata.obsm) - set(tissue.obsm) == {"X_stage"}
        assert set(adata.uns) - set(tissue.uns) == {"stage", *colors}
        assert_same(adata.obs[list(tissue.obs)], tissue.obs)
        assert_same(adata.var, tissue.var)
        for name in ("obsm", "obsp", "uns", "layers", "varm"):
            before = dict(getattr(tissue, name))
            assert_same({key: getattr(adata, name)[key] for key in before}, before)

    def test_types(self, adata):
        for name in [*LEVELS, "stage_path", "stage_flag", "stage_domain"]:
            column = adata.obs[name]
            assert isinstance(column.dtype, pd.CategoricalDtype) and not column.cat.ordered and not column.isna().any()
            assert all(type(category) is str for category in column.cat.categories)
            assert set(column.cat.categories) == set(column.unique())
        h = adata.obsm["X_stage"]
        assert adata.obs["stage_confidence"].dtype == h.dtype == np.float32
        assert h.shape == (adata.n_obs, 16) and type(h) is np.ndarray

    def test_tree(self, adata, tree, small_model):
        assert tree.index.tolist() == [f"N{number}" for number in range(2 + 6 + 18)]
        assert list(tree.columns) == ["level", "parent", "n_cells"]
        assert tree["level"].tolist() == [1] * 2 + [2] * 6 + [3] * 18
        below, inner = tree[tree["level"] > 1], tree[tree["level"] < 3]
        assert (tree.loc[below["parent"], "level"].to_numpy() == below["level"] - 1).all()
        assert inner.index.map(below["parent"].value_counts()).min() >= 2
        assert tree["parent"].tolist() == [f"N{node}" if node >= 0 else "" for node in small_model.tree.parent.tolist()]
        assert tree["n_cells"].dtype.kind == tree["level"].dtype.kind == "i"
        for level, name in enumerate(LEVELS, 1):
            counts, here = adata.obs[name].value_counts(), tree[tree["level"] == level]
            assert here["n_cells"].to_dict() == {node: int(counts.get(node, 0)) for node in here.index}
            assert here["n_cells"].sum() == adata.n_obs
        assert (tree.groupby("parent")["n_cells"].sum()[inner.index] == inner["n_cells"]).all()

    def test_paths_and_order_of_categories_follow_the_tree(self, adata, tree):
        for path, *nodes in adata.obs[["stage_path", *LEVELS]].astype(str).itertuples(index=False):
            assert path == ">".join(nodes)
            assert [tree.loc[node, "parent"] for node in nodes] == ["", *nodes[:-1]]

        def walk(parent: str = "") -> list[str]:
            """Nodes in depth-first order, siblings by number."""
            return [node for child in tree.index[tree["parent"] == parent] for node in [child, *walk(child)]]

        for name in LEVELS:
            assert adata.obs[name].cat.categories.tolist() == [n for n in walk() if n in set(adata.obs[name])]
        leaves = [path.rsplit(">")[-1] for path in adata.obs["stage_path"].cat.categories]
        assert leaves == adata.obs["stage_l3"].cat.categories.tolist()
        assert leaves != sorted(leaves, key=lambda node: int(node[1:]))  # or this test shows nothing

    def test_nearest_path(self, adata, tree, small_model, prototypes):
        """Of all paths, the one with the greatest sum of cosines."""
        cosine = adata.obsm["X_stage"] @ prototypes.T
        parent = small_model.tree.parent.numpy()
        paths = np.array([[parent[parent[leaf]], parent[leaf], leaf] for leaf in range(8, len(parent))])
        nearest = paths[cosine[:, paths].sum(axis=2).argmax(axis=1)]
        assert adata.obs["stage_path"].tolist() == [">".join(f"N{node}" for node in path) for path in nearest]
        assert (cosine[:, 8:].argmax(axis=1) + 8 != nearest[:, 2]).any()

    def test_confidence(self, adata, tree, small_model, prototypes):
        """Equations 6 and 7, cell by cell."""
        odds = np.exp(adata.obsm["X_stage"] @ prototypes.T / small_model.config.temperature)
        expected = []
        for cell, path in zip(odds, adata.obs["stage_path"], strict=True):
            siblings = {node: (tree["parent"] == tree.loc[node, "parent"]).to_numpy() for node in path.split(">")}
            expected.append(np.prod([cell[int(node[1:])] / cell[of].sum() for node, of in siblings.items()]) ** (1 / 3))
        confidence = adata.obs["stage_confidence"]
        np.testing.assert_allclose(confidence, expected, rtol=1e-4)
        assert confidence.between(0, 1).all() and confidence.std() > 0.01

    def test_embedding_is_that_of_the_network(self, adata, tissue, small_model):
        slide, mean = read_slide(tissue, small_model)
        with torch.no_grad():
            single = small_model(make_batch(slide, calibrate(small_model, slide), small_model.config.n_layers)).numpy()
        expected = np.linalg.matrix_power(mean, round(44 / slide.edge)) @ single
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(adata.obsm["X_stage"][slide.cells], expected, atol=1e-6)

    def test_flags(self, adata, slides, small_model):
        flag = adata.obs["stage_flag"]
        assert flag.cat.categories.tolist() == ["ok", "empty", "isolated"]
        assert [np.flatnonzero(flag == name).tolist() for name in ("empty", "isolated")] == [[EMPTY], [ISOLATED]]
        assert labelled(slides, small_model).obs["stage_flag"].cat.categories.tolist() == ["ok"]

    def test_an_isolated_cell_is_labelled_by_its_own_expression(self, adata, tissue, small_model):
        changed = tissue.copy()
        counts = tissue.X.tolil()
        counts[ISOLATED] = counts[11]
        changed.X = counts.tocsr()
        h = labelled(changed, small_model).obsm["X_stage"]
        assert np.abs(h[ISOLATED] - adata.obsm["X_stage"][ISOLATED]).max() > 0.02

    def test_parameters_and_model(self, adata, small_model):
        params = {"key_added": "stage", "spatial_key": "spatial", "library_key": "", "layer": ""}
        model = {"name": "custom", "digest": small_model.digest, "version": st.__version__, "modality": "rna"}
        assert adata.uns["stage"]["params"] == {**params, "n_domains": 4, "settle": True}
        assert (adata.uns["stage"]["model"], adata.uns["stage"]["levels"]) == (model, LEVELS)


class TestSettling:
    def test_not_asked_for(self, tissue, small_model):
        """Niches are those of the model's own tree, and the same as of a tree that has settled before."""
        as_it_is = labelled(tissue, small_model, settle=False)
        nodes, _ = small_model.tree.assign(torch.from_numpy(as_it_is.obsm["X_stage"]))
        assert as_it_is.obs["stage_l3"].tolist() == [f"N{node}" for node in nodes[:, -1].tolist()]
        params = as_it_is.uns["stage"]["params"]
        assert params["settle"] is False and params["n_domains"] == 0 and "stage_domain" not in as_it_is.obs
        once = st.tl.fit(tissue, init=small_model, epochs=0, progress=False)
        one, other = labelled(tissue, once, settle=False), labelled(tissue, small_model)
        np.testing.assert_allclose(one.obs["stage_confidence"], other.obs["stage_confidence"], rtol=1e-6)
        other.obs["stage_confidence"] = one.obs["stage_confidence"]  # the last bit of prototypes scaled twice
        assert_same_labels(one, other)

    def test_on_a_sample_of_many_cells(self, tissue, small_model):
        model = deepcopy(small_model)
        model.config = model.config.replace(settle_cells=100)
        found = labelled(tissue, model)
        h = torch.from_numpy(found.obsm["X_stage"])
        tree = deepcopy(small_model.tree)
        settle_tree(tree, subsample(h, len(h), 100), model.config)
        nodes, _ = tree.assign(h)
        assert found.obs["stage_l3"].tolist() == [f"N{node}" for node in nodes[:, -1].tolist()]
        assert_same_labels(labelled(tissue[::-1].copy(), model)[tissue.obs_names].copy(), found)


def domains_of(context: np.ndarray, model: Stage) -> list[str]:
    context = torch.from_numpy(np.asarray(context, dtype=np.float32))
    domains = find_domains(subsample(context, len(context), 10_000), 4, model.config)
    return [f"D{number + 1}" for number in domains.nearest(context).tolist()]


class TestDomains:
    @pytest.mark.parametrize("n", [1, 40, 301])
    def test_the_number_is_exact(self, tissue, small_model, n, caplog):
        """Also where it is above that of the leaves in use; there are 300 cells."""
        domain = labelled(tissue, small_model, n_domains=n).obs["stage_domain"]
        assert domain.cat.categories.tolist() == [f"D{number}" for number in range(1, min(n, 300) + 1)]
        assert domain.nunique() == min(n, 300)
        records = [record for record in caplog.records if "domains" in record.getMessage()]
        assert [record.levelno for record in records] == [logging.WARNING] * (n > 300)
        assert all("301 domains" in record.getMessage() and "300 cells" in record.getMessage() for record in records)

    def test_from_contexts(self, adata, tissue, small_model):
        """Contexts are means of cells over 44 µm, by the directions of the slide."""
        slide, mean = read_slide(tissue, small_model)
        rows = [small_model.vocabulary[gene] for gene in slide.genes]
        vectors = small_model.initial_vectors[rows].double().numpy()
        cells = (slide.take(np.arange(300)).toarray() - slide.mean) / slide.scale @ vectors / np.linalg.norm(vectors)
        means = np.linalg.matrix_power(mean, round(44 / slide.edge)) @ cells
        plain = means @ calibrate(small_model, slide).whitening.numpy()
        np.testing.assert_allclose(encode_slide(small_model, slide).context, plain, rtol=1e-3, atol=1e-4)
        found = embed_slides(small_model, [slide], torch.device("cpu"), domains=True)
        assert np.abs(found.context - plain).max() > 0.1
        assert adata.obs["stage_domain"].iloc[found.cells].tolist() == domains_of(found.context, small_model)

    def test_not_whitened(self, tissue, small_model):
        """Then contexts are taken as they are: axes are comparable by whitening alone."""
        raw = Stage(small_model.config.replace(whiten=False), small_model.genes, [])
        raw.load_state_dict({k: v for k, v in small_model.state_dict().items() if "queue" not in k}, strict=False)
        slide, _ = read_slide(tissue, raw)
        found = labelled(tissue, raw, n_domains=4).obs["stage_domain"]
        assert found.iloc[slide.cells].tolist() == domains_of(encode_slide(raw, slide).context, raw)

    @pytest.mark.parametrize("scratch", [True, False])
    def test_training_does_not_change_them(self, tissue, small_model, scratch):
        init = None if scratch else small_model
        models = [st.tl.fit(tissue, init=init, epochs=epochs, progress=False) for epochs in (0, 1)]
        found = [labelled(tissue, model, n_domains=4) for model in ([*models] if scratch else [*models, small_model])]
        assert (found[0].obsm["X_stage"] != found[1].obsm["X_stage"]).any()
        assert all(one.obs["stage_domain"].tolist() == found[0].obs["stage_domain"].tolist() for one in found)


class TestArguments:
    def test_key_added_and_copy(self, adata, tissue, small_model, unchanged):
        with unchanged(tissue):
            other = labelled(tissue, small_model, n_domains=4, key_added="niche")
            other.X.data[:] = 0
        assert not [name for name in [*other.obs, *other.obsm, *other.uns] if name != "stage_graph" and "stage" in name]
        assert other.uns["niche"]["params"]["key_added"] == "niche"
        assert other.uns["niche"]["levels"] == ["niche_l1", "niche_l2", "niche_l3"]
        assert_same_labels(adata, other, "stage", "niche")

    def test_two_keys_side_by_side(self, adata, tissue, small_model, other_model):
        both = tissue.copy()
        st.tl.stage_niches(both, model=small_model, n_domains=4)
        st.tl.stage_niches(both, model=other_model, key_added="stage_other", n_domains=3)
        assert_same_labels(adata, both[:, :].copy())
        assert_same_labels(labelled(tissue, other_model, n_domains=3, key_added="stage_other"), both, "stage_other")

    @pytest.mark.parametrize("without_x", [False, True])
    def test_layer(self, adata, tissue, small_model, without_x):
        layered = tissue.copy()
        layered.layers["counts"], layered.X = layered.X.copy(), None if without_x else -np.ones(tissue.shape)
        assert st.tl.stage_niches(layered, model=small_model, layer="counts", n_domains=4) is None
        assert_same_labels(adata, layered)
        assert layered.uns["stage"]["params"]["layer"] == "counts"
        assert without_x or (layered.X == -1).all()

    def test_spatial_key_and_library_key_of_the_graph_are_remembered(self, raw_tissue, small_model):
        adata = raw_tissue.copy()
        adata.obsm["xy"] = adata.obsm.pop("spatial")
        adata.obs["section"] = ["a"] * 150 + ["b"] * 150
        st.pp.build_graph(adata, spatial_key="xy", library_key="section")
        st.tl.stage_niches(adata, model=small_model)
        params = adata.uns["stage"]["params"]
        assert (params["spatial_key"], params["library_key"]) == ("xy", "section")
        assert st.pl.spatial_domains(adata, keys="stage_l1", libraries="a", show=False).get_title()

    def test_other_library_key_than_that_of_the_graph(self, slides, small_model):
        joined = slides.copy()
        st.pp.build_graph(joined)
        separate = labelled(joined, small_model, library_key="slide")
        assert_same_labels(labelled(slides, small_model), separate)
        assert separate.uns["stage"]["params"]["library_key"] == "slide"
        assert (labelled(joined, small_model).obsm["X_stage"] != separate.obsm["X_stage"]).any()


class TestComputation:
    @pytest.mark.parametrize("fails", [False, True])
    def test_one_thread_for_as_long_as_it_takes(self, tissue, small_model, fails, monkeypatch):
        seen, model, before = [], deepcopy(small_model), torch.get_num_threads()

        def spy(*_):
            seen.append(torch.get_num_threads())
            if fails:
                raise RuntimeError

        model.encoder.score.register_forward_pre_hook(spy)
        try:
            torch.set_num_threads(3)
            with pytest.raises(RuntimeError) if fails else nullcontext():
                labelled(tissue, model)
            assert torch.get_num_threads() == 3 and set(seen) == {1}
        finally:
            torch.set_num_threads(before)

    def test_x_is_read_once(self, tissue, small_model):
        """Of an array that comes in chunks."""
        made, dense, other = Counter(), tissue.X.toarray(), tissue.copy()

        def chunk(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
            made[block_info[0]["chunk-location"]] += 1
            return block

        lazy = da.from_array(dense, chunks=(70, -1))
        other.X = lazy.map_blocks(chunk, dtype=dense.dtype, meta=np.zeros((0, 0), dense.dtype))
        made.clear()
        st.tl.stage_niches(other, model=small_model, n_domains=4)
        assert made == {(number, 0): 1 for number in range(5)}


class TestSeveral:
    def test_like_one_by_one(self, slides, tissue, small_model, unchanged):
        """Without settling and domains. A copy is a container of the same kind."""
        given = [slides, tissue[:, 20:].copy()]
        with unchanged(*given):
            expected = [labelled(part, small_model, settle=False) for part in given]
            listed = labelled(tuple(given), small_model, settle=False)
            named = labelled(dict(zip("ab", given, strict=True)), small_model, settle=False)
        assert isinstance(listed, list) and list(named) == ["a", "b"]
        for one, two, three in zip(expected, listed, named.values(), strict=True):
            assert_same_labels(one, two)
            assert_same_labels(one, three)

    def test_tree_and_domains_are_those_of_all_together(self, slides, small_model):
        parts = {name: slides[slides.obs["slide"] == name].copy() for name in ("slide2", "slide1")}
        st.pp.build_graph(parts)
        alone = {name: labelled(part, small_model).obs["stage_path"].tolist() for name, part in parts.items()}
        assert st.tl.stage_niches(parts, model=small_model, n_domains=5) is None
        together = labelled(slides, small_model, n_domains=5).obs
        for part in parts.values():
            for name in ("stage_path", "stage_confidence", "stage_domain"):
                assert part.obs[name].tolist() == together.loc[part.obs_names, name].tolist()
            assert part.obs["stage_domain"].cat.categories.isin(part.obs["stage_domain"]).all()
        assert any(alone[name] != part.obs["stage_path"].tolist() for name, part in parts.items())


class TestModels:
    def test_checkpoint_and_device(self, adata, tissue, small_model, tmp_path):
        path = st.model.save_checkpoint(small_model, tmp_path / "mine")
        for model in (path, str(path)):
            other = labelled(tissue, model, n_domains=4, device="cpu")
            assert_same_labels(adata, other)
        assert other.uns["stage"]["model"] == adata.uns["stage"]["model"] | {"name": "mine"}

    def test_bundled(self, tissue):
        adata = labelled(tissue, None, n_domains=4)
        assert adata.obs["stage_l3"].nunique() > 5 and adata.obs["stage_domain"].nunique() == 4
        assert_same_labels(adata, labelled(tissue, "bundled", n_domains=4))
        (path,) = Path(st.__file__).parent.joinpath("weights").glob("*.safetensors")
        assert adata.uns["stage"]["model"]["digest"] == st.model.load_checkpoint(path).digest

    def test_trees_of_two_levels_and_of_one(self, tissue, other_model, small_config):
        adata = labelled(tissue, other_model, n_domains=3)
        assert adata.uns["stage"]["levels"] == ["stage_l1", "stage_l2"]
        assert adata.uns["stage"]["tree"]["level"].tolist() == [1] * 3 + [2] * 7
        assert adata.obsm["X_stage"].shape == (300, 8) and adata.uns["stage"]["model"]["name"] == "other"
        adata = labelled(tissue, st.tl.fit(tissue, config=small_config.replace(levels=(5,)), epochs=0, progress=False))
        assert adata.uns["stage"]["levels"] == ["stage_l1"]
        assert (adata.obs["stage_path"].astype(str) == adata.obs["stage_l1"].astype(str)).all()

    def test_genes_that_the_model_does_not_know(self, tissue, small_model, caplog):
        adata = tissue.copy()
        adata.var_names = [f"unheard{number}" for number in range(50)] + adata.var_names[50:].tolist()
        with caplog.at_level(logging.INFO):
            labelled(adata, small_model)
            labelled(tissue[:, :15].copy(), small_model)
        assert "122 of the 172 genes" in caplog.text
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert any("15 of the 15 genes" in text for text in warnings)


def unsorted(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Columns in falling order, and an explicit zero."""
    rows = [sp.csr_matrix(matrix[row], copy=True) for row in range(matrix.shape[0])]
    for row in rows:
        row.indices, row.data = row.indices[::-1].copy(), row.data[::-1].copy()
        row.has_sorted_indices = False
    rows[EMPTY] = sp.csr_matrix((np.zeros(1, np.float32), ([0], [3])), shape=(1, matrix.shape[1]))
    return sp.vstack(rows, format="csr")


class TestForms:
    FORMS = {
        "csc int32": lambda matrix: sp.csc_matrix(matrix, dtype=np.int32),
        "dense uint16": lambda matrix: np.asfortranarray(matrix.toarray().astype(np.uint16)),
        "dask": lambda matrix: da.from_array(matrix.toarray(), chunks=(100, 60)),
        "unsorted": unsorted,
    }

    @pytest.mark.parametrize("form", FORMS)
    def test_same_labels_and_untouched(self, adata, tissue, small_model, form):
        other = tissue.copy()
        other.X = self.FORMS[form](tissue.X)

        def contents(X: object) -> list[object]:
            parts = [X.data, X.indices, X.indptr] if sp.issparse(X) else [np.asarray(X)]
            return [type(X), X.dtype, *(part.tobytes() for part in parts)]

        before = contents(other.X)
        st.tl.stage_niches(other, model=small_model, n_domains=4)
        assert_same_labels(adata, other)
        assert contents(other.X) == before

    def test_view_of_some_cells(self, tissue, small_model, unchanged, caplog):
        """The graph that was cut is rebuilt in the view."""
        view, part = tissue[:200], tissue[:200].copy()
        with unchanged(tissue), pytest.warns(ad.ImplicitModificationWarning):
            st.tl.stage_niches(view, model=small_model)
        assert "rebuilding" in caplog.text
        assert_same_labels(labelled(part, small_model), view)

    @pytest.mark.parametrize(("dense", "copy"), [(False, False), (True, True)])
    def test_backed(self, adata, tissue, small_model, tmp_path, dense, copy):
        stored, path = tissue.copy(), tmp_path / "slide.h5ad"
        stored.X = stored.X.toarray() if dense else stored.X
        stored.write_h5ad(path)
        before, backed = path.read_bytes(), ad.read_h5ad(path, backed="r")
        result = st.tl.stage_niches(backed, model=small_model, n_domains=4, copy=copy)
        assert_same_labels(adata, result if copy else backed)
        view = ad.read_h5ad(path, backed="r")[100:]
        with pytest.raises(ValueError, match="copy=True"):
            st.tl.stage_niches(view, model=small_model)
        assert "stage" not in view.uns and (not copy or "stage_l1" not in backed.obs)
        assert labelled(view, small_model).n_obs == 200
        view.file.close()
        backed.file.close()
        assert path.read_bytes() == before


class TestLabelledBefore:
    def test_old_results_go(self, adata, tissue, small_model, other_model, assert_same):
        """Of more levels, of fewer, and of the same model."""
        again = labelled(tissue, small_model, n_domains=4)
        again.uns.update(
            {f"{name}_colors": ["#000000"] * again.obs[name].nunique() for name in (*LEVELS, "stage_domain")}
        )
        for model, n_domains in ((other_model, None), (small_model, 4), (small_model, 4)):
            st.tl.stage_niches(again, model=model, n_domains=n_domains)
            fresh = labelled(tissue, model, n_domains=n_domains)
            assert_same_labels(fresh, again)
            assert list(again.obs) == list(fresh.obs) and set(again.uns) == set(fresh.uns)
            assert_same(dict(again.uns["stage"]), dict(fresh.uns["stage"]))

    def test_what_belongs_to_others_stays(self, tissue, small_model):
        """Columns and colours whose names only begin alike: of the user, and of labels under another key."""
        again = labelled(tissue, small_model, key_added="stage_fine")
        again.obs["stage_of_disease"], again.obs["stage_lesion"] = pd.Categorical(list("abc") * 100), np.arange(300)
        colors = {"stage_of_disease_colors": ["#000001", "#000002", "#000003"], "domain_colors": ["#000004"] * 5}
        colors |= {"stage_fine_l1_colors": ["#000005", "#000006"]}
        again.uns.update(colors)
        for _ in range(2):
            st.tl.stage_niches(again, model=small_model)
        assert again.obs["stage_lesion"].tolist() == list(range(300)) and "stage_fine_l1" in again.obs
        assert again.obs["stage_of_disease"].tolist() == list("abc") * 100
        ours = {f"{name}_colors" for name in (*LEVELS, "stage_path")}
        others = {name for name in again.uns if name.endswith("_colors") and name.startswith("stage_fine")}
        found = {name for name in again.uns if name.endswith("_colors")}
        assert found == ours | others | set(colors)
        assert {name: list(again.uns[name]) for name in colors} == colors

    @pytest.mark.parametrize("key", ["stage_graph", "spatial_neighbors", "taken"])
    def test_name_that_is_taken(self, tissue, small_model, key):
        adata = tissue.copy()
        adata.uns["taken"] = 3
        with pytest.raises(ValueError, match=key):
            st.tl.stage_niches(adata, model=small_model, key_added=key)
        st.tl.stage_niches(adata, model=small_model)
