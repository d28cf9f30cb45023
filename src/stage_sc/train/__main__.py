"""``python -m stage_sc.train RECIPE --data FOLDER --out FOLDER``: train a model on a corpus, with one command."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import pandas as pd

import stage_sc as st
from stage_sc.model._checkpoint import model_digest
from stage_sc.train._corpus import read_files, small_slides
from stage_sc.train._health import has_collapsed
from stage_sc.train._log import epoch_log
from stage_sc.train._recipe import read_recipe


def main(argv: Sequence[str] | None = None) -> None:
    """Read the recipe and the data, train, write the model and what tells how good it is.

    Parameters
    ----------
    argv
        Arguments of the command line, without the program's name. ``None``: those of the process.

    Raises
    ------
    SystemExit
        If the training has collapsed; the message says what to change.
    """
    options = _parser().parse_args(argv)
    if options.store and options.leave_out:
        raise ValueError("`--leave-out` chooses among files: build the store without them (`python -m stage_sc.data`).")
    recipe, out = read_recipe(options.recipe), options.out
    seed = recipe.seed if options.seed is None else options.seed
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    out.mkdir(parents=True, exist_ok=True)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun has started, or the only one
    start = perf_counter()
    with epoch_log(out, tensorboard=options.tensorboard and first) as log:
        store = st.data.Store(options.store) if options.store else None
        files = {} if store else read_files(options.data, options.leave_out, recipe.library_key)
        model = st.tl.fit(
            store or files,
            config=recipe.config,
            patience=None,
            name=recipe.name,
            checkpoint=out / f"{recipe.name}-{seed}.training",
            rng=seed,
            progress=False,
        )
        if not first:
            return
        assert model.history is not None
        log.write(model.history)
    if len(model.history):
        st.pl.training_curves(model, save=out / "curves.png", return_fig=True)
    if has_collapsed(model.history.to_dict("records"), recipe.config.levels[-1], patience=1):
        raise SystemExit(
            f"No model was written: the training has collapsed, see {out / 'curves.png'}. In [config] of "
            f"{options.recipe}, lower `learning_rate` (it is {recipe.config.learning_rate:g}) and keep `anchor_weight` "
            f"above 0 (it is {recipe.config.anchor_weight:g}); check that the slides have counts, and coordinates in "
            "µm. Then train into another folder."
        )
    path = st.model.save_checkpoint(model, out / f"{recipe.name}.safetensors", half=recipe.half)
    model = st.model.load_checkpoint(path)
    n_cells = store.n_cells if store else sum(adata.n_obs for adata in files.values())
    print(
        f"{path}: {len(model.slides)} slides, {n_cells:,} cells, {len(model.genes):,} genes, "
        f"{perf_counter() - start:.0f} s, digest {model_digest(model)}"
    )
    slides = small_slides(files, recipe.library_key)
    tables = {name: st.metrics.panel_agreement(slide, model, rng=seed) for name, slide in slides}
    if tables:
        table = pd.concat(tables, names=["slide"])
        table.to_csv(out / "panels.csv", float_format="%.4f")
        print("Labels from two halves of the genes, mean over slides and splits (panels.csv):")
        print(table.groupby("labels", sort=False).mean().to_string(float_format="{:.2f}".format))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stage_sc.train",
        description="Train a model on a corpus. The same command goes on after an interruption.",
    )
    parser.add_argument("recipe", type=Path, help="TOML file, such as recipes/stage-v1.toml")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", nargs="+", type=Path, metavar="FOLDER", help="all .h5ad files below these folders")
    source.add_argument("--store", type=Path, help="instead of files: a store of `python -m stage_sc.data`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and what tells how good it is")
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="PART", help="skip files whose path contains one of these"
    )
    parser.add_argument("--seed", type=int, help="instead of that of the recipe")
    parser.add_argument("--tensorboard", action="store_true", help="write files for TensorBoard too")
    return parser


if __name__ == "__main__":
    main()
