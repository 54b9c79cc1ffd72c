"""The speed of this machine at the sizes of a model: some seconds of measuring."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import psutil
import torch
from torch import Tensor

from evocompress.compression.criteria import CRITERIA, STRUCTURED, Statistics, Structure
from evocompress.core.architecture import Architecture
from evocompress.core.environment import describe
from evocompress.core.types import Level
from evocompress.models.head import bucket_log_probabilities
from evocompress.pipeline.planning.device import LAUNCH, Device
from evocompress.pipeline.planning.work import removal_operations, sweep_operations

TURNS = 5
SIDE = 1024
"""Largest matrix that is swept or narrowed: larger ones take minutes."""

COPIED = 256 * 2**20
WRITTEN = 64 * 2**20


def measured(
    architecture: Architecture,
    dtype: torch.dtype,
    device: torch.device,
    *,
    rows: int,
    levels: int,
    top_k: int,
    folder: Path,
) -> Device:
    """The speeds and sizes of a device of this machine, measured with matrices as of a model.

    A micro-batch has `rows` tokens, a matrix `levels`, at least one, and the divergence `top_k`
    buckets; files would be written in the folder, which must exist.
    """
    clock = DeviceClock(device)
    hidden, channels = architecture.hidden, max(architecture.channels)
    # Without a vocabulary there are a few classes, whose comparison costs nothing.
    logits = _random(rows, architecture.vocabulary or 1, device=device, dtype=dtype)
    likeliest = logits.topk(min(top_k, logits.shape[-1]), sorted=False).indices
    products = {
        str(kind).removeprefix("torch."): products_per_second(clock, rows, hidden, channels, kind)
        for kind in {dtype, torch.float32}
    }
    on_gpu = device.type == "cuda"
    bandwidth = _bandwidth(clock, device, device)
    return Device(
        name=describe(device),
        memory=_memory(device),
        products=products,
        sweep=_sweep(clock, min(hidden, SIDE), levels),
        removal=_removal(clock, min(channels, SIDE), min(hidden, SIDE)),
        logits=logits.numel() / clock.seconds(partial(bucket_log_probabilities, logits, likeliest)),
        bandwidth=bandwidth,
        link=_bandwidth(clock, torch.device("cpu"), device) if on_gpu else bandwidth,
        disk=_disk(folder),
        launch=LAUNCH if on_gpu else 0.0,
        shared=not on_gpu,
    )


class DeviceClock:
    """Times work on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @torch.inference_mode()
    def seconds(self, work: Callable[[], object], turns: int = TURNS) -> float:
        """The median of several turns, after one that warms up."""
        work()
        found = []
        for _ in range(turns):
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            found.append(time.perf_counter() - start)
        return sorted(found)[turns // 2]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def products_per_second(
    clock: DeviceClock, rows: int, hidden: int, channels: int, dtype: torch.dtype
) -> float:
    """Operations per second of the two shapes of an MLP."""
    inputs = _random(rows, hidden, device=clock.device, dtype=dtype)
    up = _random(channels, hidden, device=clock.device, dtype=dtype)
    down = up.T.contiguous()
    linear = torch.nn.functional.linear
    seconds = clock.seconds(lambda: linear(linear(inputs, up), down))
    return 4 * rows * hidden * channels / seconds


def _sweep(clock: DeviceClock, side: int, levels: int) -> float:
    """Operations per second of all sparsity levels of a square matrix, statistics included."""
    weight, gram = _matrix_and_gram(clock.device, side, side)
    wanted = [Level(zeros=side * side * (k + 1) // (levels + 2)) for k in range(levels)]

    def sweep() -> None:
        CRITERIA["sparsegpt"].compress(weight, Statistics(gram, sequences=1), wanted)

    return sweep_operations(side, side, levels) / clock.seconds(sweep, turns=3)


def _removal(clock: DeviceClock, channels: int, outputs: int) -> float:
    """Operations per second of narrowing an MLP."""
    weight, gram = _matrix_and_gram(clock.device, outputs, channels)
    structure = Structure(output=weight, size=1, groups=1)

    def remove() -> None:
        known = Statistics(gram, sequences=1)
        STRUCTURED["obs_structured"].cut(structure, known, [(1, channels // 8)])

    return removal_operations(outputs, channels) / clock.seconds(remove, turns=3)


def _matrix_and_gram(device: torch.device, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    weight = _random(outputs, inputs, device=device)
    seen = _random(2 * inputs, inputs, device=device)
    return weight, seen.T @ seen


def _bandwidth(clock: DeviceClock, source: torch.device, target: torch.device) -> float:
    """Bytes per second, read and written, of a copy."""
    original = torch.zeros(COPIED, dtype=torch.uint8, device=source)
    copy = torch.zeros(COPIED, dtype=torch.uint8, device=target)
    times = 2 if source == target else 1
    return times * COPIED / clock.seconds(lambda: copy.copy_(original))


def _disk(folder: Path) -> float:
    """Bytes per second, hashed and written, as a library writes them."""
    content = bytes(WRITTEN)
    with TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        hashlib.sha256(content)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN / (time.perf_counter() - start)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(psutil.virtual_memory().total)
