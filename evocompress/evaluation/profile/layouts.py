"""Whole models by the widths of their sub-layers, and those whose times give the parts' times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from evocompress.core.architecture import Architecture
from evocompress.core.types import DROP, Candidate, Level, Unit
from evocompress.space.costs.latency import Heads

MULTIPLE = 32
"""Channels are cut to multiples of this; hardware prefers them."""

CHANNEL_STEPS = 8
LARGEST_GRID = 16
"""Most widths of an attention that are measured."""

GROUP_HEADS = 4
"""Most numbers of query heads per group that are measured."""


@dataclass(frozen=True)
class ModelWidths:
    """The widths of each block's attention and MLP, ``None`` where it is left out."""

    attention: tuple[Heads | None, ...]
    mlp: tuple[int | None, ...]

    @property
    def kept_attention(self) -> list[Heads]:
        """Widths of the attentions that are there."""
        return [width for width in self.attention if width is not None]

    @property
    def kept_mlp(self) -> list[int]:
        """Widths of the MLPs that are there."""
        return [width for width in self.mlp if width is not None]


@dataclass(frozen=True)
class Grid:
    """The widths that are measured, of attentions and of MLPs; the last ones are the full ones.

    Attentions have every pair of some numbers of key-value heads and some of query heads.
    """

    attention: tuple[Heads, ...]
    mlp: tuple[int, ...]
    layers: int

    @property
    def dense(self) -> ModelWidths:
        """The unchanged model."""
        return self.even(self.attention[-1], self.mlp[-1])

    @property
    def middle(self) -> tuple[Heads, int]:
        """Widths halfway, at which one kind of sub-layer is while the other is measured."""
        groups = sorted({groups for groups, _ in self.attention})
        heads = sorted({heads for _, heads in self.attention})
        width = groups[len(groups) // 2], heads[len(heads) // 2]
        return width, self.mlp[len(self.mlp) // 2]

    def even(self, attention: Heads | None, mlp: int | None) -> ModelWidths:
        """The same heads and channels in all blocks; ``None`` drops these sub-layers."""
        return ModelWidths((attention,) * self.layers, (mlp,) * self.layers)


def grid(architecture: Architecture) -> Grid:
    """Widths that cover a model: eighths of its channels, and up to 16 widths of an attention."""
    groups, channels = architecture.kv_heads[0], architecture.channels[0]
    heads = architecture.heads[0] // groups
    some_heads = _spread(heads, GROUP_HEADS)
    some_groups = _spread(groups, LARGEST_GRID // len(some_heads))
    eighths = [channels * step / CHANNEL_STEPS for step in range(CHANNEL_STEPS)]
    widths = {MULTIPLE * max(1, round(width / MULTIPLE)) for width in eighths}
    return Grid(
        tuple(product(some_groups, some_heads)),
        (*sorted(width for width in widths if width < channels), channels),
        len(architecture.kv_heads),
    )


def _spread(largest: int, count: int) -> list[int]:
    """Up to `count` whole numbers from 1 to `largest`, both among them where two fit."""
    places = np.linspace(largest, 1, min(count, largest))
    return sorted({round(float(place)) for place in places})


def measured_layouts(widths: Grid) -> list[ModelWidths]:
    """Layouts from whose times those of all parts follow.

    Each width of one kind in all blocks at once, the other kind at its middle, so that weights
    come from memory as in a real candidate; then models without the one kind, and without both.
    """
    full_attention, full_mlp = widths.attention[-1], widths.mlp[-1]
    middle_attention, middle_mlp = widths.middle
    layouts = [
        *(widths.even(width, middle_mlp) for width in (*widths.attention, None)),
        *(widths.even(middle_attention, width) for width in (*widths.mlp, None)),
        widths.even(full_attention, None),
        widths.even(None, full_mlp),
        widths.even(None, None),
    ]
    return [layout for layout in dict.fromkeys(layouts) if layout != widths.dense]


def layout_candidate(layout: ModelWidths, dense: ModelWidths, units: Sequence[Unit]) -> Candidate:
    """A layout as a candidate."""
    levels = {}
    for unit in units:
        heads, channels = layout.attention[unit.block], layout.mlp[unit.block]
        if unit.kind == "attention" and heads != dense.attention[unit.block]:
            levels[unit.name] = Level(kv_groups=heads[0], group_heads=heads[1]) if heads else DROP
        elif unit.kind == "mlp" and channels != dense.mlp[unit.block]:
            levels[unit.name] = DROP if channels is None else Level(channels=channels)
    return Candidate(tuple(sorted(levels.items())))
