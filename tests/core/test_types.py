"""Levels on their own, without a model."""

from __future__ import annotations

import pytest

from evocompress.core.types import Level


@pytest.mark.parametrize(
    ("level", "left", "zeros"),
    [
        (Level(zeros=100), 1000, 100),
        (Level(zeros=100), 333, 33),
        (Level(zeros=999), 999, 998),
        (Level(zeros=1), 999, 0),
        (Level(zeros=500, pattern="2:4"), 100, 50),
        (Level(zeros=250, pattern="1:4"), 100, 25),
    ],
)
def test_zeros_are_scaled_down_to_the_integer_below(level: Level, left: int, zeros: int) -> None:
    assert level.zeros_left(1000, left) == zeros
