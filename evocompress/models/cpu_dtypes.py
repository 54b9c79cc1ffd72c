"""Which number formats this machine's processor multiplies in hardware."""

from __future__ import annotations

import time
from functools import cache

import torch

SLOW = 2.0
"""Times as long as in float32 from which on half precision is worth nothing on a CPU."""

TURNS = 3
SHAPE = (256, 1024, 1024)
"""Rows, inner and columns of the product that is timed: a few milliseconds in float32."""


@cache
def slow_on_cpu(dtype: torch.dtype) -> bool:
    """Whether matrix products of a dtype take much longer than float32 ones on this CPU.

    A processor without instructions for bfloat16 or float16, such as x86 with AVX2 alone,
    multiplies them in software, many times slower. No list of instruction sets is complete, so
    it is measured, once a process: the fastest of several turns, which other load hardly moves.
    """
    if dtype in (torch.float32, torch.float64):
        return False
    return _fastest(dtype) > SLOW * _fastest(torch.float32)


@torch.inference_mode()
def _fastest(dtype: torch.dtype) -> float:
    """Seconds of a matrix product after one that warms up."""
    rows, inner, columns = SHAPE
    left = torch.ones(rows, inner, dtype=dtype)
    right = torch.ones(columns, inner, dtype=dtype)
    seconds = []
    for _ in range(TURNS + 1):
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
