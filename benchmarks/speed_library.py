"""The part of `speed.py` that is about building a level library.

All blocks of a model have the same shapes, and what they hold does not matter to the time, so one
block is built, in turns with the reference, and its time multiplied by their number.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from statistics import median

import torch
from common import Figure, PeakMemory, clock
from library import inverse_factor, plain_sweep
from safetensors.torch import save_file
from speed_setting import Setting
from torch import Tensor, nn

from evocompress.compression.criteria import CRITERIA, Statistics
from evocompress.compression.library import build_library
from evocompress.compression.library.dense import DenseModel, Linear
from evocompress.compression.library.gram import collecting
from evocompress.compression.library.hidden import HiddenStates
from evocompress.compression.library.order import block_orders, methods_named
from evocompress.core.config import LibraryConfig
from evocompress.core.types import Level


@dataclass(frozen=True)
class Turn:
    """Seconds of one block.

    Attributes:
        start: Until the first block: tokens become hidden states.
        build: The program's build: all that follows, and output errors and a file that is on
            the disk.
        collecting, sweeping: Of these, forward pass and Hessians; factorisations and sweeps.
        forward: A bare forward pass.
        reference: The reference's build.
        per_level: Of these, factorisations and sweeps.
        factoring: Of these, one factorisation for each matrix.
        factoring_again: What SparseGPT, run anew for each level, would factor beside that.
    """

    start: float
    build: float
    collecting: float
    sweeping: float
    forward: float
    reference: float
    per_level: float
    factoring: float
    factoring_again: float


def libraries(setting: Setting) -> dict[str, Figure]:
    """A build by the program, and one by a sweep a level."""
    context = OneBlock(setting)
    with PeakMemory(interval=0.01) as memory:
        context.build()
    turns = [context.turn() for _ in range(setting.repeats)]
    blocks = context.blocks
    seconds = {
        field.name: blocks * median(getattr(turn, field.name) for turn in turns)
        for field in fields(Turn)
    }
    ours = [turn.start + blocks * turn.build for turn in turns]
    theirs = [turn.start + blocks * turn.reference for turn in turns]
    sweeping = [turn.sweeping for turn in turns]
    anew = [turn.start + blocks * (turn.reference + turn.factoring_again) for turn in turns]
    weights = sum(parameter.nbytes for parameter in setting.loaded.model.parameters())
    return {
        "library_seconds": median(ours),
        "library_forward_seconds": seconds["forward"],
        "library_forward_and_hessian_seconds": seconds["collecting"],
        "sweeps_seconds": seconds["sweeping"],
        "library_per_level_seconds": median(theirs),
        "sweeps_per_level_seconds": seconds["per_level"],
        "factoring_per_matrix_seconds": seconds["factoring"],
        "library_vs_per_level": ratio(theirs, ours),
        "library_vs_per_level_anew": ratio(anew, ours),
        "sweeps_vs_per_level": ratio([one.per_level for one in turns], sweeping),
        "sweeps_vs_per_level_anew": ratio(
            [one.per_level + one.factoring_again for one in turns], sweeping
        ),
        "library_peak_mib": memory.mib,
        "library_peak_of_model": 1 + (memory.mib * 2**20 - context.hessian_bytes) / weights,
    }


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over the turns, which a slow spell hits alike."""
    return median(a / b for a, b in zip(numerator, denominator, strict=True))


class OneBlock:
    """The first block, built by the program and by the reference.

    The reference is EvoPress's released code (2410.14649): a pass through the block that sums the
    float32 Hessian of each matrix, also of those that read the same input; a factorisation for
    each matrix; SparseGPT's sweep for each level, in torch; a file for each; and a second pass for
    the states that enter the next block.

    Attributes:
        blocks: Of the model.
        hessian_bytes: Of one block.
    """

    def __init__(self, setting: Setting) -> None:
        self._loaded = setting.loaded
        self._folder = setting.folder
        self._tokens = setting.tokens(setting.library_sequences)
        self._dense = DenseModel(setting.loaded)
        self._linears = [one for one in self._dense.linears.values() if one.unit.block == 0]
        self._wanted = _wanted(setting, [one.name for one in self._linears])
        methods = methods_named("sparsegpt", None, False)
        self._order = block_orders(self._dense, self._wanted, methods)[0]
        self.blocks = len(setting.loaded.family.blocks(setting.loaded.model))
        self.hessian_bytes = 4 * sum(one.shape[1] ** 2 for one in self._order.readers.values())
        words = self._order.readers.items()
        device = self._dense.device
        # Compiles.
        self._sweep({word: torch.eye(one.shape[1], device=device) for word, one in words})

    def build(self) -> tuple[float, float]:
        """The program's build; returns the seconds until the block begins, and those after."""
        times = [clock()]
        library = self._folder / "library"
        build_library(
            self._loaded,
            self._wanted,
            self._tokens,
            "speed",
            LibraryConfig(),
            library,
            batch=1,
            progress=lambda *_: times.append(clock()),
        )
        shutil.rmtree(library)
        return times[1] - times[0], times[-1] - times[1]

    @torch.no_grad()
    def turn(self) -> Turn:
        """Everything once."""
        start, build = self.build()
        states = HiddenStates(self._loaded, self._tokens, 1)
        inputs = {word: linear.name for word, linear in self._order.readers.items()}
        grams, collecting = self._collect(states, inputs)
        sweeping = self._sweep(grams)
        hessians, summing = self._plain_hessians(states)
        each = [self._one_matrix(one, hessians.pop(one.name)) for one in self._linears]
        begin = clock()
        states.run(0, keep=True)
        forward = clock() - begin
        return Turn(
            start=start,
            build=build,
            collecting=collecting,
            sweeping=sweeping,
            forward=forward,
            reference=summing
            + sum(one.factoring + one.sweeps + one.writing for one in each)
            + forward,
            per_level=sum(one.factoring + one.sweeps for one in each),
            factoring=sum(one.factoring for one in each),
            factoring_again=sum(one.factoring * (one.levels - 1) for one in each),
        )

    def _collect(
        self, states: HiddenStates, inputs: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], float]:
        """Gram matrices of what some matrices read, and the seconds of a pass that sums them."""
        readers = {key: self._loaded.model.get_submodule(name) for key, name in inputs.items()}
        needs = {key: frozenset({"gram"}) for key in readers}
        begin = clock()
        with collecting(readers, needs, self._tokens.shape[1]) as sums:
            states.run(0, keep=False)
        return {key: found["gram"] for key, found in sums.items()}, clock() - begin

    def _plain_hessians(self, states: HiddenStates) -> tuple[dict[str, Tensor], float]:
        """The reference's: of each matrix, also of those that read the same input."""
        hessians = {
            one.name: torch.zeros(one.shape[1], one.shape[1], device=self._dense.device)
            for one in self._linears
        }
        begin = clock()
        with ExitStack() as hooks:
            for name, hessian in hessians.items():
                module = self._loaded.model.get_submodule(name)
                hooks.callback(module.register_forward_pre_hook(PlainSum(hessian)).remove)
            states.run(0, keep=False)
        return hessians, clock() - begin

    def _sweep(self, grams: Mapping[str, Tensor]) -> float:
        """Seconds of the program's factorisations and sweeps."""
        known = {
            word: Statistics(gram, sequences=len(self._tokens)) for word, gram in grams.items()
        }
        begin = clock()
        for batch in self._order.batches:
            weights = [self._dense.weight(linear.name) for linear, _ in batch]
            levels = [own for _, own in batch]
            CRITERIA["sparsegpt"].compress_all(weights, known[batch[0][0].input], levels)
        return clock() - begin

    def _one_matrix(self, linear: Linear, hessian: Tensor) -> Matrix:
        """A matrix as the reference makes it."""
        begin = clock()
        weight = self._dense.weight(linear.name)
        factor = inverse_factor(hessian)
        factored = clock()
        levels = self._wanted[linear.name]
        made = {level.key: plain_sweep(weight, factor, level.zeros) for level in levels}
        swept = clock()
        for key, one in made.items():
            file = self._folder / f"{linear.name}-{key}.safetensors"
            save_file({"weight": one}, file)
            file.unlink()
        return Matrix(
            levels=len(levels),
            factoring=factored - begin,
            sweeps=swept - factored,
            writing=clock() - swept,
        )


class PlainSum:
    """A hook that keeps twice the mean over sequences of xxᵀ, all of it, as SparseGPT's code."""

    def __init__(self, hessian: Tensor) -> None:
        self._hessian = hessian
        self._count = 0

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Add what a module is given."""
        inputs = arguments[0].float()
        count = self._count + len(inputs)
        rows = inputs.flatten(0, 1)
        self._hessian.addmm_(rows.T, rows, beta=self._count / count, alpha=2 / count)
        self._count = count


@dataclass(frozen=True)
class Matrix:
    """Seconds that the reference takes for a matrix.

    Attributes:
        levels: How many it makes.
        factoring: One factorisation.
        sweeps: All sweeps.
        writing: All files.
    """

    levels: int
    factoring: float
    sweeps: float
    writing: float


def _wanted(setting: Setting, names: Collection[str]) -> dict[str, tuple[Level, ...]]:
    """The levels of some matrices."""
    genes = setting.space(sparsity={"target": 0.5, "levels": setting.levels}).encoding
    return {
        members[0].name: tuple(level for level in levels if not level.dense)
        for members, levels in zip(genes.members, genes.levels, strict=True)
        if members[0].name in names
    }
