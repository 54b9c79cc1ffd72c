"""The hidden states of all calibration sequences, carried from block to block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evocompress.models.loading import LoadedModel


class HiddenStates:
    """What enters the next block, for every sequence, in the model's type and main memory.

    Those that enter a later block are given, one for each batch, as `current` was there.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        tokens: Tensor,
        batch: int,
        entering: Sequence[Tensor] | None = None,
    ) -> None:
        self._blocks = list(loaded.family.blocks(loaded.model))
        self._device = loaded.model.device
        # Sequences have one length and no padding, so batches of the same size share these.
        self._arguments: dict[int, list[dict[str, Any]]] = {}
        self._states: list[Tensor] = list(entering or ())
        with torch.no_grad():
            for ids in torch.split(tokens, batch):
                if entering is not None and len(ids) in self._arguments:
                    continue
                states, arguments = loaded.family.block_inputs(loaded.model, ids.to(self._device))
                self._arguments.setdefault(len(ids), arguments)
                if entering is None:
                    self._states.append(states.to("cpu"))

    @property
    def current(self) -> list[Tensor]:
        """The states as they are now, one for each batch; later passes leave them alone."""
        return list(self._states)

    def run(self, index: int, *, keep: bool) -> None:
        """Pass every sequence through the block that the states enter; `keep` what comes out."""
        block = self._blocks[index]
        with torch.no_grad():
            for position, states in enumerate(self._states):
                arguments = self._arguments[len(states)][index]
                outputs = block(states.to(self._device), **arguments)
                if keep:
                    self._states[position] = outputs.to("cpu")
