"""Several processes train what one trains: started with torchrun, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest
import torch
from torch.distributed import is_available, is_gloo_available

import stage_sc as st

pytestmark = pytest.mark.skipif(not (is_available() and is_gloo_available()), reason="needs torch.distributed")

# Slides cut or dealt to processes, a training begun by one process and ended by two, batches smaller than processes.
RUNS = {
    "cut": {"slides_per_batch": 1},
    "dealt": {"slides_per_batch": 2, "queue_length": 1},
    "resumed": {"slides_per_batch": 1},
    "lonely": {"batch_size": 1, "cells_per_slide": 3, "reconstruction_weight": 0.0},
}


def tissue(n_cells: int) -> ad.AnnData:
    """Two slides, the first of which has 50 cells less."""
    adata = st.datasets.simulate_tissue(n_cells, n_slides=2, batch_effect=0.3, rng=4)[50:].copy()
    st.pp.build_graph(adata, library_key="slide")
    return adata


def run(name: str, adata: ad.AnnData, folder: Path, process: str, callback: Callable[..., None] | None = None) -> None:
    config = st.model.StageConfig(
        **{"epochs": 3, "warmup_epochs": 2, "batch_size": 64, **RUNS[name]},
        **{"dim": 16, "n_layers": 1, "levels": (2, 6, 18), "learning_rate": 1e-3},
    )
    checkpoint = folder / "resumed.state" if name == "resumed" else None
    model = st.tl.fit(adata, config=config, rng=1, progress=False, checkpoint=checkpoint, callback=callback)
    st.model.save_checkpoint(model, folder / f"{name}-{process}")
    assert model.history is not None
    model.history.to_pickle(folder / f"{name}-{process}.history")


def main(folder: Path) -> None:
    adata = tissue(200)
    for name in RUNS:
        run(name, adata, folder, os.environ["RANK"])
    # every process has a seed of its own
    model = st.tl.fit(adata, epochs=2, rng=None, checkpoint=folder / "any.state")
    st.model.save_checkpoint(model, folder / f"any-{os.environ['RANK']}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What one process gave, and what two did: the run "resumed" is begun by one of them and ended by two."""
    folder = tmp_path_factory.mktemp("processes")
    adata = tissue(200)
    for name in RUNS:
        run(name, adata, folder, "alone")
        assert not torch.distributed.is_initialized()
    (folder / "resumed.state").unlink()

    def interrupted(history: pd.DataFrame) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("resumed", adata, folder, "begun", interrupted)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    named = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*command, __file__, str(folder)], **named)
    assert done.returncode == 0, done.stderr
    (folder / "stderr").write_text(done.stderr)
    return folder


def load(folder: Path, name: str, process: str) -> dict[str, torch.Tensor]:
    return st.model.load_checkpoint(folder / f"{name}-{process}.safetensors").state_dict()


@pytest.mark.parametrize("name", RUNS)
def test_history_and_weights(folder, name):
    """But for the offset of the pooling score, which a softmax ignores: Adam makes steps of its rounding errors."""
    alone, two = (pd.read_pickle(folder / f"{name}-{process}.history") for process in ("alone", "0"))
    assert len(alone) == 3
    pd.testing.assert_frame_equal(two, alone, rtol=1e-4, atol=1e-6)
    alone, two = (load(folder, name, process) for process in ("alone", "0"))
    for states in (alone, two):
        del states["encoder.score.bias"]
    torch.testing.assert_close(two, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*RUNS, "any"])
def test_processes_end_with_the_same_model(folder, name):
    torch.testing.assert_close(*(load(folder, name, process) for process in "01"), rtol=0, atol=0)


def test_one_process_speaks(folder):
    assert (folder / "stderr").read_text().count("STAGE:   0%") == 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
