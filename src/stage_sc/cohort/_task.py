"""A file to label: where its embeddings and its result are, and what these were computed from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from stage_sc._files import is_intact, stamp
from stage_sc._result import FLAGS
from stage_sc.cohort._results import Record

logger = logging.getLogger("stage_sc.tl")


@dataclass(frozen=True)
class EmbeddedFile:
    """Embeddings of the cells of a file, kept in another file (see `stage_sc.embed.Embeddings`); every access reads."""

    path: Path

    @property
    def flag(self) -> np.ndarray:
        return self.read("uns/flag")

    @property
    def cells(self) -> np.ndarray:
        return np.arange(len(self.flag))

    @property
    def niche(self) -> np.ndarray:
        return self.read("obsm/niche")

    @property
    def context(self) -> np.ndarray:
        return self.read("obsm/context")

    @property
    def slides(self) -> pd.DataFrame:
        return self.read("uns/slides")

    def read(self, key: str) -> Any:
        if not is_intact(self.path):
            raise ValueError(f"{str(self.path)!r} is damaged: repeat the call, which makes it anew.")
        with h5py.File(self.path, "r") as file:
            return read_elem(file[key])


@dataclass(frozen=True)
class FileTask:
    """A file to label, and all that the result depends on but the partition."""

    path: Path
    item: EmbeddedFile
    result: Path
    checkpoint: Path
    reading: dict[str, str | None]
    """Names of keys, layer and table."""
    graph: dict[str, Any]
    device: str
    errors: str
    name: str
    """Name of the file in those of its slides."""

    @property
    def state(self) -> str:
        """Size and time of the last change of the file, as text."""
        return "-".join(map(str, stamp(self.path, self.reading["table_key"])))

    @property
    def source(self) -> dict[str, str]:
        """Description of the input in the present state of the file."""
        settings = {**self.reading, **self.graph}
        source = {"path": str(self.path.resolve()), "state": self.state, "model": self.checkpoint.stem}
        return source | {name: value for name, value in settings.items() if value is not None}

    def known_source(self) -> dict[str, str] | None:
        """Return the description of the input of the embeddings on disk, if the file would give the same now."""
        if not self.item.path.exists():
            return None
        if not is_intact(self.item.path):
            path = str(self.item.path)
            logger.warning("%r is damaged, or of another version: the embeddings are computed anew.", path)
            return None
        stored, source = self.item.read("uns/source"), self.source
        known = Record(self.item.path, stored).knows(source["state"])
        return stored if known and {**stored, "state": ""} == {**source, "state": ""} else None

    def summary(self, problem: Exception | None) -> dict[str, Any]:
        """Row of the summary: what is known of the file."""
        text = "" if problem is None else self.explain(problem)
        table = {} if (key := self.reading["table_key"]) is None else {"table": key}
        row: dict[str, Any] = {"file": str(self.path), **table, "result": "", "problem": text, "warnings": ""}
        if problem is None:
            flags = np.bincount(self.item.flag, minlength=len(FLAGS))
            numbers = {name: int(number) for name, number in zip(FLAGS[1:], flags[1:], strict=True)}
            row |= {"result": str(self.result), "warnings": self.item.read("uns/warnings")}
            row |= self.item.read("uns/facts") | {"labelled": int(flags.sum())} | numbers
        return row

    def explain(self, problem: Exception) -> str:
        """Message of an error about the file, without its name; that of a KeyError without quotes."""
        text = str(problem.args[0]) if isinstance(problem, KeyError) and problem.args else str(problem)
        return text.removeprefix(f"{self.path}: ")
