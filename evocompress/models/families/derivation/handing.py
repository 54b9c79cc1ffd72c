"""Which keys and values blocks hand on to later ones, found by running the blocks of a tiny model.

Such models give every block one mapping: some blocks put keys and values into it, others read those
instead of making their own.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from evocompress.models.families.derivation.block_kind import Kind
from evocompress.models.families.derivation.kinds import with_fixed_heads
from evocompress.models.families.derivation.structure import Unclear
from evocompress.models.families.derivation.tracing import TracedBlock, noted, with_others


def argument_of(examples: Sequence[TracedBlock]) -> str:
    """The argument by which blocks hand on keys and values; empty where they do not.

    Raises:
        Unclear: There are several.
    """
    names = sorted({name for one in examples for name in _stored(one)})
    if len(names) > 1:
        raise Unclear(f"blocks hand things on by several arguments ({', '.join(names)})")
    return next(iter(names), "")


def with_handing(
    kind: Kind, example: TracedBlock, argument: str, shape: tuple[int, int, int]
) -> Kind:
    """A kind of block with what it stores and reads.

    Its heads stay as they are then, unless all queries share one key-value head.

    Args:
        kind: Without that.
        example: A block of the kind.
        argument: See `argument_of`.
        shape: Query heads, key-value heads and the width of a head of the block.

    Raises:
        Unclear: What it stores are no keys and values.
    """
    stores = _stored(example).get(argument, {})
    keys = sorted(example.arguments[argument])
    reads = tuple(key for key in keys if _is_read(example, argument, key))
    for value in stores.values():
        _check_shapes(value, example.hidden.shape[1], shape[1:], argument)
    several = shape[1] > 1
    if stores and several:
        kind = with_fixed_heads(kind, "later blocks read their keys and values")
    if reads and several:
        kind = with_fixed_heads(kind, "they read the keys and values of an earlier block")
    return replace(kind, stores=tuple(sorted(stores)), reads=reads)


def _stored(example: TracedBlock) -> dict[str, dict[str, Any]]:
    """What a block puts into each mapping that it is given."""
    given = noted(example.arguments)
    mappings = {name: own for name, own in given.items() if isinstance(own, MutableMapping)}
    before = noted(mappings)
    example.block(example.hidden, **given)
    found = {
        name: {key: value for key, value in own.items() if before[name].get(key) is not value}
        for name, own in mappings.items()
    }
    return {name: values for name, values in found.items() if values}


def _is_read(example: TracedBlock, argument: str, key: str) -> bool:
    """Whether a block yields something else where a value in a mapping is another one."""
    other = replace(example, arguments=with_others(example.arguments, argument, [key]))
    return not torch.equal(example.run(), other.run())


def _check_shapes(value: Any, tokens: int, shape: tuple[int, ...], argument: str) -> None:
    kv_heads, width = shape
    wanted = (1, kv_heads, tokens, width)
    if not (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(one, Tensor) and one.shape == wanted for one in value)
    ):
        raise Unclear(f"blocks hand on {argument} that are no keys and values of their heads")


def only_read(kinds: Sequence[Kind]) -> list[Kind]:
    """Kinds of blocks that store only what some kind reads."""
    read = {key for kind in kinds for key in kind.reads}
    return [replace(one, stores=tuple(k for k in one.stores if k in read)) for one in kinds]
