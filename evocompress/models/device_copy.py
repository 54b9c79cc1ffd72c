"""Copies from main memory to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(
    source: Tensor, device: torch.device, dtype: torch.dtype | None = None, *, copy: bool = False
) -> Tensor:
    """A tensor on a device, without the host waiting for what a GPU is doing.

    A copy out of pageable memory, as a mapped file is, waits for everything that was begun before
    it. Out of pinned memory it takes its place behind that instead. The pinned buffers are torch's,
    which reuses them once the copy is over
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#use-pinned-memory-buffers). With `copy` it
    is a new tensor also where `source` is one such already.
    """
    dtype = dtype or source.dtype
    if device.type == "cuda" and source.device.type == "cpu":
        # Converted on the GPU: a conversion here would be a new tensor, and not pinned.
        return source.pin_memory().to(device, non_blocking=True).to(dtype)
    return source.to(device, dtype, copy=copy)
