"""Device and number of threads of a computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from threadpoolctl import threadpool_limits

from stage_sc._checks import check_choice


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; ``"auto"`` takes a GPU where there is one."""
    if not isinstance(device, str):
        raise TypeError(f"`device` must be a string, got {device!r}.")
    gpu = torch.cuda.is_available()
    check_choice(device, "device", ["auto", "cpu", *(["cuda", "gpu"] if gpu else [])])
    return torch.device("cuda" if gpu and device != "cpu" else "cpu")


@contextmanager
def one_thread(*, blas: bool = False) -> Iterator[None]:
    """Limit torch (and numpy, with `blas`) to one thread: faster for small networks, and the same sums everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1) if blas else nullcontext():
            yield
    finally:
        torch.set_num_threads(before)
