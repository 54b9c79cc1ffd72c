"""Published heuristics that decide how sparse each matrix is: baselines, and starts for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Number, Tokens
from evocompress.core.requests import Estimate, Estimation
from evocompress.core.types import Candidate
from evocompress.search.allocation.knapsack import Harms, knapsack
from evocompress.search.allocation.sparsity_allocation import METHODS, Known, Method
from evocompress.search.base import Problem, SearcherSettings
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher, estimated
from evocompress.space import sampling
from evocompress.space.budget import require
from evocompress.space.space import SearchSpace

Name = Literal["uniform", "erk", "lamp", "global_magnitude", "owl", "alpha", "ecoflap", "pq"]

_BISECTIONS = 20
_BEYOND = 1e-3
"""So much more density is wanted than fits: what is half-way between levels takes the denser."""


class AllocationSettings(SearcherSettings):
    """Settings of `Allocation`.

    Attributes:
        method: Which heuristic; see `evocompress.search.allocation.sparsity_allocation`.
        candidate_tokens: Tokens on which the result is measured; the whole pool if left out.
        estimate_tokens: Tokens on which ``owl`` and ``ecoflap`` look at the dense model;
            `candidate_tokens` if left out. They are asked for once by ``owl``, and twice for
            every matrix by ``ecoflap``.
        spread: How far apart densities may be, where the method says: half of their range
            (``owl``), half of the range of sparsities as a share of the mean (``alpha``), or how
            much sparser than the mean a block may be (``ecoflap``). The published value if left
            out.
    """

    method: Name
    candidate_tokens: Tokens | None = None
    estimate_tokens: Tokens | None = None
    spread: Annotated[Number, Field(gt=0, lt=1)] | None = None

    @property
    def needs_next_token(self) -> bool:
        """Where the heuristic asks for gradients of the loss."""
        return METHODS[self.method].kind == "perturbation"


class Allocation(GeneratorSearcher):
    """Measures the candidate of one heuristic and ends."""

    Settings: ClassVar[type[SearcherSettings]] = AllocationSettings

    settings: AllocationSettings

    def __init__(
        self, problem: Problem, settings: AllocationSettings, rng: np.random.Generator
    ) -> None:
        super().__init__(problem, settings, rng)
        self._estimate_batches = self.chosen(settings.estimate_tokens, "search.estimate_tokens")

    def check(self) -> None:
        """Refuses a space without sparsities, and a spread where the method has none."""
        method = self.settings.method
        check_allocates(self.space, f"allocation ({method})")
        if self.settings.spread is not None and METHODS[method].spread is None:
            raise ConfigError(f"search.spread: {method} has no such setting; leave it out")

    def search(self) -> AskTell[None]:
        """The heuristic's allocation."""
        method, spread = self.settings.method, self.settings.spread
        genome = yield from allocated(self.space, method, self._estimate_batches, spread=spread)
        if genome is not None:
            yield from self.conclude(genome)


def check_allocates(space: SearchSpace, name: str) -> None:
    """Refuse a space in which there are no sparsities to decide about.

    Args:
        space: The space.
        name: What the message calls the method.

    Raises:
        ConfigError: No matrix has several levels, or there is no budget.
    """
    require(space)
    if space.encoding.sizes[space.encoding.matrices].max(initial=0) < 2:
        raise ConfigError(
            f"search.name: {name} decides how sparse each matrix is, so it needs space.sparsity "
            "with several levels, and no pattern"
        )


def allocated(
    space: SearchSpace, name: str, micro_batches: tuple[int, ...], *, spread: float | None = None
) -> AskTell[Genome | None]:
    """The genome (U,) of a heuristic, for use within any procedure; it meets the budget.

    A procedure gets it by ``yield from allocated(space, "owl", micro_batches)``.
    What is no matrix is as in the space's uniform genome.

    Args:
        space: One that `check_allocates` lets through.
        name: Of the heuristic, a key of
            `evocompress.search.allocation.sparsity_allocation.METHODS`.
        micro_batches: On which an estimate is made, where it is not about weights alone.
        spread: The method's setting; the published value if left out.

    Returns:
        ``None`` where the estimate failed.
    """
    method = METHODS[name]
    estimation = yield from _asked(space, method, micro_batches)
    if estimation is not None and estimation.failed is not None:
        return None
    task = _Task.of(space)
    units = space.encoding.units
    known = Known(
        matrices=tuple(units[gene] for gene in task.free.tolist()),
        blocks=tuple(task.blocks[units[gene].block] for gene in task.free.tolist()),
        rows={} if estimation is None else estimation.by_unit,
        spread=spread if spread is not None else method.spread or 0.0,
    )
    return _nearest(task, lambda overall: method.densities(known, overall))


def _asked(
    space: SearchSpace, method: Method, micro_batches: tuple[int, ...]
) -> AskTell[Estimation | None]:
    """The estimate that a method needs, made at the dense model."""
    if method.kind is None:
        return None
    matrices = sum(unit.kind == "matrix" for unit in space.encoding.tree)
    forwards = method.forwards + method.matrix_forwards * matrices
    chosen = micro_batches if forwards else ()
    return (yield from estimated(Estimate(Candidate(), method.kind, chosen, max(forwards, 1))))


@dataclass(frozen=True, eq=False)
class _Task:
    """Which genes are decided, and what the others are.

    Attributes:
        space: The space.
        even: Its uniform genome (U,).
        free: The matrices that this keeps (M,).
        sparsities: For each of them those of its levels.
        blocks: For each index of a block the name of its unit.
    """

    space: SearchSpace
    even: Genome
    free: NDArray[np.int64]
    sparsities: tuple[NDArray[np.float64], ...]
    blocks: dict[int, str]

    @classmethod
    def of(cls, space: SearchSpace) -> _Task:
        genes, even = space.encoding, sampling.uniform(space)
        free = genes.matrices[~genes.inactive(even[None])[0][genes.matrices]]
        sparsities = tuple(
            np.array([level.zeros for level in genes.levels[gene]]) / genes.units[gene].numel
            for gene in free.tolist()
        )
        blocks = {unit.block: unit.name for unit in genes.tree if unit.kind == "block"}
        return cls(space, even, free, sparsities, blocks)

    def harms(self, densities: NDArray[np.float64]) -> Harms:
        """Squared distances to the wanted sparsities, weighted by size; all else is fixed."""
        genes = self.space.encoding
        harms = [np.where(np.arange(size) == at, 0, np.inf) for size, at in self._levels]
        wanted = 1 - np.clip(densities, 0, 1)
        for gene, own, goal in zip(self.free.tolist(), self.sparsities, wanted, strict=True):
            harms[gene] = genes.units[gene].numel * (own - goal) ** 2
        return harms

    def rounded(self, densities: NDArray[np.float64]) -> Genome:
        """The genome (U,) of the nearest levels, whatever it costs."""
        return np.array([int(np.argmin(harm)) for harm in self.harms(densities)], dtype=np.int64)

    @property
    def _levels(self) -> list[tuple[int, int]]:
        """For each gene how many levels it has, and which one is even."""
        return list(zip(self.space.encoding.sizes.tolist(), self.even.tolist(), strict=True))


def _nearest(task: _Task, densities: Callable[[float], NDArray[np.float64]]) -> Genome:
    """The genome (U,) that meets the budget nearest to the wanted densities.

    The overall density is the least at which nearest levels would exceed the budget. From there
    the best levels within the budget use it up: where levels are equal steps, to the last.
    """
    low, high = 0.0, 1.0
    if task.space.feasible(task.rounded(densities(high))[None])[0]:
        return task.rounded(densities(high))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        feasible = task.space.feasible(task.rounded(densities(middle))[None])[0]
        low, high = (middle, high) if feasible else (low, middle)
    under = task.rounded(densities(low))
    best = knapsack(task.space, task.harms(densities(min(high + _BEYOND, 1.0))), under)
    return under if best is None else best
