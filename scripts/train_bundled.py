"""Train the model that comes with the package, with one command.

    python scripts/train_bundled.py FOLDER [FOLDER ...] --out src/stage_sc/weights/stage-v1.safetensors

Every ``.h5ad`` file below the folders is a slide, or several where ``obs["library"]`` names them: counts in ``X``,
coordinates in ``obsm["spatial"]``. Labels in the files are not read. Writes the checkpoint, and beside it the history
of the training as CSV. The run is repeatable: same files, same seed, same model.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import anndata as ad

import stage_sc as st

CONFIG = st.model.StageConfig(epochs=24, warmup_epochs=13, learning_rate=1e-3, cells_per_slide=2048)
LIBRARY = "library"


def main() -> None:
    """Read the files, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/stage_sc/weights/stage-v1.safetensors"))
    parser.add_argument("--leave-out", nargs="*", default=[], help="skip files whose path contains one of these")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("stage_sc").setLevel(logging.INFO)
    files = sorted(path for folder in options.folders for path in folder.rglob("*.h5ad"))
    files = [path for path in files if not any(part in str(path) for part in options.leave_out)]
    model = st.tl.fit(
        {f"{path.parent.name}/{path.stem}": read(path) for path in files},
        config=CONFIG,
        epochs=options.epochs,
        patience=None,
        name=options.out.stem,
        rng=options.seed,
    )
    print(st.model.save_checkpoint(model, options.out, half=True))
    assert model.history is not None
    model.history.to_csv(options.out.with_suffix(".csv"), float_format="%.4f")


def read(path: Path) -> ad.AnnData:
    """Read a file, keep the cells that have a place, and build the graph."""
    adata = ad.read_h5ad(path)
    st.pp.filter_cells(adata)
    st.pp.build_graph(adata, library_key=LIBRARY if LIBRARY in adata.obs else None)
    return adata


if __name__ == "__main__":
    main()
