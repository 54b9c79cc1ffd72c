"""The plan of a run on a device, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm

import psutil
import torch

from evocompress.core.config import RunConfig
from evocompress.core.progress import Silent
from evocompress.evaluation.proxies import PROXIES
from evocompress.healing.distill import check_shared_out
from evocompress.models.loading import LoadedModel
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.planning.device import Device
from evocompress.pipeline.planning.forewarning import (
    chosen_form,
    foretold_healing,
    left_of_blocks,
    missing_types,
    served,
    short_healings,
    typed_healing,
    unpacked,
)
from evocompress.pipeline.planning.healing import heal_last_stage, heal_stage
from evocompress.pipeline.planning.stages import (
    PlannedRun,
    StagePlan,
    library_stage,
    search_stage,
)
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.short_healing import sized_healing

GIB = 2**30

SHORTEST, FEWEST = 64, 8
"""The length and the number of calibration sequences below which no advice goes."""

STAGES: Mapping[str, Callable[[PlannedRun], StagePlan | None]] = {
    "library": library_stage,
    "search": search_stage,
    "heal_last": heal_last_stage,
    "heal": heal_stage,
}

HEALING = ("heal_last", "heal")
"""The stages that train, which the same settings make smaller."""

PROCESSES = (2, 4, 8, 16)
"""That advice shares a healing out among."""

TOP_K = 64
"""Tokens of the teacher that advice keeps on disk."""

NO_REMEDY = (
    "no single setting is enough: take a larger device, or fewer levels, shorter sequences and "
    "model.device_memory together"
)


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        device: Where.
        dtype: In which it is computed.
        stages: Library (where one is needed), search, short healings of its last candidates (where
            they are asked for) and healing.
        weights: Bytes of the dense model.
        advice: What does not fit, and the settings that would make it fit.
        notes: What else is to be known beforehand.

    Examples:
        >>> from evocompress.pipeline.planning import DEVICES
        >>> Plan(DEVICES["h100"], "bfloat16", stages=(), weights=0, advice=()).dtype
        'bfloat16'
    """

    device: Device
    dtype: str
    stages: tuple[StagePlan, ...]
    weights: int
    advice: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def seconds(self, stage: StagePlan) -> float:
        """How long a stage takes."""
        return stage.work.seconds(self.device, self.dtype)


def context_of(
    config: RunConfig, loaded: LoadedModel, folder: RunFolder | None = None
) -> RunContext:
    """The context of a run whose model, or its outline, is at hand."""
    context = RunContext(config, folder or RunFolder(config.folder), Silent(), finished=True)
    return context.with_parts(loaded=loaded)


def make_plan(config: RunConfig, loaded: LoadedModel, device: Device, processes: int = 1) -> Plan:
    """Plans a run, whose healing several processes share out.

    Raises:
        EvoCompressError: The run's settings do not fit the model, or the processes.
    """
    check_shared_out(config.heal, processes)
    run = PlannedRun(context_of(config, loaded), device.shared, processes)
    stages = tuple(stage for make in STAGES.values() if (stage := make(run)) is not None)
    advice = tuple(_advice(run, stages, device.name, device.memory))
    heal = sized_healing(config, loaded)
    notes = (
        *([f"heal: what each of {processes} processes takes."] if processes > 1 else []),
        *left_of_blocks(run.context.untimed_space, timed=False),
        *served(config.space, run.context.untimed_space),
        *chosen_form(config.space.fits, run.context.form),
        *missing_types(config.space.bits, run.context.untimed_space, run.context.form),
        *unpacked(config.model, run.weight_bytes),
        *typed_healing(run.context.untimed_space),
        *short_healings(config.search.heal_last, heal, run.length),
        *foretold_healing(run.context.folder, heal, run.length),
    )
    dtype = str(run.dtype).removeprefix("torch.")
    return Plan(device, dtype, stages, run.weight_bytes, advice, notes)


def preflight(context: RunContext) -> Iterator[str]:
    """What a search that is about to begin needs, and what to do where that is not there."""
    device = context.loaded.model.device
    run = PlannedRun(context, device.type == "cpu")
    made = (library_stage(run), search_stage(run), heal_last_stage(run))
    stages = [stage for stage in made if stage is not None]
    memory = max(memory_needed(run, stage) for stage in stages)
    disk = sum(stage.disk_bytes for stage in stages)
    yield f"needs up to {memory / GIB:,.1f} GiB of memory and {disk / GIB:,.1f} GiB of disk"
    yield from _advice(run, stages, "this machine", _there_is(context, device))
    yield from left_of_blocks(context.space)
    yield from served(context.config.space, context.space)
    yield from chosen_form(context.config.space.fits, context.form)
    yield from missing_types(context.config.space.bits, context.space, context.form)
    yield from unpacked(context.config.model, run.weight_bytes)


def _there_is(context: RunContext, device: torch.device) -> int:
    """Memory that can be had, with what the model has already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    loaded = sum(parameter.nbytes for parameter in context.loaded.model.parameters())
    return int(psutil.virtual_memory().available) + loaded


def memory_needed(run: PlannedRun, stage: StagePlan) -> int:
    """Memory of the device that a stage needs."""
    return stage.device_bytes + (stage.main_bytes if run.shared else 0)


def _advice(run: PlannedRun, stages: Sequence[StagePlan], name: str, memory: int) -> Iterator[str]:
    """For each stage that the device has too little memory for what would help."""
    for stage in stages:
        needed = memory_needed(run, stage)
        if needed > memory:
            remedies = _remedies(run, stage, memory, memory - needed + run.on_device)
            yield (
                f"{stage.name} needs {needed / GIB:,.1f} GiB, {name} has {memory / GIB:,.1f}: "
                f"{' or '.join(remedies) or NO_REMEDY}"
            )


def _remedies(run: PlannedRun, stage: StagePlan, memory: int, spare: int) -> Iterator[str]:
    """Settings that each alone make a stage fit, found by planning the stage with them."""
    if stage.name not in HEALING and spare > run.least_on_device and not run.streamed:
        yield f"model.device_memory={spare // 2**20}MiB (streams the blocks)"

    def fits(section: str, key: str, value: object) -> bool:
        changed = _with(run, section, key, value)
        other = STAGES[stage.name](changed)
        return other is not None and memory_needed(changed, other) <= memory

    for section, key, values in _choices(run.context, stage.name):
        # To plan a large model takes seconds: where the last value does not help, none does.
        if values and fits(section, key, values[-1]):
            value = next(value for value in values if fits(section, key, value))
            yield f"{section}.{key}={_written(value)}"
    if stage.name == "heal" and not run.shared:
        for count in PROCESSES:
            if memory_needed(run, heal_stage(replace(run, processes=count))) <= memory:
                together = run.context.config.heal.accumulate
                more = lcm(together, count)
                also = f" with heal.accumulate={more}" if more != together else ""
                yield f"{count} processes with a device each (--processes {count}{also})"
                return


def _choices(context: RunContext, stage: str) -> Iterator[tuple[str, str, Sequence[object]]]:
    """Settings with smaller values, the next one first, which may help a stage."""
    config = context.config
    if stage in HEALING:
        yield "heal", "batch", _halves(sized_healing(config, context.loaded).micro_batch, 1)
        yield "heal", "checkpointing", [True] if not config.heal.checkpointing else []
        yield "heal", "optimizer", ["adamw8bit"] if config.heal.optimizer == "adamw" else []
        yield "heal", "train", [("lora",)] if _adapters_can_do(config) else []
        yield "heal", "top_k", [TOP_K] if _teacher_can_go(context) else []
        return
    if stage == "search" and PROXIES[config.proxy.kind].on_disk and config.proxy.targets != "disk":
        yield "proxy", "targets", ["disk"]
    yield "calibration", "length", _halves(config.calibration.length, SHORTEST)
    sequences = f"{stage}_sequences"
    yield "calibration", sequences, _halves(getattr(config.calibration, sequences), FEWEST)


def _adapters_can_do(config: RunConfig) -> bool:
    """Whether all weights are trained, none of which has a coarser type to keep."""
    return config.heal.train == ("all",) and config.space.bits is None


def _teacher_can_go(context: RunContext) -> bool:
    """Whether a healing learns from a teacher whose likeliest tokens would do, and does not yet."""
    config = context.config.heal
    of_logits = context.loaded.family.task.compared == "logits"
    return of_logits and config.top_k is None and not config.states


def _written(value: object) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _halves(value: int, least: int) -> list[int]:
    """Half of a value, a quarter, ..., none below the least."""
    found = []
    while (value := value // 2) >= least:
        found.append(value)
    return found


def _with(run: PlannedRun, section: str, key: str, value: object) -> PlannedRun:
    """The run with another setting."""
    config = run.context.config
    part = getattr(config, section).model_copy(update={key: value})
    changed = config.model_copy(update={section: part})
    return replace(run, context=context_of(changed, run.context.loaded))
