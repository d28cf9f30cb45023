"""Results of files: their places and sources, what is known of a file, and the summary of all."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from anndata.io import read_elem

from stage_sc._file_tables import tables_of
from stage_sc._files import is_intact, write_whole
from stage_sc._result import check_key, read_result

logger = logging.getLogger("stage_sc.tl")

# Beginning of the name of the copy of a model.
MODEL = "model-"
SUMMARY = "summary.csv"


def list_inputs(
    paths: Sequence[Path], table_key: str | Sequence[str] | None, *, skip: bool
) -> list[tuple[Path, str | None]]:
    """Pair each file with its tables, ``None`` for the only one.

    With `skip`, a file that cannot be read has the first table that is asked for, and is refused later.
    """
    inputs: list[tuple[Path, str | None]] = []
    for path in paths:
        try:
            inputs += [(path, key) for key in tables_of(path, table_key)]
        except Exception:
            if not skip:
                raise
            inputs.append((path, table_key if isinstance(table_key, str) or table_key is None else table_key[0]))
    return inputs


def result_paths(inputs: Sequence[tuple[Path, str | None]], folder: Path) -> list[Path]:
    """Results are named after their files and tables; of files with the same name, after their folders too."""
    paths = dict.fromkeys(path for path, _ in inputs)
    stems = [path.stem for path in paths]
    names = []
    for path, table_key in inputs:
        name = path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}-{path.stem}"
        if table_key is not None and Path(table_key).name != table_key:
            raise ValueError(f"`table_key` must be the name of a table, got {table_key!r}.")
        names.append(f"{name}-{table_key}" if table_key is not None and (path / "tables").is_dir() else name)
    if len(set(names)) < len(names):
        raise ValueError(f"Several files are called {max(names, key=names.count)!r}: results would replace each other.")
    results = [folder / f"{name}.h5ad" for name in names]
    if replaced := {path.resolve() for path in paths} & {result.resolve() for result in results}:
        raise ValueError(
            f"The result of {min(replaced).name!r} would replace the file itself: `out` ({str(folder)!r}) must be "
            "another folder than that of the files."
        )
    return results


def check_place(path: Path, result: Path, cache: Path, key_added: str) -> None:
    """Raise unless the result of a file, and its embeddings, can be written without replacing anything else."""
    embedded = cache / result.name
    made_here = any(cache.glob(f"{MODEL}*"))
    if embedded.exists() and not is_intact(embedded) and not made_here:
        raise ValueError(
            f"{str(embedded)!r} exists, and was not written by `label_files`: choose another folder `out`."
        )
    known = result.is_file() and embedded.exists() and made_here
    if not result.exists() or (known and is_intact(result) is False):  # damaged: put aside by `read_back`
        return
    try:
        with h5py.File(result, "r") as file:
            names = {name: list(file[name].keys()) for name in ("obs", "obsm")}
            uns = read_elem(file["uns"])
    except Exception as error:
        if known:
            return
        raise ValueError(
            f"{str(result)!r} exists, and is no result of `label_files` that can be read ({error}): choose another "
            "folder `out`, or remove it."
        ) from error
    adata = AnnData(obs=pd.DataFrame(columns=names["obs"], index=pd.Index([], dtype=str)), uns=uns)
    adata.obsm.update({name: np.empty((0, 1)) for name in names["obsm"]})
    sources = read_sources(adata)
    if not sources:
        raise ValueError(f"{str(result)!r} exists, and is no result of `label_files`: choose another folder `out`.")
    for source in sources.values():
        other = source.get("path", str(path.resolve()))
        if other != str(path.resolve()) and Path(other).exists():
            raise ValueError(
                f"{str(result)!r} is the result of {other!r}, and would be replaced by that of {str(path)!r}: choose "
                "another folder `out`, or label both in one call."
            )
    check_key({str(result): adata}, key_added, "out")


def read_back(path: Path) -> AnnData | None:
    """Read a result; ``None`` where there is none. A damaged one is put aside."""
    if not path.is_file():
        return None
    try:
        if is_intact(path) is False:
            raise ValueError("its checksum differs")
        return read_h5ad(path)
    except Exception as error:  # noqa: BLE001 (of h5py or anndata, of any kind)
        aside = path.with_name(f"{path.name}.damaged")
        logger.warning("%r is damaged (%s): labels are written anew, the file is now %r.", str(path), error, aside.name)
        path.replace(aside)
        return None


def read_sources(adata: AnnData) -> dict[str, dict[str, Any]]:
    """Return the description of the input of each result of `label_files`, by its `key_added`."""
    results = {str(key): read_result(adata, str(key)).get("source") for key in adata.uns}
    return {key: dict(source) for key, source in results.items() if isinstance(source, Mapping) and "model" in source}


def source_digest(source: Mapping[str, Any]) -> str:
    """16 hexadecimal digits, the same for the same description of an input."""
    content = json.dumps({key: str(value) for key, value in source.items()}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Record:
    """What is known of a file since its embeddings were computed, in a small file beside these.

    A result that is written into a file changes its size and time. The record has all states of the file that differ
    from the embedded one by results alone, each with the results that the file holds in this state.
    """

    def __init__(self, embedded: Path, source: Mapping[str, Any]) -> None:
        self._path, self._source = embedded.with_suffix(".json"), source_digest(source)
        self._states: dict[str, dict[str, str]] = {str(source.get("state")): {}}
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["source"] == self._source:
                self._states |= content["states"]
        except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: the file is embedded again
            pass

    def knows(self, state: str) -> bool:
        """Tell if a state of the file differs from the embedded one by results alone."""
        return state in self._states

    def has(self, state: str, key_added: str, digest: str) -> bool:
        """Tell if the file, in a state, holds the result of a source under a key."""
        return self._states.get(state, {}).get(key_added) == digest

    def add(self, state: str, key_added: str, digest: str, *, after: str) -> None:
        """Take note of the state of a file in which it holds another result than in the state `after` which it came."""
        self._states[state] = {**self._states[after], key_added: digest}
        write_whole(self._path, json.dumps({"source": self._source, "states": self._states}).encode())


def write_summary(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table of all files of a call."""
    write_whole(folder / SUMMARY, pd.DataFrame(rows).convert_dtypes().to_csv(index=False).encode())
