"""Where and with how many threads to compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from threadpoolctl import threadpool_limits

from stage_sc._checks import check_choice


def resolve_device(device: str) -> torch.device:
    """Return the device that a user named; ``"auto"`` takes a GPU where there is one.

    Raises
    ------
    TypeError
        If it is no string.
    ValueError
        If this machine has no such device.
    """
    if not isinstance(device, str):
        raise TypeError(f"`device` must be a string, got {device!r}.")
    present = ["auto", "cpu"]
    present += ["cuda", "gpu"] if torch.cuda.is_available() else []
    check_choice(device, "device", present)
    if device in ("auto", "gpu"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


@contextmanager
def one_thread(*, blas: bool = False) -> Iterator[None]:
    """Let torch (and numpy, with `blas`) use one thread: small networks are faster so, and sums the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1) if blas else nullcontext():
            yield
    finally:
        torch.set_num_threads(before)
