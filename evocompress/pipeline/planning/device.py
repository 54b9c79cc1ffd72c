"""How fast devices are: what their data sheets say, and how much of that is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GB = 10**9
TERA = 10**12

PRODUCTS_REACHED = 0.5
"""Of a GPU's peak what the matrix products of a forward pass reach."""

SOLVERS_REACHED = 0.1
"""Of its float32 peak what factorisations and sweeps reach: many small steps, one by one."""

LAUNCH = 6e-6
"""Seconds in which a GPU's host starts a kernel."""

BYTES_PER_LOGIT = 28
"""What comparing a logit moves: written and read in bfloat16, and three times in float32."""


@dataclass(frozen=True)
class Device:
    """What a device reaches, per second.

    Attributes:
        name: In words.
        memory: Bytes of its memory.
        products: Floating-point operations of matrix products, by dtype.
        sweep: The same of SparseGPT's factorisations and sweeps, float32.
        removal: The same of structured OBS removing channels, float32.
        logits: Logits that are compared with the dense model's.
        bandwidth: Bytes read or written in its memory.
        link: Bytes that come from main memory.
        disk: Bytes written to disk.
        launch: Seconds until a kernel is started; what else it takes counts elsewhere.
        shared: Its memory is the main memory.

    Examples:
        >>> DEVICES["h100"].memory // 10**9
        80
    """

    name: str
    memory: int
    products: Mapping[str, float]
    sweep: float
    removal: float
    logits: float
    bandwidth: float
    link: float
    disk: float
    launch: float = 0.0
    shared: bool = False


def _gpu(
    name: str, memory: float, half: float, single: float, bandwidth: float, link: float
) -> Device:
    """A GPU of a data sheet.

    `half` is the dense bfloat16 peak, `single` that of float32 without tensor cores, in teraflops.
    Memory is in GB, its bandwidth and the link from main memory, in one direction, in GB/s.
    """
    reached = {
        "bfloat16": half * TERA * PRODUCTS_REACHED,
        "float16": half * TERA * PRODUCTS_REACHED,
        "float32": single * TERA * PRODUCTS_REACHED,
    }
    solver = single * TERA * SOLVERS_REACHED
    return Device(
        name,
        int(memory * GB),
        reached,
        sweep=solver,
        removal=solver,
        logits=bandwidth * GB / BYTES_PER_LOGIT,
        bandwidth=bandwidth * GB,
        link=link * GB,
        disk=1 * GB,
        launch=LAUNCH,
    )


DEVICES: dict[str, Device] = {
    "h200": _gpu("NVIDIA H200", 141, 989, 67, 4800, 50),
    "h100": _gpu("NVIDIA H100 SXM", 80, 989, 67, 3350, 50),
    "a100": _gpu("NVIDIA A100 80 GB", 80, 312, 19.5, 2039, 25),
    "l40s": _gpu("NVIDIA L40S", 48, 362, 91.6, 864, 25),
    "rtx4090": _gpu("NVIDIA RTX 4090", 24, 165, 82.6, 1008, 25),
}
