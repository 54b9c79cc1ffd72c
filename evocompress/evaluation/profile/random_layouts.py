"""Random whole models whose times check the sum of the parts' times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import TypeVar

import numpy as np

from evocompress.evaluation.profile.layouts import MULTIPLE, Grid, ModelWidths
from evocompress.space.costs.latency import Heads

T = TypeVar("T")

MOST_DROPS = 0.6
"""Highest share of a layout's cuts that remove a sub-layer instead of narrowing it."""


def random_layouts(
    widths: Grid,
    count: int,
    seconds: Callable[[ModelWidths], float],
    rng: np.random.Generator,
    *,
    shortest: float = 0.4,
) -> list[ModelWidths]:
    """Random layouts, `count` of them, whose expected times are spread evenly from `shortest` to 1.

    Both are fractions of the unchanged model's time, and `seconds` gives the expected time of a
    layout; other widths than the model's may be drawn.
    """
    dense = seconds(widths.dense)
    middles = (np.arange(count) + 0.5) / count
    targets = dense * (shortest + (1 - shortest) * middles)
    return [_random_layout(widths.dense, target, seconds, rng) for target in targets]


def _random_layout(
    layout: ModelWidths,
    target: float,
    seconds: Callable[[ModelWidths], float],
    rng: np.random.Generator,
) -> ModelWidths:
    """Cuts random sub-layers until the time is at most `target`, or nothing is left to cut.

    How often a cut removes the sub-layer is drawn once, so that some layouts are shallow and
    others narrow.
    """
    drops = rng.uniform(0, MOST_DROPS)
    while seconds(layout) > target and (places := _cuttable(layout)):
        kind, block = places[rng.integers(len(places))]
        layout = _cut(layout, kind, block, dropping=rng.random() < drops, rng=rng)
    return layout


def _cuttable(layout: ModelWidths) -> list[tuple[str, int]]:
    """Where something can be cut; the first attention stays, as caches count its tokens."""
    attention = [("attention", b) for b, width in enumerate(layout.attention) if b and width]
    return attention + [("mlp", b) for b, width in enumerate(layout.mlp) if width]


def _cut(
    layout: ModelWidths, kind: str, block: int, *, dropping: bool, rng: np.random.Generator
) -> ModelWidths:
    """The layout with one sub-layer narrower, or removed where it is `dropping` or narrowest."""
    if kind == "attention":
        width = layout.attention[block]
        heads = None if dropping or width is None else _narrower_heads(width, rng)
        return replace(layout, attention=_put(layout.attention, block, heads))
    channels = layout.mlp[block]
    fewer = None if dropping or channels is None else _fewer_channels(channels, rng)
    return replace(layout, mlp=_put(layout.mlp, block, fewer))


def _narrower_heads(width: Heads, rng: np.random.Generator) -> Heads | None:
    groups, heads = width
    options = list(product(range(1, groups + 1), range(1, heads + 1)))[:-1]
    return options[rng.integers(len(options))] if options else None


def _fewer_channels(channels: int, rng: np.random.Generator) -> int | None:
    options = range(MULTIPLE, channels, MULTIPLE)
    return options[rng.integers(len(options))] if options else None


def _put(widths: tuple[T, ...], block: int, width: T) -> tuple[T, ...]:
    return (*widths[:block], width, *widths[block + 1 :])
