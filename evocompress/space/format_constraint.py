"""A search space without the levels that a checkpoint format cannot express."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from evocompress.core.canonical import canonical
from evocompress.core.errors import ConfigError
from evocompress.core.types import DENSE, Candidate, Level, Unit
from evocompress.space.encoding import Encoding

Obstacle = Callable[[Candidate], str | None]
"""What of which unit a format cannot express of a candidate; ``None`` if it can."""


def fitting(genes: Encoding, obstacle: Obstacle, what: str) -> Encoding:
    """The same genes without the levels that a format cannot express.

    A level is tried alone, with all units that share its gene at it. This is enough where what a
    format can express is a condition on each unit for itself, as it is for those in
    `evocompress.export.FORMATS`: what they ask of the first layer that is left, they ask of
    the first layer of all, which then is always left.

    Args:
        genes: Of the whole space.
        obstacle: The format's own check.
        what: The format and where it was named, as the beginning of a message.

    Raises:
        ConfigError: The format cannot express the dense model, or nothing of the space.
    """
    whole = obstacle(canonical({}, genes.tree))
    if whole is not None:
        raise ConfigError(f"{what} {whole}; choose another format")
    reasons: list[str] = []

    def fits(members: tuple[Unit, ...], level: Level) -> bool:
        if level.dense:
            return True
        reason = obstacle(canonical({unit.name: level for unit in members}, genes.tree))
        reasons.extend([reason] if reason else [])
        return reason is None

    kept = [
        [index for index, level in enumerate(levels) if fits(members, level)]
        for members, levels in zip(genes.members, genes.levels, strict=True)
    ]
    chosen = [
        gene for gene, indices in enumerate(kept) if indices and _compresses(genes, gene, indices)
    ]
    if not chosen:
        raise ConfigError(f"{what} {reasons[0]}, and so on: it can express nothing of this space")
    return replace(
        genes,
        members=tuple(genes.members[gene] for gene in chosen),
        levels=tuple(tuple(genes.levels[gene][i] for i in kept[gene]) for gene in chosen),
        default=np.array(
            [kept[gene].index(genes.default[gene]) for gene in chosen], dtype=np.int64
        ),
    )


def _compresses(genes: Encoding, gene: int, indices: list[int]) -> bool:
    """Whether a gene still has another level than dense."""
    return any(genes.levels[gene][index] != DENSE for index in indices)
