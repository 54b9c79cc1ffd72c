"""Amounts of costs in words."""

from __future__ import annotations

import pytest

from evocompress.space.costs import amount_text


@pytest.mark.parametrize(
    ("cost", "amount", "text"),
    [
        ("params", 134_515_008.0, "134,515,008"),
        ("latency", 0.8123456, "812.3 ms"),
        ("latency", 12.3456, "12,346 ms"),
        ("decode_latency", 0.0413, "41.30 ms"),
        ("decode_latency", 0.00012346, "0.1235 ms"),
        ("decode_latency", 0.001, "1.000 ms"),
        ("latency", 0.0, "0 ms"),
    ],
)
def test_seconds_are_shown_as_milliseconds(cost: str, amount: float, text: str) -> None:
    assert amount_text(cost, amount) == text
