"""Damaged and hostile files: a clear error or the same result, never a crash or another model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import stage_sc as st
from stage_sc.nn import content_digest


def flip(path: Path, position: int, bit: int = 64) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(content)
    os.utime(path, ns=(position, position))  # another time, also on coarse clocks


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "slide.h5ad"
    st.datasets.simulate_tissue(300, rng=3).write_h5ad(path)
    return path


class TestStore:
    @pytest.fixture
    def store(self, file, tmp_path):
        return st.data.build_store([file], tmp_path / "store", progress=False)

    @pytest.mark.parametrize("name", ["expression.indices", "expression.data", "graph.indptr", "xy", "mean"])
    def test_one_bit(self, store, file, small_config, name):
        """Noticed when slides are read; built again."""
        whole = store.slides()[0].expression[:]
        flip(store.folders[0] / name, 43)
        with pytest.raises(ValueError, match=name):
            st.tl.fit(st.data.Store(store.path), config=small_config, progress=False)
        again = st.data.build_store([file], store.path, progress=False)
        assert (again.slides()[0].expression[:] != whole).nnz == 0

    def test_header(self, store, file):
        header = next(store.path.glob("*/file.json"))
        content = header.read_bytes()
        rng = np.random.default_rng(0)
        for broken in (b"{", b"[]", b"\xff", content.replace(b'"n_cells": 3', b'"n_cells": 2'), b"[" * 10_000):
            header.write_bytes(broken)
            with pytest.raises(ValueError, match="file.json"):
                st.data.Store(store.path)
        for position in rng.integers(0, len(content), 20):
            header.write_bytes(content)
            flip(header, position, 1)
            try:
                assert st.data.Store(store.path).headers == store.headers
            except (ValueError, FileNotFoundError) as error:
                assert str(store.path) in str(error)
        header.write_bytes(b"{")
        assert st.data.build_store([file], store.path, progress=False).n_cells == 300

    def test_index_out_of_range(self, store):
        """With right checksums."""
        folder, contents = store.folders[0], next(store.path.glob("*/file.json"))
        path = folder / "graph.indices"
        indices = np.fromfile(path, "<i4")
        indices[5] = 10**9
        indices.tofile(path)
        content = json.loads(contents.read_text())
        from stage_sc._files import digest

        content["slides"][0]["files"]["graph.indices"][1] = digest(path)
        del content["digest"]
        contents.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="graph.indices"):
            st.data.Store(store.path).slides()


class TestResults:
    @pytest.mark.parametrize("kind", ["flip", "cut", "text"])
    @pytest.mark.parametrize("which", ["slide.h5ad", "embeddings/slide.h5ad"])
    def test_made_anew(self, file, small_model, tmp_path, caplog, which, kind):
        out = tmp_path / "out"
        (result,) = st.tl.label_files([file], out, model=small_model, n_domains=3)
        expected, path = ad.read_h5ad(result).obs, out / which
        for position in np.random.default_rng(0).integers(0, path.stat().st_size, 3 if kind == "flip" else 1):
            if kind == "flip":
                flip(path, position)
            elif kind == "cut":
                path.write_bytes(path.read_bytes()[:position])
            else:
                path.write_text("no")
            st.tl.label_files([file], out, model=small_model, n_domains=3)
            assert any(path.name in record.getMessage() for record in caplog.records)
            assert ad.read_h5ad(result).obs.equals(expected)

    def test_names_of_the_results(self, file, small_model, tmp_path, caplog):
        """A damaged result that can be read, without any that is known."""
        (result,) = st.tl.label_files([file], tmp_path / "out", model=small_model)
        expected = ad.read_h5ad(result).obs
        content = result.read_bytes()
        result.write_bytes(content.replace(b"levels\0", b"lexels\0"))
        st.tl.label_files([file], tmp_path / "out", model=small_model)
        assert "slide.h5ad.damaged" in caplog.text
        assert ad.read_h5ad(result).obs.equals(expected)


class TestTraining:
    def test_one_bit(self, tissue, small_config, tmp_path):
        path = tmp_path / "state"
        model = st.tl.fit(tissue, config=small_config, checkpoint=path, progress=False)
        content = path.read_bytes()
        for position in np.random.default_rng(0).integers(0, len(content), 10):
            path.write_bytes(content)
            flip(path, position)
            with pytest.raises(ValueError, match="damaged"):
                st.tl.fit(tissue, config=small_config, checkpoint=path, progress=False)
        path.write_bytes(content)
        assert st.tl.fit(tissue, config=small_config, checkpoint=path, progress=False).digest == model.digest


class TestCheckpoints:
    """With a digest that is right."""

    @pytest.fixture
    def make(self, small_model, tmp_path):
        source = st.model.save_checkpoint(small_model, tmp_path / "m")
        with safe_open(source, "pt") as file:
            header = json.loads(file.metadata()["stage_sc"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}

        def write(changed=None, config=None, **fields):
            head = {**header, **fields, "config": {**header["config"], **(config or {})}}
            new = {**tensors, **(changed(tensors) if changed else {})}
            head["digest"] = content_digest(head, new)
            save_file(new, tmp_path / "x.safetensors", metadata={"stage_sc": json.dumps(head)})
            return tmp_path / "x.safetensors"

        return write

    def test_unchanged(self, make, small_model):
        assert st.model.load_checkpoint(make()).digest == small_model.digest

    @pytest.mark.parametrize(
        "changed",
        [
            lambda t: {"tree.parent": t["tree.parent"].roll(1)},
            lambda t: {"tree.parent": t["tree.parent"] * 0 - 1},
            lambda t: {"tree.parent": t["tree.parent"] + 100},
            lambda t: {"tree.parent": t["tree.parent"].float()},
            lambda t: {"tree.parent": torch.where(t["tree.parent"] == 0, 1, t["tree.parent"])},
            lambda t: {"tree.prototypes": t["tree.prototypes"] * torch.inf},
            lambda t: {"tree.prototypes": t["tree.prototypes"] * 0},
            lambda t: {"embedder.vectors": t["embedder.vectors"] * torch.nan},
            lambda t: {"embedder.vectors": t["embedder.vectors"].to(torch.int8)},
            lambda t: {"decoder.weight": torch.zeros(3, 3)},
            lambda t: {"initial_vectors": torch.zeros(3, 3)},
            lambda t: {"another": torch.zeros(3)},
        ],
    )
    def test_tensors(self, make, changed):
        with pytest.raises(ValueError, match="x.safetensors.*damaged"):
            st.model.load_checkpoint(make(changed))

    @pytest.mark.parametrize(
        "fields",
        [
            *(
                {"config": {name: 10**12}}
                for name in ("n_layers", "context_reach", "smoothing_reach", "dim", "queue_length")
            ),
            {"config": {"levels": [2, 6, 10**12]}},
            {"config": {"levels": "many"}},
            {"config": {"temperature": 1e-300}},
            {"config": {"temperature": float("nan")}},
            {"config": {"n_layers": 10**400}},
            {"genes": "abc"},
            {"genes": []},
            {"slides": [1]},
            {"slides": None},
            {"name": 3},
            {"name": "\ud800"},
        ],
        ids=str,
    )
    def test_header(self, make, fields):
        with pytest.raises(ValueError, match="x.safetensors.*damaged"):
            st.model.load_checkpoint(make(**fields))

    def test_nested(self, tmp_path):
        save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"stage_sc": "[" * 100_000})
        with pytest.raises(ValueError, match="x.safetensors.*header"):
            st.model.load_checkpoint(tmp_path / "x.safetensors")

    def test_not_saved_either(self, small_model, tmp_path):
        from copy import deepcopy

        model = deepcopy(small_model)
        with torch.no_grad():
            model.tree.prototypes[0] = torch.nan
        with pytest.raises(ValueError, match="tree.prototypes"):
            st.model.save_checkpoint(model, tmp_path / "model")
        assert not list(tmp_path.iterdir())
