"""Train a model on one's own slides."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from anndata import AnnData
from threadpoolctl import threadpool_limits

from stage_sc._checks import check_anndata, check_choice, check_positive
from stage_sc.data._slide import Slide, read_data
from stage_sc.model._config import StageConfig
from stage_sc.model._queue import SlideQueue
from stage_sc.model._stage import Stage
from stage_sc.train._adapt import adapt
from stage_sc.train._prior import gene_prior
from stage_sc.train._train import train
from stage_sc.weights import resolve_model

logger = logging.getLogger("stage_sc.tl")


def fit(
    data: AnnData | Sequence[AnnData] | Mapping[str, AnnData],
    *,
    library_key: str | None = None,
    init: Stage | str | os.PathLike[str] | None = None,
    config: StageConfig | None = None,
    epochs: int | None = None,
    patience: int | None = 5,
    spatial_key: str | None = None,
    layer: str | None = None,
    name: str = "custom",
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

    Parameters
    ----------
    data
        Cells with counts, coordinates and the graph of `stage_sc.pp.build_graph`, of one or several slides; or a list
        or a dictionary of these, whose panels may differ.
    library_key
        Column of ``obs`` that names the slide of every cell. ``None``: the one that the graph was built with.
    init
        Model to start from, ``"bundled"``, or the path of a checkpoint. Its tree stays, and with it the meaning of its
        niches; genes that it does not know are left out. ``None``: from scratch, with all genes of `data`.
    config
        All choices of the method, used as they are. ``None``: the defaults (those of `init`), with a smaller tree and a
        shorter schedule for small data; the log says which.
    epochs
        Length of training, of which the warm-up keeps its share. ``None``: as configured. 0: an untrained network, with
        a tree, to compare with.
    patience
        End a stage when the loss has not fallen for so many epochs. ``None``: never.
    spatial_key
        Entry of ``obsm`` with the coordinates. ``None``: the one that the graph was built with.
    layer
        Entry of ``layers`` with the counts. ``None``: ``X``.
    name
        Name of the model, written beside its labels.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``; ``"auto"`` takes a GPU where there is one.
    rng
        Seed or generator. The same seed gives the same model, for any order of cells and genes (on the CPU, to the
        bit).
    progress
        Show a progress bar.

    Returns
    -------
    A model for ``stage_niches(model=)`` and `stage_sc.model.save_checkpoint`. Its ``history`` is a table with one row
    per epoch: the stage, the losses, ``entropy`` (evenness of the use of leaves, 1 at most), ``used`` (leaves in use)
    and ``cosine`` (of two cells on average: near 1, all embeddings are the same).

    Raises
    ------
    KeyError
        If there is no graph, or if a key names nothing.
    TypeError
        If an argument is of another type.
    ValueError
        If expression has negative, NaN or infinite values, if no cell has counts, if no gene is known to `init`, or if
        this machine has no such `device`.

    See Also
    --------
    stage_niches : Label cells with the model.

    Notes
    -----
    About 10 s for 3,000 cells and 166 genes on one core; the time grows with cells times epochs. `data` is not changed.

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
    named = _named(data)
    if patience is not None:
        check_positive(patience, "patience", integer=True)
    if epochs is not None and (epochs != 0 or isinstance(epochs, bool)):
        check_positive(epochs, "epochs", integer=True)
    if not isinstance(name, str) or not name:
        raise TypeError(f"`name` must be a string with at least one character, got {name!r}.")
    _check_device(device)
    if config is not None and not isinstance(config, StageConfig):
        raise TypeError(f"`config` must be a stage_sc.model.StageConfig, got {type(config).__name__}.")
    start = None if init is None else resolve_model(init)
    chosen = config or (start.config if start else StageConfig())
    if start is not None and _shape(chosen) != _shape(start.config):
        raise ValueError("`config` and `init` differ in the network or the tree: pass one of them only.")
    generator = np.random.default_rng(rng)
    vocabulary = None if start is None else start.vocabulary.keys()
    slides = [
        slide
        for prefix, adata in named.items()
        for slide in read_data(
            adata,
            scaling=chosen.scaling,
            vocabulary=vocabulary,
            spatial_key=spatial_key,
            library_key=library_key,
            layer=layer,
            prefix=prefix,
        )
    ]
    if all(slide.empty.all() for slide in slides):
        raise ValueError("There is nothing to train on: no cell has any counts.")
    n_cells = sum(slide.n_cells for slide in slides)
    if start is None and config is not None and config.levels[-1] > n_cells:
        raise ValueError(
            f"`config.levels` asks for {config.levels[-1]} leaves, more than the {n_cells} training cells: pass fewer, "
            "or no `config`."
        )
    if config is None:
        chosen = adapt(chosen, n_cells, tuning=start is not None)
    if epochs is not None:
        share = chosen.warmup_epochs / max(chosen.epochs, 1)
        chosen = chosen.replace(epochs=epochs, warmup_epochs=round(epochs * share))
    with _one_thread():
        if start is None:
            model = _new_model(chosen, slides, generator, name)
        else:
            model = _continued(start, chosen, slides, name)
        model.history = train(
            model,
            slides,
            generator,
            keep_tree=start is not None,
            patience=patience,
            accelerator=device,
            progress=progress,
        )
    return model


def _check_device(device: str) -> None:
    """Raise unless torch can compute on `device`."""
    if not isinstance(device, str):
        raise TypeError(f"`device` must be a string, got {device!r}.")
    present = ["auto", "cpu"]
    present += ["cuda", "gpu"] if torch.cuda.is_available() else []
    present += ["mps"] if torch.backends.mps.is_available() else []
    check_choice(device, "device", present)


def _named(data: AnnData | Sequence[AnnData] | Mapping[str, AnnData]) -> dict[str, AnnData]:
    """Give every AnnData the prefix of its slides' names."""
    if isinstance(data, Mapping):
        named = {str(key): value for key, value in data.items()}
    elif isinstance(data, Sequence) and not isinstance(data, str):
        named = {str(number): value for number, value in enumerate(data)}
    else:
        named = {"": data}
    if not named:
        raise ValueError("`data` is empty.")
    for value in named.values():
        check_anndata(value, name="data")
    return named


def _shape(config: StageConfig) -> tuple[object, ...]:
    """Return what cannot change in a trained model."""
    return config.dim, config.n_layers, config.n_heads, config.levels, config.scaling, config.embedder_norm


def _new_model(config: StageConfig, slides: list[Slide], rng: np.random.Generator, name: str) -> Stage:
    """Untrained model with gene vectors from co-expression."""
    genes = sorted({gene for slide in slides for gene in slide.genes})
    model = Stage(config, genes, [slide.name for slide in slides], name, seed=int(rng.integers(2**62)))
    model.set_vectors(torch.from_numpy(gene_prior(slides, genes, config.dim)))
    return model


def _continued(start: Stage, config: StageConfig, slides: list[Slide], name: str) -> Stage:
    """Copy of a trained model, with a new queue for new slides."""
    model = Stage(config, start.genes, [slide.name for slide in slides], name)
    state = {key: value for key, value in start.state_dict().items() if not key.startswith("queue.")}
    model.load_state_dict(state, strict=False)
    model.queue = SlideQueue(len(slides), model.tree.n_nodes, config.queue_length)
    return model


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small networks are faster on one thread, and sums are then the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
