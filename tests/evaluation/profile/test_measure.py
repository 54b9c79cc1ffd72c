"""Measuring a whole table, with a clock that knows how long everything takes."""

import pytest

from evocompress.core.config import LatencyConfig
from evocompress.core.errors import ConfigError
from evocompress.core.types import DENSE, Candidate
from evocompress.evaluation.profile.fit import seconds
from evocompress.evaluation.profile.layouts import grid, layout_candidate, measured_layouts
from evocompress.evaluation.profile.measure import Bench, check_timed_lengths, measure_phase
from evocompress.models.families import family_of
from evocompress.testing.decoders import Decoder
from evocompress.testing.tiny import tiny_model


class FakeLive:
    """Knows the seconds of its present form: 1 + 0.1 a head and 0.01 a channel, plus half."""

    def __init__(self, units, part=1.5):
        self.units = [unit for unit in units if unit.kind in ("attention", "mlp")]
        self.current, self.part, self.runs = Candidate(), part, 0

    def apply(self, candidate):
        self.current = candidate

    def run(self):
        self.runs += 1
        levels = self.current.by_name
        return 1 + self.part * sum(
            self._seconds(unit.kind, levels.get(unit.name, DENSE)) for unit in self.units
        )

    @staticmethod
    def _seconds(kind, level):
        if level.drop:
            return 0
        if kind == "attention":
            return 0.1 * (level.kv_groups or 2) * (level.group_heads or 2)
        return 0.01 * (level.channels or 128)


@pytest.fixture(scope="module")
def tiny():
    """Units and grid of a tiny Llama: 3 blocks, 2 x 2 heads, 128 channels."""
    model = tiny_model("llama")
    family = family_of(model)
    return family.units(model), grid(family.architecture(model))


def test_a_phase_that_adds_up_is_found_exactly(tiny):
    units, widths = tiny
    live, steps = FakeLive(units), []
    bench = Bench(live, units, widths, repeats=3, validation=5, step=lambda: steps.append(1))
    phase = measure_phase(bench, live.run, (2, 7), graph=False)
    assert (phase.batch, phase.tokens, phase.graph) == (2, 7, False)
    assert phase.dense == pytest.approx(1 + 1.5 * 3 * (0.4 + 1.28))
    assert phase.base == pytest.approx(1)
    assert phase.attention_seconds(1, 2) == pytest.approx(1.5 * 0.2)
    assert phase.mlp_seconds(80) == pytest.approx(1.5 * 0.8)
    assert (phase.scale, phase.offset) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert phase.errors == pytest.approx([0] * 5, abs=1e-9)
    assert phase.spread == pytest.approx(0, abs=1e-9)
    assert len(steps) == bench.timings == (len(measured_layouts(widths)) + 5) * 4
    for layout in measured_layouts(widths):
        live.apply(layout_candidate(layout, widths.dense, units))
        assert seconds(phase, layout) == pytest.approx(live.run())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefill": (1, 101)}, "latency.prefill needs 101 tokens"),
        ({"decode": (1, 100)}, "latency.decode needs 112 tokens"),
    ],
)
def test_lengths_beyond_the_context_are_refused(settings, message):
    config = LatencyConfig(**{"prefill": (1, 100), "decode": (1, 88)} | settings)
    with pytest.raises(ConfigError, match=message):
        check_timed_lengths(config, Decoder(context=100).architecture())


def test_lengths_that_just_fit():
    config = LatencyConfig(prefill=(1, 100), decode=(1, 88))
    check_timed_lengths(config, Decoder(context=100).architecture())
