"""Models that do not fit the device: the weights of a block come there when it is run.

They stay in main memory (where those of a checkpoint are memory-mapped, so that they need not
fit there either), and a bounded number of bytes of them is on the device at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.core.cache import Cache
from evocompress.core.errors import ModelError
from evocompress.models.device_copy import to_device
from evocompress.models.families import Family

MIB = 2**20

Copy = Callable[[Tensor], Tensor]
"""Brings a tensor to the device."""


class BlockCache:
    """The blocks of a model, whose weights are lent copies on the device while they run.

    Copies are kept until others need their place; those that were not used for longest go first.
    Whatever runs a block finds its weights on the device, through hooks. A block's parameters, in
    main memory, may be given other tensors at any time that it does not run. No block may have more
    than `limit` bytes of weights, at any level; `peak` is the most that there were.
    """

    def __init__(self, blocks: Iterable[nn.Module], limit: int, copy: Copy) -> None:
        self._copies = Cache(limit)
        self._copy = copy
        self._users: Counter[nn.Module] = Counter()
        self._lent: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}
        self.peak = 0
        for block in blocks:
            block.register_forward_pre_hook(lambda block, _: self._enter(block))
            block.register_forward_hook(lambda block, *_: self._leave(block), always_call=True)

    @property
    def resident(self) -> int:
        """Bytes of weights of blocks that are on the device now."""
        return self._copies.bytes

    def clear(self) -> None:
        """Forgets all copies; they are made again when blocks run."""
        self._copies.make_room(self._copies.limit)

    @contextmanager
    def held(self, block: nn.Module) -> Iterator[None]:
        """Leaves the weights of a block on the device for a while: a backward pass needs them."""
        try:
            self._enter(block)
            yield
        finally:
            self._leave(block)

    def _enter(self, block: nn.Module) -> None:
        self._users[block] += 1
        if self._users[block] > 1:
            return
        lent = self._lent[block] = []
        for parameter in block.parameters():
            source = parameter.data
            lent.append((parameter, source))
            parameter.data = self._resident(source)

    def _leave(self, block: nn.Module) -> None:
        self._users[block] -= 1
        if not self._users[block]:
            for parameter, source in self._lent.pop(block):
                parameter.data = source

    def _resident(self, source: Tensor) -> Tensor:
        """The copy of a tensor. It is kept with the tensor, so no other can get its address."""
        key = f"{source.data_ptr()} {tuple(source.shape)} {source.stride()} {source.dtype}"
        if key not in self._copies:
            self._copies.make_room(source.nbytes)
        # A copy made under inference mode would be of no use to a backward pass later.
        with torch.inference_mode(False):
            _, copy = self._copies.get(
                key, lambda: (source, self._copy(source)), lambda pair: pair[1].nbytes
            )
        self.peak = max(self.peak, self.resident)
        return copy


def stream_blocks(
    model: PreTrainedModel, family: Family, device: torch.device, limit: int
) -> BlockCache:
    """Brings everything but the blocks' weights to a device, and those only when they run.

    Raises:
        ModelError: The limit in bytes is too low for a single block.
    """
    blocks = family.blocks(model)
    largest = max(sum(p.nbytes for p in block.parameters()) for block in blocks)
    in_blocks = sum(parameter.nbytes for parameter in blocks.parameters())
    outer = sum(parameter.nbytes for parameter in model.parameters()) - in_blocks
    if limit < outer + largest:
        raise ModelError(
            f"model.device_memory={limit} bytes is too little: embeddings and head take "
            f"{outer / MIB:,.0f} MiB and a block {largest / MIB:,.0f} MiB, so give at least "
            f"{outer + largest} (better twice that)"
        )
    _move_all_but(blocks, model, device)
    return BlockCache(blocks, limit - outer, partial(to_device, device=device, copy=True))


def _move_all_but(blocks: nn.ModuleList, model: nn.Module, device: torch.device) -> None:
    own = set(blocks.parameters())
    for parameter in model.parameters():
        if parameter not in own:
            parameter.data = parameter.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
