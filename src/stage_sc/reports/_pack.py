"""Arrays as text for the page: differences, planes of bytes, gzip and base64."""

from __future__ import annotations

import gzip
from base64 import b64encode

import numpy as np

LEVEL = 6  # of gzip: 9 takes three times as long and saves 1 %


def pack(values: np.ndarray, *, delta: bool = False) -> str:
    """Pack unsigned integers of one or two bytes, ``(n,)``.

    Two-byte values are stored as all low bytes, then all high bytes. With `delta`, each is the difference to the one
    before, modulo 65,536.
    """
    if delta:
        values = np.diff(values, prepend=values.dtype.type(0))  # wraps around
    stored = values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    if values.dtype.itemsize == 2:
        stored = np.ascontiguousarray(stored.reshape(-1, 2).T)
    return b64encode(gzip.compress(stored.tobytes(), LEVEL, mtime=0)).decode("ascii")


def smallest(codes: np.ndarray, n: int) -> np.ndarray:
    """Codes below `n`, and -1 for none, as uint8 or uint16; none is the largest number of the type."""
    dtype = np.uint8 if n < 255 else np.uint16
    return np.where(codes < 0, np.iinfo(dtype).max, codes).astype(dtype)
