"""What the levels of matrices save beside their shapes: zeros, and bytes of coarser types."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Floats, Integers


@dataclass(frozen=True, eq=False)
class MatrixSavings:
    """One thing that levels of matrices save of C costs.

    Attributes:
        amounts: Of each of M matrices at each of its L levels, by its sub-layer's state (M, S, L).
        per: What one of it saves (C,).

    Examples:
        >>> zeros = MatrixSavings(np.array([[[0, 5]], [[0, 8]]]), np.ones(1))
        >>> zeros.each(np.zeros((1, 1), np.int64), np.array([[1, 0]]), np.array([0, 0])).tolist()
        [[5, 0]]
    """

    amounts: Integers
    per: Floats

    @cached_property
    def counts(self) -> bool:
        """Whether any cost depends on it."""
        return bool(np.any(self.amounts) and np.any(self.per))

    @property
    def by_state(self) -> bool:
        """Whether it depends on the sub-layers' states."""
        return bool(self.amounts.shape[1] > 1)

    def each(self, states: Integers, choices: Integers, homes: Integers) -> Integers:
        """Of each matrix (N, M), for parts in states (N, P) and matrices at levels (N, M)."""
        matrices, columns, levels = self.amounts.shape
        entries = choices + np.arange(matrices) * (columns * levels)
        if columns > 1:
            entries += (states * levels).take(homes, axis=1, mode="clip")
        # All entries are within bounds: "clip" only spares a check that copies them.
        return np.asarray(self.amounts.ravel().take(entries, mode="clip"))

    def moved(
        self,
        states: Integers,
        choices: Integers,
        homes: Integers,
        matrix: Integers,
        level: Integers,
    ) -> Integers:
        """By how much another level of a matrix (J,) changes a candidate."""
        state = states[homes[matrix]] if self.by_state else 0
        now = self.amounts[matrix, state, choices[matrix]]
        return np.asarray(self.amounts[matrix, state, level] - now)

    def in_states(self, choices: Integers) -> Integers:
        """Of matrices at levels (M,) in each state of their parts (S, M)."""
        return np.asarray(self.amounts[np.arange(len(choices)), :, choices].T)


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
