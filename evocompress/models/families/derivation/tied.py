"""Parameters that several blocks have: a transformer that runs in many of them, as Zamba's does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from evocompress.models.families.derivation.block_kind import DerivedPart, Kind


def first_sharing(blocks: Iterable[nn.Module]) -> int:
    """How many of the first blocks have two that share parameters; 0 where none do."""
    first: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for parameter in block.parameters():
            if first.setdefault(id(parameter), index) != index:
                return index + 1
    return 0


def shared_with_others(blocks: Iterable[nn.Module]) -> list[tuple[str, ...]]:
    """For each block the names of its parameters that other blocks have as well."""
    named = [dict(block.named_parameters()) for block in blocks]
    counts = Counter(id(parameter) for own in named for parameter in own.values())
    return [tuple(name for name, p in own.items() if counts[id(p)] > 1) for own in named]


def with_tied(kind: Kind, tied: tuple[str, ...]) -> Kind:
    """A kind of block some of whose parameters others have: what is done to it leaves those be."""
    parts = {name: _without(part, tied) for name, part in kind.parts.items()}
    return replace(kind, parts=parts, tied=tied)


def _without(part: DerivedPart, tied: tuple[str, ...]) -> DerivedPart:
    """A sub-layer whose shared matrices stay as they are."""
    own = tuple(matrix for matrix in part.matrices if f"{matrix.path}.weight" not in tied)
    if len(own) == len(part.matrices):
        return part
    first = next(matrix.path for matrix in part.matrices if matrix not in own)
    reason = f"{first} and others stay as they are: several blocks share them"
    return replace(part, matrices=own, settings=None, reason=reason)
