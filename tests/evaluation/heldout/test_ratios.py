"""Ratios of times that were measured in turns."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from evocompress.evaluation.heldout import in_turns, ratio


class Machine:
    """Two things whose times are slowed down alike, ten times or not at all, turn by turn."""

    def __init__(self, seed, noise, slow=2.0):
        self._rng = np.random.default_rng(seed)
        self._noise, self._slow = noise, slow
        self._calls = 0

    def measures(self):
        return {"dense": lambda: self._time(1.0), "other": lambda: self._time(self._slow)}

    def _time(self, seconds):
        drift = 10.0 if self._calls // 2 % 3 == 0 else 1.0
        self._calls += 1
        return seconds * drift * float(np.exp(self._rng.normal(0, self._noise)))


def test_what_slows_a_whole_turn_down_cancels_out():
    found = in_turns(Machine(0, noise=0.01).measures(), repeats=9)
    medians = {name: np.median(times) for name, times in found.items()}
    assert max(found["dense"]) > 9 * medians["dense"]
    share = ratio(found["other"], found["dense"])
    assert share.mean == pytest.approx(2.0, rel=0.02)
    assert 1.9 < share.low < share.mean < share.high < 2.1 and share.turns == 9


def test_the_interval_is_that_of_students_test():
    rng = np.random.default_rng(1)
    reference, seconds = rng.uniform(1, 2, 8), rng.uniform(1, 2, 8)
    expected = ttest_1samp(np.log(seconds / reference), 0).confidence_interval(0.95)
    found = ratio(seconds, reference)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(expected)))


@pytest.mark.parametrize("slow", [1.0, 1.02])
def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says(slow):
    rng = np.random.default_rng(2)
    logs = np.log(slow) + rng.normal(0, 0.1, size=(400, 5))
    found = [ratio(np.exp(turns), np.ones(5)) for turns in logs]
    held = np.mean([each.low <= slow <= each.high for each in found])
    assert 0.92 <= held <= 0.98


def test_turns_end_where_the_interval_is_narrow_enough():
    found = in_turns(Machine(3, noise=0.05).measures(), repeats=3, width=0.02, seconds=1e9)
    turns = len(found["dense"])
    assert turns > 20 and ratio(found["other"], found["dense"]).width <= 0.02
    before = {name: times[:-1] for name, times in found.items()}
    assert ratio(before["other"], before["dense"]).width > 0.02


def test_turns_end_when_the_time_is_up():
    machine = Machine(4, noise=0.5)
    found = in_turns(machine.measures(), repeats=3, width=1e-6, seconds=200.0)
    spent = sum(map(sum, found.values()))
    last = sum(times[-1] for times in found.values())
    assert spent - last < 200.0 <= spent
    assert len(in_turns(machine.measures(), repeats=4)["dense"]) == 4, "without time no more"


def test_every_other_turn_goes_the_other_way_round():
    order = []
    measures = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    in_turns(measures, repeats=3)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"


def test_equal_times_and_single_turns():
    same = ratio([2.0, 2.0], [2.0, 2.0])
    assert (same.low, same.mean, same.high) == (1.0, 1.0, 1.0)
    assert ratio([2.0], [1.0]) is None
