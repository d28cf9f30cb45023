"""Named AnnData objects of any container, of one object or of several, and those that are left out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from anndata import AnnData

from stage_sc._checks import check_choice
from stage_sc._containers import Opened, open_container
from stage_sc._messages import element_name, naming

if TYPE_CHECKING:
    from mudata import MuData
    from spatialdata import SpatialData

    OneObject: TypeAlias = AnnData | SpatialData | MuData | str | os.PathLike[str]
Data: TypeAlias = "OneObject | Sequence[OneObject] | Mapping[str, OneObject]"
Errors: TypeAlias = Literal["skip", "raise"]

logger = logging.getLogger("stage_sc")


class Tables(NamedTuple):
    """The AnnData objects of a container."""

    by_name: dict[str, AnnData]
    """Objects by their keys in a dictionary, positions in a list, tables, or ``""`` for a single object."""
    given: Any
    """The container; objects that were read from files are in the place of their paths."""
    owners: dict[str, Any]
    """The SpatialData or MuData of each object, or ``None``."""
    like: Callable[[Sequence[AnnData]], Any]
    """Puts one object for each of `by_name` into a container of the same kind."""
    problems: dict[str, Exception]
    """Errors about objects that were left out, by name."""
    from_files: frozenset[str] = frozenset()
    """Names of objects that were read from files."""

    def copy(self) -> Tables:
        """Copy every object into memory."""
        copies = [part.to_memory() if part.isbacked else part.copy() for part in self.by_name.values()]
        return self._replace(by_name=dict(zip(self.by_name, copies, strict=True)), given=self.like(copies))

    @property
    def was_read(self) -> bool:
        """True if the container was given with paths, so that results are in another one."""
        return bool(self.from_files or self.problems)

    def check_in_memory(self) -> None:
        """Raise a TypeError if results, which are written into objects, would be lost with those from files."""
        if self.from_files:
            raise TypeError(
                "`data` has paths, but results are written into objects in memory: read the files first "
                "(`scanpy.read_h5ad(path)`, `spatialdata.read_zarr(path)`), and write the objects afterwards."
            )

    @property
    def is_one_object(self) -> bool:
        """True for a single AnnData, also of a SpatialData or MuData."""
        return list(self.by_name) == [""]


class Attempts:
    """Objects of a container on which work is tried one by one.

    With ``errors="skip"``, objects of several that are refused are left out and reported, unless all are.
    """

    def __init__(self, tables: Tables, errors: Errors) -> None:
        self.tables, self.problems = tables, dict(tables.problems)
        self.skip = errors == "skip" and len(tables.by_name) + len(tables.problems) > 1

    @property
    def good(self) -> dict[str, AnnData]:
        """Objects without a problem so far, by name."""
        return {name: part for name, part in self.tables.by_name.items() if name not in self.problems}

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Do work on one object, named in its messages; errors are noted, or raised where nothing is skipped."""
        try:
            with naming(element_name("data", name), repr(name)):
                yield
        except (KeyError, OSError, TypeError, ValueError) as error:
            if not self.skip:
                raise
            self.problems[name] = error

    def finish(self) -> None:
        """Report the objects that are left out; raise the first error if no object is left."""
        if not self.good:
            raise next(iter(self.problems.values()))
        for name, error in self.problems.items():
            text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            where = "" if repr(name) in text else f"{element_name('data', name)}: "
            logger.warning('Left out: %s%s (`errors="raise"` stops here.)', where, text)
        if self.problems:
            logger.warning("%d of %d objects are left out.", len(self.problems), len(self.problems) + len(self.good))


def check_errors(errors: Any) -> None:
    """Raise unless `errors` is "skip" or "raise"."""
    check_choice(errors, "errors", ("skip", "raise"))


def read_tables(
    data: Any, name: str = "data", *, table_key: str | Sequence[str] | None = None, skip: bool = False
) -> Tables:
    """Name the AnnData objects of a container.

    This is an AnnData, SpatialData, MuData or the path of one, or a list or a dictionary of these. `name` is that of
    the argument, for error messages. `table_key` chooses tables of SpatialData and modalities of MuData. With `skip`,
    files of several objects that cannot be read are noted in `problems`.
    """
    if isinstance(data, Tables):
        return data
    named = entries_of(data, name)
    if named is None:
        opened = open_container(data, name, table_key)
        given = data if opened.read is None else opened.read
        _check_table_key(table_key, [opened])
        names, owner = opened.tables, opened.owner
        files = frozenset(names if opened.read is not None else ())
        return Tables(opened.tables, given, dict.fromkeys(names, owner), opened.rebuild, {}, files)
    found: dict[str, Opened] = {}
    problems: dict[str, Exception] = {}
    for key, part in named:
        is_path = isinstance(part, str | os.PathLike)
        try:
            found[key] = open_container(part, f"{name}[{key!r}]", table_key)
        except (KeyError, OSError, ValueError) as error:
            if not (skip and len(named) > 1 and (is_path or not isinstance(part, AnnData))):
                raise
            problems[key] = error
    if not found:
        raise next(iter(problems.values()))
    _check_table_key(table_key, found.values())
    return _join_opened(data, found, problems)


def entries_of(data: Any, name: str = "data") -> list[tuple[str, Any]] | None:
    """Entries of a list or a dictionary of containers with their names, ``None`` for a single container.

    Those of a list are called by the stems of paths if all are paths and differ, else by position.
    """
    if isinstance(data, Mapping):
        named = [(str(key), part) for key, part in data.items()]
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes):
        stems = [Path(part).stem if isinstance(part, str | os.PathLike) else "" for part in data]
        by_stem = len(set(stems)) == len(stems) and all(stems)
        named = [(stem if by_stem else str(position), data[position]) for position, stem in enumerate(stems)]
    else:
        return None
    if not named:
        raise ValueError(f"`{name}` is empty.")
    if len(dict(named)) < len(named):
        raise ValueError(f"Two keys of `{name}` have the same text: {[key for key, _ in named]}. Rename one.")
    return named


def _check_table_key(table_key: Any, opened: Iterable[Opened]) -> None:
    if table_key is not None and all(one.owner is None for one in opened):
        raise ValueError(f"`table_key` ({table_key!r}) chooses tables of a SpatialData, but there is only AnnData.")


def _join_opened(data: Any, found: Mapping[str, Opened], problems: dict[str, Exception]) -> Tables:
    """Tables of several containers."""
    by_name: dict[str, AnnData] = {}
    owners: dict[str, Any] = {}
    files: set[str] = set()
    for key, one in found.items():
        names = [slide_name(key, table) for table in one.tables]
        by_name |= dict(zip(names, one.tables.values(), strict=True))
        owners |= dict.fromkeys(names, one.owner)
        files |= set(names if one.read is not None else ())
    if len(by_name) < sum(len(one.tables) for one in found.values()):
        raise ValueError(f"Two tables have the same name: {[(key, *one.tables) for key, one in found.items()]}.")
    keys = {str(key): key for key in data} if isinstance(data, Mapping) else None

    def like(parts: Sequence[AnnData]) -> Any:
        left, made = iter(parts), {}
        for key, one in found.items():
            made[key] = one.rebuild([next(left) for _ in one.tables])
        return {keys[key]: part for key, part in made.items()} if keys is not None else list(made.values())

    given = data
    if files or problems:
        by_key = dict(entries_of(data) or [])
        read = {key: by_key[key] if one.read is None else one.read for key, one in found.items()}
        given = {keys[key]: part for key, part in read.items()} if keys is not None else list(read.values())
    return Tables(by_name, given, owners, like, problems, frozenset(files))


def slide_name(prefix: str, name: str) -> str:
    """Name of a slide: ``"object/slide"``, or either where the other is empty."""
    return f"{prefix}/{name}".strip("/")
