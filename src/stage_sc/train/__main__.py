"""``python -m stage_sc.train RECIPE --data FOLDER --out FOLDER``: train a model on a corpus, with one command."""

from __future__ import annotations

import argparse
import logging
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter

import anndata as ad
import pandas as pd

import stage_sc as st
from stage_sc._files import write_whole
from stage_sc.train._health import has_collapsed

# Agreement between halves of the panel is measured on the smallest slides of at least MIN_CELLS cells.
MAX_SLIDES, MIN_CELLS = 5, 500


@dataclass(frozen=True)
class Recipe:
    """All choices of a training except the data."""

    name: str
    """Name of the model and of its file."""
    config: st.model.StageConfig
    half: bool = False
    """Store weights in 16 bits."""
    library_key: str | None = None
    """Column of ``obs`` with the slides, in the files that have it."""
    seed: int = 0


# Types of the fields of a recipe ("") and of its tables. StageConfig checks the values of [config].
FIELDS: dict[str, dict[str, type]] = {
    "": {"seed": int, "model": dict, "data": dict, "config": dict},
    "model": {"name": str, "half": bool},
    "data": {"library_key": str},
    "config": {field.name: object for field in fields(st.model.StageConfig)},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Read recipe and data, train, and write the model and its quality metrics; exits if the training has collapsed.

    `argv` are the arguments of the command line without the program's name (default: those of the process).
    """
    options = _parser().parse_args(argv)
    if options.store and options.leave_out:
        raise ValueError("`--leave-out` chooses among files: build the store without them (`python -m stage_sc.data`).")
    recipe, out = read_recipe(options.recipe), options.out
    seed = recipe.seed if options.seed is None else options.seed
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    out.mkdir(parents=True, exist_ok=True)
    first = os.environ.get("RANK", "0") == "0"  # the first process of torchrun, or the only one
    start = perf_counter()
    files = {} if options.store else read_corpus(options.data, options.leave_out, recipe.library_key)
    data = st.data.Store(options.store) if options.store else files
    write_history = history_writer(out, tensorboard=options.tensorboard and first)
    model = st.tl.fit(
        data,
        config=recipe.config,
        patience=None,
        name=recipe.name,
        checkpoint=out / f"{recipe.name}-{seed}.training",
        callback=write_history,
        rng=seed,
        progress=False,
    )
    if not first:
        return
    assert model.history is not None
    write_history(model.history)
    if len(model.history):
        st.pl.training_curves(model, save=out / "curves.png", return_fig=True)
    if has_collapsed(model.history.to_dict("records"), recipe.config.levels[-1], patience=1):
        raise SystemExit(
            f"No model was written: the training has collapsed, see {out / 'curves.png'}. In [config] of "
            f"{options.recipe}, lower `learning_rate` (it is {recipe.config.learning_rate:g}) and keep "
            f"`reconstruction_weight` above 0 (it is {recipe.config.reconstruction_weight:g}); check that the slides "
            "have counts, and coordinates in µm. Then train into another folder."
        )
    path = st.model.save_checkpoint(model, out / f"{recipe.name}.safetensors", half=recipe.half)
    model = st.model.load_checkpoint(path)
    n_cells = data.n_cells if isinstance(data, st.data.Store) else sum(adata.n_obs for adata in data.values())
    print(
        f"{path}: {len(model.slides)} slides, {n_cells:,} cells, {len(model.genes):,} genes, "
        f"{perf_counter() - start:.0f} s, digest {model.digest}"
    )
    slides = small_slides(files, recipe.library_key)
    if tables := {name: st.tl.panel_agreement(slide, model, rng=seed) for name, slide in slides}:
        table = pd.concat(tables, names=["slide"])
        table.to_csv(out / "panels.csv", float_format="%.4f")
        print("Agreement of labels from two halves of the genes, mean over slides and splits (panels.csv):")
        print(table.groupby("labels", sort=False).mean().to_string(float_format="{:.2f}".format))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stage_sc.train",
        description="Train a model on a corpus. The same command continues after an interruption.",
    )
    parser.add_argument("recipe", type=Path, help="TOML file, such as recipes/stage-v2.toml")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", nargs="+", type=Path, metavar="FOLDER", help="all .h5ad files below these folders")
    source.add_argument("--store", type=Path, help="instead of files: a store of `python -m stage_sc.data`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its quality metrics")
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="PART", help="skip files whose path contains one of these"
    )
    parser.add_argument("--seed", type=int, help="instead of the seed of the recipe")
    parser.add_argument("--tensorboard", action="store_true", help="write files for TensorBoard too")
    return parser


def read_recipe(path: Path) -> Recipe:
    """Read a TOML file with the tables ``[model]``, ``[data]`` and ``[config]``, and the field ``seed``.

    ``name`` in ``[model]`` is required; other defaults are those of `Recipe` and `StageConfig`. Raises a ValueError
    (no TOML, unknown field, invalid value), a TypeError (type of a field) or a KeyError (no name).
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{str(path)!r} cannot be read as TOML: {error}.") from error
    for table, known in FIELDS.items():
        where, values = (f"[{table}] of {str(path)!r}", content.get(table, {})) if table else (repr(str(path)), content)
        if unknown := sorted(values.keys() - known.keys()):
            raise ValueError(f"{where} has the unknown fields {', '.join(unknown)}. Known are {', '.join(known)}.")
        for name, value in values.items():
            if known[name] not in (object, type(value)):
                raise TypeError(f"`{name}` in {where} must be of type {known[name].__name__}, got {value!r}.")
    model = content.get("model", {})
    if "name" not in model:
        raise KeyError(f'[model] of {str(path)!r} has no `name`: add e.g. `name = "atlas"`.')
    if not model["name"] or model["name"] != Path(model["name"]).name:
        raise ValueError(f"`name` in [model] of {str(path)!r} cannot be empty or have '/', got {model['name']!r}.")
    config = st.model.StageConfig(**content.get("config", {}))
    return Recipe(config=config, seed=content.get("seed", 0), **model, **content.get("data", {}))


def read_corpus(folders: Sequence[Path], leave_out: Sequence[str], library_key: str | None) -> dict[str, ad.AnnData]:
    """Read all ``.h5ad`` files below some folders, keep the cells with coordinates, and build the graphs.

    Files are named by folder and stem, ``folder/stem``. Skipped are those whose path, from the name of its folder among
    `folders` on, contains an entry of `leave_out`. `library_key` is the column of ``obs`` with the slides, in the files
    that have it.
    """
    paths: dict[Path, str] = {}
    for folder in folders:
        name, found = folder.resolve().name, list(folder.rglob("*.h5ad"))
        if not found:
            raise FileNotFoundError(f"There is no .h5ad file below {str(folder)!r}.")
        paths |= {path: f"{name}/{path.relative_to(folder).as_posix()}" for path in found}
    for part in leave_out:
        if not any(part in place for place in paths.values()):
            raise ValueError(f"`--leave-out {part}` is in no path, such as {min(paths.values())!r}: nothing to skip.")
    kept = sorted(path for path, place in paths.items() if not any(part in place for part in leave_out))
    if not kept:
        raise ValueError("`--leave-out` leaves no file to train on.")
    names = [f"{path.resolve().parent.name}/{path.stem}" for path in kept]
    if len(set(names)) < len(names):
        raise ValueError(f"Several files are called {max(names, key=names.count)!r}, which names their slides: rename.")
    data = {name: ad.read_h5ad(path) for name, path in zip(names, kept, strict=True)}
    for adata in data.values():
        st.pp.filter_cells(adata)
        st.pp.build_graph(adata, library_key=library_key if library_key in adata.obs else None)
    return data


def small_slides(data: Mapping[str, ad.AnnData], library_key: str | None) -> Iterator[tuple[str, ad.AnnData]]:
    """Names and cells of the smallest slides of at least `MIN_CELLS` cells."""
    sizes = []
    for name, adata in data.items():
        slides = adata.obs[library_key].astype(str).value_counts() if library_key in adata.obs else {"": adata.n_obs}
        sizes += [(n, name, slide) for slide, n in slides.items() if n >= MIN_CELLS]
    for _, name, slide in sorted(sizes)[:MAX_SLIDES]:
        adata = data[name]
        if slide:
            adata = adata[(adata.obs[library_key].astype(str) == slide).to_numpy()].copy()
            st.pp.build_graph(adata)
        yield f"{name}/{slide}" if slide else name, adata


def history_writer(folder: Path, *, tensorboard: bool) -> Callable[[pd.DataFrame], None]:
    """Return a function that writes the history of a training to ``history.csv``, and for TensorBoard."""
    board, shown = None, 0
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("`--tensorboard` needs tensorboard: run `pip install tensorboard`.") from error
        board = SummaryWriter(folder / "tensorboard", purge_step=0)  # all epochs are written again after a resume

    def write(history: pd.DataFrame) -> None:
        nonlocal shown
        write_whole(folder / "history.csv", history.to_csv(float_format="%.6g").encode())
        if board is not None:
            for epoch, row in history.iloc[shown:].iterrows():
                for name, value in row.drop("stage").dropna().items():
                    board.add_scalar(name, value, epoch)
            board.flush()
            shown = len(history)

    return write


if __name__ == "__main__":
    main()
