"""Train a model on one's own slides."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import torch

from stage_sc._checks import check_bool, check_choice, check_name, check_positive, read_rng
from stage_sc._compute import one_thread, resolve_device
from stage_sc._files import file_to_write, remove_parts
from stage_sc._input import read_tables
from stage_sc._messages import element_name, naming
from stage_sc.data import Store
from stage_sc.model import resolve_model
from stage_sc.niches import settle_tree
from stage_sc.nn import Modality, Stage, StageConfig
from stage_sc.slides import read_slides, scratch_folder, subsample
from stage_sc.train import adapt_config, copy_model, encode_slides, new_model, trace_niches, train

if TYPE_CHECKING:
    from stage_sc._input import Data

# Fields of the configuration that cannot change in a trained model.
FIXED = (
    *("modality", "dim", "n_layers", "n_heads", "levels", "scaling", "min_sd"),
    *("test_reach", "context_reach", "spot_edge", "whiten", "null_margin", "null_cells", "power", "spot_power"),
)


def fit(
    data: Data | Store,
    *,
    modality: Modality | None = None,
    library_key: str | None = None,
    table_key: str | Sequence[str] | None = None,
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
    r"""Train a model, from scratch or from another one. Labels are never used.

    From scratch, gene vectors start from the coexpression of genes in neighbourhoods and the tree from K-means of the
    untrained embeddings. The first epochs train the network with a fixed tree, on

    .. math:: L = L_{swav} + w L_{reconstruction};

    then the tree is grown anew and trained with the network, on :math:`L + \lambda L_{path}` (equation 13 of the
    paper). Gene vectors of slides whose panels differ are not trained: cells enter by the principal axes of their
    slide, which these vectors only turn.

    From another model (`init`), network and tree are trained a little further, and then the tree settles on `data`, as
    in `stage_niches`: the number of niches in use falls to the number that the cells support.

    Parameters
    ----------
    data
        Cells with counts, coordinates and the graph of `stage_sc.pp.build_graph`, of one or several slides: an AnnData,
        a SpatialData, a MuData, the path of one, or a list or a dictionary of these, whose panels may differ. Or a
        `stage_sc.data.Store`, for more data than memory holds.
    modality
        ``"rna"``: `data` holds counts. ``"protein"``: intensities of antibodies (imaging mass cytometry, CODEX, MIBI),
        in any unit; nuclear stains and empty channels are left out, and where a column of types in ``var`` names
        antibodies among genes, these are read alone. Intensities are read as :math:`\operatorname{arcsinh}(x / c)`,
        with a cofactor c of each protein and slide, three times the median of its intensities above 0. The modality is
        recorded in the model, which refuses data of the other kind. ``None``: that of `init` or `config`, by default
        ``"rna"``.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one that the graph was built with.
    table_key
        Tables of a SpatialData, or the modality of a MuData, as in `stage_sc.pp.build_graph`.
    init
        Model to start from: as in `stage_niches`, or ``"bundled"``. Nodes of its tree keep their numbers and parents,
        and move with the data. Genes unknown to it are left out. ``None``: from scratch, with all genes of `data`.
    config
        All choices of the method, used as they are. ``None``: with `init` its own, with 10 epochs, no warm-up and a
        learning rate of 3e-4; from scratch the defaults, below 200,000 cells with 20 epochs, 10 of them warm-up, and a
        learning rate of 1e-3, and with at most one leaf per 50 cells of the largest slide or per 500 of all. The log
        says what was changed.
    epochs
        Number of epochs; the fraction of warm-up is kept. ``None``: as configured. 0: an untrained network with a tree,
        to compare with; with `init`, its network as it is, and its tree settled on `data` in seconds.
    patience
        Number of epochs without a lower loss after which a stage of the training ends. ``None``: no limit.
    spatial_key
        Entry of ``obsm`` with the coordinates. ``None``: the one that the graph was built with.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``.
    name
        Name of the model, written beside its labels.
    checkpoint
        File to which the training is written every 200 steps and after every epoch. The same call continues from it,
        and returns the model that it would have had without interruption (on the CPU, to the bit), at once where the
        training is finished. ``None``: nothing is written.
    callback
        Called after every epoch with the history so far, e.g. to write or plot it. ``None``: nothing is called.
    device
        ``"cpu"`` or ``"cuda"``; ``"auto"`` takes a GPU where there is one.
    rng
        Seed or generator. The same seed gives the same model, for any order of cells and genes (on the CPU, to the
        bit). A training continued from a `checkpoint` keeps its seed.
    progress
        Show a progress bar.

    Returns
    -------
    A model for ``stage_niches(model=)`` and `stage_sc.model.save_checkpoint`. Its ``history`` is a table with one row
    per epoch: the stage, the losses, ``entropy`` (evenness of the use of leaves, 1 at most), ``used`` (leaves in use)
    and ``cosine`` (mean cosine of two cells: near 1, all embeddings are the same).

    With `init`, ``init_node`` has for every node the node of the first model with most of its training cells (-1
    without any), and ``init_share`` the fraction of these cells. `stage_niches` writes both to the table of the tree.

    Raises
    ------
    KeyError
        If there is no graph, or if a key does not exist.
    FileNotFoundError, ImportError, OSError
        If `init` is not found, as in `stage_niches`, or if `checkpoint` cannot be written, e.g. without its folder.
    TypeError
        If an argument is of another type, or a key is given for a store, which was built with its own.
    ValueError
        If `data` or `init` are of another `modality`, if expression has negative, NaN or infinite values, if no cell
        has counts, if no gene is known to `init`, if `init` is no model, its address has another form or its digest
        differs, if `config` and `init` differ in network or tree, if `config` has more leaves than there are cells, if
        this machine has no such `device`, or if `checkpoint` holds another training.

    See Also
    --------
    stage_niches : Label cells with the model.

    Notes
    -----
    Training changes the niches of the tree, not the domains of ``stage_niches(n_domains=)``: these depend on the slides
    and on the initial gene vectors, which come from `data` or, with `init`, from that model. Where a slide lacks more
    than a tenth of all genes, initial vectors depend on `rng` too, and do not relate panels that share fewer than 40
    genes with the others: a warning says so. Start from a model (`init`) then.

    About 10 s for 3,000 cells and 166 genes on one core; time grows with cells times epochs. `data` is not changed.
    Training stops early, with a warning, when the embeddings have collapsed in two epochs in a row.

    A script started by ``torchrun --nproc-per-node 2 script.py`` trains in two processes, which divide every batch and
    return the same model, that of one process to rounding.

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
    tables = {} if isinstance(data, Store) else read_tables(data, table_key=table_key).by_name
    keys = {"spatial_key": spatial_key, "library_key": library_key, "layer": layer}
    choices = {**keys, "table_key": table_key}
    if not tables and (given := [key for key, value in choices.items() if value is not None]):
        raise TypeError(f"A store has its own `{given[0]}`: pass it to `st.data.build_store`, not here.")
    if patience is not None:
        check_positive(patience, "patience", integer=True)
    if epochs is not None:
        check_positive(epochs, "epochs", integer=True, zero=True)
    check_name(name, "name")
    check_bool(progress, "progress")
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback` must be a function of the history, got {callback!r}.")
    accelerator = resolve_device(device).type
    saved = None if checkpoint is None else file_to_write(checkpoint, "checkpoint").absolute()
    if saved is not None:
        remove_parts(saved.parent, saved.name)
    if config is not None and not isinstance(config, StageConfig):
        raise TypeError(f"`config` must be a stage_sc.model.StageConfig, got {type(config).__name__}.")
    start = None if init is None else resolve_model(init, "init")
    chosen = config or (start.config if start else StageConfig())
    if modality is not None:
        check_choice(modality, "modality", get_args(Modality))
        if start and start.config.modality != modality:
            raise ValueError(
                f"`modality` is {modality!r}, but `init` is a model of modality {start.config.modality!r}, which "
                "cannot read it: leave out `init` to train from scratch, or pass another model."
            )
        chosen = chosen.replace(modality=modality)
    if chosen.modality == "protein" and isinstance(data, Store):
        raise ValueError("A store holds log-normalised counts of RNA: pass AnnData objects for modality='protein'.")
    if start and any(getattr(chosen, field) != getattr(start.config, field) for field in FIXED):
        raise ValueError("`config` and `init` differ in the network or the tree: pass one of them only.")
    generator = read_rng(rng)
    vocabulary = start.vocabulary.keys() if start else None
    with ExitStack() as scratch:
        slides = data.slides(chosen, vocabulary=vocabulary) if isinstance(data, Store) else []
        for prefix, part in tables.items():
            with naming(element_name("data", prefix), repr(prefix)):
                folder = scratch.enter_context(scratch_folder(part, layer))
                slides += read_slides(part, chosen, vocabulary=vocabulary, prefix=prefix, scratch=folder, **keys)
        if all(slide.empty[:].all() for slide in slides):
            raise ValueError("There is nothing to train on: no cell has any counts.")
        n_cells = [slide.n_cells for slide in slides]
        if config is None:
            chosen = adapt_config(chosen, n_cells, tuning=start is not None)
        elif start is None and config.levels[-1] > sum(n_cells):
            raise ValueError(
                f"`config.levels` has {config.levels[-1]} leaves, more than the {sum(n_cells)} training cells: pass "
                "fewer, or no `config`."
            )
        if epochs is not None:
            warmup = epochs * min(chosen.warmup_epochs / max(chosen.epochs, 1), 1)
            chosen = chosen.replace(epochs=epochs, warmup_epochs=round(warmup))
        with one_thread():
            if start:
                model = copy_model(start, chosen, slides, name)
            else:
                model = new_model(chosen, slides, generator, name, vectors=saved is None or not saved.exists())
            model.history = train(
                model,
                slides,
                generator,
                keep_tree=start is not None,
                patience=patience,
                checkpoint=saved,
                callback=callback,
                accelerator=accelerator,
                progress=progress,
            )
            if start:
                h = torch.cat([encoded.niche for encoded in encode_slides(model, slides)])
                settle_tree(model.tree, subsample(h, len(h), chosen.settle_cells), chosen)
                trace_niches(model, start, h, slides)
    return model
