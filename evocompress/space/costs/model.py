"""The form that all costs share, and their vectorised evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Floats, Integers
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.space.costs.sublayers import Left, Part, level_of


@dataclass(frozen=True)
class Cost:
    """One cost: ``base + sum over kept sub-layers of amount - per_zero * zeros in matrices``.

    Attributes:
        base: What no candidate can save.
        amount: What a sub-layer adds, from the part that a level leaves of the sub-layer.
        per_zero: What one zero in a matrix saves.
        each_use: What several blocks share counts in each of them, at its full width. Otherwise it
            counts in the base.

    Examples:
        >>> Cost(base=100, amount=lambda part, left: left.own).base
        100
    """

    base: float
    amount: Callable[[Part, Left], float]
    per_zero: float = 0.0
    each_use: bool = False


@dataclass(frozen=True, eq=False)
class CostTable:
    """The costs of all combinations of some levels: C costs of P parts in S states.

    Parts are sub-layers and experts.

    Attributes:
        names: The C costs.
        base: What no candidate can save (C,).
        amounts: What each sub-layer adds in each of its states (P, S, C).
        per_zero: What one zero saves (C,).
        homes: For each of M matrices the index of its sub-layer (M,).
        zeros: Zeros of each matrix at each of its levels, by the sub-layer's state (M, S, L).

    Examples:
        >>> from evocompress.testing.examples import space
        >>> space().table.only(["flops"]).names
        ('flops',)
    """

    names: tuple[str, ...]
    base: Floats
    amounts: Floats
    per_zero: Floats
    homes: Integers
    zeros: Integers

    def at(self, states: Integers, choices: Integers) -> dict[str, Floats]:
        """The costs (N,) of parts in states (N, P) with matrices at levels `choices` (N, M)."""
        totals = self.totals(states, choices)
        return {name: totals[:, column] for column, name in enumerate(self.names)}

    def totals(self, states: Integers, choices: Integers) -> Floats:
        """The costs (N, C) of parts in states (N, P) with matrices at levels `choices` (N, M)."""
        zeros = self._zeros(states, choices)
        totals: Floats = self.base - zeros[:, None] * self.per_zero
        totals += self._sums(states)
        return totals

    def by_part(self, states: Integers, choices: Integers) -> Floats:
        """The costs (N, P, C) that each part adds; with `base` they add up to `totals`.

        Arguments are those of `totals`; the zeros of a part's matrices are taken off.
        """
        parts = np.arange(len(self.amounts))
        zeros = self._by_home(self._each_zeros(states, choices))
        found: Floats = self.amounts[parts, states]
        return found - zeros[:, :, None] * self.per_zero

    def after(
        self,
        states: Integers,
        choices: Integers,
        moved: tuple[Integers, Integers, Integers],
        matrix: Integers,
        level: Integers,
    ) -> Floats:
        """The costs of one candidate after each of K changes (K, C).

        Args:
            states: For each sub-layer the index of its state (P,).
            choices: For each of the M matrices the index of its level (M,).
            moved: Three arrays (J,): the index of a change, a part whose state it changes, and
                the new state.
            matrix: The matrix whose level a change changes (K,), -1 for none.
            level: The index of its new level (K,).
        """
        change, part, state = moved
        count = len(matrix)
        sums = self._sums(states[None]) + np.zeros((count, 1))
        if self.amounts.shape[1] > 1:
            by = self.amounts[part, state] - self.amounts[part, states[part]]
            for column in range(by.shape[1]):
                sums[:, column] += np.bincount(change, by[:, column], count)
        zeros = self._zeros(states[None], choices[None]) + np.zeros(count, dtype=np.int64)
        if self._zeros_count:
            zeros += self._zeros_moved(states, choices, matrix, level)
            if self.zeros.shape[1] > 1:
                table = self._zeros_by_state(choices)
                more = table[part, state] - table[part, states[part]]
                zeros += np.bincount(change, more, count).astype(np.int64)
        return self.base - zeros[:, None] * self.per_zero + sums

    def only(self, names: Sequence[str]) -> CostTable:
        """The table of some of the costs, in the order given."""
        chosen = [self.names.index(name) for name in names]
        return CostTable(
            tuple(names),
            self.base[chosen],
            self.amounts[:, :, chosen],
            self.per_zero[chosen],
            self.homes,
            self.zeros,
        )

    def _sums(self, states: Integers) -> Floats:
        """Costs of all sub-layers together, (N, C) or where they have but one state (C,)."""
        parts, columns, costs = self.amounts.shape
        if not costs:
            return np.zeros((len(states), 0))
        if columns == 1:
            return np.asarray(self.amounts.sum(axis=(0, 1)))
        entries = states + np.arange(parts) * columns
        tables = self.amounts.reshape(parts * columns, costs).T
        # All entries are within bounds: "clip" only spares a check that copies them.
        sums = [table.take(entries, mode="clip").sum(axis=1) for table in tables]
        return sums[0][:, None] if costs == 1 else np.stack(sums, axis=1)

    def _zeros(self, states: Integers, choices: Integers) -> Integers:
        """Zeros in all matrices (N,)."""
        if not self._zeros_count:
            return np.zeros(len(states), dtype=np.int64)
        return np.asarray(self._each_zeros(states, choices).sum(axis=1))

    def _each_zeros(self, states: Integers, choices: Integers) -> Integers:
        """Zeros in each matrix (N, M)."""
        matrices, columns, levels = self.zeros.shape
        entries = choices + np.arange(matrices) * (columns * levels)
        if columns > 1:
            entries += (states * levels).take(self.homes, axis=1, mode="clip")
        return np.asarray(self.zeros.ravel().take(entries, mode="clip"))

    def _zeros_moved(
        self,
        states: Integers,
        choices: Integers,
        matrix: Integers,
        level: Integers,
    ) -> Integers:
        """By how many zeros another level of a matrix (K,) changes a candidate; 0 for no matrix."""
        state = states[self.homes[matrix]] if self.zeros.shape[1] > 1 else 0
        by = self.zeros[matrix, state, level] - self.zeros[matrix, state, choices[matrix]]
        return np.where(matrix < 0, 0, by)

    def _zeros_by_state(self, choices: Integers) -> Integers:
        """Zeros in the matrices of each part in each of its states (P, S)."""
        return self._by_home(self.zeros[np.arange(len(choices)), :, choices].T).T

    def _by_home(self, values: Integers) -> Integers:
        """Sums of numbers of matrices (N, M) over the matrices of each part (N, P)."""
        return self._homes.sums(values).astype(np.int64)

    @cached_property
    def _homes(self) -> Groups:
        return Groups(self.homes, len(self.amounts))

    @cached_property
    def _zeros_count(self) -> bool:
        """Whether any cost depends on zeros."""
        return bool(len(self.zeros) and self.per_zero.any())


@dataclass(frozen=True, eq=False)
class Groups:
    """Which of M members belong together.

    Attributes:
        of: The group of each member (M,).
        count: Of groups; one without members has sums of zero.
    """

    of: Integers
    count: int

    def sums(self, values: NDArray[Any]) -> Floats:
        """Sums of values (N, M) over the members of each group (N, count)."""
        sums = np.zeros((len(values), self.count))
        if self.of.size:
            order, begins, found = self._runs
            sums[:, found] = np.add.reduceat(values[:, order], begins, axis=1)
        return sums

    @cached_property
    def _runs(self) -> tuple[Integers, NDArray[Any], Integers]:
        """The members in the order of their groups, where each group's begin, and these groups."""
        order = np.argsort(self.of, kind="stable")
        found, begins = np.unique(self.of[order], return_index=True)
        return order, begins, found


@dataclass(frozen=True, eq=False)
class CostModel:
    """All costs of any candidate of one model.

    Sums of whole numbers below 2**53 are exact, whatever their order.

    Attributes:
        parts: The sub-layers and experts, in model order.
        costs: For each cost name what it counts.
        length: Tokens of the sequence that FLOPs and cache are counted for.
        uncounted: Module path of something whose FLOPs are not all counted; empty if nothing.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> space().cost_model.dense()["body_params"]
        110976.0
    """

    parts: tuple[Part, ...]
    costs: Mapping[str, Cost]
    length: int
    uncounted: str = ""

    def dense(self) -> dict[str, float]:
        """The costs of the unchanged model."""
        return {name: values.item() for name, values in self.of([Candidate()]).items()}

    def of(self, candidates: Sequence[Candidate]) -> dict[str, Floats]:
        """The costs of canonical candidates of any widths: for each cost an array (N,).

        A block that others are merged into costs what it costs alone.

        Raises:
            KeyError: A candidate names a unit that the model does not have.
            ConfigError: A level is wider than the model.
        """
        totals = np.stack([self._total(candidate) for candidate in candidates])
        return {name: totals[:, column] for column, name in enumerate(self.costs)}

    def table(
        self, states: Sequence[Sequence[Level]], matrices: Mapping[str, Sequence[Level]]
    ) -> CostTable:
        """The costs of all combinations of levels: `states` of each part, and those of matrices."""
        most = max(len(levels) for levels in states)
        amounts = np.zeros((len(self.parts), most, len(self.costs)))
        for row, part, levels in zip(amounts, self.parts, states, strict=True):
            row[: len(levels)] = [self._amounts(part, level) for level in levels]
        deepest = max((len(levels) for levels in matrices.values()), default=0)
        zeros = np.zeros((len(matrices), most, deepest), dtype=np.int64)
        homes = np.array([self._homes[name] for name in matrices], dtype=np.int64)
        for table, home, (name, levels) in zip(zeros, homes, matrices.items(), strict=True):
            for row, state in zip(table, states[home], strict=False):
                row[: len(levels)] = [self._zeros(name, level, state) for level in levels]
        return CostTable(tuple(self.costs), self._base, amounts, self._per_zero, homes, zeros)

    def _total(self, candidate: Candidate) -> Floats:
        """The costs of one candidate (C,)."""
        levels = candidate.by_name
        zeros = 0
        for name in levels.keys() - {part.unit.parent for part in self.parts}:
            part = self.parts[self._homes[name]]
            if name != part.unit.name:
                zeros += self._zeros(name, levels[name], level_of(part, levels))
        dropped = {name for name, level in levels.items() if level.drop}
        amounts = [self._amounts(part, level_of(part, levels), dropped) for part in self.parts]
        return np.asarray(self._base + np.sum(amounts, axis=0) - zeros * self._per_zero)

    def _amounts(self, part: Part, level: Level, dropped: Collection[str] = ()) -> Floats:
        """The costs (C,) of a sub-layer at a level.

        Of what later blocks share it has what is cut, at each of them that is not `dropped`.
        """
        if level.drop:
            return np.zeros(len(self.costs))
        if not part.users:
            return self._taken(part, level)
        alone, shared = part.alone_and_shared()
        uses = len(part.users) - len({*part.users} & {*dropped})
        times = [uses if cost.each_use else 1 for cost in self.costs.values()]
        cut = self._taken(shared, level) - self._taken(shared, DENSE)
        return self._taken(alone, DENSE) + np.array(times) * cut

    def _taken(self, part: Part, level: Level) -> Floats:
        left = part.left(level)
        return np.array([cost.amount(part, left) for cost in self.costs.values()])

    def _zeros(self, matrix: str, level: Level, state: Level) -> int:
        """Zeros that a matrix has at a level while its sub-layer is in a state."""
        if state.drop:
            return 0
        part = self.parts[self._homes[matrix]]
        unit = next(unit for unit in part.matrices if unit.name == matrix)
        return level.zeros_left(unit.numel, part.left(state).weights[matrix])

    @cached_property
    def _base(self) -> Floats:
        return np.array([cost.base for cost in self.costs.values()], dtype=np.float64)

    @cached_property
    def _per_zero(self) -> Floats:
        return np.array([cost.per_zero for cost in self.costs.values()], dtype=np.float64)

    @cached_property
    def _homes(self) -> dict[str, int]:
        """For each sub-layer and matrix the index of its part."""
        return {
            unit.name: index
            for index, part in enumerate(self.parts)
            for unit in (part.unit, *part.matrices)
        }
