"""The demo, end to end, on small simulated tissue."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout

import anndata as ad
import numpy as np
import pytest

import stage_sc as st
from stage_sc.demo import main


def run(adata, folder, *options):
    """Write the data to a file, run the demo on it; its result and its output."""
    adata.write_h5ad(folder / "slide.h5ad")
    with redirect_stdout(io.StringIO()) as said:
        main([str(folder / "slide.h5ad"), "--out", str(folder / "out"), *options])
    return ad.read_h5ad(folder / "out" / "labelled.h5ad"), said.getvalue()


@pytest.fixture(scope="module")
def slide():
    return st.datasets.simulate_tissue(400, rng=1)


def test_with_expert_labels(slide, tmp_path):
    labelled, said = run(slide, tmp_path)
    assert labelled.obs["stage_domain"].nunique() == slide.obs["domain"].nunique()
    for key in [*labelled.uns["stage"]["levels"], "stage_domain"]:
        labels, ari, nmi = re.search(rf"^ *{key} +(\d+) +(\S+) +(\S+)$", said, flags=re.MULTILINE).groups()
        assert int(labels) == labelled.obs[key].nunique()
        assert float(ari) == pytest.approx(st.metrics.ari(labelled, key, reference="domain"), abs=0.006)
        assert float(nmi) == pytest.approx(st.metrics.nmi(labelled, key, reference="domain"), abs=0.006)
    for picture in ("tissue.png", "tree.png"):
        content = (tmp_path / "out" / picture).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000
    assert (labelled.X != slide.X).nnz == 0 and labelled.obs_names.tolist() == slide.obs_names.tolist()
    np.testing.assert_array_equal(labelled.obsm["spatial"], slide.obsm["spatial"])
    assert set(slide.obs) <= set(labelled.obs)


def test_without_a_file(tmp_path, capsys, monkeypatch):
    def unreachable():
        raise OSError("Cannot download.")

    monkeypatch.setattr(st.datasets, "osmfish_cortex", unreachable)
    main(["--out", str(tmp_path / "new" / "folder")])
    said = capsys.readouterr().out
    assert said.startswith("No real section: Cannot download.")
    assert re.search(r"simulated.*^cells +4,000$", said, flags=re.MULTILINE | re.DOTALL)
    written = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert written == ["labelled.h5ad", "tissue.png", "tree.png"]


def test_real_section_where_it_can_be_had(dev_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STAGE_SC_DATA", str(dev_data.parent))
    main(["--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert re.search(r"real section.*Codeluppi.*^cells +4,839$", said, flags=re.MULTILINE | re.DOTALL)
    assert ad.read_h5ad(tmp_path / "labelled.h5ad").obs["stage_domain"].nunique() == 11


@pytest.mark.parametrize("labels", [None, np.linspace(0, 1, 400), np.arange(400) % 3, "a"], ids=["-", "x", "n", "one"])
def test_without_expert_labels(slide, tmp_path, labels):
    """No labels, measured values, numbers, and one label for all cells."""
    adata = slide.copy()
    adata.obs = adata.obs.drop(columns="domain") if labels is None else adata.obs.assign(domain=labels)
    labelled, said = run(adata, tmp_path)
    assert "ARI" not in said and "--n-domains" in said
    assert "stage_domain" not in labelled.obs


def test_options(tmp_path):
    adata = st.datasets.simulate_tissue(200, n_slides=2, rng=1)
    adata.layers["counts"], adata.X = adata.X.copy(), None
    adata.obsm["pixels"] = adata.obsm.pop("spatial") * 5
    options = ["--layer", "counts", "--spatial-key", "pixels", "--scale", "0.2", "--library-key", "slide"]
    labelled, said = run(adata, tmp_path, *options, "--n-domains", "3")
    assert re.search(r"^slides +2 \(obs\['slide'\]\)$", said, flags=re.MULTILINE)
    assert labelled.obs["stage_domain"].nunique() == 3
    assert labelled.uns["stage_graph"]["slides"]["scale"].tolist() == [0.2, 0.2]
    assert labelled.uns["stage"]["params"]["library_key"] == "slide"


def test_file_that_cannot_be_used(slide, tmp_path):
    with pytest.raises(SystemExit, match=r"FileNotFoundError.*nowhere\.h5ad"):
        main([str(tmp_path / "nowhere.h5ad")])
    adata = slide.copy()
    del adata.obsm["spatial"]
    with pytest.raises(SystemExit, match=r"KeyError.*'spatial'"):
        run(adata, tmp_path)
    assert not (tmp_path / "out").exists()
