"""Work, memory and disk of a healing, by counting."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from evocompress.core.config import HealConfig
from evocompress.core.processes import owners
from evocompress.core.storage import GROUP_SIZES, StorageType, storage_type
from evocompress.core.types import Level
from evocompress.healing.adapting import sequences_for
from evocompress.healing.optimizers import MOMENT_BYTES
from evocompress.healing.recipe import sized_for
from evocompress.healing.top_k import row_bytes
from evocompress.healing.trained import Learnt, through_rounding, trained_weights
from evocompress.models.families.outer import every_unit
from evocompress.pipeline.planning.stages import FLOAT32, PlannedRun, StagePlan
from evocompress.pipeline.planning.work import Work


def heal_stage(run: PlannedRun) -> StagePlan:
    """The distillation of the dense model into the candidate, in one of the run's processes.

    What they tell one another is not counted.
    """
    return _healing(run, run.context.config.heal)


def heal_last_stage(run: PlannedRun) -> StagePlan | None:
    """The short healings of the last candidates; ``None`` where the proxy chooses the winner.

    The checkpoints of all are there at the beginning. On Ray they may be healed at one time.
    """
    settings = run.context.config.search.heal_last
    if settings is None:
        return None
    alone = replace(run, processes=1)
    one, count = _healing(alone, settings.short(run.context.config.heal)), settings.candidates
    at_once = count if run.context.config.executor == "ray" else 1
    checkpoints = count * int(_checkpoint_bytes(run))
    disk = at_once * one.disk_bytes + checkpoints
    return replace(one, name="heal_last", work=one.work * count, disk_bytes=disk)


def _healing(run: PlannedRun, given: HealConfig) -> StagePlan:
    """One healing."""
    length = run.length
    config = sized_for(run.context.loaded, given, length).at(length)
    tokens = config.steps * config.accumulate * config.micro_batch * length / run.processes
    params, trained = run.costs[1]["params"], _trained(run, config)
    masters, state = _bytes_per_weight(config)
    measured = 1 + config.steps // config.evaluate_every
    validation = config.validation_sequences * length / run.processes
    passes = 3 + config.checkpointing
    work = run.products(tokens, dense=True) + run.products(tokens) * passes
    work += run.compared(3 * tokens)
    work += (run.products(validation) + run.compared(validation)) * measured
    share = _kept_share(run, config, _frozen(run, config))
    per_step = 2 * masters * share + config.accumulate / run.processes * 2 * FLOAT32
    work += Work(moved=config.steps * trained * per_step)
    work += Work(written=measured * (_checkpoint_bytes(run) + trained * state))
    each = run.between_bytes if config.checkpointing else run.kept_bytes * 2
    beside = config.micro_batch * each
    beside += run.head_bytes
    own = _training_bytes(run, params, trained, masters * share) + _beside_rounding(run, config)
    device = _teacher_bytes(run, config) + own + beside
    disk = _healing_bytes(run, config, trained * state) + _kept_on_disk(run, config)
    if config.top_k is not None:
        device = max(device, run.on_device + run.head_bytes)
    if config.adapt_teacher is not None:
        adapting = _adapting(run, config)
        work += adapting.work
        device = max(device, adapting.device_bytes + beside)
        disk = max(disk + adapting.checkpoint_bytes, adapting.disk_bytes)
    return StagePlan("heal", work, int(device), 0, disk)


def _bytes_per_weight(config: HealConfig) -> tuple[float, float]:
    """Of a trained weight: its float32 copy, that one's gradient and two moments; of its state."""
    moments = MOMENT_BYTES[config.optimizer]
    return 2 * FLOAT32 + moments, FLOAT32 + moments


def _training_bytes(run: PlannedRun, params: float, trained: float, masters: float) -> float:
    """Memory of a model with gradients, and `masters` bytes of each trained weight beside it."""
    own = run.dtype.itemsize
    return params * own + trained * (own + masters)


def _kept_share(run: PlannedRun, config: HealConfig, frozen: Collection[str]) -> float:
    """The largest share of the masters that a process has; adapters are many and small."""
    loaded = run.context.loaded
    sizes, added = trained_weights(loaded.model, loaded.family, config, frozen)
    if added:
        sizes = [parameter.numel() for parameter in loaded.model.parameters()]
    loads = [0] * run.processes
    for owner, size in zip(owners(sizes, run.processes), sizes, strict=True):
        loads[owner] += size
    return max(loads) / max(1, sum(loads))


def _teacher_bytes(run: PlannedRun, config: HealConfig) -> int:
    """Memory of teacher and dense model while the student learns.

    A teacher that was trained is another model than the dense one.
    """
    models = 1 if config.adapt_teacher is None else 2
    if config.top_k is None:
        return run.on_device + (models - 1) * run.weight_bytes
    validation = config.validation_sequences * run.state_bytes(run.length)
    return models * run.outer_bytes + validation


def _kept_on_disk(run: PlannedRun, config: HealConfig) -> int:
    """Disk of the teacher's likeliest tokens, and of the blocks that are in no memory.

    Each process keeps blocks of its own; it is taken that all of them are on one node.
    """
    if config.top_k is None:
        return 0
    models = 1 if config.adapt_teacher is None else 2
    blocks = run.weight_bytes - run.outer_bytes
    outputs = config.sequences * run.context.loaded.family.task.counted(run.length)
    return run.processes * models * blocks + outputs * row_bytes(config.top_k, run.vocabulary)


@dataclass(frozen=True)
class _Adapting:
    """What the training of the teacher takes."""

    work: Work
    device_bytes: float
    disk_bytes: int
    checkpoint_bytes: int


def _adapting(run: PlannedRun, config: HealConfig) -> _Adapting:
    """The training of all weights of the dense model, whose own blocks are on disk meanwhile.

    Beside these there are a copy of its checkpoint, two states and the best checkpoint.
    """
    tokens = sequences_for(config, run.length) * run.length / run.processes
    weights = run.weight_bytes / run.dtype.itemsize
    work = run.products(tokens, dense=True) * (3 + config.checkpointing) + run.compared(tokens)
    masters, state = _bytes_per_weight(config)
    blocks = run.processes * (run.weight_bytes - run.outer_bytes)
    disk = 2 * run.weight_bytes + blocks + 2 * state * weights
    masters *= _kept_share(run, HealConfig(), ())
    device = run.outer_bytes + _training_bytes(run, weights, weights, masters)
    return _Adapting(work, device, int(disk), run.weight_bytes)


def _trained(run: PlannedRun, config: HealConfig) -> float:
    """How many weights of the candidate are trained: as large a share as of the dense model.

    What may have a coarser type or the model's own is counted as if it had the latter, and was
    trained: which types a candidate has is known after the search.
    """
    loaded = run.context.loaded
    chosen, added = trained_weights(loaded.model, loaded.family, config, _frozen(run, config))
    scales = sum(
        loaded.model.get_parameter(name).numel() * _numbers(run.typed[name])
        for name, learnt in _through(run, config).items()
        if learnt.scales
    )
    return (sum(chosen) + scales) * _left(run) + added


def _left(run: PlannedRun) -> float:
    """The share of the dense model's weights that the candidate has."""
    parameters = run.context.loaded.model.parameters()
    return run.costs[1]["params"] / sum(parameter.numel() for parameter in parameters)


def _uniform(levels: Sequence[Level]) -> list[Level]:
    """Those with types of equal steps, which can be trained through their rounding."""
    return [level for level in levels if level.bits and storage_type(level.bits).uniform]


def _numbers(levels: Sequence[Level]) -> float:
    """Scales and minima for each weight, of the type with the most."""
    kinds = [storage_type(level.bits) for level in _uniform(levels)]
    return max((1 + (kind.ranges == "affine")) / _least_block(kind) for kind in kinds)


def _least_block(kind: StorageType) -> int:
    """Inputs with one scale; of whole rows presumed to be at least the largest group."""
    return kind.block or GROUP_SIZES[-1]


def _through(run: PlannedRun, config: HealConfig) -> dict[str, Learnt]:
    """What may be trained through its rounding."""
    typed = {
        name: next(iter([*_uniform(levels), *(one for one in levels if one.bits)]))
        for name, levels in run.typed.items()
    }
    loaded = run.context.loaded
    return through_rounding(loaded.model, loaded.family, config, typed)


def _frozen(run: PlannedRun, config: HealConfig) -> list[str]:
    """The parameters that have a coarser type in every candidate, and keep their values."""
    learnt = _through(run, config)
    always = (n for n, levels in run.typed.items() if all(lv.bits or lv.drop for lv in levels))
    return [name for name in always if name not in learnt or not learnt[name].weights]


def _beside_rounding(run: PlannedRun, config: HealConfig) -> float:
    """Memory beside what is trained through its rounding: integers and their grids as they were.

    Where only scales are trained the gradient of the weights is there all the same.
    """
    frozen, each = {*_frozen(run, config)}, 0.0
    for name in _through(run, config):
        size = run.context.loaded.model.get_parameter(name).numel()
        least = min(_least_block(storage_type(lv.bits)) for lv in _uniform(run.typed[name]))
        each += size * (1 + 2 * FLOAT32 / least + run.dtype.itemsize * (name in frozen))
    return each * _left(run)


def _checkpoint_bytes(run: PlannedRun) -> float:
    """Disk of a checkpoint, with the integers and scales beside its weights.

    These are what `evocompress.export.parts` writes; of a matrix that may have several types the
    largest counts.
    """
    loaded = run.context.loaded
    shapes = {f"{u.name}.weight": u.shape for u in every_unit(loaded.family, loaded.model)}
    beside = 0
    for name, levels in run.typed.items():
        kinds = [storage_type(level.bits) for level in levels if level.bits]
        beside += max(kind.bytes(*(shapes[name] or (0, 0))) for kind in kinds)
    return run.costs[1]["params"] * run.dtype.itemsize + beside * _left(run)


def _healing_bytes(run: PlannedRun, config: HealConfig, state: float) -> int:
    """Disk at the worst moment, a state's bytes given: a file stays until its successor is whole.

    A state is written at every measurement but the first and the last, a checkpoint at any of
    them before the state.
    """
    checkpoint = _checkpoint_bytes(run)
    states = (config.steps - 1) // config.evaluate_every
    while_state = min(states, 2) * state + checkpoint
    while_checkpoint = min(states, 1) * state + 2 * checkpoint
    return int(max(while_state, while_checkpoint))
