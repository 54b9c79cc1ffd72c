"""The hidden states of all calibration sequences, carried from block to block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from evocompress.models.families.base import final_states
from evocompress.models.families.stand_ins import run_block
from evocompress.models.loading import LoadedModel


class HiddenStates:
    """The states (b, S, H) that enter the next block, in the model's type and main memory.

    Args:
        loaded: The model.
        tokens: Ids (N, S) of all calibration sequences, or what else the model takes.
        batch: Sequences that are run at once.
        entering: The states of each batch at a later block, as `current` was there; by default
            those that enter the first block are computed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        tokens: Tensor,
        batch: int,
        entering: Sequence[Tensor] | None = None,
    ) -> None:
        self._blocks = list(loaded.family.blocks(loaded.model))
        self._model = loaded.family, loaded.model
        self._device = loaded.model.device
        # Sequences have one length and no padding, so batches of the same size share most.
        self._arguments: dict[int, list[dict[str, Any]]] = {}
        self._own: list[list[dict[str, Any]]] = []
        self._states: list[Tensor] = list(entering or ())
        with torch.no_grad():
            for ids in torch.split(tokens, batch):
                states, arguments = loaded.family.block_inputs(loaded.model, ids.to(self._device))
                shared = self._arguments.setdefault(len(ids), arguments)
                self._own.append(_differing(arguments, shared))
                if entering is None:
                    self._states.append(states.to("cpu"))

    @property
    def current(self) -> list[Tensor]:
        """The states (b, S, H) of each batch as they are now; later passes leave them alone."""
        return list(self._states)

    def run(self, index: int, *, keep: bool, last: int | None = None) -> None:
        """Pass every sequence through the block of an index; `keep` its outputs as the states.

        Then through those behind it up to the `last`, whose outputs are forgotten.
        """
        with torch.no_grad():
            for position, states in enumerate(self._states):
                outputs = self._passed(index, position, states.to(self._device))
                if keep:
                    self._states[position] = outputs.to("cpu")
                for later in range(index + 1, (index if last is None else last) + 1):
                    outputs = self._passed(later, position, outputs)

    def final(self) -> Iterator[Tensor]:
        """What the head reads (b, S, H) of each batch, where `current` has left the last block."""
        with torch.no_grad():
            for states in self._states:
                yield final_states(*self._model, states.to(self._device))

    def _passed(self, index: int, position: int, states: Tensor) -> Tensor:
        own = _moved(self._own[position][index], self._device)
        arguments = self._arguments[len(states)][index] | own
        return run_block(self._blocks[index], states, arguments)


def _differing(
    arguments: Sequence[Mapping[str, Any]], shared: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """For each block the arguments that depend on the tokens, in main memory."""
    equal = cache(torch.equal)  # blocks share most of their arguments

    def same(one: Any, other: Any) -> bool:
        pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
        return all(a is b or equal(a, b) for a, b in pairs if isinstance(a, Tensor))

    return [
        _moved({name: v for name, v in own.items() if not same(v, first[name])}, "cpu")
        for own, first in zip(arguments, shared, strict=True)
    ]


def _moved(arguments: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Arguments with their tensors on a device."""
    moved: dict[str, Any] = tree_map_only(Tensor, lambda tensor: tensor.to(device), arguments)
    return moved
