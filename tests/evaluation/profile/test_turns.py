"""Candidates are timed in turns with the dense model, on a machine of changing speed."""

import pytest

from evocompress.core.types import DROP, Candidate
from evocompress.evaluation.profile.turns import measure_ratios

FAST, SLOW = Candidate((("a", DROP),)), Candidate((("b", DROP),))
SECONDS = {Candidate(): 1.0, FAST: 0.5, SLOW: 0.8}


class Machine:
    """A fake model and clock: each run is slower than the one before, and the first very slow."""

    def __init__(self, drift=0.0, hiccups=()):
        self.current, self.runs = Candidate(), []
        self.drift, self.hiccups = drift, hiccups

    def become(self, candidate):
        self.current = candidate

    def run(self):
        speed = 1 + self.drift * len(self.runs)
        if len(self.runs) in self.hiccups:
            speed *= 10
        self.runs.append(self.current)
        return SECONDS[self.current] * speed


def measured(machine, repeats=3, steps=None):
    step = (lambda: steps.append(1)) if steps is not None else lambda: None
    return measure_ratios(machine.become, machine.run, [FAST, SLOW], repeats=repeats, step=step)


def test_the_dense_model_runs_before_and_after_each_candidate():
    machine, steps = Machine(), []
    measured(machine, repeats=2, steps=steps)
    dense = Candidate()
    assert machine.runs == [dense, FAST, dense, SLOW, dense] * 3
    assert machine.current == dense
    assert len(steps) == 2 * 3


def test_a_steady_drift_cancels():
    ratios = measured(Machine(drift=0.05))
    assert ratios.medians == pytest.approx((0.5, 0.8))
    assert ratios.spreads == pytest.approx((0, 0), abs=1e-12)


def test_a_slow_warm_up_and_a_rare_hiccup_do_not_count():
    ratios = measured(Machine(hiccups=(0, 1, 2, 3, 4, 6)))
    assert ratios.medians == pytest.approx((0.5, 0.8))
    assert ratios.dense == 1.0
    assert ratios.spreads[0] == pytest.approx(10 * 0.5 - 0.5)
