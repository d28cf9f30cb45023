"""Device and number of threads of a computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from stage_sc._checks import check_choice


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; ``"auto"`` takes a GPU where there is one."""
    if not isinstance(device, str):
        raise TypeError(f"`device` must be a string, got {device!r}.")
    gpu = torch.cuda.is_available()
    check_choice(device, "device", ["auto", "cpu", *(["cuda", "gpu"] if gpu else [])])
    return torch.device("cuda" if gpu and device != "cpu" else "cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch, numpy and scikit-learn to one thread: faster for small networks, and the same sums everywhere.

    Blocks may run in several threads at a time. The limits of torch and OpenMP hold for a thread each; that of BLAS
    holds for the process, and ends with the last block.
    """
    if getattr(_this_thread, "limited", False):
        yield
        return
    pools = ThreadpoolController()
    n_threads = _blocks.enter(pools.select(user_api="blas").lib_controllers)
    _this_thread.limited = True
    try:
        with pools.select(user_api="openmp").limit(limits=1):
            torch.set_num_threads(1)
            yield
    finally:
        _this_thread.limited = False
        torch.set_num_threads(n_threads)
        _blocks.leave()


class _Blocks:
    """Blocks of `one_thread` that run in this process."""

    def __init__(self) -> None:
        self._lock, self._running, self._n_threads = Lock(), 0, 1
        self._before: list[tuple[Any, int]] = []

    def enter(self, blas: list[Any]) -> int:
        """Limit the libraries of BLAS, and return the number of threads of torch before the first block.

        In a new thread, torch takes over the limit of the other blocks.
        """
        with self._lock:
            if not self._running:
                self._n_threads = torch.get_num_threads()
                self._before = [(library, library.num_threads) for library in blas]
            self._running += 1
            for library in blas:
                _set_threads(library, 1)
            return self._n_threads

    def leave(self) -> None:
        """Restore the number of threads of BLAS if this was the last block."""
        with self._lock:
            self._running -= 1
            for library, n_threads in self._before if not self._running else []:
                _set_threads(library, n_threads)


def _set_threads(library: Any, n_threads: int) -> None:
    """Set the number of threads of a library of BLAS, from any thread.

    For OpenBLAS, `set_num_threads` of threadpoolctl 3.8 does nothing, in silence, in other threads than the first.
    """
    getattr(library, "_real_set_num_threads", library.set_num_threads)(n_threads)


_blocks, _this_thread = _Blocks(), local()
