"""The form that all costs share, and their vectorised evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evocompress.types import Architecture, Candidate, Unit


@dataclass(frozen=True)
class Part:
    """One sub-layer as the cost functions see it.

    Attributes:
        unit: The sub-layer.
        matrices: Names of its matrices.
        weights: Number of weights of its matrices.
        own: Its parameters that are in no matrix: norms and biases.
    """

    unit: Unit
    matrices: tuple[str, ...]
    weights: int
    own: int


@dataclass(frozen=True)
class Terms:
    """One cost: ``base + sum over kept parts of (parts[p] - per_zero * zeros in p)``.

    Attributes:
        base: What no candidate can save.
        parts: What each sub-layer adds while it is kept.
        per_zero: What one zero in a matrix saves.
    """

    base: float
    parts: tuple[float, ...]
    per_zero: float = 0.0


def outline(units: Sequence[Unit], architecture: Architecture) -> tuple[Part, ...]:
    """The sub-layers among `units`, in model order."""
    own = {"attention": 0, "mlp": 1}
    return tuple(
        Part(
            unit,
            tuple(matrix.name for matrix in units if matrix.parent == unit.name),
            sum(matrix.numel for matrix in units if matrix.parent == unit.name),
            architecture.own_params[unit.block][own[unit.kind]],
        )
        for unit in units
        if unit.kind in own
    )


@dataclass(frozen=True, eq=False)
class CostModel:
    """All costs of any candidate of one model.

    Sums of whole numbers below 2**53 are exact, whatever their order.

    Attributes:
        parts: The sub-layers, in model order.
        terms: For each cost name its terms.
        length: Tokens of the sequence that FLOPs and cache are counted for.
    """

    parts: tuple[Part, ...]
    terms: Mapping[str, Terms]
    length: int

    def dense(self) -> dict[str, float]:
        """The costs of the unchanged model."""
        return {name: values.item() for name, values in self.of([Candidate()]).items()}

    def of(self, candidates: Sequence[Candidate]) -> dict[str, NDArray[np.float64]]:
        """The costs of canonical candidates: for each cost an array (N,).

        Raises:
            KeyError: A candidate names a unit that the model does not have.
        """
        kept = np.ones((len(candidates), len(self.parts)), dtype=bool)
        zeros = np.zeros(len(candidates), dtype=np.int64)
        for row, candidate in enumerate(candidates):
            for name, level in candidate.levels:
                if level.drop:
                    kept[row, self._homes[name]] = False
                else:
                    zeros[row] += level.zeros * bool(kept[row, self._homes[name]])
        return self.at(kept, zeros)

    def at(
        self, kept: NDArray[np.bool_], zeros: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """The costs where the states of the sub-layers are known.

        Args:
            kept: Which sub-layers are kept (N, P).
            zeros: Zeros in the matrices of the kept sub-layers (N,).

        Returns:
            For each cost an array (N,).
        """
        base, parts, per_zero = self._stacked
        totals = base + kept.astype(np.float64) @ parts - zeros[:, None] * per_zero
        return {name: totals[:, column] for column, name in enumerate(self.terms)}

    @cached_property
    def _stacked(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        terms = list(self.terms.values())
        return (
            np.array([term.base for term in terms], dtype=np.float64),
            np.array([term.parts for term in terms], dtype=np.float64).T,
            np.array([term.per_zero for term in terms], dtype=np.float64),
        )

    @cached_property
    def _homes(self) -> dict[str, int]:
        """For each sub-layer and matrix the index of its part."""
        return {
            name: index
            for index, part in enumerate(self.parts)
            for name in (part.unit.name, *part.matrices)
        }
