"""What every benchmark script shares: timing, memory and the JSON file with its figures."""

from __future__ import annotations

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType

import psutil
import torch
from rich.console import Console
from rich.table import Table

from evocompress.core.files import write_json

Figure = float | int | str | None

PACKAGES = ("evocompress", "torch", "transformers", "numpy", "numba", "pymoo", "optuna", "ray")


def emit(name: str, figures: Mapping[str, Figure], json_path: str | None) -> None:
    """Print the figures as a table and, where asked, write them as JSON.

    Args:
        name: Name of the benchmark, which is that of its script.
        figures: Flat mapping; a figure that was not measured is ``None``.
        json_path: File to write, replaced in one step; ``None`` writes none.
    """
    table = Table(title=name, show_header=False)
    for key, value in figures.items():
        table.add_row(key, _shown(value))
    Console().print(table)
    if json_path is None:
        return
    document = {"name": name, "machine": machine(), "versions": versions(), "figures": figures}
    target = Path(json_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, document)


def _shown(value: Figure) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def machine() -> dict[str, Figure]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": os.environ.get("BENCHMARK_CLOCK", "wall"),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that matter for speed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def clock() -> float:
    """Seconds by the wall; with ``BENCHMARK_CLOCK=cpu`` of this process's own computing.

    The latter, with ``OMP_NUM_THREADS=1``, hardly depends on what else a machine does. A GPU
    finishes what it was given before the clock is read.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    by_cpu = os.environ.get("BENCHMARK_CLOCK") == "cpu"
    return time.process_time() if by_cpu else time.perf_counter()


def interleaved(
    functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of every call, the functions taking turns so that drift hits all of them alike.

    Each function is called once before the timing starts.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios of timings of the same turn, which a slow spell hits alike."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


class PeakMemory:
    """Watches how far the anonymous resident memory of this process rises, in MiB.

    Memory-mapped file pages are left out where the system tells them apart (Linux).

    Example:
        >>> with PeakMemory() as memory:
        ...     work()
        >>> memory.mib
    """

    def __init__(self, interval: float = 0.002) -> None:
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._start = 0
        self._peak = 0

    @property
    def mib(self) -> float:
        """Highest rise seen so far."""
        return (self._peak - self._start) / 2**20

    def __enter__(self) -> PeakMemory:
        self._start = self._peak = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._peak = max(self._peak, anonymous_bytes())

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._peak = max(self._peak, anonymous_bytes())


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs; all of it where that is unknown."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))
