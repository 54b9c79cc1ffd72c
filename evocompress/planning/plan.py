"""The plan of a run on a device, and what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch

from evocompress.config import RunConfig
from evocompress.models import LoadedModel
from evocompress.planning.device import Device
from evocompress.planning.stages import Run, Stage, heal_stage, library_stage, search_stage
from evocompress.progress import Silent
from evocompress.run_folder import RunFolder
from evocompress.workbench import Workbench

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        device: Where.
        dtype: In which it is computed.
        stages: Library (where one is needed), search and healing.
        weights: Bytes of the dense model.
        advice: What does not fit, and the settings that would make it fit.
    """

    device: Device
    dtype: str
    stages: tuple[Stage, ...]
    weights: int
    advice: tuple[str, ...]

    def seconds(self, stage: Stage) -> float:
        """How long a stage takes."""
        return stage.work.seconds(self.device, self.dtype)


def bench_of(config: RunConfig, loaded: LoadedModel) -> Workbench:
    """The workbench of a run with a model that is at hand, such as an outline."""
    bench = Workbench(config, RunFolder(config.folder), Silent(), finished=True)
    bench.__dict__["loaded"] = loaded
    return bench


def make_plan(config: RunConfig, loaded: LoadedModel, device: Device) -> Plan:
    """Plans a run.

    Args:
        config: The run.
        loaded: The model, or its outline.
        device: Where it will run.

    Raises:
        EvoCompressError: The run's settings do not fit the model.
    """
    run = Run(bench_of(config, loaded), device.shared)
    found = (library_stage(run), search_stage(run), heal_stage(run))
    stages = tuple(stage for stage in found if stage is not None)
    advice = tuple(_advice(run, stages, device.name, device.memory))
    dtype = str(run.dtype).removeprefix("torch.")
    return Plan(device, dtype, stages, run.weight_bytes, advice)


def preflight(bench: Workbench) -> Iterator[str]:
    """What a search that is about to begin needs, and what to do where that is not there."""
    device = bench.loaded.model.device
    run = Run(bench, device.type == "cpu")
    stages = [search_stage(run)]
    if (library := library_stage(run)) is not None:
        stages.insert(0, library)
    memory = max(_needed(run, stage) for stage in stages)
    disk = sum(stage.disk_bytes for stage in stages)
    yield f"needs up to {memory / GIB:,.1f} GiB of memory and {disk / GIB:,.1f} GiB of disk"
    yield from _advice(run, stages, "this machine", _there_is(bench, device))


def _there_is(bench: Workbench, device: torch.device) -> int:
    """Memory that can be had, with what the model has already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    loaded = sum(parameter.nbytes for parameter in bench.loaded.model.parameters())
    return int(psutil.virtual_memory().available) + loaded


def _needed(run: Run, stage: Stage) -> int:
    """Memory of the device that a stage needs."""
    return stage.device_bytes + (stage.main_bytes if run.shared else 0)


def _advice(run: Run, stages: Sequence[Stage], name: str, memory: int) -> Iterator[str]:
    """For each stage that the device has too little memory for what would help."""
    for stage in stages:
        needed = _needed(run, stage)
        if needed > memory:
            yield (
                f"{stage.name} needs {needed / GIB:,.1f} GiB, {name} has {memory / GIB:,.1f}: "
                f"{_remedy(run, stage, memory - needed + run.on_device)}"
            )


def _remedy(run: Run, stage: Stage, spare: int) -> str:
    """What to change so that a stage fits.

    Args:
        run: The run.
        stage: The stage.
        spare: Bytes that there would be for weights.
    """
    if stage.name == "heal":
        return "heal on a larger device, or with a smaller heal.batch"
    if spare > run.least_on_device and not run.streamed:
        return f"model.device_memory={spare // 2**20}MiB streams the blocks"
    if stage.name == "library":
        return "give fewer levels, or fewer or shorter calibration sequences"
    return "give fewer or shorter calibration sequences, or a smaller calibration.micro_batch"
