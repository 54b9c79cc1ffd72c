"""The form that all costs share, and their vectorised evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from evocompress.core.arrays import Floats, Integers
from evocompress.core.storage import CACHES, StorageType, storage_type
from evocompress.core.types import DENSE, Candidate, Level, Unit
from evocompress.space.costs.savings import Groups, MatrixSavings
from evocompress.space.costs.sublayers import Left, Part, level_of

SAVINGS = (
    "per_zero",
    "per_byte",
    "per_outer_byte",
    "per_file_byte",
    "per_cached_byte",
    "per_served_byte",
)
"""What levels of matrices save, beside what their shapes do, by the name in `Cost`."""


@dataclass(frozen=True)
class Cost:
    """One cost: a base, and what kept sub-layers add, less what zeros and coarser types save.

    Attributes:
        base: What no candidate can save.
        amount: What a sub-layer adds, from the part that a level leaves of the sub-layer.
        per_zero: What one zero in a matrix saves.
        per_byte: What each byte saves that a matrix takes less than in the model's own type.
        per_outer_byte: The same of the embedding and the head.
        per_file_byte: What each byte saves that any of these takes less in a file.
        per_cached_byte: What each byte saves that keys and values take less, as ``kv_bytes`` has
            them.
        per_served_byte: The same, as ``memory`` has them.
        each_use: What several blocks share counts in each of them, at its full width. Otherwise it
            counts in the base.

    Examples:
        >>> Cost(base=100, amount=lambda part, left: left.own).base
        100
    """

    base: float
    amount: Callable[[Part, Left], float]
    per_zero: float = 0.0
    per_byte: float = 0.0
    per_outer_byte: float = 0.0
    per_file_byte: float = 0.0
    per_cached_byte: float = 0.0
    per_served_byte: float = 0.0
    each_use: bool = False


@dataclass(frozen=True, eq=False)
class CostTable:
    """The costs of all combinations of some levels: C costs of P parts in S states.

    Parts are sub-layers and experts.

    Attributes:
        names: The C costs.
        base: What no candidate can save (C,).
        amounts: What each sub-layer adds in each of its states (P, S, C).
        homes: For each of M matrices the index of its sub-layer (M,), outside one of its block.
        savings: What levels of matrices save.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> space().table.only(["flops"]).names
        ('flops',)
    """

    names: tuple[str, ...]
    base: Floats
    amounts: Floats
    homes: Integers
    savings: tuple[MatrixSavings, ...]

    def at(self, states: Integers, choices: Integers) -> dict[str, Floats]:
        """The costs (N,) of parts in states (N, P) with matrices at levels `choices` (N, M)."""
        totals = self.totals(states, choices)
        return {name: totals[:, column] for column, name in enumerate(self.names)}

    def totals(self, states: Integers, choices: Integers) -> Floats:
        """The costs (N, C) of parts in states (N, P) with matrices at levels `choices` (N, M)."""
        totals: Floats = self.base + np.zeros((len(states), 1)) + self._sums(states)
        for saved in self._counted:
            whole = saved.each(states, choices, self.homes).sum(axis=1)
            totals = totals - whole[:, None] * saved.per
        return totals

    def by_part(self, states: Integers, choices: Integers) -> Floats:
        """The costs (N, P, C) that each part adds; with `base` they add up to `totals`.

        Arguments are those of `totals`; what a part's matrices save is taken off.
        """
        parts = np.arange(len(self.amounts))
        found: Floats = self.amounts[parts, states]
        for saved in self._counted:
            own = self._by_home(saved.each(states, choices, self.homes))
            found = found - own[:, :, None] * saved.per
        return found

    def after(
        self,
        states: Integers,
        choices: Integers,
        count: int,
        moved: tuple[Integers, Integers, Integers],
        stored: tuple[Integers, Integers, Integers],
    ) -> Floats:
        """The costs of one candidate after each of K changes (K, C).

        Args:
            states: For each sub-layer the index of its state (P,).
            choices: For each of the M matrices the index of its level (M,).
            count: K.
            moved: Three arrays (J,): the index of a change, a part whose state it changes, and
                the new state.
            stored: The same of matrices and their levels.
        """
        change, part, state = moved
        changed, matrix, level = stored
        sums = self._sums(states[None]) + np.zeros((count, 1))
        if self.amounts.shape[1] > 1:
            by = self.amounts[part, state] - self.amounts[part, states[part]]
            for column in range(by.shape[1]):
                sums[:, column] += np.bincount(change, by[:, column], count)
        for saved in self._counted:
            now = saved.each(states[None], choices[None], self.homes).sum(axis=1)
            own = saved.moved(states, choices, self.homes, matrix, level)
            amounts = now + np.bincount(changed, own, count).astype(np.int64)
            if saved.by_state:
                table = self._by_home(saved.in_states(choices)).T
                more = table[part, state] - table[part, states[part]]
                amounts += np.bincount(change, more, count).astype(np.int64)
            sums = sums - amounts[:, None] * saved.per
        return self.base + sums

    def only(self, names: Sequence[str]) -> CostTable:
        """The table of some of the costs, in the order given."""
        chosen = [self.names.index(name) for name in names]
        return CostTable(
            tuple(names),
            self.base[chosen],
            self.amounts[:, :, chosen],
            self.homes,
            tuple(replace(saved, per=saved.per[chosen]) for saved in self.savings),
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

    def _by_home(self, values: Integers) -> Integers:
        """Sums of numbers of matrices (N, M) over the matrices of each part (N, P)."""
        return self._homes.sums(values).astype(np.int64)

    @cached_property
    def _homes(self) -> Groups:
        return Groups(self.homes, len(self.amounts))

    @cached_property
    def _counted(self) -> tuple[MatrixSavings, ...]:
        """What any cost depends on."""
        return tuple(saved for saved in self.savings if saved.counts)


@dataclass(frozen=True, eq=False)
class CostModel:
    """All costs of any candidate of one model.

    Sums of whole numbers below 2**53 are exact, whatever their order.

    Attributes:
        parts: The sub-layers and experts, in model order.
        costs: For each cost name what it counts.
        length: Tokens of the sequence that FLOPs and cache are counted for.
        uncounted: Module path of something whose FLOPs are not all counted; empty if nothing.
        dtype_bytes: Of a weight in the model's own type.
        outer: The embedding and the head.
        in_file: What a type saves of a matrix (name, type, rows, columns) in the file; ``None``
            without a cost of that.
        in_cache: What a type saves of the cache of an attention (part, what is left of it, type),
            as ``kv_bytes`` and as ``memory`` have it.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> space().cost_model.dense()["body_params"]
        110976.0
    """

    parts: tuple[Part, ...]
    costs: Mapping[str, Cost]
    length: int
    uncounted: str = ""
    dtype_bytes: int = 0
    outer: tuple[Unit, ...] = ()
    in_file: Callable[[str, StorageType, int, int], int] | None = None
    in_cache: tuple[Callable[[Part, Left, StorageType], int], ...] = ()

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
        saved = np.zeros((len(SAVINGS), len(matrices), most, deepest), dtype=np.int64)
        homes = np.array([self._homes[name] for name in matrices], dtype=np.int64)
        for place, (home, (name, levels)) in enumerate(zip(homes, matrices.items(), strict=True)):
            for number, state in enumerate(states[home]):
                found = [self._saved(name, level, state) for level in levels]
                saved[:, place, number, : len(levels)] = np.transpose(found)
        savings = map(MatrixSavings, saved, self._per)
        return CostTable(tuple(self.costs), self._base, amounts, homes, tuple(savings))

    def _total(self, candidate: Candidate) -> Floats:
        """The costs of one candidate (C,)."""
        levels = candidate.by_name
        saved = np.zeros(len(SAVINGS), dtype=np.int64)
        for name in levels.keys() - {part.unit.parent for part in self.parts}:
            part = self.parts[self._homes[name]]
            if name != part.unit.name:
                saved += self._saved(name, levels[name], level_of(part, levels))
        dropped = {name for name, level in levels.items() if level.drop}
        amounts = [self._amounts(part, level_of(part, levels), dropped) for part in self.parts]
        return np.asarray(self._base + np.sum(amounts, axis=0) - saved @ self._per)

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

    def _saved(self, matrix: str, level: Level, state: Level) -> Integers:
        """What a matrix or cache saves at a level while its sub-layer is in a state.

        One number for each of `SAVINGS`.
        """
        outside = next((unit.shape for unit in self.outer if unit.name == matrix), None)
        if outside is not None:
            return _savings(0, 0, *self._saved_bytes(matrix, level, *outside))
        part = self.parts[self._homes[matrix]]
        if state.drop or level.dense:
            return _savings()
        if matrix == part.cache:
            kind, left = CACHES[level.cache], part.left(state)
            return _savings(0, 0, 0, 0, *(saved(part, left, kind) for saved in self.in_cache))
        unit = next(unit for unit in part.matrices if unit.name == matrix)
        rows, columns = part.shape(unit, state)
        zeros = level.zeros_left(unit.numel, rows * columns)
        own, in_file = self._saved_bytes(matrix, level, rows, columns)
        return _savings(zeros, own, 0, in_file)

    def _saved_bytes(self, matrix: str, level: Level, rows: int, columns: int) -> tuple[int, int]:
        """What the type of a matrix (rows, columns) saves, of itself and in the file."""
        if not level.bits:
            return 0, 0
        kind = storage_type(level.bits)
        own = rows * columns * self.dtype_bytes - kind.bytes(rows, columns)
        return own, 0 if self.in_file is None else self.in_file(matrix, kind, rows, columns)

    @cached_property
    def _base(self) -> Floats:
        return np.array([cost.base for cost in self.costs.values()], dtype=np.float64)

    @cached_property
    def _per(self) -> Floats:
        """What one of each of `SAVINGS` saves (savings, C)."""
        return np.array([[getattr(c, name) for c in self.costs.values()] for name in SAVINGS])

    @cached_property
    def _homes(self) -> dict[str, int]:
        """For each sub-layer and matrix the index of its part, outside of the blocks of any."""
        blocks = [part.unit.block for part in self.parts]
        return {unit.name: blocks.index(unit.block) for unit in self.outer} | {
            name: index
            for index, part in enumerate(self.parts)
            for name in (part.unit.name, part.cache, *(unit.name for unit in part.matrices))
            if name
        }


def _savings(*amounts: int) -> Integers:
    """As many as there are, the last ones 0."""
    return np.array([*amounts, *(0,) * (len(SAVINGS) - len(amounts))], dtype=np.int64)
