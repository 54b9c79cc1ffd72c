"""Functions compiled for the CPU, and running them in threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch


def compiled(function: Callable[..., None]) -> Any:
    """Compile, without the interpreter's lock; kept on disk where a folder can be written."""
    kernel = numba.njit(nogil=True, fastmath={"contract"})(function)
    with contextlib.suppress(RuntimeError):  # neither the package nor the home is writable
        kernel.enable_caching()
    return kernel


def in_threads(function: Callable[..., None], calls: Iterable[tuple[Any, ...]]) -> None:
    """Call a function that works without the lock, in as many threads as torch uses.

    Numba's own threads are not used: they spin, which is ruinous on a busy machine, and must not
    be started from two threads at once.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for arguments in calls:
            function(*arguments)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(function, *arguments) for arguments in calls]:
            done.result()
