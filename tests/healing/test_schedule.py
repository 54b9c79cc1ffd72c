from __future__ import annotations

import pytest

from evocompress.core.config import HealConfig
from evocompress.healing.schedule import learning_rate, micro_batch_indices


def test_rate_rises_to_its_peak_and_falls_to_a_tenth() -> None:
    config = HealConfig(steps=100, warmup=0.1, learning_rate=1e-3)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3 / 11)
    assert max(rates) == rates[10] == 1e-3
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(1e-3 * 0.55, rel=0.02)
    assert rates[-1] == pytest.approx(1e-4)


@pytest.mark.parametrize("steps", [1, 2])
def test_shortest_schedules_are_positive(steps: int) -> None:
    config = HealConfig(steps=steps, warmup=0.9)
    assert all(learning_rate(step, config) > 0 for step in range(steps))


def test_each_epoch_uses_every_micro_batch_once_in_a_new_order() -> None:
    config = HealConfig(accumulate=2, seed=3)
    order = [i for step in range(10) for i in micro_batch_indices(step, 5, config)]
    epochs = [order[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    other = HealConfig(accumulate=2, seed=4)
    assert order != [i for step in range(10) for i in micro_batch_indices(step, 5, other)]
