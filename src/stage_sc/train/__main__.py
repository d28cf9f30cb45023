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
from typing import Any

import anndata as ad
import pandas as pd

import stage_sc as st
from stage_sc.train._health import has_collapsed

# Number of slides on which the model is tried: the smallest with this number of cells or more.
MAX_SLIDES, MIN_CELLS = 5, 500


@dataclass(frozen=True)
class Recipe:
    """All choices of a training but the data."""

    name: str
    """Name of the model, and of its file."""
    config: st.model.StageConfig
    half: bool = False
    """Store weights in 16 bits."""
    library_key: str | None = None
    """Column of ``obs`` that names the slides, in the files that have it."""
    seed: int = 0


# Fields of every table and their types; StageConfig checks the values of [config].
TABLES: dict[str, dict[str, type]] = {
    "model": {"name": str, "half": bool},
    "data": {"library_key": str},
    "config": {field.name: object for field in fields(st.model.StageConfig)},
}
TOP: dict[str, type] = {"seed": int, **dict.fromkeys(TABLES, dict)}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the recipe and the data, train, write the model and its quality metrics.

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
    store = st.data.Store(options.store) if options.store else None
    files = {} if store else read_corpus(options.data, options.leave_out, recipe.library_key)
    write_history = history_writer(out, tensorboard=options.tensorboard and first)
    model = st.tl.fit(
        store or files,
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
    n_cells = store.n_cells if store else sum(adata.n_obs for adata in files.values())
    print(
        f"{path}: {len(model.slides)} slides, {n_cells:,} cells, {len(model.genes):,} genes, "
        f"{perf_counter() - start:.0f} s, digest {model.digest}"
    )
    slides = small_slides(files, recipe.library_key)
    tables = {name: st.tl.panel_agreement(slide, model, rng=seed) for name, slide in slides}
    if tables:
        table = pd.concat(tables, names=["slide"])
        table.to_csv(out / "panels.csv", float_format="%.4f")
        print("Labels from two halves of the genes, mean over slides and splits (panels.csv):")
        print(table.groupby("labels", sort=False).mean().to_string(float_format="{:.2f}".format))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stage_sc.train",
        description="Train a model on a corpus. The same command continues after an interruption.",
    )
    parser.add_argument("recipe", type=Path, help="TOML file, such as recipes/stage-v1.toml")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", nargs="+", type=Path, metavar="FOLDER", help="all .h5ad files below these folders")
    source.add_argument("--store", type=Path, help="instead of files: a store of `python -m stage_sc.data`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its quality metrics")
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="PART", help="skip files whose path contains one of these"
    )
    parser.add_argument("--seed", type=int, help="instead of that of the recipe")
    parser.add_argument("--tensorboard", action="store_true", help="write files for TensorBoard too")
    return parser


def read_recipe(path: Path) -> Recipe:
    """Read a file with the tables ``[model]``, ``[data]`` and ``[config]``, and the field ``seed``.

    Parameters
    ----------
    path
        A TOML file. ``name`` in ``[model]`` is required; the other defaults are those of `Recipe` and `StageConfig`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If the model has no name.
    TypeError, ValueError
        If it is not TOML, or has unknown fields or invalid values.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{str(path)!r} cannot be read as TOML: {error}.") from error
    _check(content, TOP, str(path))
    tables = {name: content.get(name, {}) for name in TABLES}
    for name, table in tables.items():
        _check(table, TABLES[name], f"[{name}] of {str(path)!r}")
    if "name" not in tables["model"]:
        raise KeyError(f'[model] of {str(path)!r} has no `name`: add e.g. `name = "atlas"`.')
    name = tables["model"]["name"]
    if not name or name != Path(name).name:
        raise ValueError(
            f"`name` in [model] of {str(path)!r} names a file: it cannot be empty or have '/', got {name!r}."
        )
    config = st.model.StageConfig(**tables["config"])
    return Recipe(config=config, seed=content.get("seed", 0), **tables["model"], **tables["data"])


def _check(values: dict[str, Any], known: dict[str, type], where: str) -> None:
    """Raise unless all fields are known and have the right type."""
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{where} has the unknown fields {', '.join(unknown)}. Known are {', '.join(known)}.")
    for name, value in values.items():
        wanted = known[name]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise TypeError(f"`{name}` in {where} must be of type {wanted.__name__}, got {value!r}.")


def read_corpus(folders: Sequence[Path], leave_out: Sequence[str], library_key: str | None) -> dict[str, ad.AnnData]:
    """Read all ``.h5ad`` files below some folders, keep the cells with coordinates, and build the graphs.

    Parameters
    ----------
    folders
        Searched with all subfolders.
    leave_out
        A file is skipped if its path, from the name of its folder among `folders` on, contains one of these.
    library_key
        Column of ``obs`` that names the slides, in the files that have it.

    Returns
    -------
    Cells of every file by its name: folder, slash, file without suffix.

    Raises
    ------
    FileNotFoundError
        If a folder has no file.
    ValueError
        If two files have one name, if a part of `leave_out` is in no path, or if no file is left.
    """
    places: dict[Path, str] = {}
    for folder in folders:
        base = folder.resolve().name
        found = {path: f"{base}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.h5ad")}
        if not found:
            raise FileNotFoundError(f"There is no .h5ad file below {str(folder)!r}.")
        places |= found
    for part in leave_out:
        if not any(part in place for place in places.values()):
            raise ValueError(f"`--leave-out {part}` is in no path, such as {min(places.values())!r}: nothing to skip.")
    kept = sorted(path for path, place in places.items() if not any(part in place for part in leave_out))
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
    """Names and cells of the smallest slides of a corpus that have enough cells."""
    sizes = []
    for name, adata in data.items():
        slides = {"": adata.n_obs}
        if library_key in adata.obs:
            slides = adata.obs[library_key].astype(str).value_counts().to_dict()
        sizes += [(n, name, slide) for slide, n in slides.items() if n >= MIN_CELLS]
    for _, name, slide in sorted(sizes)[:MAX_SLIDES]:
        if slide:
            part = data[name][(data[name].obs[library_key].astype(str) == slide).to_numpy()].copy()
            st.pp.build_graph(part)
            yield f"{name}/{slide}", part
        else:
            yield name, data[name]


def history_writer(folder: Path, *, tensorboard: bool) -> Callable[[pd.DataFrame], None]:
    """Return a function that writes the history of a training to ``history.csv``, and for TensorBoard.

    Raises
    ------
    ImportError
        If TensorBoard is asked for and not installed.
    """
    board, path, shown = None, folder / "history.csv", 0
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "`--tensorboard` needs tensorboard: run `pip install tensorboard`, or leave the option out and look at "
                "history.csv."
            ) from error
        board = SummaryWriter(folder / "tensorboard", purge_step=0)  # all epochs are written again after a resume

    def write(history: pd.DataFrame) -> None:
        nonlocal shown
        part = path.with_name(path.name + ".part")
        history.to_csv(part, float_format="%.6g")
        part.replace(path)
        if board is not None:
            for epoch, row in history.iloc[shown:].iterrows():
                for name, value in row.drop("stage").dropna().items():
                    board.add_scalar(name, value, epoch)
            board.flush()
            shown = len(history)

    return write


if __name__ == "__main__":
    main()
