"""Shared prefixes: blocks that would compute what they computed last time are not run again.

Candidates that are asked one after the other often agree in their first blocks: greedy removal,
single changes. What leaves a block depends only on the tokens and on the levels up to that block,
and every block is called with what a full pass would give it: values are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import Candidate, Level, Unit
from evocompress.core.units import users_of
from evocompress.models.families.base import final_states
from evocompress.models.families.outer import EMBEDDING
from evocompress.models.families.stand_ins import run_block

# For all micro-batches together. A micro-batch of 1024 tokens takes 37 MB of SmolLM2-135M in
# bfloat16 (31 states of 1024 x 576 values), and 277 MB of a model with 32 blocks of width 4096.
LIMIT_BYTES = 512 * 2**20

BlockLevels = tuple[tuple[str, Level], ...]
"""What a candidate says of one block: names of its units and their levels."""


@dataclass(eq=False)
class Stream:
    """The residual stream of a micro-batch at the borders of blocks, of the candidate last run.

    Attributes:
        arguments: For each block the keyword arguments that it is called with.
        states: By how many blocks lie before it: what enters the first block (b, S, H), and
            what leaves every `every`-th block run so far, and the last.
        every: Blocks between two kept states. One that is not kept is computed from the one
            before it.
        levels: What the candidate said of each block run so far.
        entering: What it said of the input embedding.
    """

    arguments: Sequence[dict[str, Any]]
    states: dict[int, Tensor]
    every: int = 1
    entering: BlockLevels = ()
    levels: list[BlockLevels] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes once every block has been run."""
        return self.bytes_with(self.every)

    def bytes_with(self, every: int) -> int:
        """Bytes of all kept states, with this number of blocks between two of them."""
        return self.states[0].nbytes * (1 + ceil(len(self.arguments) / every)) + self._of_arguments

    @cached_property
    def _of_arguments(self) -> int:
        storages = [tensor.untyped_storage() for tensor in tensors(self.arguments)]
        # Blocks share most of their arguments.
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def run(self, blocks: nn.ModuleList, levels: Sequence[BlockLevels]) -> Tensor:
        """The state (b, S, H) behind the last block.

        Blocks are run from the last kept state on that `levels`, one entry a block, leaves true.
        """
        pairs = zip(self.levels, levels, strict=False)
        same = next((i for i, (old, new) in enumerate(pairs) if old != new), len(self.levels))
        del self.levels[same:]
        self.states = {place: state for place, state in self.states.items() if place <= same}
        begin = max(self.states)
        hidden = self.states[begin]
        # Each state is noted together with its levels, so that a failure leaves what is true.
        for index in range(begin, len(blocks)):
            hidden = run_block(blocks[index], hidden, self.arguments[index])
            if index == len(self.levels):
                self.levels.append(levels[index])
            if (index + 1) % self.every == 0 or index + 1 == len(blocks):
                self.states[index + 1] = hidden
        return hidden

    def pass_through(self, blocks: nn.ModuleList) -> Tensor:
        """What leaves the last block; runs all of them and keeps nothing."""
        hidden = self.states[0]
        for block, keywords in zip(blocks, self.arguments, strict=True):
            hidden = run_block(block, hidden, keywords)
        return hidden


class PrefixStates:
    """Final hidden states of candidates, computed from where they differ from the one before.

    For each micro-batch (b, S) the states of the candidate that was run on it last are kept, within
    `LIMIT_BYTES`; those of every second block, every third, ..., where all of one micro-batch are
    too much. The least recently used micro-batches give way, but never for one of the same
    candidate: candidates mostly run over the same ones in the same order, in which each would be
    gone just before its turn. Only `LiveModel.apply` may change the model.
    """

    def __init__(self, live: LiveModel, micro_batches: Sequence[Tensor]) -> None:
        self._live = live
        self._ids = micro_batches
        # The least recently used one comes first.
        self._streams: dict[int, Stream] = {}
        self._sizes: dict[torch.Size, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that all kept states and block arguments take."""
        return sum(stream.nbytes for stream in self._streams.values())

    @torch.inference_mode()
    def hidden_states(self, micro_batch: int) -> Tensor:
        """The states (b, S, H) behind the final norm, of the model as it stands.

        They equal those of `Family.hidden_states`.
        """
        family, model = self._live.loaded.family, self._live.loaded.model
        blocks = family.blocks(model)
        levels = levels_by_block(self._live.current, self._live.units)
        stream = self._streams.pop(micro_batch, None)
        if stream is None or stream.entering != self._entering:
            stream = self._begin(micro_batch)
        if self._make_room(stream.nbytes, levels):
            self._streams[micro_batch] = stream
            hidden = stream.run(blocks, levels)
        else:
            hidden = stream.pass_through(blocks)
        return final_states(family, model, hidden)

    def chunks(self, micro_batches: Sequence[int]) -> Iterator[list[int]]:
        """Groups of micro-batches, in their order, whose states can be kept at the same time.

        Candidates that are run on one group after the other share states on all of them.
        """
        return groups_within(LIMIT_BYTES, ((index, self._size(index)) for index in micro_batches))

    @torch.inference_mode()
    def _size(self, micro_batch: int) -> int:
        """Bytes that the states of a micro-batch take."""
        shape = self._ids[micro_batch].shape
        if shape not in self._sizes:
            self._sizes[shape] = self._begin(micro_batch).nbytes
        return self._sizes[shape]

    def clear(self) -> None:
        """Keep nothing, and so give the memory back."""
        self._streams.clear()

    @property
    def _entering(self) -> BlockLevels:
        return embedding_level(self._live.current, self._live.units)

    def _begin(self, micro_batch: int) -> Stream:
        """A micro-batch before the first block."""
        loaded = self._live.loaded
        hidden, arguments = loaded.family.block_inputs(loaded.model, self._ids[micro_batch])
        stream = Stream(arguments, {0: hidden}, entering=self._entering)
        choices = range(1, len(arguments) + 1)
        fitting = (every for every in choices if stream.bytes_with(every) <= LIMIT_BYTES)
        stream.every = next(fitting, len(arguments))
        return stream

    def _make_room(self, nbytes: int, levels: Sequence[BlockLevels]) -> bool:
        """Whether these bytes fit as well; states of other candidates give way for them."""
        for micro_batch, stream in list(self._streams.items()):
            if self.nbytes + nbytes <= LIMIT_BYTES or stream.levels == levels:
                break
            del self._streams[micro_batch]
        return self.nbytes + nbytes <= LIMIT_BYTES


def groups_within(limit: int, sizes: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Groups of numbers, in their order, whose sizes add up to at most a limit, or of one alone."""
    group: list[int] = []
    used = 0
    for number, size in sizes:
        if group and used + size > limit:
            yield group
            group, used = [], 0
        group.append(number)
        used += size
    if group:
        yield group


def levels_by_block(candidate: Candidate, units: Mapping[str, Unit]) -> list[BlockLevels]:
    """What a candidate says of each block and its parts, on which its computation depends.

    Also that of a merged block, which takes the dense matrices of those after it, and of the first
    block with matrices that it shares.
    """
    levels: list[list[tuple[str, Level]]] = [[] for u in units.values() if u.kind == "block"]
    users = users_of(units.values())
    for name, level in candidate.levels:
        own = units[name].block
        levels[own].append((name, level))
        for later in users.get(own, ()) if not level.drop else ():
            levels[later] += [(name, level)] if later != own else []
    return [tuple(of_block) for of_block in levels]


def embedding_level(candidate: Candidate, units: Mapping[str, Unit]) -> BlockLevels:
    """What a candidate says of the input embedding, on which depends what enters the first block.

    It is among what `levels_by_block` has of that block, as the head's is of the last one.
    """
    return tuple(
        (name, level)
        for name, level in candidate.levels
        if (units[name].kind, units[name].role) == ("outer", EMBEDDING)
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested sequences and mappings; one that is there twice comes twice."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
