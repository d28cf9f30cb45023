"""Train a model on one's own slides."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from stage_sc._checks import check_name, check_positive
from stage_sc._compute import one_thread, resolve_device
from stage_sc._input import Tables, read_tables
from stage_sc.data import Store
from stage_sc.model import resolve_model
from stage_sc.niches import settle_tree
from stage_sc.nn import Stage, StageConfig
from stage_sc.slides import read_slides, scratch_folder, subsample
from stage_sc.train import adapt_config, copy_model, encode_slides, new_model, trace_niches, train

# Fields of the configuration that cannot change in a trained model.
FIXED = (
    *("dim", "n_layers", "n_heads", "levels", "scaling", "min_sd"),
    *("context_hops", "whiten", "whitening_ridge", "persistence"),
)


def fit(
    data: AnnData | Sequence[AnnData] | Mapping[str, AnnData] | Store,
    *,
    library_key: str | None = None,
    init: Stage | str | os.PathLike[str] | None = None,
    config: StageConfig | None = None,
    epochs: int | None = None,
    patience: int | None = 5,
    spatial_key: str | None = None,
    layer: str | None = None,
    name: str = "custom",
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callable[[pd.DataFrame], None] | None = None,
    device: str = "auto",
    rng: int | np.random.Generator | None = 0,
    progress: bool = True,
) -> Stage:
    r"""Train a model, from scratch or from another one.

    From scratch, gene vectors start from the co-expression of genes around cells and the tree from K-means of the
    untrained embeddings. The first epochs train the network with the tree as it is, on

    .. math:: L = L_{swav} + w L_{anchor};

    then the tree is grown anew and trained with the network, on
    :math:`L + \lambda L_{global}` (equation 13 of the paper). Labels are never used.

    From another model (`init`), network and tree are trained a little further, and then the tree settles on `data`, as
    in `stage_niches`. The niches in use become fewer, as many as there are cells for.

    Parameters
    ----------
    data
        Cells with counts, coordinates and the graph of `stage_sc.pp.build_graph`, of one or several slides; or a list
        or a dictionary of these, whose panels may differ. Or a `stage_sc.data.Store`, for more data than memory holds.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one that the graph was built with.
    init
        Model to start from, ``"bundled"``, the path of a checkpoint, or a file on the Hugging Face hub as
        ``hf://OWNER/REPO@COMMIT/FILE.safetensors``, optionally with ``#DIGEST``. The nodes of its tree keep their
        numbers and parents, and move with the data: the model returned says where each came from. Genes that it does
        not know are left out. ``None``: from scratch, with all genes of `data`.
    config
        All choices of the method, used as they are. ``None``: from scratch the defaults, below 200,000 cells with a
        shorter schedule (20 epochs, 10 of them warm-up, and a learning rate of 1e-3), and with a leaf for 50 cells of
        the largest slide or 500 of all, at most; with `init` its own, with 10 epochs, no warm-up and a learning rate of
        3e-4. The log says what was changed.
    epochs
        Length of training, of which the warm-up keeps its share. ``None``: as configured. 0: an untrained network, with
        a tree, to compare with; with `init`, its network as it is, and its tree settled on `data` in seconds.
    patience
        End a stage when the loss has not fallen for so many epochs. ``None``: never.
    spatial_key
        Entry of ``obsm`` with the coordinates. ``None``: the one that the graph was built with.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``.
    name
        Name of the model, written beside its labels.
    checkpoint
        File that the training is written to while it runs: every 200 steps and after every epoch. When the same call is
        made again, it goes on from there, and ends with the model that it would have had without interruption (on the
        CPU, to the bit); once it is finished, this model is returned at once. ``None``: nothing is written.
    callback
        Called after every epoch with the history so far, e.g. to write or plot it. ``None``: nothing is called.
    device
        ``"cpu"`` or ``"cuda"``; ``"auto"`` takes a GPU where there is one.
    rng
        Seed or generator. The same seed gives the same model, for any order of cells and genes (on the CPU, to the
        bit). A training that goes on from a `checkpoint` keeps the seed that it began with.
    progress
        Show a progress bar.

    Returns
    -------
    A model for ``stage_niches(model=)`` and `stage_sc.model.save_checkpoint`. Its ``history`` is a table with one row
    per epoch: the stage, the losses, ``entropy`` (evenness of the use of leaves, 1 at most), ``used`` (leaves in use)
    and ``cosine`` (of two cells on average: near 1, all embeddings are the same).

    With `init`, ``init_node`` has for every node the node of the first model that most of its training cells were in
    (-1 where there are none), and ``init_share`` the fraction of these. `stage_niches` writes both into the table of
    the tree.

    Raises
    ------
    KeyError
        If there is no graph, or if a key names nothing.
    FileNotFoundError
        If there is no checkpoint at `init`.
    ImportError
        If `init` is on the hub and huggingface_hub is not installed.
    OSError
        If `checkpoint` cannot be written, e.g. because its folder does not exist, or if `init` cannot be downloaded.
    TypeError
        If an argument is of another type, or a key is given for a store, which was built with its own.
    ValueError
        If expression has negative, NaN or infinite values, if no cell has counts, if no gene is known to `init`, if
        `init` is no model, its address has another form or its digest differs, if `config` and `init` differ in network
        or tree, if `config` asks for more leaves than there are cells, if this machine has no such `device`, or if
        `checkpoint` holds another training.

    See Also
    --------
    stage_niches : Label cells with the model.

    Notes
    -----
    What training changes are the niches of the tree. The domains of ``stage_niches(n_domains=)`` rest on the slides
    and on gene vectors as training began, which come from `data` or, with `init`, from that model: they are the same
    for any `epochs`. Where a slide lacks more than a tenth of all genes, these vectors also depend on `rng`, and tell
    nothing of how panels correspond that share fewer than 40 genes with the others: a warning says so. Begin with a
    model (`init`) then.

    About 10 s for 3,000 cells and 166 genes on one core; the time grows with cells times epochs. `data` is not changed.

    Training stops early, with a warning, when the embeddings have collapsed in two epochs in a row.

    A script that is started with ``torchrun --nproc-per-node 2 script.py`` trains in two processes: they share every
    batch, and both return the same model, that of one process to rounding.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> model = st.tl.fit(adata, epochs=2, progress=False)
    >>> st.tl.stage_niches(adata, model=model)
    >>> len(model.history)
    2
    """
    store = data if isinstance(data, Store) else None
    tables = Tables({}, data) if store else read_tables(data)
    keys = {"spatial_key": spatial_key, "library_key": library_key, "layer": layer}
    if store and (given := [key for key, value in keys.items() if value is not None]):
        raise TypeError(f"A store has its own `{given[0]}`: pass it to `st.data.build_store`, not here.")
    if patience is not None:
        check_positive(patience, "patience", integer=True)
    if epochs is not None and (epochs != 0 or isinstance(epochs, bool)):
        check_positive(epochs, "epochs", integer=True)
    check_name(name, "name")
    where = resolve_device(device)
    saved = None if checkpoint is None else _checkpoint_path(checkpoint)
    if config is not None and not isinstance(config, StageConfig):
        raise TypeError(f"`config` must be a stage_sc.model.StageConfig, got {type(config).__name__}.")
    start = None if init is None else resolve_model(init)
    chosen = config or (start.config if start else StageConfig())
    if start is not None and _fixed(chosen) != _fixed(start.config):
        raise ValueError("`config` and `init` differ in the network or the tree: pass one of them only.")
    generator = np.random.default_rng(rng)
    vocabulary = None if start is None else start.vocabulary.keys()
    with ExitStack() as scratch:
        if store:
            slides = store.slides(chosen, vocabulary=vocabulary)
        else:
            slides = []
            for prefix, part in tables.by_name.items():
                folder = scratch.enter_context(scratch_folder(part, layer))
                slides += read_slides(part, chosen, vocabulary=vocabulary, prefix=prefix, scratch=folder, **keys)
        if all(slide.empty[:].all() for slide in slides):
            raise ValueError("There is nothing to train on: no cell has any counts.")
        n_cells = sum(slide.n_cells for slide in slides)
        if start is None and config is not None and config.levels[-1] > n_cells:
            raise ValueError(
                f"`config.levels` asks for {config.levels[-1]} leaves, more than the {n_cells} training cells: pass "
                "fewer, or no `config`."
            )
        if config is None:
            chosen = adapt_config(chosen, [slide.n_cells for slide in slides], tuning=start is not None)
        if epochs is not None:
            share = min(chosen.warmup_epochs / max(chosen.epochs, 1), 1)
            chosen = chosen.replace(epochs=epochs, warmup_epochs=round(epochs * share))
        with one_thread(blas=True):
            if start is None:
                model = new_model(chosen, slides, generator, name, vectors=saved is None or not saved.exists())
            else:
                model = copy_model(start, chosen, slides, name)
            model.history = train(
                model,
                slides,
                generator,
                keep_tree=start is not None,
                patience=patience,
                checkpoint=saved,
                callback=callback,
                accelerator=where.type,
                progress=progress,
            )
            if start is not None:
                h = torch.cat([encoded.niche for encoded in encode_slides(model, slides)])
                settle_tree(model.tree, subsample(h, len(h), chosen.settle_cells), chosen)
                trace_niches(model, start, h, slides)
    return model


def _checkpoint_path(checkpoint: str | os.PathLike[str]) -> Path:
    """Raise unless a file can be there."""
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(f"`checkpoint` must be a path, got {checkpoint!r}.")
    path = Path(checkpoint).absolute()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write `checkpoint` to: make it.")
    if path.is_dir():
        raise IsADirectoryError(f"`checkpoint` must name a file, but {str(path)!r} is a folder.")
    return path


def _fixed(config: StageConfig) -> tuple[object, ...]:
    """Values that cannot change in a trained model."""
    return tuple(getattr(config, name) for name in FIXED)
