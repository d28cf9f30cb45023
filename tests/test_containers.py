"""Any container in one call: lists, dictionaries, files, MuData, mixed; summaries; cohorts with bad slides."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import stage_sc as st

LABELS = ["stage_l1", "stage_l3", "stage_path", "stage_domain", "stage_flag"]


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def make(number: int) -> ad.AnnData:
    return st.datasets.simulate_tissue(150, batch_effect=0.3, rng=number)


def label(data: object, model: st.model.Stage, **arguments: object) -> object:
    made = st.pp.build_graph(data, **arguments)
    data = data if made is None else made
    st.tl.stage_niches(data, model=model, n_domains=3)
    return data


def same_labels(one: ad.AnnData, other: ad.AnnData) -> bool:
    return all((one.obs[key].astype(str).to_numpy() == other.obs[key].astype(str).to_numpy()).all() for key in LABELS)


@pytest.fixture(scope="module")
def reference(small_model) -> dict[str, ad.AnnData]:
    """Two slides labelled as a dictionary."""
    return label({"a": make(1), "b": make(2)}, small_model)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / "a.h5ad", tmp_path / "b.zarr"]
    make(1).write_h5ad(paths[0])
    make(2).write_zarr(paths[1])
    return paths


class TestFiles:
    @pytest.mark.parametrize("form", [list, lambda paths: dict(zip("ab", map(str, paths), strict=True))])
    def test_labels_are_those_of_objects(self, form, files, reference, small_model):
        before = [path.read_bytes() if path.is_file() else sorted(path.rglob("*")) for path in files]
        given = form(files)
        made = label(given, small_model)
        parts = list(made.values()) if isinstance(made, dict) else made
        assert type(made) is type(given)
        assert same_labels(parts[0], reference["a"]) and same_labels(parts[1], reference["b"])
        assert [path.read_bytes() if path.is_file() else sorted(path.rglob("*")) for path in files] == before

    def test_without_a_graph(self, files, reference, small_model):
        """It is built on the way, as a graph could not be kept."""
        made = st.tl.stage_niches([*files], model=small_model, n_domains=3)
        assert same_labels(made[0], reference["a"]) and same_labels(made[1], reference["b"])
        assert "local_connectivities" in made[0].obsp

    def test_one_file(self, files, small_model):
        made = st.tl.stage_niches(files[0], model=small_model)
        alone = make(1)
        st.pp.build_graph(alone)
        st.tl.stage_niches(alone, model=small_model)
        assert isinstance(made, ad.AnnData) and (made.obs["stage_path"] == alone.obs["stage_path"]).all()

    def test_mixed_with_objects(self, files, reference, small_model):
        one = make(1)
        made = label({"a": one, "b": files[1]}, small_model)
        assert made["a"] is one and same_labels(one, reference["a"]) and same_labels(made["b"], reference["b"])

    def test_plots_and_metrics_read_files(self, reference, tmp_path):
        paths = []
        for name, part in reference.items():
            paths.append(tmp_path / f"{name}.h5ad")
            part.write_h5ad(paths[-1])
        want = st.metrics.evaluate(reference, "stage_domain", reference="domain")
        assert st.metrics.evaluate(paths, "stage_domain", reference="domain").equals(want)
        assert len(st.pl.spatial_domains(paths, keys="stage_l1", show=False)) == 2

    def test_paths_of_one_name(self, tmp_path):
        """Are called by position."""
        for folder in ("x", "y"):
            (tmp_path / folder).mkdir()
            make(1).write_h5ad(tmp_path / folder / "slide.h5ad")
        table = st.pp.summarize([tmp_path / folder / "slide.h5ad" for folder in ("x", "y")])
        assert table["object"].tolist() == ["0", "1"]

    def test_no_table_of_cells(self, tmp_path):
        import h5py

        with h5py.File(tmp_path / "other.h5ad", "w") as file:
            file["numbers"] = [1]
        for path, match in (("other.h5ad", "numbers"), ("none.h5ad", "no file"), ("text.h5ad", "cannot be read")):
            (tmp_path / "text.h5ad").write_text("text")
            with pytest.raises((ValueError, FileNotFoundError), match=match):
                st.pp.build_graph(tmp_path / path)

    def test_results_in_objects_that_are_not_returned(self, tmp_path):
        make(1).write_h5ad(tmp_path / "a.h5ad")
        for call in (st.tl.correct_embedding, lambda paths: st.tl.label_regions(paths, {"type": "FeatureCollection"})):
            with pytest.raises(TypeError, match="read the files first"):
                call([tmp_path / "a.h5ad"])


class TestMuData:
    @pytest.fixture
    def mdata(self):
        mudata = pytest.importorskip("mudata")
        rna = make(1)
        protein = ad.AnnData(np.ones((rna.n_obs, 3)), obs=rna.obs[[]], var={"name": ["CD3", "CD4", "CD8"]})
        return mudata.MuData({"rna": rna, "prot": protein})

    def test_labels_go_into_the_modality_of_rna(self, mdata, small_model):
        alone, other = label(make(1), small_model), label(mdata, small_model)
        assert same_labels(other.mod["rna"], alone) and "stage_l1" not in other.mod["prot"].obs
        assert st.metrics.pas(mdata, "stage_l1") == st.metrics.pas(alone, "stage_l1")

    def test_file_and_copy(self, mdata, small_model, tmp_path):
        import mudata

        mdata.write(tmp_path / "both.h5mu")
        made = label(tmp_path / "both.h5mu", small_model)
        assert isinstance(made, mudata.MuData) and same_labels(made.mod["rna"], label(make(1), small_model))
        copied = st.pp.build_graph(mdata, copy=True)
        assert isinstance(copied, mudata.MuData) and "stage_graph" in copied.mod["rna"].uns
        assert "stage_graph" not in mdata.mod["rna"].uns

    def test_coordinates_of_the_whole(self, mdata):
        mdata.obsm["spatial"] = mdata.mod["rna"].obsm["spatial"].copy()
        xy = mdata.mod["rna"].obsm.pop("spatial")
        st.pp.build_graph(mdata)
        assert (mdata.mod["rna"].obsm["spatial"] == xy).all()

    @pytest.mark.parametrize(
        ("names", "match"), [(["one", "two"], "none of which"), (["rna", "gex"], "several of which")]
    )
    def test_modality_that_is_not_clear(self, names, match):
        mudata = pytest.importorskip("mudata")
        mdata = mudata.MuData({name: make(1) for name in names})
        with pytest.raises(ValueError, match=f"'{names[0]}', '{names[1]}', {match}.*`table_key="):
            st.pp.build_graph(mdata)
        st.pp.build_graph(mdata, table_key=names[1])
        assert "stage_graph" in mdata.mod[names[1]].uns and "stage_graph" not in mdata.mod[names[0]].uns
        with pytest.raises(KeyError, match="no modality 'x'"):
            st.pp.build_graph(mdata, table_key="x")


def cohort(tmp_path: Path) -> dict[str, object]:
    """Three good slides among bad ones."""
    slides: dict[str, object] = {name: make(number) for number, name in enumerate("abc", 1)}
    slides["empty"] = make(4)[:0].copy()
    slides["two"] = make(4)[:2].copy()
    slides["fish"] = make(4)
    slides["fish"].var_names = [f"ENSDARG{number:011}" for number in range(slides["fish"].n_vars)]
    slides["rat"] = make(4)
    slides["rat"].var["gene_ids"] = [f"ENSRNOG{number:011}" for number in range(slides["rat"].n_vars)]
    (tmp_path / "broken.h5ad").write_bytes(b"no such format")
    slides["broken"], slides["lost"] = tmp_path / "broken.h5ad", str(tmp_path / "lost.h5ad")
    return slides


BAD = ["empty", "two", "fish", "rat", "broken", "lost"]


class TestBadSlides:
    def test_the_rest_goes_on(self, tmp_path, small_model, caplog):
        slides = cohort(tmp_path)
        made = st.pp.build_graph(slides)
        st.tl.stage_niches(made, model=small_model, n_domains=3)
        assert [name for name, part in made.items() if "stage_l1" in part.obs] == ["a", "b", "c"]
        for name in BAD:
            assert f"'{name}'" in warnings_of(caplog)
        assert "stage_graph" not in made["two"].uns and "broken" not in made and made["rat"] is slides["rat"]
        good = label({name: make(number) for number, name in enumerate("abc", 1)}, small_model)
        assert all(same_labels(made[name], good[name]) for name in "abc")

    def test_summary_says_so(self, tmp_path, small_model):
        slides = cohort(tmp_path)
        table = st.pp.summarize(slides).set_index("object")
        assert (table.loc[list("abc"), ["problem", "warning"]] == "").all(axis=None)
        assert (table.loc[[name for name in BAD if name != "rat"], "problem"] != "").all()
        assert "another species" in table.loc["rat", "warning"] or "species other than" in table.loc["rat", "warning"]
        assert "no file" in table.loc["lost", "problem"] and "2 cells" in table.loc["two", "problem"]

    @pytest.mark.parametrize("name", BAD)
    def test_raise(self, name, tmp_path, small_model, unchanged):
        slides = {"a": make(1), "bad": cohort(tmp_path)[name]}
        with pytest.raises((ValueError, FileNotFoundError)):
            made = st.pp.build_graph(slides, errors="raise") or slides
            st.tl.stage_niches(made, model=small_model, errors="raise")
            raise ValueError("other species are a warning") if name == "rat" else AssertionError
        if name in ("empty", "two"):
            assert "stage_graph" not in slides["a"].uns

    @pytest.mark.parametrize("name", ["empty", "two", "broken", "lost"])
    def test_a_single_object_raises(self, name, tmp_path):
        with pytest.raises((ValueError, FileNotFoundError)):
            st.pp.build_graph(cohort(tmp_path)[name])

    def test_all_are_bad(self, tmp_path):
        slides = cohort(tmp_path)
        with pytest.raises(ValueError, match="'empty'"):
            st.pp.build_graph({"empty": slides["empty"], "two": slides["two"]})
        with pytest.raises((ValueError, FileNotFoundError)):
            st.pp.build_graph([slides["broken"], slides["lost"]])

    def test_wrong_unit(self, caplog):
        slides = {"a": make(1), "b": make(2), "px": make(3)}
        slides["px"].obsm["spatial"] /= 100
        st.pp.build_graph(slides, scale=1.0)
        assert [name for name, part in slides.items() if "stage_graph" not in part.uns] == ["px"]
        assert "'px'" in warnings_of(caplog) and "`scale`" in warnings_of(caplog)

    def test_one_in_pixels_in_the_summary(self):
        slides = {"a": make(1), "b": make(2), "px": make(3)}
        slides["px"].obsm["spatial"] *= 5
        table = st.pp.summarize(slides, scale=1.0)
        assert "another unit" in table.loc["px", "warning"] and not table.loc[["a", "b"], "warning"].any()
        assert table.loc["px", "spacing"] == pytest.approx(60, rel=0.1)

    def test_wrong_errors(self):
        for wrong in (None, "ignore", True):
            with pytest.raises((TypeError, ValueError), match="`errors`"):
                st.pp.build_graph(make(1), errors=wrong)

    def test_things_that_are_no_containers_raise(self):
        for wrong in (3, None, [[make(1)]]):
            with pytest.raises(TypeError, match=r"data\['bad'\]"):
                st.pp.build_graph({"a": make(1), "b": make(2), "bad": wrong})


class TestSummary:
    def test_before_and_after(self, small_model, caplog, unchanged):
        slides = {"a": make(1), "b": st.datasets.simulate_tissue(120, n_slides=2, rng=5)}
        with unchanged(*slides.values()):
            before = st.pp.summarize(slides, library_key="slide" if "slide" in slides["a"].obs else None)
        assert not warnings_of(caplog)
        assert before["cells"].sum() == sum(part.n_obs for part in slides.values())
        assert (before["unit"] == "µm").all() and (before["species"] == "mouse").all()
        assert not before["labelled"].any() and before["likeness"].isna().all()
        label(slides, small_model, library_key="slide")
        after = st.pp.summarize(slides)
        assert after["labelled"].all() and (after["likeness"] > 0.05).all()
        for name, part in slides.items():
            stored = part.uns["stage_graph"]["slides"]
            rows = after[after["object"] == name].set_index("slide")
            assert rows["scale"].to_dict() == stored["scale"].to_dict()
            flags = (part.obs["stage_flag"].astype(str) != "ok").groupby(part.obs["slide"].astype(str)).sum()
            assert rows["flagged"].to_dict() == flags.to_dict()

    def test_neighbours_of_a_stored_graph(self, tissue):
        want = np.median(np.diff(tissue.obsp["spatial_connectivities"].tocsr().indptr))
        bare = tissue.copy()
        del bare.uns["stage_graph"], bare.obsp["spatial_connectivities"]
        for adata in (tissue, bare):
            assert st.pp.summarize(adata)["neighbours"].tolist() == [want]

    def test_bad_slide_of_one_object(self):
        adata = make(1)
        adata.obs["part"] = ["few"] * 3 + ["rest"] * (adata.n_obs - 3)
        table = st.pp.summarize(adata, library_key="part")
        assert "3 cells" in table.loc["few", "problem"] and table.loc["rest", "problem"] == ""
