"""Work, memory and disk of the stages of a run, by counting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from evocompress.compression.criteria.base import BLOCK as ENERGY_BLOCK
from evocompress.compression.library.dense import dense_model
from evocompress.compression.library.gram import gram_operations
from evocompress.compression.library.order import BlockOrder, block_orders
from evocompress.compression.library.plan import LibraryPlan, plan_library
from evocompress.compression.library.recipe import methods_for
from evocompress.compression.live_model import CUT_BYTES
from evocompress.core.architecture import Architecture
from evocompress.core.canonical import MATRICES
from evocompress.core.types import Candidate, Level
from evocompress.evaluation.proxies import PROXIES
from evocompress.evaluation.proxies.prefix import LIMIT_BYTES
from evocompress.models.head import chunk_bytes
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.planning.work import Work, removal_operations, sweep_operations
from evocompress.pipeline.resolve import pool
from evocompress.space import sampling

USUAL_TOKENS = 500_000
"""Requested tokens where a run does not say how many."""

FLOAT32 = 4

ACTIVATIONS = 2
"""Times that the inputs and outputs of matrices are read or written beside the products."""

KERNELS = 40
"""That a GPU runs for a block."""

SWEEP_KERNELS = 2
"""For each input of a batch of matrices, all levels together."""

REMOVAL_KERNELS = 15
"""For each column that is removed."""

ESTIMATED = 0.4
"""Share of the tokens that `auto` spends on estimates, where levels have stored weights."""

FORWARDS = 5
"""What an estimate counts as: one forward and two backward passes."""

TOGETHER = 16
"""Candidates of a step: where blocks come and go, each comes once a step."""


@dataclass(frozen=True)
class StagePlan:
    """Work, memory and disk of a stage.

    Attributes:
        name: Of the stage.
        work: That takes time.
        device_bytes: Memory of the device; on a CPU main memory.
        main_bytes: Main memory beside that.
        disk_bytes: Files that it writes.

    Examples:
        >>> StagePlan("search", Work(), device_bytes=10**9, main_bytes=0, disk_bytes=0).name
        'search'
    """

    name: str
    work: Work
    device_bytes: int
    main_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class PlannedRun:
    """A run that is planned.

    Attributes:
        context: It, with the model or its outline.
        shared: It is computed on a CPU, in main memory.
        processes: That share out the healing, with a device each.
    """

    context: RunContext
    shared: bool
    processes: int = 1

    @cached_property
    def dtype(self) -> torch.dtype:
        """In which it is computed."""
        return self.context.loaded.model.dtype

    @cached_property
    def weight_bytes(self) -> int:
        """Of the dense model."""
        return sum(parameter.nbytes for parameter in self.context.loaded.model.parameters())

    @cached_property
    def on_device(self) -> int:
        """Bytes of its weights that are on the device at a time."""
        allowed = self.context.config.model.device_memory
        return self.weight_bytes if allowed is None else min(self.weight_bytes, allowed)

    @cached_property
    def outer_bytes(self) -> int:
        """Bytes of its weights that no block has."""
        blocks = self.context.loaded.family.blocks(self.context.loaded.model)
        return self.weight_bytes - sum(parameter.nbytes for parameter in blocks.parameters())

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""
        return self._architecture.vocabulary

    def state_bytes(self, tokens: int) -> int:
        """Bytes of the state between two blocks, for these tokens."""
        return self._architecture.state_values(tokens) * self.dtype.itemsize

    @cached_property
    def least_on_device(self) -> int:
        """The fewest bytes that it could be run with: all but the blocks, and the largest block."""
        blocks = self.context.loaded.family.blocks(self.context.loaded.model)
        sizes = [sum(parameter.nbytes for parameter in block.parameters()) for block in blocks]
        return self.outer_bytes + max(sizes)

    @cached_property
    def streamed(self) -> bool:
        """Whether blocks come and go."""
        return self.on_device < self.weight_bytes

    @cached_property
    def candidate(self) -> Candidate:
        """A candidate of the size of all that are searched: the even one."""
        space = self.context.untimed_space
        return space.encoding.candidate(sampling.uniform(space))

    @cached_property
    def typed(self) -> dict[str, tuple[Level, ...]]:
        """The levels of each parameter that may have a coarser type."""
        genes = self.context.untimed_space.encoding
        return {
            f"{unit.name}.weight": levels
            for units, levels in zip(genes.members, genes.levels, strict=True)
            if any(level.bits for level in levels)
            for unit in units
        }

    @cached_property
    def costs(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Those of the dense model and of the candidate."""
        model = self.context.untimed_space.cost_model
        found = model.of([Candidate(), self.candidate])
        dense, other = ({name: float(v[i]) for name, v in found.items()} for i in (0, 1))
        return dense, other

    def products(self, tokens: float, *, dense: bool = False, head: bool = True) -> Work:
        """A forward pass over tokens, of the dense model or a candidate, with its head or not."""
        costs, length = self.costs[0 if dense else 1], self.context.untimed_space.cost_model.length
        of_head = 0.0 if head else 2.0 * self._architecture.hidden * self._architecture.vocabulary
        micro_batch = self.context.config.calibration.micro_batch * self.length
        passes, left = tokens / micro_batch, costs["params"] / self.costs[0]["params"]
        return Work(
            products=tokens * (costs["flops"] / length - of_head),
            weights=passes * self.weight_bytes * left,
            moved=tokens * left * ACTIVATIONS * self.features * self.dtype.itemsize,
            launches=passes * KERNELS * sum(self._architecture.runs),
        )

    def compared(self, tokens: float) -> Work:
        """Comparing the logits of these tokens, where the proxy does that."""
        return Work(logits=tokens * self._architecture.vocabulary * self.by_logits)

    @property
    def by_logits(self) -> bool:
        """Whether the proxy needs the output head."""
        return PROXIES[self.context.config.proxy.kind].by_logits

    @property
    def target_bytes(self) -> int:
        """Bytes of the targets that the proxy compares candidates with, from above."""
        proxy = self.context.config.proxy
        kept = PROXIES[proxy.kind].target_bytes(proxy, self._architecture.vocabulary)
        states = self._state_values * self.dtype.itemsize
        return self.tokens["search"] * (states if kept is None else kept)

    @property
    def tokens(self) -> Mapping[str, int]:
        """Of the parts of the calibration data."""
        calibration = self.context.config.calibration
        return {
            "library": calibration.library_sequences * self.length,
            "search": sum(pool(calibration, self._architecture.tokens).tokens),
            "sequence": self.length,
        }

    @property
    def length(self) -> int:
        """Tokens of a sequence of the calibration data."""
        return self._architecture.tokens or self.context.config.calibration.length

    @property
    def head_bytes(self) -> int:
        """Bytes of the logits that are in memory at a time."""
        return 2 * self.by_logits * chunk_bytes(self.shared, self.dtype.itemsize)

    @property
    def prefix_bytes(self) -> int:
        """Bytes of the states between blocks that candidates share."""
        states = self._state_values * self.tokens["search"] * self.dtype.itemsize
        return min(LIMIT_BYTES, states * (1 + len(self._architecture.heads)))

    @property
    def cut_bytes(self) -> int:
        """Bytes of narrowed matrices on a CPU, from above."""
        narrows = self.shared and not self.streamed and self.context.config.space.width is not None
        return CUT_BYTES if narrows else 0

    @property
    def kept_bytes(self) -> int:
        """Bytes that a backward pass over a sequence keeps of the forward pass."""
        return self.tokens["sequence"] * self.features * self.dtype.itemsize

    @property
    def between_bytes(self) -> int:
        """The same where blocks are computed again: the states between them, and one block's."""
        blocks = len(self._architecture.runs)
        states = self.state_bytes(self.tokens["sequence"])
        return blocks * states + 2 * self.kept_bytes // blocks

    @cached_property
    def features(self) -> int:
        """Inputs and outputs of all matrices, for one token."""
        runs, units = self._architecture.runs, self.context.units
        inside = (unit for unit in units if unit.kind == "matrix")
        return sum(sum(u.shape or ()) * (u.positions or 1) * runs[u.block] for u in inside)

    @cached_property
    def _architecture(self) -> Architecture:
        return self.context.loaded.family.architecture(self.context.loaded.model)

    @property
    def _state_values(self) -> int:
        """Values of the state between two blocks, for one token."""
        return self._architecture.state_values(1)


def library_stage(run: PlannedRun) -> StagePlan | None:
    """Building the level library; ``None`` where nothing has stored weights."""
    context = run.context
    if not context.wanted_levels:
        return None
    config = context.config.library
    plan = library_plan(run)
    dense = dense_model(context.loaded)
    methods = methods_for(dense, context.wanted_levels, config)
    orders = block_orders(dense, context.wanted_levels, methods)
    work = Work(written=plan.disk_bytes)
    if any(order.needs for order in orders.values()):
        passes = 2 if config.hessians == "propagated" else 1
        work += run.products(run.tokens["library"], dense=True, head=False) * passes
    if methods.gradients:
        work += run.products(run.tokens["library"], dense=True) * 3
    architecture = context.loaded.family.architecture(context.loaded.model)
    for block, order in orders.items():
        runs = architecture.runs[block] if block < len(architecture.runs) else 1
        tokens = run.tokens["library"] * runs
        work += _block_work(order, tokens, architecture.routed_share)
    if run.streamed:
        work += Work(brought=run.weight_bytes)
    states = run.tokens["library"]
    hidden = states * architecture.state_values(1)
    device, main = run.on_device + plan.memory_bytes, hidden * run.dtype.itemsize
    return StagePlan("library", work, device, main, plan.disk_bytes)


def library_plan(run: PlannedRun) -> LibraryPlan:
    """Disk and memory of the library."""
    context, calibration = run.context, run.context.config.calibration
    shape = (calibration.library_sequences, run.length)
    return plan_library(
        context.loaded,
        context.wanted_levels,
        torch.empty(shape, dtype=torch.int64, device="meta"),
        context.config.library,
        batch=calibration.micro_batch,
    )


def _block_work(order: BlockOrder, tokens: int, routed_share: float) -> Work:
    """Statistics and criteria of one block; each expert sees a share of the tokens."""
    work = Work()
    for word, kinds in order.needs.items():
        reader = order.readers[word]
        if "gram" in kinds:
            rows = tokens * (reader.unit.positions or 1) * (routed_share if reader.routed else 1)
            work += Work(statistics=gram_operations(rows, reader.shape[1]))
    factored: set[str] = set()
    for batch in order.batches:
        linear, count = batch[0][0], sum(len(levels) for _, levels in batch)
        outputs, inputs = linear.shape
        if "gram" in order.methods.matrix_needs:
            shared = 0.0 if linear.input in factored else 2.0 * inputs**3
            work += Work(
                launches=SWEEP_KERNELS * inputs,
                sweep=sweep_operations(outputs, inputs, count) - 2.0 * inputs**3 + shared,
                statistics=_error_operations(outputs, inputs, count + len(batch)),
            )
            factored.add(linear.input)
    for link, levels in ((link, levels) for one, levels in order.widths for link in one.links):
        outputs, inputs = link.output.shape
        if "gram" in order.methods.width_needs:
            work += Work(
                launches=REMOVAL_KERNELS * inputs,
                removal=removal_operations(outputs, inputs),
                statistics=_error_operations(outputs, inputs, len(levels) + 1),
            )
    return work


def _error_operations(outputs: int, inputs: int, count: int) -> float:
    """The output energies of these matrices, for which half of the products are needed."""
    return float(count) * outputs * inputs * (inputs + min(ENERGY_BLOCK, inputs))


def search_stage(run: PlannedRun) -> StagePlan:
    """The search, with all the requested tokens that the run allows."""
    context = run.context
    requested = context.config.search.tokens or USUAL_TOKENS
    estimates = context.config.search.name == "auto" and (
        context.wanted_levels or context.config.space.cache
    )
    estimated = ESTIMATED * requested if estimates else 0.0
    head, pool_tokens = run.by_logits, run.tokens["search"]
    work = run.products(requested, head=head) + run.compared(requested)
    work += run.products(pool_tokens, dense=True, head=head) + run.compared(pool_tokens)
    sequences = estimated / (FORWARDS * run.tokens["sequence"])
    stored = sum(_stored_bytes(run))
    # Two inner products with every level, in float32; a GPU gets the levels from main memory.
    work += Work(moved=2 * sequences * stored * FLOAT32 / run.dtype.itemsize)
    if not run.shared:
        work += Work(brought=2 * sequences * stored)
    if run.streamed:
        calibration = context.config.calibration
        step = TOGETHER * calibration.micro_batch * run.length
        work += Work(brought=run.weight_bytes * requested / step)
    targets = run.target_bytes
    on_disk = targets if context.config.proxy.targets == "disk" else 0
    device = run.on_device + targets - on_disk + run.prefix_bytes + run.head_bytes
    device += run.kept_bytes if estimated and not run.streamed else 0
    device += run.cut_bytes
    cache = library_plan(run).cache_bytes if context.wanted_levels else 0
    return StagePlan("search", work, device, cache, on_disk)


def _stored_bytes(run: PlannedRun) -> Iterable[int]:
    """Bytes of the weights of every level that an estimate multiplies with gradients."""
    sizes = run.context.units.by_name
    outputs = {unit.parent: unit for unit in run.context.units if unit.columns}
    for name, levels in run.context.wanted_levels.items():
        matrix = sizes[name] if sizes[name].kind in MATRICES else outputs[name]
        left = (matrix.numel // 2 if level.narrow else matrix.numel for level in levels)
        yield from (count * run.dtype.itemsize for count in left)
