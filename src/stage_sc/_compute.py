"""Device and number of threads of a computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any

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
    """Limit torch (and numpy, with `blas`) to one thread: faster for small networks, and the same sums everywhere.

    Blocks that run in several threads at a time share the limit: it ends with the last of them.
    """
    with _torch_limit, _blas_limit if blas else nullcontext():
        yield


class _SharedLimit:
    """A limit of the whole process: `enter` returns the state before, which `leave` restores after the last block."""

    def __init__(self, enter: Callable[[], Any], leave: Callable[[Any], Any]) -> None:
        self._enter, self._leave = enter, leave
        self._lock, self._blocks, self._before = Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            before = self._enter()  # for every thread, because some limits hold for one
            self._before = self._before if self._blocks else before
            self._blocks += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                self._leave(self._before)


def _limit_torch() -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return before


_torch_limit = _SharedLimit(_limit_torch, torch.set_num_threads)
_blas_limit = _SharedLimit(lambda: threadpool_limits(1), lambda limits: limits.unregister())
