"""Parameters that several blocks have: a transformer that runs in many of them, as Zamba's does.

Its matrices are units of the first of these blocks, where they are compressed for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os.path import commonprefix

from torch import nn
from transformers import PreTrainedConfig

from evocompress.models.families.branches import SubLayerName
from evocompress.models.families.derivation.block_kind import DerivedPart, Kind
from evocompress.models.families.derivation.common import common_law
from evocompress.models.families.derivation.family import Derived


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


def module_of(names: Iterable[str]) -> str:
    """Path of the smallest module with all of some parameters; empty for the block itself.

    Examples:
        >>> module_of(["both.attention.weight", "both.mlp.weight"])
        'both'
    """
    return ".".join(commonprefix([name.split(".")[:-1] for name in names]))


def with_tied(
    kind: Kind, tied: tuple[str, ...], common: Mapping[SubLayerName, DerivedPart]
) -> Kind:
    """A kind of block some of whose parameters others have.

    Args:
        kind: As if all parameters were its own.
        tied: Names of those that others have.
        common: What of these are matrices, by sub-layer.
    """
    parts = {name: _without(part, tied) for name, part in kind.parts.items()}
    return replace(
        kind, parts=parts, tied=tied, common=common, commons=module_of(tied) if common else ""
    )


def _without(part: DerivedPart, tied: tuple[str, ...]) -> DerivedPart:
    """A sub-layer without its shared matrices."""
    own = tuple(matrix for matrix in part.matrices if f"{matrix.path}.weight" not in tied)
    if len(own) == len(part.matrices):
        return part
    first = next(matrix.path for matrix in part.matrices if matrix not in own)
    reason = f"{first} and others stay as they are: several blocks share them"
    return replace(part, matrices=own, settings=None, reason=reason)


def with_first_blocks(
    family: Derived, blocks: Sequence[nn.Module], config: PreTrainedConfig
) -> Derived:
    """A family in which the first block with some matrices has them for all that share them.

    Args:
        family: By whose laws a mixer takes what these matrices take.
        blocks: Of the real model.
        config: Of that.
    """
    kinds = [family.at(index).kinds[0] for index in range(len(family.order))]
    if not any(kind.common for kind in kinds):
        return family
    firsts: dict[int, int] = {}
    sharing = [
        firsts.setdefault(id(block.get_parameter(kind.tied[0])), index) if kind.common else -1
        for index, (kind, block) in enumerate(zip(kinds, blocks, strict=True))
    ]
    each = [_sharing(kind, first=sharing[i] == i) for i, kind in enumerate(kinds)]
    found = family.with_kinds(each, sharing)
    laws = {
        first: common_law(kinds[first], blocks[first], found.heads(config, first))
        for first in firsts.values()
    }
    each = [
        replace(kind, beside=kind.beside.plus(laws[first], -1))
        if kind.beside and first >= 0
        else kind
        for kind, first in zip(each, sharing, strict=True)
    ]
    return found.with_kinds(each, sharing)


def _sharing(kind: Kind, *, first: bool) -> Kind:
    """A kind of block, with the matrices that it shares where it is the first with them."""
    common = kind.common
    if not common:
        return kind
    parts = dict(kind.parts)
    reason = "; ".join(one.reason for one in common.values() if one.reason)
    own = parts["attention"] = replace(parts["attention"], reason=reason)
    if first and (also := common.get("attention")):
        every = (*also.matrices, *own.matrices)
        settings, branch = also.settings, also.branch
        parts["attention"] = replace(own, matrices=every, settings=settings, narrowed=branch)
    if first and "mlp" in common:
        parts["mlp"] = replace(common["mlp"], within=True, reason="")
    return replace(kind, parts=parts)
