"""How levels of one unit compare: which of them keep nothing that another one cuts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from evocompress.core.arrays import Integers
from evocompress.core.storage import stored_bits
from evocompress.core.types import Level


def only_cuts(level: Level, wider: Level) -> bool:
    """Whether a level keeps nothing that another one cuts, and cuts more; no drop does.

    Examples:
        >>> only_cuts(Level(zeros=9, bits="q4_0"), Level(zeros=8, bits="q8_0"))
        True
        >>> only_cuts(Level(zeros=9, bits="q8_0"), Level(zeros=8, bits="q4_0"))
        False
    """
    if level.drop or wider.drop or level == wider:
        return False
    if level.narrow or wider.narrow:
        return _narrower(level, wider)
    less = level.zeros - wider.zeros, stored_bits(wider.type) - stored_bits(level.type)
    if level.type == wider.type:
        less = less[0], 0.0
    return min(less) >= 0 and max(less) > 0


def _narrower(level: Level, wider: Level) -> bool:
    if not level.narrow or wider.dense:
        return level.narrow
    if level.channels is not None:
        assert wider.channels is not None
        return level.channels <= wider.channels
    assert level.kv_groups is not None and level.group_heads is not None
    assert wider.kv_groups is not None and wider.group_heads is not None
    return level.kv_groups <= wider.kv_groups and level.group_heads <= wider.group_heads


def in_one_order(levels: Sequence[Level]) -> bool:
    """Whether each level of a matrix cuts more than the one before it, of the same thing.

    Examples:
        >>> in_one_order([Level(bits="q8_0"), Level(bits="q4_0")])
        True
        >>> in_one_order([Level(bits="q4_0"), Level(bits="iq4_nl")])  # of the same size
        False
    """
    one = len({level.type for level in levels}) == 1 or len({lv.zeros for lv in levels}) == 1
    return one and all(only_cuts(later, level) for level, later in pairwise(levels))


def steps_between(levels: tuple[Level, ...], now: int) -> Integers:
    """How many steps each level (levels,) is away from the one of an index.

    Where a matrix has both zeros and types, a step is one of either or of both.

    Examples:
        >>> both = [Level(zeros=z, bits=b) for b in ("q8_0", "q4_0") for z in (0, 8, 16)]
        >>> steps_between(tuple(both), 0).tolist()
        [0, 1, 2, 1, 1, 2]
    """
    places = _places(levels)
    return np.asarray(np.abs(places - places[now]).max(axis=1))


@lru_cache(maxsize=1024)
def _places(levels: tuple[Level, ...]) -> Integers:
    """The places of levels in one order or in two (levels, 1 or 2)."""
    types = list(dict.fromkeys(level.type for level in levels))
    zeros = sorted({level.zeros for level in levels})
    if min(len(types), len(zeros)) == 1:
        return np.arange(len(levels))[:, None]
    return np.array([(types.index(level.type), zeros.index(level.zeros)) for level in levels])
