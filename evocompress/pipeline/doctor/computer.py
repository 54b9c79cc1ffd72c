"""What this computer has: processor, memory, GPUs and disks."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from evocompress.core.environment import describe
from evocompress.core.files import cache_folder
from evocompress.models.cpu_dtypes import slow_on_cpu

FLAGS = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_fp16"),
    *("amx_int8", "asimd", "asimdhp", "sve", "bf16", "i8mm"),
)
"""Instructions, as Linux names them, that decide which dtypes a processor is fast in."""

HALVES = (torch.bfloat16, torch.float16)

DRIVER = Path("/proc/driver/nvidia/version")
"""Is there where the system has a driver of an NVIDIA GPU."""

LIMIT = Path("/sys/fs/cgroup/memory.max")
USED = Path("/sys/fs/cgroup/memory.current")
"""Memory that a container may have, and has."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, with bytes of memory."""

    name: str
    memory: int
    free: int


@dataclass(frozen=True)
class Disk:
    """The disk of a folder, with bytes that are free; the folder need not exist.

    Attributes:
        purpose: What is kept there.
        folder: Path.
        free: Bytes.
        writable: Whether files can be made there.
    """

    purpose: str
    folder: Path
    free: int
    writable: bool


@dataclass(frozen=True)
class Computer:
    """What there is to compute with.

    Attributes:
        processor: In words.
        cores: That this process may use.
        threads: Of torch.
        instructions: Sets of them that decide dtypes; `FLAGS`.
        kernels: The instructions that torch uses, e.g. ``AVX512``.
        memory: Bytes, those of the container where it is less.
        free_memory: Bytes that can be had.
        slow: Dtypes that are much slower than float32 on the processor.
        gpus: Those that torch can use.
        cuda: The version of CUDA that torch was built for; ``None`` in a build for the CPU.
        driver: Whether there is a driver of a GPU.
        disks: Of the cache folder and the current one.
    """

    processor: str
    cores: int
    threads: int
    instructions: tuple[str, ...]
    kernels: str
    memory: int
    free_memory: int
    slow: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    cuda: str | None
    driver: bool
    disks: tuple[Disk, ...]


def computer() -> Computer:
    """This one. Which dtypes are slow is measured, some milliseconds."""
    memory, free = _memory()
    return Computer(
        processor=describe(torch.device("cpu")).removeprefix("cpu: "),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        instructions=_instructions(Path("/proc/cpuinfo")),
        kernels=torch.backends.cpu.get_cpu_capability(),
        memory=memory,
        free_memory=free,
        slow=tuple(str(kind).removeprefix("torch.") for kind in HALVES if slow_on_cpu(kind)),
        gpus=tuple(map(_gpu, range(torch.cuda.device_count()))),
        cuda=torch.version.cuda,
        driver=DRIVER.exists(),
        disks=(_disk("cache", cache_folder()), _disk("current folder", Path.cwd())),
    )


def nearest_folder(path: Path) -> Path:
    """A folder, or the nearest one above that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())


def _instructions(info: Path) -> tuple[str, ...]:
    """Those of `FLAGS` that a file like /proc/cpuinfo names."""
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].split() for line in lines if line.startswith(FLAG_LINES)]
    return tuple(flag for flag in FLAGS if named and flag in named[0])


FLAG_LINES = ("flags", "Features")
"""How the line begins on x86 and on ARM."""


def _memory() -> tuple[int, int]:
    """Bytes in all and free, within the limit of a container."""
    known = psutil.virtual_memory()
    limit = LIMIT.read_text().strip() if LIMIT.exists() else "max"
    if limit == "max" or not USED.exists():
        return int(known.total), int(known.available)
    left = max(int(limit) - int(USED.read_text()), 0)
    return min(int(known.total), int(limit)), min(int(known.available), left)


def _gpu(number: int) -> Gpu:
    free, total = torch.cuda.mem_get_info(number)
    return Gpu(torch.cuda.get_device_name(number), total, free)


def _disk(purpose: str, folder: Path) -> Disk:
    there = nearest_folder(folder)
    writable = os.access(there, os.W_OK | os.X_OK)
    return Disk(purpose, folder, shutil.disk_usage(there).free, writable)
