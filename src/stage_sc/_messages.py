"""Names of files and objects in the errors and warnings about them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LOGGERS = [f"stage_sc{part}" for part in ("", ".pp", ".data", ".tl", ".train", ".pl", ".metrics")]
# Name put before messages, and the text in a message that makes it superfluous.
_subject: ContextVar[tuple[str, str] | None] = ContextVar("subject", default=None)


@contextmanager
def naming(name: str, known_by: str | None = None) -> Iterator[None]:
    """Put a name before the errors and logged messages of a block, unless they have it, or the text `known_by`."""
    before = _subject.set((name, known_by or name) if name else None)
    try:
        yield
    except Exception as error:
        if name:
            _name_error(error, name, known_by or name)
        raise
    finally:
        _subject.reset(before)


@contextmanager
def collected_warnings(*, divert: bool = False) -> Iterator[list[str]]:
    """Collect the warnings of the package that this thread logs in a block; with `divert` nobody else gets them."""
    texts: list[str] = []
    collector, thread = logging.Handler(logging.WARNING), threading.get_ident()

    def emit(record: logging.LogRecord) -> None:
        if record.thread == thread:
            texts.append(record.getMessage())

    collector.emit = emit  # type: ignore[method-assign]
    package = logging.getLogger("stage_sc")
    handlers, propagate = package.handlers, package.propagate
    package.handlers = [collector] if divert else [*handlers, collector]
    package.propagate = propagate and not divert
    try:
        yield texts
    finally:
        package.handlers, package.propagate = handlers, propagate


def element_name(argument: str, key: str) -> str:
    """Name of an object of a list or dictionary; empty for a single object, which has no key."""
    return f"{argument}[{key!r}]" if key else ""


def _name_error(error: Exception, name: str, known_by: str) -> None:
    if name in str(error) or known_by in str(error):
        return
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None:
            error.filename = name  # part of its text
        else:
            error.add_note(f"{name}: {error}")
    elif len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{name}: {error.args[0]}",)
    else:
        error.add_note(f"This is about {name}.")


def _name_record(record: logging.LogRecord) -> bool:
    subject, message = _subject.get(), record.getMessage()
    if subject and not any(text in message for text in subject):
        record.msg, record.args = f"{subject[0]}: {message}", ()
    return True


for _logger in LOGGERS:
    logging.getLogger(_logger).addFilter(_name_record)
