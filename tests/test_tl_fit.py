"""Training as a user calls it: repeatable, for any order of the data, from any form of it; what it says and leaves."""

from __future__ import annotations

import logging
import random
import re

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch

import stage_sc as st
from stage_sc.model import Stage, StageConfig, resolve_model
from stage_sc.train import adapt_config


def fit(data: object, config: StageConfig | None, **arguments: object) -> Stage:
    return st.tl.fit(data, config=config, progress=False, **arguments)


def same_state(one: Stage, other: Stage) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(value.equal(b[name]) for name, value in a.items())


class TestRepeatable:
    def test_same_seed_or_generator(self, tissue, small_config, small_model):
        again = fit(tissue, small_config, rng=np.random.default_rng(0))
        assert same_state(small_model, again) and small_model.digest == again.digest
        pd.testing.assert_frame_equal(small_model.history, again.history, check_exact=True)

    @pytest.mark.parametrize("rng", [1, None])
    def test_another_seed(self, tissue, small_config, small_model, rng):
        other = fit(tissue, small_config, rng=rng)
        assert (other.embedder.vectors - small_model.embedder.vectors).abs().max() > 1e-4
        assert small_model.digest != other.digest
        assert other.initial_vectors.equal(small_model.initial_vectors)  # gene vectors begin without chance

    def test_order_of_cells_and_genes_and_position(self, raw_tissue, small_config, small_model):
        rng = np.random.default_rng(5)
        for place in (False, True):
            adata = raw_tissue[rng.permutation(raw_tissue.n_obs), rng.permutation(raw_tissue.n_vars)].copy()
            if place:
                turn = np.array([[np.cos(0.8), -np.sin(0.8)], [np.sin(0.8), np.cos(0.8)]])
                adata.obsm["spatial"] = adata.obsm["spatial"] @ turn + [2345.6, -78_901.2]
            st.pp.build_graph(adata)
            other = fit(adata, small_config)
            assert same_state(small_model, other)
            assert other.genes == small_model.genes

    def test_order_of_slides(self, slides, small_config):
        other = ad.concat([slides[slides.obs["slide"] == name] for name in ("slide2", "slide1")])
        other.obs["slide"] = pd.Categorical(other.obs["slide"].astype(str), categories=["slide2", "slide1"])
        st.pp.build_graph(other, library_key="slide")
        assert same_state(fit(slides, small_config), fit(other, small_config))

    def test_nothing_global_is_touched(self, tissue, small_config, unchanged):
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
            with unchanged(tissue):
                model = fit(tissue, small_config, epochs=1)
                fit(tissue, None, init=model, epochs=1)
            with pytest.raises(ValueError):
                fit(tissue, small_config.replace(levels=(2, 500)))
            assert torch.get_num_threads() == 2
            assert torch.random.get_rng_state().equal(before[0])
            assert (np.random.get_state()[1] == before[1]).all()
            assert random.getstate() == before[2]
        finally:
            torch.set_num_threads(threads)


class TestForms:
    def test_one_slide(self, tissue, small_model):
        assert (small_model.slides, small_model.name, small_model.training) == (["slide"], "custom", False)
        assert small_model.genes == sorted(st.pp.match_genes(tissue).table["token"])
        assert small_model.queue.scores.shape[0] == 1
        assert all(parameter.device.type == "cpu" for parameter in small_model.parameters())

    def test_library_key_is_that_of_the_graph_or_given(self, slides, small_config):
        joined = slides.copy()
        st.pp.build_graph(joined)
        assert fit(joined, small_config, epochs=0).slides == ["slide"]
        given = fit(joined, small_config, library_key="slide")
        assert given.slides == ["slide1", "slide2"]
        assert same_state(given, fit(slides, small_config))

    def test_list_and_dictionary(self, slides, small_config, unchanged):
        parts = [slides[slides.obs["slide"] == name].copy() for name in ("slide1", "slide2")]
        for part in parts:
            st.pp.build_graph(part)
        expected = fit(slides, small_config, name="two slides")
        assert (expected.slides, expected.name) == (["slide1", "slide2"], "two slides")
        assert expected.queue.weights().isfinite().all()
        for data, names in ((parts, ["0", "1"]), ({"mine": parts[0], "yours": parts[1]}, ["mine", "yours"])):
            with unchanged(*parts):
                model = fit(data, small_config)
            assert model.slides == names
            assert same_state(expected, model)
        nested = fit({"a": slides, "b": parts[0]}, small_config, epochs=0)
        assert nested.slides == ["a/slide1", "a/slide2", "b"]

    def test_panels_that_differ(self, small_config):
        cohort = st.datasets.simulate_cohort(150, panels=("A", "B"), rng=1)
        for adata in cohort.values():
            st.pp.build_graph(adata)
        model = fit(cohort, small_config)
        tokens = [set(st.pp.match_genes(adata).table["token"]) for adata in cohort.values()]
        assert model.genes == sorted(tokens[0] | tokens[1])
        assert model.slides == list(cohort)
        assert len(tokens[0] & tokens[1]) < 40
        only = [model.genes.index(min(tokens[one] - tokens[1 - one])) for one in (0, 1)]
        assert (model.embedder.vectors - model.initial_vectors)[only].abs().max(dim=1).values.min() > 1e-5
        assert model.history["loss"].notna().all()

    @pytest.mark.parametrize("form", ["csc", "integers", "dask", "layer", "spatial_key", "view", "backed"])
    def test_the_same_data_in_another_form(self, tissue, raw_tissue, small_config, small_model, tmp_path, form):
        adata, keys = tissue.copy(), {}
        if form in ("csc", "integers", "dask"):
            dense = tissue.X.toarray()
            adata.X = {"csc": tissue.X.tocsc(), "integers": dense.astype(int), "dask": da.from_array(dense)}[form]
        elif form == "layer":
            adata.layers["counts"], adata.X, keys = adata.X, None, {"layer": "counts"}
        elif form == "spatial_key":
            adata, keys = raw_tissue.copy(), {"spatial_key": "xy"}
            adata.obsm["xy"] = adata.obsm.pop("spatial")
            st.pp.build_graph(adata, **keys)
        elif form == "view":
            adata = adata[np.arange(300)]
        else:
            adata.write_h5ad(tmp_path / "a.h5ad")
            before = (tmp_path / "a.h5ad").read_bytes()
            adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        kind = type(adata.X)
        assert same_state(small_model, fit(adata, small_config, **keys))
        assert (type(adata.X), adata.is_view, adata.isbacked) == (kind, form == "view", form == "backed")
        if form == "backed":
            assert (tmp_path / "a.h5ad").read_bytes() == before

    def test_a_stale_graph_is_not_written_over(self, tissue, small_config, unchanged, caplog):
        part = tissue[:200].copy()
        with unchanged(part):
            model = fit(part, small_config, epochs=1)
        assert "rebuilding" in caplog.text
        st.tl.stage_niches(part, model=model)  # writes the new graph beside the labels
        assert same_state(model, fit(part, small_config, epochs=1))

    def test_control_probes_are_no_genes(self, tissue, small_config):
        adata = tissue.copy()
        adata.var_names = ["Blank-1", "NegControlProbe_00042", *adata.var_names[2:]]
        model = fit(adata, small_config, epochs=0)
        assert set(model.genes) == set(st.pp.match_genes(tissue[:, 2:].copy()).table["token"])


class TestInit:
    def test_tree_stays(self, slides, small_model):
        tuned = fit(slides, None, init=small_model, epochs=3, name="tuned")
        assert tuned.tree.parent.equal(small_model.tree.parent)
        assert (tuned.genes, tuned.config.levels) == (small_model.genes, small_model.config.levels)
        assert (tuned.slides, tuned.name) == (["slide1", "slide2"], "tuned")
        assert tuned.queue.scores.shape[0] == 2
        assert tuned.initial_vectors.equal(small_model.initial_vectors)
        assert not tuned.embedder.vectors.equal(small_model.embedder.vectors)
        assert not tuned.tree.prototypes.equal(small_model.tree.prototypes)
        one, other = (torch.nn.functional.normalize(model.tree.prototypes, dim=1) for model in (tuned, small_model))
        assert (one * other).sum(dim=1).min() > 0.9  # niches keep their meaning
        start = fit(slides, None, init=small_model, epochs=0)
        assert len(start.history) == 0
        for name, value in small_model.state_dict().items():
            if not name.startswith(("queue", "init_", "tree.prototypes")):  # those follow the slides
                torch.testing.assert_close(start.state_dict()[name], value, rtol=0, atol=1e-6)

    def test_genes_that_it_does_not_know_are_left_out(self, tissue, small_model, caplog):
        adata = tissue.copy()
        adata.var_names = [*(f"unheard{number}" for number in range(50)), *adata.var_names[50:]]
        with caplog.at_level(logging.INFO):
            tuned = fit(adata, None, init=small_model, epochs=1)
        assert tuned.genes == small_model.genes
        assert "knows 122 of the 172 genes" in caplog.text

    def test_schedule_is_short_and_logged(self, tissue, small_model, small_config, caplog):
        config = small_config.replace(epochs=3, warmup_epochs=1, learning_rate=1e-5)
        own = fit(tissue, config, init=small_model)
        assert own.config == config
        assert own.history["stage"].tolist() == ["warm-up", "joint", "joint"]
        assert "training cells" not in caplog.text
        with caplog.at_level(logging.INFO):
            tuned = fit(tissue, None, init=small_model)
        assert tuned.history["stage"].tolist() == ["joint"] * len(tuned.history)
        assert len(tuned.history) <= tuned.config.epochs == 10
        assert "300 training cells" in caplog.text
        schedule = {name: getattr(small_config, name) for name in ("epochs", "warmup_epochs", "learning_rate")}
        assert tuned.config.replace(**schedule) == small_config

    def test_from_the_bundled_model(self, tissue):
        before = resolve_model(None).digest
        tuned = fit(tissue, None, init="bundled", epochs=1)
        assert tuned.tree.parent.equal(resolve_model(None).tree.parent)
        assert resolve_model(None).digest == before
        adata = st.tl.stage_niches(tissue, model=tuned, n_domains=4, copy=True)
        assert adata.uns["stage"]["tree"].index.tolist() == [f"N{node}" for node in range(tuned.tree.n_nodes)]

    @pytest.mark.parametrize(
        "changes", [{"dim": 8}, {"n_layers": 2}, {"n_heads": 2}, {"levels": (2, 6)}, {"scaling": "center"}], ids=str
    )
    def test_another_network_is_refused(self, tissue, small_model, small_config, changes):
        with pytest.raises(ValueError, match="`config` and `init`"):
            fit(tissue, small_config.replace(**changes), init=small_model)


class TestSchedule:
    def test_history(self, small_model):
        history = small_model.history
        assert history["stage"].tolist() == ["warm-up"] * 2 + ["joint"] * 2
        assert (history.index.name, history.index.tolist()) == ("epoch", [0, 1, 2, 3])
        assert set(history) == {"stage", "loss", "swav", "reconstruction", "path", "cosine", "entropy", "used"}
        assert history["path"].isna().tolist() == [True, True, False, False]
        assert history.drop(columns=["stage", "path"]).notna().all().all()
        for name, limits in (("entropy", (0, 1)), ("used", (1, 18)), ("cosine", (-1, 1))):
            assert history[name].between(*limits).all()
        total = history["swav"] + history["reconstruction"] + 0.1 * history["path"].fillna(0)
        np.testing.assert_allclose(history["loss"], total, rtol=1e-4)

    @pytest.mark.parametrize("warmup", [0, 10], ids=["joint", "warm-up"])
    def test_loss_falls(self, tissue, small_config, warmup):
        named = {"path_weight": 1.0, "learning_rate": 3e-3, "batch_size": 64}  # paths are drawn anew in every epoch
        config = small_config.replace(epochs=10, warmup_epochs=warmup, **named)
        history = fit(tissue, config, patience=None).history
        assert history["stage"].nunique() == 1
        for name in ("loss", "swav", *(["path"] if warmup == 0 else [])):
            assert history[name].iloc[-3:].mean() < 0.98 * history[name].iloc[:2].mean(), name

    def test_callback(self, tissue, small_config, tmp_path):
        """After every epoch, with the history so far; an exception interrupts, and training continues from there."""
        told, arguments = [], {"epochs": 4, "patience": None, "checkpoint": tmp_path / "state"}

        def listen(history: pd.DataFrame) -> None:
            told.append(history)
            if len(told) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(tissue, small_config, callback=listen, **arguments)
        model = fit(tissue, small_config, callback=listen, **arguments)
        assert [len(history) for history in told] == [1, 2, 3, 3, 4]
        for history in told:
            pd.testing.assert_frame_equal(history, model.history.iloc[: len(history)][history.columns])
        fit(tissue, small_config, callback=listen, **arguments)  # finished: nothing to tell
        assert len(told) == 5

    def test_no_epochs(self, tissue, small_config, caplog):
        with caplog.at_level(logging.INFO):
            model = fit(tissue, small_config, epochs=0)
        assert len(model.history) == 0
        assert model.embedder.vectors.equal(model.initial_vectors)
        assert st.tl.stage_niches(tissue, model=model, n_domains=3, copy=True).obs["stage_domain"].nunique() == 3
        assert "collapsed" not in caplog.text

    @pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (6, 3)])
    def test_epochs_keep_the_share_of_the_warm_up(self, tissue, small_config, epochs, warmup):
        model = fit(tissue, small_config, epochs=epochs, patience=None)
        assert (model.history["stage"] == "warm-up").sum() == warmup == model.config.warmup_epochs
        assert len(model.history) == epochs == model.config.epochs
        config = fit(tissue, small_config.replace(epochs=0), epochs=1).config  # of a warm-up of two
        assert config.warmup_epochs == 1


class TestConfiguration:
    def test_given_is_used_as_it_is(self, tissue, caplog):
        """Without one, the tree is that of the number of cells, which is logged."""
        with caplog.at_level(logging.INFO):
            config = StageConfig(levels=(2, 4, 250), epochs=1, warmup_epochs=0, dim=8)
            assert fit(tissue, config).config == config
            assert "training cells" not in caplog.text
            model = fit(tissue, None, epochs=0)
        assert model.tree.levels == model.config.levels == adapt_config(StageConfig(), [300]).levels
        assert "300 training cells" in caplog.text and "`config`" in caplog.text

    def test_printed_variant(self, tissue):
        config = StageConfig.paper(levels=(2, 6, 18), epochs=2, warmup_epochs=1, batch_size=128, dim=16)
        model = fit(tissue, config)
        assert "reconstruction" not in model.history
        assert st.tl.stage_niches(tissue, model=model, n_domains=4, copy=True).obs["stage_domain"].nunique() == 4

    LEVELS = (4, 12, 48)

    @pytest.fixture(scope="class")
    def plain(self, tissue, small_config):
        return fit(tissue, small_config.replace(levels=self.LEVELS))

    @pytest.mark.parametrize(
        ("name", "value", "part"),
        [
            *[("linkage", "cosine", "tree.parent"), ("scaling", "center", "initial_vectors")],
            *[("swav_levels", "leaves", "encoder"), ("constant_component", 0.0, "encoder")],
            ("selection", "slide", "encoder"),
            *[(f"{loss}_weight", 0.0, "encoder") for loss in ("swav", "reconstruction", "path")],
        ],
    )
    def test_variants_make_a_difference(self, tissue, small_config, plain, name, value, part):
        model = fit(tissue, small_config.replace(levels=self.LEVELS, **{name: value}))
        before = plain.state_dict()
        assert any(not x.equal(before[key]) for key, x in model.state_dict().items() if key.startswith(part))
        assert model.history["loss"].notna().all()

    @pytest.mark.parametrize("how", ["path", "top-down"])
    def test_assignment(self, tissue, small_config, how):
        model = fit(tissue, small_config.replace(assignment=how), epochs=2)
        adata = st.tl.stage_niches(tissue, model=model, settle=False, copy=True)
        nodes = [[int(node[1:]) for node in path.split(">")] for path in adata.obs["stage_path"].astype(str)]
        h = torch.from_numpy(adata.obsm["X_stage"])
        assert [way for way in ("path", "top-down") if model.tree.paths(h, how=way).tolist() == nodes] == [how]


class TestOutput:
    def test_progress_bar(self, tissue, small_config, capfd):
        st.tl.fit(tissue, config=small_config, epochs=2)
        said = capfd.readouterr()
        assert said.out == ""
        assert re.search(r"STAGE: 100%.* 2/2 .*loss=\d\.\d{3}", said.err.replace("\r", "\n"))

    def test_nothing_for_healthy_data(self, slides, small_config, capfd, caplog, recwarn):
        fit(slides, small_config)
        assert capfd.readouterr() == ("", "")
        assert not caplog.records
        assert not [warning for warning in recwarn if "stage_sc" in warning.filename]

    @pytest.mark.filterwarnings("ignore:Number of distinct clusters")
    def test_cells_that_are_all_alike(self, tissue, small_config, caplog):
        adata = tissue.copy()
        adata.X = np.ones(tissue.shape, np.float32)
        model = fit(adata, small_config)
        assert "collapsed" in caplog.text
        assert all(value.isfinite().all() for name, value in model.state_dict().items() if "queue" not in name)


def test_finds_the_layers():
    """Two slides with a batch effect: domains agree with the truth and are shared by both."""
    adata = st.datasets.simulate_tissue(500, n_slides=2, batch_effect=0.3, rng=0)
    st.pp.build_graph(adata, library_key="slide")
    st.tl.stage_niches(adata, model=fit(adata, None, epochs=8), n_domains=5)
    assert st.metrics.ari(adata, "stage_domain", reference="domain") > 0.35
    shares = pd.crosstab(adata.obs["stage_domain"], adata.obs["slide"], normalize="columns")
    assert shares.min(axis=1).sum() > 0.6
