"""Real sections: copies, downloads from a local server, broken files, and formats of the sources."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.io import mmwrite

import stage_sc as st
from stage_sc.datasets import _convert, _fetch, _real

LOADERS = {
    "osmfish_cortex": "dev/osmfish_cortex/SScortex",
    "xenium_mouse_brain": "corpus/xenium_mouse_brain_subset/FF_coronal_CTX_HP",
    "xenium_pancreas": "corpus/xenium_pancreas/human_Pancreas_FFPE",
    "olfactory_bulb": "dev/mob_st/Rep11",
}
NAMES = [f"cell{i}" for i in range(6)]


class Quiet(SimpleHTTPRequestHandler):
    """Server without log."""

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Folder with a loom of six cells, its server, and a cache; the section of osmFISH is taken from there."""
    folder = tmp_path / "served"
    folder.mkdir()
    loom = write_loom(folder / "cells.loom")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("STAGE_SC_DATA", raising=False)
    monkeypatch.setenv("STAGE_SC_CACHE", str(tmp_path / "cache"))
    url = f"http://127.0.0.1:{server.server_address[1]}/cells.loom"

    known, digest = hashlib.sha256(loom.read_bytes()).hexdigest(), _fetch.content_digest(_convert.osmfish(loom))

    def section(*, url=url, sha256=known, content=digest):
        files = (_fetch.File(url, "cells.loom", sha256),)
        monkeypatch.setattr(_real, "OSMFISH", _real.OSMFISH._replace(files=files, content=content))

    section()
    yield section, server, loom, tmp_path / "cache"
    server.shutdown()
    server.server_close()


def write_loom(path: Path) -> Path:
    """Cells in two regions; one is excluded, one not valid, and the last repeats the first."""
    counts = np.array([[1, 2, 0, 4, 5, 1], [0, 0, 3, 1, 1, 0]])
    with h5py.File(path, "w") as file:
        file["matrix"] = counts
        file["row_attrs/Gene"] = np.array([b"Gad2", b"Vip"])
        columns = {
            "CellID": np.array(NAMES, "S5"),
            "ClusterName": np.array(["a", "b", "a", "b", "a", "a"], "S1"),
            "Region": np.array(["L1", "L2", "Excluded", "L2", "L1", "L1"], "S8"),
            "Valid": np.array([1, 1, 1, 0, 1, 1]),
            "X": np.array([10.0, 20, 30, 40, 50, 10]),
            "Y": np.array([1.0, 2, 3, 4, 5, 1]),
            "size_um2": np.full(6, 0.065**2 * 100),
            "size_pix": np.full(6, 100.0),
        }
        for name, values in columns.items():
            file[f"col_attrs/{name}"] = values
    return path


def test_download_is_kept(served, capfd):
    _, server, loom, cache = served
    first = st.datasets.osmfish_cortex()
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert first.obs_names.tolist() == ["cell0", "cell1", "cell4", "cell5"]
    assert first.obs["is_duplicate"].tolist() == [False, False, False, True]
    assert first.obs["domain"].tolist() == ["L1", "L2", "L1", "L1"]
    np.testing.assert_allclose(first.obsm["spatial"][1], [20 * 0.065, 2 * 0.065], rtol=1e-6)
    assert first.uns["licence"] == "MIT" and "Codeluppi" in first.uns["citation"]
    server.shutdown()
    server.server_close()
    again = st.datasets.osmfish_cortex()
    assert (again.X != first.X).nnz == 0
    pd.testing.assert_frame_equal(again.obs, first.obs)
    written = cache / "osmfish_cortex" / "SScortex.h5ad"
    written.write_bytes(written.read_bytes()[:-1000])  # a cache that is damaged is made again
    assert (st.datasets.osmfish_cortex().X != first.X).nnz == 0


@pytest.mark.parametrize("broken", ["another", "cut"])
def test_wrong_digest(served, broken):
    _, _, loom, cache = served
    content = loom.read_bytes()
    loom.write_bytes(content[:-100] if broken == "cut" else content + b" ")
    with pytest.raises(OSError, match=r"http://127\S+ is broken or changed: its SHA-256 is not .*STAGE_SC_DATA"):
        st.datasets.osmfish_cortex()
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_no_network_and_no_page(served):
    section, server, _, _ = served
    section(url=f"http://127.0.0.1:{server.server_address[1]}/nothing.loom")
    with pytest.raises(OSError, match=r"Cannot download http://127\S+nothing.loom .*404.*save it as .*cells.loom"):
        st.datasets.osmfish_cortex()
    section()
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match=r"Cannot download .*STAGE_SC_DATA.*osmfish_cortex/SScortex.h5ad"):
        st.datasets.osmfish_cortex()


@pytest.mark.parametrize("broken", ["unreadable", "other counts"])
def test_files_without_a_digest_of_their_own(served, broken):
    section, _, loom, cache = served
    section(sha256=None)
    if broken == "unreadable":
        loom.write_text("<html>moved</html>")
    else:
        with h5py.File(loom, "a") as file:
            file["matrix"][0, 0] = 7
    message = "cannot be read" if broken == "unreadable" else "differ from those"
    with pytest.raises(OSError, match=f"{message}.*removed.*call again"):
        st.datasets.osmfish_cortex()
    assert not [path for path in cache.rglob("*") if path.is_file()]
    write_loom(loom)
    assert st.datasets.osmfish_cortex().shape == (4, 2)


def test_folder_of_copies(served, tmp_path, monkeypatch):
    section, *_ = served
    section(url="http://127.0.0.1:1/none")
    copies = tmp_path / "copies"
    monkeypatch.setenv("STAGE_SC_DATA", str(copies))
    with pytest.raises(FileNotFoundError, match="copies.*STAGE_SC_DATA"):
        st.datasets.osmfish_cortex()
    adata = _convert.osmfish(tmp_path / "served" / "cells.loom")
    for place in ("dev", "corpus", "."):
        path = copies / place / "osmfish_cortex" / "SScortex.h5ad"
        path.parent.mkdir(parents=True)
        adata.write_h5ad(path)
        assert st.datasets.osmfish_cortex().shape == adata.shape
        path.unlink()
    with pytest.raises(OSError, match="Cannot download"):  # a folder without this section
        st.datasets.osmfish_cortex()
    adata[:3].write_h5ad(path)
    with pytest.raises(OSError, match="is not section osmfish_cortex/SScortex.h5ad"):
        st.datasets.osmfish_cortex()


@pytest.mark.parametrize("name", LOADERS)
def test_copies_are_the_sections(dev_data, name, monkeypatch):
    monkeypatch.setenv("STAGE_SC_DATA", str(dev_data.parent))
    adata, copy = getattr(st.datasets, name)(), ad.read_h5ad(dev_data.parent / f"{LOADERS[name]}.h5ad")
    assert (adata.X != copy.X).nnz == 0
    if name == "xenium_pancreas":  # a name of clusters in the file, missing values in the object
        clusters = copy.obs["graphclust"]
        assert (clusters == "<NA>").any() and adata.obs["graphclust"].isna().equals(clusters == "<NA>")
        copy.obs["graphclust"] = clusters.cat.remove_categories("<NA>")
    pd.testing.assert_frame_equal(adata.obs, copy.obs)
    assert copy.uns.items() <= adata.uns.items()
    assert {"licence", "citation", "platform", "species", "spatial_unit"} <= set(adata.uns)


def test_uns_of_a_download_is_that_of_the_copy(dev_data):
    sections = [_real.OSMFISH, _real.MOUSE_BRAIN, _real.PANCREAS, _real.BULBS["Rep11"]]
    for section, path in zip(sections, LOADERS.values(), strict=True):
        with h5py.File(dev_data.parent / f"{path}.h5ad") as file:
            assert {key: value.asstr()[()] for key, value in file["uns"].items()}.items() <= section.uns.items()
        assert section.path == path.split("/", 1)[1] + ".h5ad"


def test_xenium_bundle(tmp_path):
    """Controls are left out, genes sorted, cells matched by name."""
    counts = np.arange(12).reshape(3, 4)  # genes, cells
    buffer = io.BytesIO()
    mmwrite(buffer, sparse.csr_matrix(counts))
    parts = {
        "features.tsv.gz": b"E1\tVip\tGene Expression\nE2\tNegA\tNegative Control Probe\nE3\tGad2\tGene Expression\n",
        "barcodes.tsv.gz": b"1\n2\n3\n4\n",
        "matrix.mtx.gz": buffer.getvalue(),
    }
    with tarfile.open(tmp_path / "matrix.tar.gz", "w:gz") as archive:
        for name, content in parts.items():
            member, packed = tarfile.TarInfo(f"cell_feature_matrix/{name}"), gzip.compress(content)
            member.size = len(packed)
            archive.addfile(member, io.BytesIO(packed))
    table = pd.DataFrame({"cell_id": [4, 3, 2, 1], "x_centroid": [4.5, 3, 2, 1], "y_centroid": [0, 0, 0, 9.0]})
    table.to_csv(tmp_path / "cells.csv.gz", index=False)
    adata = _convert.xenium_bundle(tmp_path / "matrix.tar.gz", tmp_path / "cells.csv.gz")
    assert adata.var_names.tolist() == ["Gad2", "Vip"] and adata.obs_names.tolist() == ["1", "2", "3", "4"]
    np.testing.assert_array_equal(adata.X.toarray(), counts[[2, 0]].T)
    np.testing.assert_array_equal(adata.obsm["spatial"], [[1, 9], [2, 0], [3, 0], [4.5, 0]])


def test_celldega_archive(tmp_path):
    """Squares of 10 pixels in two tiles; a cell without counts, one without cluster."""
    corners = {name: (20.0 * i, 30.0 * i) for i, name in enumerate(NAMES)}

    def square(x, y):
        return [[[x, y], [x + 10, y], [x + 10, y + 10], [x, y + 10], [x, y]]]

    tables = {
        f"cell_segmentation/cell_tile_0_{i}": pd.DataFrame(
            {"GEOMETRY": [square(*corners[name]) for name in part], "name": part}, index=pd.Index(part, name="cell_id")
        )
        for i, part in enumerate((NAMES[3:], NAMES[:3]))
    }
    tables["cbg/ACE2"] = pd.DataFrame({"ACE2": [2, 5]}, index=[NAMES[0], NAMES[4]])
    tables["cbg/VIM"] = pd.DataFrame({"VIM": [1]}, index=[NAMES[0]])
    tables["cell_clusters/cluster"] = pd.DataFrame({"cluster": ["10", "2", "2", "1", "2", None]}, index=NAMES)
    tables["cell_clusters/meta_cluster"] = pd.DataFrame({"color": ["red"]})
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for name, table in tables.items():
            archive.writestr(f"repository-1/landscape/{name}.parquet", table.to_parquet())
    adata = _convert.celldega(tmp_path / "archive.zip")
    assert adata.obs_names.tolist() == NAMES[3:] + NAMES[:3]
    np.testing.assert_array_equal(adata.to_df().loc[["cell0", "cell4", "cell5"]], [[2, 1], [5, 0], [0, 0]])
    assert adata.obs["graphclust"].tolist() == ["1", "2", "<NA>", "10", "2", "2"]
    assert adata.obs["graphclust"].cat.categories.tolist() == ["1", "2", "10", "<NA>"]
    np.testing.assert_allclose(adata.obsm["spatial"][4], np.array([25, 35]) / 4.705882, rtol=1e-6)


def r_string(text: str) -> bytes:
    """Item of R's serialization."""
    return struct.pack(">ii", 9, len(text)) + text.encode()


def r_strings(texts: list[str]) -> bytes:
    """Item of R's serialization."""
    return struct.pack(">ii", 16, len(texts)) + b"".join(map(r_string, texts))


def write_rda(path: Path, frame: pd.DataFrame, version: int) -> None:
    """Write what ``save(m, file = path)`` writes for a matrix of doubles with names."""
    symbol = struct.pack(">i", 1)
    values = frame.to_numpy(np.float64).ravel(order="F").astype(">f8")
    attributes = struct.pack(">i", 1026) + symbol + r_string("dim") + struct.pack(">4i", 13, 2, *frame.shape)
    attributes += struct.pack(">i", 1026) + symbol + r_string("dimnames") + struct.pack(">ii", 19, 2)
    attributes += r_strings(list(frame.index)) + r_strings(list(frame.columns)) + struct.pack(">i", 254)
    item = struct.pack(">ii", 14 + 512, len(values)) + values.tobytes() + attributes
    head = f"RDX{version}\nX\n".encode() + struct.pack(">3i", version, 262657, 131840)
    head += struct.pack(">i", 5) + b"UTF-8" if version == 3 else b""
    content = head + struct.pack(">i", 1026) + symbol + r_string("m") + item + struct.pack(">i", 254)
    path.write_bytes(gzip.compress(content))


@pytest.mark.parametrize("version", [2, 3])
def test_spots_of_r_and_csv(tmp_path, version):
    spots = ["16.92x9.015", "10.1x11.9", "3.0x4.4"]
    table = pd.DataFrame([[1, 0, 3], [0, 0, 2], [5, 6, 0]], index=spots, columns=["Vip", "2010300C02Rik", "H2-K1"])
    mangled = table.set_axis(["Vip", "X2010300C02Rik", "H2.K1"], axis=1)
    table.to_csv(tmp_path / "counts.csv")
    write_rda(tmp_path / "counts.rda", mangled.T, version)
    layers = pd.DataFrame([[1, 0, 0], [0, 1, 0]], index=["Mitral", "Glomerular"], columns=["17_9", "10_12", "3_4"])
    layers.to_csv(tmp_path / "layers.tsv", sep="\t")
    of_csv = _convert.spots_of_csv(tmp_path / "counts.csv", tmp_path / "layers.tsv")
    of_r = _convert.spots_of_r(tmp_path / "counts.rda", tmp_path / "layers.tsv")
    for adata in (of_csv, of_r):
        pd.testing.assert_frame_equal(adata.to_df(), mangled.astype(np.float32))
        np.testing.assert_allclose(adata.obsm["spatial"][0], [3384, 1803])
        assert adata.obs["domain"].astype(object).fillna("").tolist() == ["Mitral", "Glomerular", ""]


@pytest.mark.parametrize(("sample", "error"), [("Rep1", ValueError), (11, TypeError), (None, TypeError)])
def test_unknown_array(sample, error):
    with pytest.raises(error, match=r"`sample` must be one of 'Rep11', 'Rep12'"):
        st.datasets.olfactory_bulb(sample)
