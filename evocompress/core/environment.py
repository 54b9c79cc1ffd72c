"""What a run was made with: versions, device, threads, commit."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from evocompress.core.circumstances import Machine

PACKAGES = ("evocompress", "torch", "transformers", "numpy", "numba", "safetensors", "pymoo")


def environment(
    device: torch.device, dtype: torch.dtype, executor: str, packages: Iterable[str] = ()
) -> dict[str, Any]:
    """The facts written to a run's environment.json (`circumstances.Environment`)."""
    return {
        "versions": {"python": platform.python_version(), **versions(packages)},
        "device": describe(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "executor": executor,
        "platform": platform.platform(),
        "git": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Installed versions of the packages that decide a run's numbers.

    Args:
        packages: Those beside the usual ones, such as that of a criterion which is not built in.
    """
    found = {}
    for name in dict.fromkeys((*PACKAGES, *packages)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe(device: torch.device) -> str:
    """The device in words, e.g. ``cuda: NVIDIA H200`` or ``cpu: AMD EPYC``."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device.type}: {names[0] if names else platform.processor() or platform.machine()}"


def machine(device: torch.device) -> Machine:
    """What computes, where this process does so on a device."""
    on_cpu = device.type == "cpu"
    instructions = torch.backends.cpu.get_cpu_capability() if on_cpu else ""
    return Machine(device=describe(device), instructions=instructions)


def _commit() -> str | None:
    """The commit of the source tree, where the package is run from one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
