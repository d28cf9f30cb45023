"""Models by their name on the hub; the download itself is replaced."""

from __future__ import annotations

import sys
from types import ModuleType

import anndata as ad
import pytest

import stage_sc as st
from stage_sc.model import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(small_model, tmp_path, monkeypatch) -> list[dict[str, str]]:
    """Calls of a hub that has one file."""
    path, calls = st.model.save_checkpoint(small_model, tmp_path / "file"), []

    def hf_hub_download(**arguments: str) -> str:
        calls.append(arguments)
        return str(path)

    module = ModuleType("huggingface_hub")
    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return calls


@pytest.mark.parametrize("file", ["model.safetensors", "deep/er/model.safetensors"])
def test_address(hub, small_model, file):
    address, digest = f"hf://owner/some-repo_1.0@{COMMIT}/{file}", small_model.digest
    assert resolve_model(address).digest == resolve_model(f"{address}#{digest}").digest == digest
    assert hub == [{"repo_id": "owner/some-repo_1.0", "filename": file, "revision": COMMIT}] * 2
    other = digest.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    with pytest.raises(ValueError, match=f"{digest}.*{other}"):
        resolve_model(f"{address}#{other}")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://owner/repo/model.safetensors", "revision by default.* 40 digits"),
        ("hf://owner/repo@v1.0/model.safetensors", "revision v1.0, "),
        (f"hf://owner/repo@{COMMIT[:39]}/model.safetensors", "its 40 digits"),
        (f"hf://owner/repo@{COMMIT}0/model.safetensors", "its 40 digits"),
        (f"hf://owner/repo@{COMMIT.replace('a', 'g')}/model.safetensors", "its 40 digits"),
        (f"hf://repo@{COMMIT}/model.safetensors", "hf://OWNER/REPO@COMMIT"),
        (f"hf://owner/repo@{COMMIT}", "does not name a model"),
        (f"hf://owner/repo@{COMMIT}/", "does not name a model"),
        (f"hf://owner/repo@{COMMIT}/model.safetensors#", "ends with the digest ''"),
        (f"hf://owner/repo@{COMMIT}/model.safetensors#5EE88C45B31174C9", "16 digits"),
    ],
)
def test_refused_before_any_download(hub, address, message):
    with pytest.raises(ValueError, match=message):
        resolve_model(address)
    assert not hub


def test_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        resolve_model(f"hf://owner/repo@{COMMIT}/model.safetensors")


def test_wherever_a_model_is_wanted(hub, tissue, small_model, tmp_path):
    address, digest = f"hf://owner/repo@{COMMIT}/model.safetensors", small_model.digest
    adata = tissue.copy()
    st.tl.stage_niches(adata, model=address)
    assert adata.uns["stage"]["model"]["digest"] == digest
    tuned = st.tl.fit(tissue, init=address, epochs=1, progress=False)
    assert tuned.tree.parent.equal(small_model.tree.parent)
    tissue.copy().write_h5ad(tmp_path / "slide.h5ad")
    (result,) = st.tl.label_files([tmp_path / "slide.h5ad"], tmp_path / "out", model=address)
    assert ad.read_h5ad(result).uns["stage"]["model"]["digest"] == digest
    assert len(hub) == 3
