"""A search space without the levels that a checkpoint format cannot express."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from evocompress.core.canonical import canonical
from evocompress.core.errors import ConfigError
from evocompress.core.types import DENSE, Candidate, Level, Unit
from evocompress.space.encoding import Encoding

Obstacle = Callable[[Candidate], str | None]
"""Tells why a format cannot store a candidate, naming the unit; ``None`` if it can."""


def _left(levels: Sequence[Level], kept: Sequence[int], default: int) -> int:
    """The place of a level among those that are left, or of the first one with its zeros."""
    if default in kept:
        return kept.index(default)
    alike = (levels[index].zeros == levels[default].zeros for index in kept)
    return next((place for place, same in enumerate(alike) if same), 0)


def fitting(genes: Encoding, obstacle: Obstacle, what: str) -> Encoding:
    """The same genes without the levels that a format cannot store.

    Each level is tried alone, given to all units of its gene while the rest of the model is
    dense. That suffices as long as a format judges each unit without the others. The formats of
    `evocompress.export.FORMATS` do: what they demand of the first layer that remains, they
    demand of the first layer of the dense model, which therefore always remains.

    Raises:
        ConfigError: The format cannot express the dense model, or nothing of the space.
    """
    whole = obstacle(canonical({}, genes.tree))
    if whole is not None:
        raise ConfigError(f"{what} {whole}; choose another format")
    reasons = [
        [
            None
            if level.dense
            else obstacle(canonical({unit.name: level for unit in members}, genes.tree))
            for level in levels
        ]
        for members, levels in zip(genes.members, genes.levels, strict=True)
    ]
    kept = [[index for index, reason in enumerate(of) if reason is None] for of in reasons]
    # Of a gene that would only be dense nothing is left to decide.
    chosen = [
        gene
        for gene, (indices, levels) in enumerate(zip(kept, genes.levels, strict=True))
        if any(levels[index] != DENSE for index in indices)
    ]
    if not chosen:
        first = next(reason for of in reasons for reason in of if reason is not None)
        raise ConfigError(f"{what} {first}, and so on: it can express nothing of this space")
    return replace(
        genes,
        members=tuple(genes.members[gene] for gene in chosen),
        levels=tuple(tuple(genes.levels[gene][i] for i in kept[gene]) for gene in chosen),
        default=np.array(
            [_left(genes.levels[gene], kept[gene], genes.default[gene]) for gene in chosen],
            dtype=np.int64,
        ),
    )


def with_types(left: Encoding, genes: Encoding, obstacle: Obstacle, what: str) -> Encoding:
    """What is `left` of genes.

    Raises:
        ConfigError: They had types of stored weights, or of caches, and none of these is left.
    """
    for lost in (_first(genes, kind) for kind in ("bits", "cache") if not _first(left, kind)):
        if lost is not None:
            units, level = lost
            reason = obstacle(canonical({unit.name: level for unit in units}, genes.tree))
            raise ConfigError(f"{what} {reason}, and so on: it can hold none of these types")
    return left


def _first(
    genes: Encoding, kind: Literal["bits", "cache"]
) -> tuple[tuple[Unit, ...], Level] | None:
    """The first units and level with a type of stored weights, or of a cache."""
    pairs = zip(genes.members, genes.levels, strict=True)
    return next(((units, lv) for units, own in pairs for lv in own if getattr(lv, kind)), None)
