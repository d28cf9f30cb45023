"""Matrices in files that R wrote with ``save``.

The format is described in "R Internals", chapter "Serialization formats". Of its types, those of a matrix with names of
rows and columns are read.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

_SYMBOL, _PAIRS, _STRING, _REFERENCE, _NULL = 1, 2, 9, 255, 254
_VECTORS = {10: ">i4", 13: ">i4", 14: ">f8"}  # logical, integer, double
_LISTS = (16, 19)  # strings, list
_OPENERS: dict[bytes, Any] = {b"BZh": bz2.open, b"\x1f\x8b\x08": gzip.open, b"\xfd7z": lzma.open}


def read_r_matrix(path: Path) -> pd.DataFrame:
    """Read the only object of an ``.rda`` file, a matrix with names of rows and columns."""
    start = path.read_bytes()[:3]
    if start not in _OPENERS:
        raise ValueError("this is not a compressed file of R.")
    with _OPENERS[start](path) as file:
        reader = _Reader(file.read())
    ((_, (values, attributes)),) = reader.saved()
    rows, columns = (names for names, _ in attributes["dimnames"][0])
    return pd.DataFrame(values.reshape(len(rows), len(columns), order="F"), index=rows, columns=columns)


class _Reader:
    """Position in the bytes of a file, and the symbols met so far, which later items refer to by number."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at, self.symbols = content, 19, [""]
        if content[:5] not in (b"RDX2\n", b"RDX3\n") or content[5:7] != b"X\n":
            raise ValueError("this is not a file that R wrote with save().")
        if content[:5] == b"RDX3\n":  # the name of the encoding follows
            self.at += 4 + struct.unpack_from(">i", content, self.at)[0]

    def integer(self) -> int:
        self.at += 4
        return int(struct.unpack_from(">i", self.content, self.at - 4)[0])

    def saved(self) -> list[tuple[str, Any]]:
        return self.pairs(self.integer())

    def pairs(self, flags: int) -> list[tuple[str, Any]]:
        """Linked list of names and values."""
        found = []
        while flags & 255 != _NULL:
            if flags & 512:
                self.item()  # attributes of the list
            name = self.item() if flags & 1024 else ""
            found.append((name, self.item()))
            flags = self.integer()
        return found

    def item(self) -> Any:
        flags = self.integer()
        kind = flags & 255
        if kind == _NULL:
            return None
        if kind == _SYMBOL:
            self.symbols.append(self.item())
            return self.symbols[-1]
        if kind == _REFERENCE:
            return self.symbols[flags >> 8]
        if kind == _PAIRS:
            return dict(self.pairs(flags))
        length = self.integer()
        if kind == _STRING:
            self.at += length
            return self.content[self.at - length : self.at].decode()
        if kind in _LISTS:
            values: Any = [self.item() for _ in range(length)]
        elif kind in _VECTORS:
            values = np.frombuffer(self.content, _VECTORS[kind], length, self.at)
            self.at += values.nbytes
        else:
            raise ValueError(f"R objects of type {kind} are not read.")
        return values, (self.item() if flags & 512 else {})
