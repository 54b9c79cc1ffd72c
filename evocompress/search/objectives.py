"""The value and the costs that a search weighs against each other, and their range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from evocompress.core.arrays import Floats, Genome
from evocompress.core.config_file import nearest
from evocompress.core.errors import ConfigError
from evocompress.core.pareto import Points, knee
from evocompress.core.requests import Result
from evocompress.core.types import Candidate
from evocompress.search.base import Incumbent
from evocompress.space.budget import absolute, check_cost, check_reachable, require
from evocompress.space.space import SearchSpace


@dataclass(frozen=True, eq=False)
class Measured:
    """A genome (U,) and the result of its candidate where it was last compared.

    Examples:
        >>> from evocompress.core.requests import Evaluate
        >>> failed = Result(Evaluate(Candidate(), (0,)), (), failed="out of memory")
        >>> Measured(np.zeros(4), failed).value
        inf
    """

    genome: Genome
    result: Result

    @property
    def candidate(self) -> Candidate:
        """The genome's candidate."""
        return self.result.request.candidate

    @cached_property
    def value(self) -> float:
        """The candidate's mean value; infinity where it could not be measured."""
        return self.result.mean


@dataclass(frozen=True, eq=False)
class Objectives:
    """The proxy's value and M costs, all to be small.

    Attributes:
        costs: Names of the costs; none where only the value counts.
        floors: For each cost the amount (M,) below which less is no better.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> objectives = Objectives(("body_params",), floors=np.array([40_000]))
        >>> objectives.points(space(), [np.zeros(5, int), np.ones(5, int)], [0.0, 2.0]).tolist()
        [[0.0, 110976.0], [2.0, 40000.0]]
    """

    costs: tuple[str, ...]
    floors: Floats

    def points(
        self, space: SearchSpace, genomes: Sequence[Genome], values: Sequence[float]
    ) -> Points:
        """Value and costs (N, 1 + M) of genomes (U,) with the given values."""
        found = space.costs(np.stack(genomes))
        costs = [
            np.maximum(found[name], floor)
            for name, floor in zip(self.costs, self.floors, strict=True)
        ]
        return np.column_stack([values, *costs])

    def of(self, space: SearchSpace, measured: Sequence[Measured]) -> Points:
        """Value and costs (N, 1 + M) of what was measured."""
        return self.points(
            space, [entry.genome for entry in measured], [entry.value for entry in measured]
        )

    def balanced(self, space: SearchSpace, measured: Sequence[Measured]) -> Incumbent | None:
        """The knee of the front, ``None`` where nothing could be evaluated.

        The dense model is not on it: it is known anyway.
        """
        valid = [e for e in measured if e.candidate.levels and np.isfinite(e.value)]
        if not valid:
            return None
        best = valid[knee(self.of(space, valid))]
        return Incumbent.of(best.result)


def choose_any(
    space: SearchSpace, names: Sequence[str], ranges: Mapping[str, tuple[float, float]]
) -> tuple[SearchSpace, Objectives]:
    """As `choose` where costs or ranges are named, else the value alone under a budget."""
    if names or ranges:
        return choose(space, names, ranges)
    require(space)
    return space, Objectives((), np.empty(0))


def choose(
    space: SearchSpace, names: Sequence[str], ranges: Mapping[str, tuple[float, float]]
) -> tuple[SearchSpace, Objectives]:
    """The objectives, and the space with the upper ends of their ranges added to its budget.

    Args:
        space: The space; its budget's costs are the objectives where none is named.
        names: Costs.
        ranges: For some of them the lowest and highest amount that matters; at most 1 means a
            share of the dense model's cost.

    Raises:
        ConfigError: There is no such cost, none is left, or a range is empty or of no objective.
        BudgetError: No genome of the space costs as little as a range asks for.
    """
    costs = tuple(names) or tuple(dict.fromkeys([*space.budget, *ranges]))
    if not costs:
        raise ConfigError("search.objectives: name the costs of the front, e.g. [params]")
    for name in costs:
        check_cost(name, space.cost_model, "search.objectives")
    dense = space.cost_model.dense()
    bounds, floors = dict(space.budget), dict.fromkeys(costs, 0.0)
    for name, ends in ranges.items():
        if name not in costs:
            raise ConfigError(f"search.range: '{name}' is no objective; {nearest(name, costs)}")
        if ends[0] >= ends[1]:
            raise ConfigError(f"search.range.{name}: {ends[0]} is not below {ends[1]}")
        floors[name], high = (absolute(end, dense[name]) for end in ends)
        bounds[name] = min(high, bounds.get(name, high))
    narrowed = replace(space, budget=bounds)
    if ranges:
        check_reachable(narrowed)
    return narrowed, Objectives(costs, np.array([floors[name] for name in costs]))
