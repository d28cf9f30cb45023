"""Models on disk: safetensors for the weights, JSON for everything else; reading one runs no code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stage_sc._checks import check_bool
from stage_sc._files import as_path, file_to_write, write_whole
from stage_sc._messages import naming
from stage_sc.nn import Stage, StageConfig, check_weights, content_digest

FORMAT = "stage_sc checkpoint"
FORMAT_VERSION = 6
SUFFIX = ".safetensors"
HEADER = {"config", "digest", "genes", "name", "package_version", "slides"}


def save_checkpoint(model: Stage, path: str | os.PathLike[str], *, half: bool = False) -> Path:
    """Write a model to one file.

    Parameters
    ----------
    model
        From `stage_sc.tl.fit`.
    path
        File to write; ``.safetensors`` is appended where it is missing. An existing file is replaced.
    half
        Store numbers in 16 bits: half the size, and embeddings that differ by about 1e-3.

    Returns
    -------
    Path of the file. It holds the weights, and in its header (JSON) the configuration, the vocabulary, the names of the
    training slides, the version of the package, and a digest of weights, configuration, vocabulary and slides.

    Raises
    ------
    OSError
        If the file cannot be written; an existing file is then unchanged.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> model = st.tl.fit(adata, epochs=2, progress=False)
    >>> path = st.model.save_checkpoint(model, "niches")
    >>> st.model.load_checkpoint(path).name
    'niches'
    """
    path = file_to_write(path, "path")
    if not isinstance(model, Stage):
        raise TypeError(f"`model` must be a model from `st.tl.fit`, got {type(model).__name__}.")
    check_bool(half, "half")
    path = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    with naming("This model cannot be saved"):
        check_weights(tensors, model.config)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": model.version,
        "name": model.name if model.name != "custom" else path.stem,
        "config": model.config.to_dict(),
        "genes": model.genes,
        "slides": model.slides,
    }
    header["digest"] = content_digest(header, tensors)
    content = save(tensors, metadata={"stage_sc": json.dumps(header, sort_keys=True)})
    write_whole(path, content)
    return path


def load_checkpoint(path: str | os.PathLike[str]) -> Stage:
    """Read a model that `save_checkpoint` wrote.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    The model, on the CPU and ready for inference. Embeddings are the same to the bit, unless saved with ``half=True``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no checkpoint of this package, has a format that this version does not know, or is damaged.

    Examples
    --------
    >>> import stage_sc as st
    >>> adata = st.datasets.simulate_tissue(500)
    >>> st.pp.build_graph(adata)
    >>> path = st.model.save_checkpoint(st.tl.fit(adata, epochs=0, progress=False), "cortex")
    >>> model = st.model.load_checkpoint(path)
    >>> st.tl.stage_niches(adata, model=model)
    >>> adata.uns["stage"]["model"]["name"]
    'cortex'
    """
    path = as_path(path, "path")
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a safetensors file: {error}. A model is written by "
            "`stage_sc.model.save_checkpoint`; `fit(checkpoint=)` writes the state of a training."
        ) from error
    if "stage_sc" not in metadata:
        raise ValueError(
            f"{str(path)!r} is a safetensors file, but no model of stage_sc: write one with "
            "`stage_sc.model.save_checkpoint`."
        )
    try:
        header = dict(json.loads(metadata["stage_sc"]))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged: its header cannot be read ({error}).") from error
    if header.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has checkpoint format {header.get('format_version')}, but this version of stage_sc reads "
            f"format {FORMAT_VERSION}: contexts are computed in another way. Train it again, or install stage_sc "
            f"{header.get('package_version')}, which wrote it."
        )
    missing = sorted(HEADER - set(header))
    if missing:
        raise ValueError(f"{str(path)!r} is damaged: its header lacks {', '.join(missing)}.")
    try:
        if content_digest(header, tensors) != header["digest"]:
            raise ValueError(f"its content does not have the digest {header['digest']}. Download it again")
        return _build(header, tensors)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}.") from error


def _build(header: dict[str, Any], tensors: dict[str, Tensor]) -> Stage:
    """Make the model of a header and its tensors; errors of many kinds if they do not fit."""
    config = header["config"]
    names = [*header["genes"], *header["slides"], header["name"], header["package_version"]]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a name in its header is not text")
    "".join(names).encode()  # fails for halves of characters
    if not header["genes"] or len(set(header["genes"])) < len(header["genes"]):
        raise ValueError("its header has no genes, or a gene twice")
    config = StageConfig.from_dict(config)
    _check_sizes(config, header, tensors)
    model = Stage(config, header["genes"], header["slides"], header["name"], header["package_version"])
    check_weights(tensors, config)
    model.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in tensors.items()})
    return model.eval()


def _check_sizes(config: StageConfig, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raise a ValueError unless sizes in the header are those of the tensors, before memory is taken for them."""
    n_layers = sum(name.startswith("encoder.layers.") and name.endswith(".lin.weight") for name in tensors)
    n_nodes = sum(config.levels)
    found = {name: list(tensors[name].shape) for name in ("embedder.vectors", "tree.prototypes", "queue.scores")}
    expected = {
        "embedder.vectors": [len(header["genes"]), config.dim],
        "tree.prototypes": [n_nodes, config.dim],
        "queue.scores": [len(header["slides"]), config.queue_length, n_nodes],
    }
    if found != expected or n_layers != config.n_layers:
        raise ValueError(f"its tensors have the shapes {found} and {n_layers} layers, but its header says {expected}")
