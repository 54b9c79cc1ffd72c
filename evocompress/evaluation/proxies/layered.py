"""Many candidates at once, block after block: for models whose blocks do not all fit the device.

What enters a block, of every candidate and micro-batch, waits in main memory, so each block comes
to the device once for all candidates and not once for each of them. What candidates share before
they differ is computed once, as in `evocompress.evaluation.proxies.prefix`: both modules compute
every node of the candidates' trie (`evocompress.evaluation.proxies.order`), this one level by level
and that one along the branches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import Candidate
from evocompress.evaluation.proxies.prefix import (
    BlockLevels,
    embedding_level,
    groups_within,
    levels_by_block,
)
from evocompress.models.device_copy import to_device
from evocompress.models.families.base import final_states
from evocompress.models.families.stand_ins import run_block

SHARE = 0.25
"""Of the main memory that is available what waiting states may take."""

Ask = tuple[Candidate, Sequence[int]]
"""A candidate and its micro-batches."""

StatesByBatch = Mapping[int, Tensor]
"""By micro-batch."""

Path = tuple[BlockLevels, ...]
"""What a candidate says of the embedding, and of the blocks up to one: a node of the trie."""


@dataclass(frozen=True, eq=False)
class _Entry:
    """A micro-batch before the first block, and what each block is called with beside it."""

    hidden: Tensor
    arguments: Sequence[Mapping[str, Any]]


class LayeredStates:
    """Final hidden states of several candidates, computed together.

    The model is dense when an answer is there. Micro-batches (b, S) are on its device.
    """

    def __init__(self, live: LiveModel, micro_batches: Sequence[Tensor]) -> None:
        self._live = live
        self._ids = micro_batches
        self._device = live.loaded.model.device
        self._architecture = live.loaded.family.architecture(live.loaded.model)

    def groups(self, asks: Sequence[Ask]) -> Iterator[Sequence[int]]:
        """Indices of those that are best computed together, in order, as many as memory allows."""
        # Both what enters a block and what leaves it.
        needed = [2 * sum(map(self._state_bytes, micro_batches)) for _, micro_batches in asks]
        room = int(SHARE * psutil.virtual_memory().available)
        yield from groups_within(room, enumerate(needed))

    @torch.inference_mode()
    def hidden_states(self, asks: Sequence[Ask]) -> list[StatesByBatch]:
        """The states (b, S, H) behind the final norm, in main memory.

        They equal those of `Family.hidden_states` with each candidate applied.
        """
        units = self._live.units
        paths = [
            (embedding_level(candidate, units), *levels_by_block(candidate, units))
            for candidate, _ in asks
        ]
        wanted = [tuple(micro_batches) for _, micro_batches in asks]
        entries = self._entries(_nodes(paths, wanted, 1))
        states: dict[Path, dict[int, Tensor]] = {
            path: {index: entry.hidden for index, entry in own.items()}
            for path, own in entries.items()
        }
        family, model = self._live.loaded.family, self._live.loaded.model
        for depth in range(len(family.blocks(model))):
            states = self._through(depth, states, _nodes(paths, wanted, depth + 2), entries)
        return [
            {
                index: final_states(family, model, self._there(states[tuple(path)][index])).cpu()
                for index in micro_batches
            }
            for path, micro_batches in zip(paths, wanted, strict=True)
        ]

    def _through(
        self,
        depth: int,
        states: Mapping[Path, Mapping[int, Tensor]],
        nodes: Mapping[Path, Sequence[int]],
        entries: Mapping[Path, Mapping[int, _Entry]],
    ) -> dict[Path, dict[int, Tensor]]:
        """What leaves a block: each of its levels is applied once for all nodes that have it."""
        found: dict[Path, dict[int, Tensor]] = {}
        by_levels: defaultdict[BlockLevels, list[Path]] = defaultdict(list)
        for path in nodes:
            by_levels[path[-1]].append(path)
        for levels, paths in by_levels.items():
            self._live.apply(Candidate(levels))
            block = self._live.loaded.family.blocks(self._live.loaded.model)[depth]
            for path in paths:
                before, own = states[path[:-1]], entries[path[:1]]
                found[path] = {
                    index: self._passed(block, before[index], own[index].arguments[depth])
                    for index in nodes[path]
                }
        self._live.restore()
        return found

    def _passed(self, block: nn.Module, state: Tensor, keywords: Mapping[str, Any]) -> Tensor:
        return run_block(block, self._there(state), keywords).cpu()

    def _there(self, state: Tensor) -> Tensor:
        return to_device(state, self._device)

    def _entries(self, nodes: Mapping[Path, Sequence[int]]) -> dict[Path, dict[int, _Entry]]:
        """The micro-batches before the first block, for each level of the embedding."""
        found: dict[Path, dict[int, _Entry]] = {}
        for path, micro_batches in nodes.items():
            self._live.apply(Candidate(path[0]))
            found[path] = {index: self._entry(index) for index in micro_batches}
        self._live.restore()
        return found

    def _entry(self, micro_batch: int) -> _Entry:
        loaded = self._live.loaded
        hidden, arguments = loaded.family.block_inputs(loaded.model, self._ids[micro_batch])
        return _Entry(hidden.cpu(), arguments)

    def _state_bytes(self, micro_batch: int) -> int:
        ids = self._ids[micro_batch]
        values = self._architecture.state_values(self._live.loaded.length(ids))
        return len(ids) * values * self._architecture.dtype_bytes


def _nodes(
    paths: Sequence[Sequence[BlockLevels]], wanted: Sequence[Sequence[int]], depth: int
) -> dict[Path, list[int]]:
    """The nodes of the trie at a depth, and the micro-batches asked of each."""
    found: defaultdict[Path, set[int]] = defaultdict(set)
    for path, micro_batches in zip(paths, wanted, strict=True):
        found[tuple(path[:depth])].update(micro_batches)
    return {path: sorted(indices) for path, indices in found.items()}
