"""What blocks of the student give, held against the teacher's states at the same place.

Every layer counts as a share of the teacher's own size (LAPTOP-Diff, 2404.11098). Where blocks
were dropped, what a block gives is compared with what the next block that is left used to get:
the student's order is kept, as in CoFi (2204.00408), and none is held against two states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from evocompress.healing.loss import of_states

Pair = tuple[int, int]
"""A student's block, and the teacher's after which there should be what it gives: numbers."""


def matching(total: int, gone: frozenset[int], blocks: int) -> tuple[Pair, ...]:
    """Which of a student's blocks are held against which of the teacher's.

    Args:
        total: Blocks of the teacher.
        gone: Those that the student lacks.
        blocks: Blocks of the student; as many as the teacher's where dropped ones let states pass.

    Examples:
        >>> matching(5, frozenset({1, 2}), 3)
        ((0, 2), (1, 3), (2, 4))
        >>> matching(5, frozenset({1, 2}), 5)
        ((0, 2), (3, 3), (4, 4))
    """
    kept = [block for block in range(total) if block not in gone]
    places = kept if blocks == total else range(len(kept))
    followers = [*kept[1:], total]
    return tuple((place, after - 1) for place, after in zip(places, followers, strict=True))


class LayerLoss:
    """The states after blocks of both models, and what the student's lose against the teacher's."""

    def __init__(
        self,
        student: nn.ModuleList,
        teacher: nn.ModuleList,
        pairs: Sequence[Pair],
        weight: float,
    ) -> None:
        """The blocks of both, those that are compared, and what the loss is multiplied by."""
        self._ours = [student[ours] for ours, _ in pairs]
        self._theirs = [teacher[theirs] for _, theirs in pairs]
        self._weight = weight
        self._states: dict[nn.Module, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keeps what the blocks give while both models run."""
        with ExitStack() as stack:
            for block in {*self._ours, *self._theirs}:
                stack.enter_context(block.register_forward_hook(self._keep))
            yield
        self._states.clear()

    def _keep(self, block: nn.Module, _: Any, output: Any) -> None:
        self._states[block] = output if isinstance(output, Tensor) else output[0]

    def gradients(self, positions: int, scale: float) -> tuple[float, list[tuple[Tensor, Tensor]]]:
        """The loss times a number of positions, and the gradient of `scale` times it by each state.

        The loss is the mean over layers and tokens of |student − teacher|² / |teacher|², times the
        weight.
        """
        total, found = 0.0, []
        for ours, theirs in zip(self._ours, self._theirs, strict=True):
            state = self._states[ours]
            value, gradient = of_states(state.detach(), self._states[theirs])
            share = self._weight * positions / (len(state) * len(self._ours))
            total += share * float(value)
            if state.requires_grad:
                found.append((state, gradient.mul_(share * scale)))
        return total, found
