"""Benchmarks: runs, scores and tables of accuracy, and the slides on which speed is measured."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial import Delaunay, cKDTree
from scipy.stats import wilcoxon
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import stage_sc as st

ROOT = Path(__file__).parents[1]
ACCURACY = ROOT / "benchmarks" / "accuracy"
sys.path.insert(0, str(ROOT))  # the benchmark is a folder of the repository, no part of the package

from benchmarks.accuracy import __main__ as command  # noqa: E402
from benchmarks.accuracy import ablations, environments, execute, figures, runs, scenarios, scores, tables  # noqa: E402
from benchmarks.accuracy.methods import stage  # noqa: E402
from benchmarks.speed_workers import tile  # noqa: E402

CONFIG = """
[scenarios.made-up]
kind = "joint"
sections = ["*.h5ad"]
roles = ["annotated"]

[[runs]]
methods = ["broken"]
scenarios = ["made-up"]

[[runs]]
methods = ["stripes"]
scenarios = ["made-up"]
seeds = [0, 1]
"""
STRIPES = '''
"""Cuts sections into stripes and keeps a diary of its calls."""
# /// script
# [tool.benchmark]
# panels = "any"
# ///
from pathlib import Path
import numpy as np

def label(sections, n_domains, seed):
    with Path(__file__).with_suffix(".diary").open("a") as diary:
        diary.write(f"{seed}\\n")
    assert not any(len(section.obs.columns) for section in sections), "sections came with what an expert said"
    return [np.floor(n_domains * section.obsm["spatial"][:, 1] / 1000.0).astype(int) for section in sections]
'''
JOINT = scenarios.Scenario("x", "joint", ("*.h5ad",), ())
HALVES = scenarios.Scenario("x", "half-panels", ("slide1.h5ad",), ())
BROKEN = "def label(sections, n_domains, seed):\n    raise KeyError('no such thing')\n"
SLOW = "import time\ndef label(sections, n_domains, seed):\n    time.sleep(60)\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder, both = tmp_path_factory.mktemp("sections"), st.datasets.simulate_tissue(200, n_slides=2, rng=3)
    for name in ("slide1", "slide2"):
        slide = both[both.obs["slide"] == name].copy()
        slide.obs["domain"] = slide.obs["domain"].astype(object).where(np.arange(200) >= 5, None)
        slide.uns = {"tissue": f"{name} (left)", "species": "mouse"}
        slide.write_h5ad(folder / f"{name}.h5ad")
    return folder


@pytest.fixture
def methods(tmp_path) -> Path:
    folder = tmp_path / "methods"
    folder.mkdir()
    for name, source in (("stripes", STRIPES), ("broken", BROKEN), ("slow", SLOW)):
        (folder / f"{name}.py").write_text(source)
    return folder


def config(tmp_path: Path, text: str = CONFIG) -> list[runs.Run]:
    (tmp_path / "config.toml").write_text(text)
    return runs.read_config(tmp_path / "config.toml")


def test_a_method_that_fails_leaves_an_error_and_the_others_go_on(data, methods, tmp_path):
    out, asked = tmp_path / "lines.jsonl", config(tmp_path)
    command.benchmark(asked[:2], data, out, environments=tmp_path, methods=methods)
    failed, done = runs.read_lines(out)
    assert (failed["method"], done["method"]) == ("broken", "stripes")
    assert "no such thing" in failed["error"] and "scores" not in failed
    assert done["n_domains"] == 6 and {"wall_s", "cpu_s", "peak_mb"} <= set(done)
    assert done["versions"]["stage-sc"] == st.__version__

    with out.open("a") as file:  # as if the next run had been killed while it wrote
        file.write('{"id": "cut o')
    command.benchmark(asked, data, out, environments=tmp_path, methods=methods)
    assert (methods / "stripes.diary").read_text().split() == ["0", "1"], "a run with a line was repeated"
    lines = runs.read_lines(out)
    assert [line["id"] for line in lines] == [run.id for run in asked]
    assert runs.missing(asked, lines) == []
    assert [run.method for run in runs.missing(asked, lines, retry=True)] == ["broken"]


def test_another_checkpoint_under_the_same_name_is_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, ids = CONFIG + '[runs.options]\nmode = "zero-shot"\ncheckpoint = "model.safetensors"\n', []
    for seed in (None, 0, 1, 0):
        if seed is not None:
            network = st.model.Stage(st.model.StageConfig(levels=(2,)), ["a", "b"], ["slide"], seed=seed)
            st.model.save_checkpoint(network, "model")
        runs.digest_of.cache_clear()  # as in another process
        ids += [run.id for run in config(tmp_path, text) if run.method == "stripes" and run.seed == 0]
    assert ids[1] == ids[3] and len(set(ids)) == 3
    assert all("model" not in run.line for run in config(tmp_path, text.replace("zero-shot", "fit")))


def test_a_run_that_takes_too_long_is_ended_and_not_tried_with_other_seeds(data, methods, tmp_path):
    asked = config(tmp_path, CONFIG.replace("stripes", "slow"))
    command.benchmark(asked[1:], data, tmp_path / "out", environments=tmp_path, time_limit=0.5, methods=methods)
    first, second = runs.read_lines(tmp_path / "out")
    assert "not done after 0.5 s" in first["error"] and "too long" in second["skipped"]


@pytest.mark.parametrize("kind", ["joint", "one-by-one"])
def test_levels_of_a_tree_are_scored_beside_the_domains(data, methods, tmp_path, kind):
    """Niches have the same names in every call, domains have not."""
    tree = "    whole = [np.zeros(len(one), dtype=int) for one in halves]\n"
    tree += "    return {'domains': halves, 'l1': whole, 'l2': halves}\n"
    (methods / "stripes.py").write_text(STRIPES.replace("return [", "halves = [") + tree)
    run = runs.Run(scenarios.Scenario("x", kind, ("*.h5ad",), ()), "stripes", {}, 0)
    line = execute.execute(run, data, tmp_path, 60, methods)
    levels = line["levels"]
    assert list(levels) == ["l1", "l2"] and (levels["l1"]["number"], levels["l1"]["ARI"]) == (1, 0)
    assert line["scores"]["mean"].items() <= levels["l2"].items()
    assert ("joint" in line["scores"]) == (kind == "joint")
    (group,) = JOINT.load(data, 0)
    stripes = [np.floor(6 * one.obsm["spatial"][:, 1] / 1000).astype(int).astype(str) for one in group]
    labels = [pd.Series(part, one.obs_names) for part, one in zip(stripes, group, strict=True)]
    assert levels["l2"]["NMI, joint"] == scores.score(JOINT, [group], [labels])["joint"]["NMI"]


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("zero-shot", {"config": {"temperature": 0.2}}),
        ("fine-tune", {"vectors": "random"}),
        ("zero-shot", {"variant": "paper"}),
    ],
)
def test_options_without_effect_are_refused(mode, options):
    with pytest.raises(ValueError, match="from a model"):
        stage.label([], 4, 0, mode=mode, **options)


def test_random_vectors_change_the_labels(data):
    sections = [ad.read_h5ad(data / "slide1.h5ad")]
    found = [stage.label(sections, 4, 0, mode="untrained", vectors=name) for name in ("co-expression", "random")]
    assert list(found[0])[:2] == ["stage_domain", "stage_l1"]
    assert (found[0]["stage_domain"][0] != found[1]["stage_domain"][0]).any()


def test_scores_are_those_of_direct_calls(data):
    (group,), rng = JOINT.load(data, 0), np.random.default_rng(0)
    experts = [scenarios.expert(section).fillna("L1") for section in group]
    labels = [part.mask(rng.random(len(part)) < 0.3, "other") for part in experts]
    found = scores.score(JOINT, [group], [labels])

    joined = ad.concat({"slide1": group[0], "slide2": group[1]}, label="section", index_unique="-")
    joined.obs["found"] = np.concatenate(labels)
    for number, (section, part) in enumerate(zip(group, labels, strict=True), start=1):
        section.obs["found"] = part
        st.pp.build_graph(section)
        direct = st.metrics.evaluate(section, "found", reference="domain").loc["found"].drop("JSD")
        assert found[f"slide{number}"].pop("patches") < 0.2
        assert found[f"slide{number}"] == pytest.approx(direct.to_dict(), abs=1e-6)
    assert found["mean"]["PAS"] == pytest.approx(np.mean([found[f"slide{i}"]["PAS"] for i in (1, 2)]), abs=1e-5)
    assert found["joint"]["JSD"] == pytest.approx(st.metrics.jsd(joined, "found", library_key="section"), abs=1e-6)
    assert found["joint"]["ARI"] == pytest.approx(st.metrics.ari(joined, "found", reference="domain"), abs=1e-6)
    assert 0.5 < found["joint"]["specificity"] < 0.6, "both tissues have the same domains"
    apart = scores.score(JOINT, [group], [[experts[0] + " a", experts[1] + " b"]])
    assert apart["joint"]["specificity"] == apart["joint"]["JSD"] == 1.0, "domains of one tissue alone"
    assert apart["mean"]["ARI"] == 1.0 > apart["joint"]["ARI"]


def test_half_panels_are_disjoint_halves_of_the_same_cells(data):
    whole = ad.read_h5ad(data / "slide1.h5ad")
    (halves,), (again,), (other,) = (HALVES.load(data, seed=seed) for seed in (5, 5, 6))
    genes = [set(half.var_names) for half in halves]
    assert (
        not genes[0] & genes[1] and genes[0] | genes[1] == set(whole.var_names) and set(other[0].var_names) != genes[0]
    )
    assert all(half.obs_names.equals(whole.obs_names) for half in halves)
    assert (halves[0].X != whole[:, halves[0].var_names].X).nnz == 0 == (again[1].X != halves[1].X).nnz
    changed, before = halves[1].X.sum(axis=0).A1, whole[:, halves[1].var_names].X.sum(axis=0).A1
    ratio = np.log(changed[before > 50] / before[before > 50])
    assert np.median(ratio) == pytest.approx(np.log(0.6), abs=0.25) and ratio.std() == pytest.approx(0.5, abs=0.2)
    assert (halves[1].X.data == np.round(halves[1].X.data)).all()


def test_patches_are_the_agreement_with_places_beyond_that_of_the_expert(data):
    ((section, _),) = JOINT.load(data, 0)
    known, xy = scenarios.expert(section), section.obsm["spatial"]
    places = KMeans(known.nunique(), n_init=10, random_state=0).fit_predict(xy)
    labels = pd.Series(places.astype(str), section.obs_names)
    drawn = adjusted_rand_score(known.dropna(), labels[known.notna()])
    assert scores.patches(section, labels) == pytest.approx(1 - drawn) and drawn < 0.9
    assert scores.patches(section, known) == 0 and np.isnan(scores.patches(section, known.where(known.isna())))


@pytest.mark.parametrize("kind", scenarios.SHUFFLED)
def test_shuffled_sections_have_the_same_values_in_other_places(data, kind):
    whole, shuffle = ad.read_h5ad(data / "slide1.h5ad"), scenarios.Scenario("x", kind, ("slide1.h5ad",), ())
    ((one,),), ((again,),), ((other,),) = (shuffle.load(data, seed) for seed in (0, 0, 1))
    values = {"shuffled-genes": lambda section: section.X.toarray(), "shuffled-places": lambda one: one.obsm["spatial"]}
    before, changed, kept = values[kind](whole), values.pop(kind), values.popitem()[1]
    assert (changed(one) == changed(again)).all() and (kept(one) == kept(whole)).all()
    assert (changed(one) != before).any() and (changed(one) != changed(other)).any()
    np.testing.assert_array_equal(np.sort(changed(one), axis=0), np.sort(before, axis=0))


def test_sections_that_are_refused_are_counted(data, methods, tmp_path):
    """Shuffled sections have no scores, intact ones have both."""
    (methods / "stripes.py").write_text(STRIPES + "\ndef refused(section):\n    return section.n_obs == 200\n")
    kinds = ("shuffled-places", "one-by-one")
    asked = [scenarios.Scenario(kind, kind, ("*.h5ad",), ("null",) if "shuffled" in kind else ()) for kind in kinds]
    null, intact = (execute.execute(runs.Run(one, "stripes", {}, 0), data, tmp_path, 60, methods) for one in asked)
    assert null["refused"] == intact["refused"] == {"slide1": True, "slide2": True}
    assert null["scores"] == {} != intact["scores"] and "refused ['slide1', 'slide2']" in command.summary(null)
    assert runs.missing([runs.Run(asked[0], "stripes", {}, 0)], [null], retry=True) == []
    intact["refused"]["slide2"], null["refused"]["slide2"] = False, None  # None: a version that does not say
    table = tables.null_table([null, intact]).set_index("sections")["refused"]
    assert table.to_dict() == {"shuffled-places": "1 of 1", "intact": "1 of 2"}


def test_a_slide_without_directions_is_refused():
    section = ad.AnnData(np.ones((2, 1)))
    for slides, expected in ((None, None), ({"n_directions": [0], "noise_floor": [1.0]}, True)):
        section.uns["stage"] = {} if slides is None else {"slides": pd.DataFrame(slides)}
        assert stage.refused(section) is expected
    section.uns["stage"]["slides"]["n_directions"] = 3
    assert stage.refused(section) is False


def test_the_floor_averages_two_hops(data, monkeypatch):
    monkeypatch.syspath_prepend(execute.METHODS / "_shared")
    floor = importlib.import_module("benchmarks.accuracy.methods.floor")
    rows, columns = np.indices((6, 6)).reshape(2, -1)
    square = ad.AnnData(np.ones((36, 1)), obsm={"spatial": np.column_stack([rows, columns]) * 200.0})
    weights = floor.two_hops(square)
    assert np.allclose(weights.sum(axis=1), 1) and 9 <= (weights[14] > 0).sum() <= 25 and weights[14, 35] == 0
    (group,) = JOINT.load(data, 0)
    labels = floor.label(group, 6, 0)
    assert [len(part) for part in labels] == [200, 200] and len(np.unique(np.concatenate(labels))) == 6


def test_experts_agree_and_some_methods_are_skipped(data, tmp_path):
    """Between half panels, which have no common genes; and where weights are not there."""

    def line(scenario: scenarios.Scenario, method: str, **options: str) -> dict:
        return execute.execute(runs.Run(scenario, method, options, 0), data, tmp_path, 1.0)

    joint = line(HALVES, "expert")["scores"]["joint"]
    assert (joint["between"], joint["JSD"]) == (1.0, 0.0)
    assert "sections have 0" in line(HALVES, "leiden")["skipped"]
    assert line(JOINT, "scgpt")["skipped"] == line(JOINT, "scgpt", weights="nowhere")["skipped"] == "weights not there"


def test_every_method_says_what_it_needs():
    for method in execute.METHODS.glob("[!_]*.py"):
        needed = environments.requirements(method)
        assert needed.panels in ("common", "any") and "def label(" in method.read_text()
        assert method.stem == "stage" or (needed.own and needed.dependencies), method.stem
    assert environments.interpreter(execute.METHODS / "stage.py", Path("nowhere")) == Path(sys.executable)


def test_metadata_is_read_as_its_specification_says(tmp_path):
    (tmp_path / "method.py").write_text(
        '# /// script\n# dependencies = [\n#   "one[more]>=2",\n#   "two==1.0",\n# ]\n#\n# [tool.benchmark]\n'
        '# needs = "weights"\n# ///\nimport one\n'
    )
    needed = environments.requirements(tmp_path / "method.py")
    assert (needed.packages, needed.needs, needed.panels) == (["one", "two"], "weights", "common")


def test_options_vary_one_at_a_time(tmp_path):
    text = CONFIG + '[runs.options]\nmode = "fit"\n[runs.vary]\nmode = ["x"]\n"config.epochs" = [1, 2]\n'
    found = [run.options for run in config(tmp_path, text) if run.method == "stripes" and run.seed == 0]
    assert found == [{"mode": "x"}, *({"mode": "fit", "config": {"epochs": n}} for n in (1, 2))]


@pytest.mark.parametrize("name", ["ablations", "baselines", "left-out", "stage"])
def test_configs_name_what_exists_and_find_their_lines(name):
    """Of the models without the annotated studies, no checkpoint is kept to tell their lines by."""
    asked = runs.read_config(ACCURACY / "configs" / f"{name}.toml")
    assert len({run.id for run in asked}) == len(asked)
    assert {run.method for run in asked} <= {method.stem for method in execute.METHODS.glob("[!_]*.py")} | {"expert"}
    assert all(st.model.StageConfig(**run.options.get("config", {})) for run in asked)
    tasks = {line["id"]: line["task"] for line in runs.read_lines(ACCURACY / "lines" / f"{name}.jsonl")}
    assert {run.id: run.task for run in asked if run.id in tasks} == ({} if name == "left-out" else tasks)
    assert set(tasks.values()) <= {run.task for run in asked}


def made_up(method: str, ari: float, seed: int, options: dict | None = None) -> dict:
    """Line of a run on two sections, the second 0.1 worse than the first."""
    rng, values = np.random.default_rng([seed, len(method)]), {"NMI": 0.5, "FIDE": 0.8, "PAS": 0.1, "ASW": 0.75}
    first, second = ({"ARI": ari - less + rng.normal(scale=0.01), **values} for less in (0.0, 0.1))
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    found = {"one": first, "two": second, "joint": {"JSD": 0.2, "ARI": ari}, "mean": mean}
    told = {"id": f"{method}{options}{seed}", "roles": ["replicates"], "scenario": "cortex", "seed": seed}
    return told | {"method": method, "options": options or {}, "scores": found, "cpu_s": 3.0}


FIT = {"mode": "fit"}
AS_TRAINED = {**FIT, "settle": False}


@pytest.fixture
def lines() -> list[dict]:
    found = [made_up("stage", 0.8, seed, FIT) for seed in range(5)]
    found += [made_up("leiden", 0.3, seed) for seed in range(5)]
    failed = made_up("leiden", 0, 7) | {"scenario": "lung", "error": "KeyError: 'x'"}
    found += [made_up("expert", 1.0, 0), {name: value for name, value in failed.items() if name != "scores"}]
    changes = [{"temperature": 0.5}, {"batch_size": 64}]
    changes += [{"levels": levels} for levels in ([64], [8, 64], [4, 16, 64], [3, 10, 32])]
    found += [made_up("stage", 0.8, seed, AS_TRAINED) for seed in range(5)]
    return found + [made_up("stage", 0.6, seed, {**AS_TRAINED, "config": one}) for one in changes for seed in range(2)]


@pytest.fixture
def arguments(lines, tmp_path, monkeypatch) -> None:
    """A command line that names a file of the lines."""
    for line in lines:
        runs.append(tmp_path / "lines", line)
    monkeypatch.setattr(sys, "argv", ["command", str(tmp_path / "lines")])


def test_tables_have_means_over_sections_and_spread_over_seeds(lines):
    scores = tables.frame(lines)
    assert (scores["section"] == "mean").sum() == len(lines) - 1
    table = tables.summary(scores[scores["scenario"] == "cortex"]).set_index("method")
    assert table.index[0] == "expert" and table.index[-1] == "leiden"
    aris = [line["scores"]["mean"]["ARI"] for line in lines[5:10]]
    assert table.loc["leiden", "ARI"] == f"{np.mean(aris):.3f} ({np.std(aris, ddof=1):.3f})"
    assert table.loc["stage fit settle=False temperature=0.5", "runs"] == 2
    paper = tables.paper_table(scores).set_index("Methods")
    assert paper.loc["leiden", "ASW"] == "0.5000 (± 0.0000)", "a silhouette between -1 and 1"


def test_every_study_has_one_vote():
    """Seeds are averaged first; a mean without one of its studies is not given."""
    rows = [("starmap", 0.6, 0), ("starmap", 0.8, 1), ("starmap-one-by-one", 0.5, 0), ("osmfish", 0.4, 0)]
    rows += [("xenium-breast", 0.3, 0), ("mob", 0.2, 0), ("her2", 0.3, 0), ("imc", 0.9, 0)]
    found = [made_up("floor", 0, seed) | {"scenario": name, "scores": {"mean": {"ARI": x}}} for name, x, seed in rows]
    joint, alone = (part.iloc[0] for part in tables.study_tables(tables.frame(found)).values())
    assert (joint["STARmap"], alone["STARmap"], joint["MOB"], alone["MOB"]) == ("0.700", "0.500", "0.200", "0.200")
    assert (joint["**imaging panel**"], alone["**imaging panel**"]) == ("0.467", "0.400")
    assert joint["**proteins**"] == "0.900" and joint["**all**"] == joint["**whole-transcriptome spots**"] == "–"
    whole = [*found, made_up("floor", 0, 0) | {"scenario": "dlpfc", "scores": {"mean": {"ARI": 0.1}}}]
    ((_, table),) = list(tables.study_tables(tables.frame(whole)).items())[:1]
    assert table.iloc[0]["**all**"] == f"{np.mean([0.7, 0.4, 0.3, 0.2, 0.3, 0.9, 0.1]):.3f}"


def test_wilcoxon_pairs_sections_and_seeds(lines):
    table = tables.signed_ranks(tables.frame(lines)).set_index("method")
    aris = np.array([[line["scores"][section]["ARI"] for section in ("one", "two")] for line in lines[:10]])
    assert table.loc["leiden", "wins"] == "10 of 10" and "expert" not in table.index
    assert table.loc["leiden", "p"] == f"{wilcoxon((aris[:5] - aris[5:]).ravel()).pvalue:.2g}"
    assert tables.signed_ranks(tables.frame(lines[5:10])) is None


def test_the_tables_of_a_file_are_printed(arguments, capsys):
    tables.main()
    printed = capsys.readouterr().out
    titles = [
        "## cortex (replicates)",
        "Table 1",
        "Wilcoxon",
        "changed: cortex",
        "| lung | leiden | KeyError: 'x' | 7 |",
    ]
    assert all(title in printed for title in titles)


def test_ablations_have_the_default_among_the_values(lines):
    changed = ablations.ablations(lines)
    of = {name: sorted(part["value"].unique()) for name, part in changed.groupby("parameter")}
    assert of == {"batch_size": [64, 256], "temperature": [0.1, 0.5], "depth": [1, 2, 3], "leaves": [32, 64]}
    default = changed[(changed["parameter"] == "temperature") & (changed["value"] == 0.1)]
    assert len(default) == 5 and default["ARI"].mean() == pytest.approx(0.75, abs=0.02)
    row = tables.ablation_table(changed).set_index("parameter").loc["temperature"]
    assert (row["value"].tolist(), row["runs"].tolist()) == (["**0.1**", 0.5], [5, 2])


def test_figures_are_drawn(lines, arguments, tmp_path):
    sys.argv += ["--out", str(tmp_path)]
    figures.main()
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"ablation.png", "methods-replicates.png", "parameters.png"}
    found = tables.frame(lines[:11])
    (ax, *_) = figures.methods(found).axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.25, 0.75], abs=0.02)
    later = found.assign(scenario="later", JSD=found["JSD"].fillna(0.1) * 9)  # larger values in a later scenario
    for ax in figures.methods(pd.concat([found, later])).axes:
        assert all(bar.get_width() <= ax.get_xlim()[1] for bar in ax.patches if np.isfinite(bar.get_width()))
    plt.close("all")


@pytest.fixture
def section() -> ad.AnnData:
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(1.0, size=(400, 12)).astype(np.float32))
    return ad.AnnData(counts, obsm={"spatial": rng.uniform([500, 0], [700, 200], size=(400, 2)).astype(np.float32)})


@pytest.mark.parametrize("n_cells", [150, 400, 1000, 3600])
def test_tiles_have_the_sections_density(section, n_cells):
    slide = tile(section, n_cells, 12)
    points = slide.obsm["spatial"]
    assert slide.shape == (n_cells, 12) and len(np.unique(points, axis=0)) == n_cells
    near, distance = (cKDTree(xy).query(xy, 2)[0][:, 1] for xy in (points, section.obsm["spatial"]))
    assert np.median(near) == pytest.approx(np.median(distance), rel=0.15)
    corners = points[Delaunay(points).simplices]
    area = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / 2
    assert np.median(area) == pytest.approx(200 * 200 / 400 / 2, rel=0.3)


def test_tiles_have_the_sections_counts(section):
    slide, expected = tile(section, 1000, 5), section.X[:, :5].toarray()
    last = np.flatnonzero(section.obsm["spatial"][:, 1] <= np.sort(section.obsm["spatial"][:, 1])[199])
    np.testing.assert_array_equal(slide.X.toarray(), np.concatenate([expected, expected, expected[last]]))
    assert slide.var_names.equals(section.var_names[:5])
    first, *others = np.split(tile(section, 1600, 5).obsm["spatial"], 4)  # tiles do not overlap
    for other in others:
        assert ((other.min(axis=0) > first.max(axis=0) - 10) | (other.max(axis=0) < first.min(axis=0) + 10)).any()
