"""Keys and values rounded as a cache of few bits holds them, while a model runs in torch.

What an attention computes with is what such a cache gives back, of all tokens, also of the last,
which a program may keep as they are until a block is full (KIVI, Liu et al. 2024, 2402.02750): that
loses less than is measured here. Where a block is of several tokens, as of keys in torch, the last
of them have a part in how the first are rounded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evocompress.compression.quantization.grids import choose_grid
from evocompress.core.errors import ModelError
from evocompress.core.storage import CACHE, CACHES, StorageType
from evocompress.models.families.caches import cache_argument

ROUNDING = "cache_rounding"
"""The module that is put into an attention whose cache is rounded."""


TURN = 64
"""llama.cpp multiplies heads by Hadamard matrices before it rounds, values by ones of this size and
keys by the largest that fit, and what it reads once more, where heads are multiples of it
(``llama-kv-cache.cpp``, since April 2026; not with ``LLAMA_ATTN_ROT_DISABLE``). Keys whose channels
its files have in another order, as those of Llama, it rounds in that one: single numbers differ
from these, their errors are alike."""


def rounded_cache(keys: Tensor, values: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Keys and values (B, heads, S, width) as a cache of a type gives them back.

    Args:
        keys: Rotated, as they are cached.
        values: Of as many tokens.
        name: A type of `evocompress.core.storage.CACHES`.

    Examples:
        >>> keys, values = torch.randn(1, 1, 40, 32), torch.randn(1, 1, 40, 32)
        >>> rounded_cache(keys, values, "kv2")[0][0, 0, :32, 5].unique().numel()
        4
    """
    kind = CACHES[name]
    if kind.lane == CACHE:
        return _rounded(keys, kind, -2), _rounded(values, kind, -1)
    turns = _hadamard(_largest_turn(keys.shape[-1]), keys), _hadamard(TURN, values)
    found = (
        _turned(_rounded(_turned(x, turn), kind, -1), turn).to(x.dtype)
        for x, turn in zip((keys, values), turns, strict=True)
    )
    return next(found), next(found)


def _largest_turn(width: int) -> int:
    """The largest power of two from 64 on that divides a head's width, else 64."""
    return max(TURN, width & -width)


def _hadamard(size: int, like: Tensor) -> Tensor:
    """The orthonormal matrix of Sylvester (size, size), which is its own inverse."""
    found = torch.ones(1, 1, device=like.device)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found.div(size**0.5)


def _turned(values: Tensor, turn: Tensor) -> Tensor:
    """Values (..., width) times a matrix, part by part, or not where it does not fit; float32."""
    if values.shape[-1] % len(turn):
        return values.float()
    return (values.float().reshape(-1, len(turn)) @ turn).reshape(values.shape)


def _rounded(values: Tensor, kind: StorageType, dim: int) -> Tensor:
    """Values rounded in blocks along an axis; a last block that is not full has fewer."""
    along = values.float().movedim(dim, 0)
    missing = -len(along) % kind.block
    full = torch.cat([along, along[-1:].expand(missing, *along.shape[1:])]) if missing else along
    blocks = full.reshape(-1, kind.block, *along.shape[1:]).movedim(1, 0)
    flat = blocks.reshape(kind.block, -1)
    grid = choose_grid(flat, kind, torch.float16, check=False)
    back = grid.values(grid.codes(flat)).reshape(blocks.shape).movedim(0, 1)
    return back.reshape(full.shape)[: len(along)].movedim(0, dim).to(values.dtype)


class _Rounding(torch.autograd.Function):
    """Rounds, passes gradients straight through, and tells what other types would do.

    The gradient by the entry of ``places`` of a type is that by keys and values times what the type
    changes of them: as if it were a share with which that change is mixed in.
    """

    @staticmethod
    def forward(
        context: Any,
        keys: Tensor,
        values: Tensor,
        places: Tensor | None,
        now: str,
        names: Sequence[str],
    ) -> tuple[Tensor, Tensor]:
        if names:
            context.save_for_backward(keys, values)
        context.names = names
        return rounded_cache(keys, values, now) if now else (keys.clone(), values.clone())

    @staticmethod
    def backward(context: Any, by_keys: Tensor, by_values: Tensor) -> Any:
        pair, products = context.saved_tensors, []
        for name in context.names if context.needs_input_grad[2] else ():
            changed = rounded_cache(pair[0], pair[1], name)
            changes = [(new.float() - old.float()) for new, old in zip(changed, pair, strict=True)]
            gradients = by_keys.float(), by_values.float()
            products.append(sum((g * c).sum() for g, c in zip(gradients, changes, strict=True)))
        by_places = torch.stack(products) if products else None
        return by_keys, by_values, by_places, None, None


class CacheRounding(nn.Module):
    """Rounds what an attention caches.

    Attributes:
        now: The type; empty where nothing is rounded.
        names: Types whose changes the gradients of `places` tell.
        places: (types,), where there are any; its values mean nothing.

    Examples:
        >>> CacheRounding("kv4", ("kv8", "kv2")).places.shape
        torch.Size([2])
    """

    def __init__(self, now: str, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.now, self.names = now, tuple(names)
        self.places: nn.Parameter | None = None
        if names:
            self.places = nn.Parameter(torch.zeros(len(names)), requires_grad=False)
        self.used = False

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, S, width), rounded."""
        self.used = True
        found: tuple[Tensor, Tensor] = _Rounding.apply(
            keys, values, self.places, self.now, self.names
        )  # type: ignore[no-untyped-call]
        return found


class _Cache:
    """Stands for the cache that an attention is given, or for none; rounds what it gives back."""

    def __init__(self, own: Any, rounding: CacheRounding) -> None:
        self._own, self._rounding = own, rounding

    def update(self, keys: Tensor, values: Tensor, *rest: Any, **named: Any) -> Any:
        """What the attention computes with."""
        if self._own is not None:
            keys, values = self._own.update(keys, values, *rest, **named)
        return self._rounding(keys, values)

    def get_seq_length(self, *given: Any) -> int:
        """Tokens that it holds, as MPT asks."""
        return 0 if self._own is None else int(self._own.get_seq_length(*given))

    def __getattr__(self, name: str) -> Any:
        if self._own is None:
            raise ModelError(f"an attention asks its cache for '{name}', and it has none")
        return getattr(self._own, name)


def round_cache(
    module: nn.Module, unit: str, now: str, names: Sequence[str] = ()
) -> list[RemovableHandle]:
    """Has an attention compute with its keys and values as a cache of a type gives them back.

    Args:
        module: The attention, which gets a `CacheRounding`.
        unit: What an error calls its cache.
        now: The type; an empty one leaves the cache as it is.
        names: Types whose changes gradients tell.

    Returns:
        What is to be removed, beside the module, to undo it.
    """
    # Autograd refuses a gradient that is on another device than what it is of.
    rounding = CacheRounding(now, names).to(next(module.parameters()).device)
    module.add_module(ROUNDING, rounding)
    argument = cache_argument(module)
    assert argument is not None
    place = list(inspect.signature(module.forward).parameters).index(argument)

    def given(_: nn.Module, args: Any, kwargs: Any) -> Any:
        rounding.used = False
        if len(args) > place:
            cache = _Cache(args[place], rounding)
            return (*args[:place], cache, *args[place + 1 :]), kwargs
        return args, kwargs | {argument: _Cache(kwargs.get(argument), rounding)}

    def check(*_: Any) -> None:
        if not rounding.used:
            raise ModelError(f"'{unit}': the attention hands no keys and values to its cache")

    return [
        module.register_forward_pre_hook(given, with_kwargs=True),
        module.register_forward_hook(check),
    ]


class RoundedCaches:
    """The caches of a model's attentions, which can be rounded in place and reversibly.

    Args:
        modules: {cache unit: name of the attention that it is of, and that}, while all are in
            place.
    """

    def __init__(self, modules: Mapping[str, tuple[str, nn.Module]]) -> None:
        self._modules = modules
        self._hooks: dict[str, list[RemovableHandle]] = {}

    def put(self, unit: str, now: str, names: Sequence[str] = ()) -> None:
        """Rounds a cache to a type from now on; an empty one leaves it as it is."""
        _, module = self._modules[unit]
        for handle in self._hooks.pop(unit, ()):
            handle.remove()
        if hasattr(module, ROUNDING):
            delattr(module, ROUNDING)
        if now or names:
            self._hooks[unit] = round_cache(module, unit, now, names)

    def parameter(self, unit: str) -> str:
        """The name of the parameter whose gradient tells what types change."""
        return f"{self._modules[unit][0]}.{ROUNDING}.places"

    def names(self, unit: str) -> tuple[str, ...]:
        """The types that it tells of."""
        rounding = self._modules[unit][1].get_submodule(ROUNDING)
        assert isinstance(rounding, CacheRounding)
        return rounding.names
