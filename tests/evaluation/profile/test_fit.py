"""From times of whole models to those of their parts."""

import numpy as np
import pytest

from evocompress.evaluation.profile.fit import (
    corrected,
    fit_parts,
    line_through_dense,
    monotone,
    seconds,
)
from evocompress.evaluation.profile.layouts import Grid, measured_layouts
from evocompress.evaluation.profile.random_layouts import random_layouts
from evocompress.space.costs.latency import Phase

WIDTHS = Grid(((1, 1), (1, 2), (2, 1), (2, 2)), (32, 64, 96), layers=5)
LENGTHS = (1, 16)


def truth(layout):
    """Times that add up, the dense model's being 1."""
    attention = {(1, 1): 0.02, (1, 2): 0.04, (2, 1): 0.05, (2, 2): 0.08}
    heads = sum(attention[width] for width in layout.kept_attention)
    return 0.1 + heads + sum(0.01 + width / 96 * 0.09 for width in layout.kept_mlp)


def fitted(times):
    return fit_parts(WIDTHS, [WIDTHS.dense, *measured_layouts(WIDTHS)], times, LENGTHS)


def test_parts_of_a_sum_are_found():
    phase = fitted([truth(layout) for layout in [WIDTHS.dense, *measured_layouts(WIDTHS)]])
    assert (phase.batch, phase.tokens) == LENGTHS
    assert phase.base == pytest.approx(0.1)
    assert phase.attention == pytest.approx(
        {(1, 1): 0.02, (1, 2): 0.04, (2, 1): 0.05, (2, 2): 0.08}
    )
    assert phase.mlp == pytest.approx({32: 0.04, 64: 0.07, 96: 0.1})
    assert seconds(phase, WIDTHS.dense) == pytest.approx(1)


def test_errors_count_relative_to_the_time():
    layouts = [WIDTHS.dense, *measured_layouts(WIDTHS)]
    rng = np.random.default_rng(0)
    times = np.array([truth(layout) for layout in layouts]) * rng.uniform(0.99, 1.01, len(layouts))
    phase = fitted(times.tolist())
    best = sum(
        (seconds(phase, layout) / t - 1) ** 2 for layout, t in zip(layouts, times, strict=True)
    )
    for part in ("base", "attention", "mlp"):
        for factor in (0.99, 1.01):
            other = nudged(phase, part, factor)
            worse = sum(
                (seconds(other, layout) / t - 1) ** 2
                for layout, t in zip(layouts, times, strict=True)
            )
            assert worse > best


def nudged(phase, part, factor):
    value = getattr(phase, part)
    scaled = value * factor if part == "base" else {w: s * factor for w, s in value.items()}
    return Phase(**{**vars_of(phase), part: scaled})


def vars_of(phase):
    return {name: getattr(phase, name) for name in Phase.__dataclass_fields__}


def test_noise_makes_no_part_negative_or_falling():
    rng = np.random.default_rng(3)
    layouts = [WIDTHS.dense, *measured_layouts(WIDTHS)]
    for _ in range(20):
        phase = fitted([truth(layout) * rng.uniform(0.7, 1.4) for layout in layouts])
        assert phase.base >= 0
        widths = sorted(phase.mlp)
        assert np.all(np.diff([phase.mlp[width] for width in widths]) >= 0)
        assert min(*phase.mlp.values(), *phase.attention.values()) >= 0
        for (g, q), part in phase.attention.items():
            assert all(
                part <= other for (h, r), other in phase.attention.items() if h >= g and r >= q
            )


def test_monotone_leaves_what_rises():
    values = np.array([[0.0, 1.0], [2.0, 5.0]])
    np.testing.assert_array_equal(monotone(values), values)


def test_monotone_meets_in_the_middle():
    np.testing.assert_allclose(monotone(np.array([1.0, 4.0, 2.0, 6.0])), [1, 3, 3, 6])


def test_the_line_is_right_for_the_dense_model_and_best_elsewhere():
    rng = np.random.default_rng(0)
    sums, dense = rng.uniform(0.4, 1.0, 10), 0.98
    times = 0.1 + 0.9 * sums + rng.normal(0, 0.01, 10)
    scale, offset = line_through_dense(sums.tolist(), times.tolist(), dense)
    assert offset + scale * dense == pytest.approx(1)

    def loss(slope):
        return (((1 + slope * (sums - dense)) / times - 1) ** 2).sum()

    brute = min(np.linspace(0.5, 1.5, 10_001), key=loss)
    assert scale == pytest.approx(brute, abs=1e-4)


def test_correction_gives_seconds_that_whole_models_confirm():
    draft = fitted([truth(layout) for layout in [WIDTHS.dense, *measured_layouts(WIDTHS)]])
    checks = random_layouts(WIDTHS, 8, truth_of_any, np.random.default_rng(0))
    # Whole models take less than the sum of their parts says.
    times = [0.2 + 0.8 * seconds(draft, layout) for layout in checks]
    phase = corrected(draft, WIDTHS.dense, checks, times, unit=3.0)
    assert phase.dense == 3.0
    assert phase.scale == pytest.approx(0.8)
    assert phase.offset == pytest.approx(3 * 0.2)
    assert phase.errors == pytest.approx([0.0] * 8, abs=1e-12)
    assert seconds(phase, WIDTHS.dense) == pytest.approx(3.0)
    for layout, time in zip(checks, times, strict=True):
        assert seconds(phase, layout) == pytest.approx(3 * time)


def truth_of_any(layout):
    heads = sum(0.02 * groups * heads for groups, heads in layout.kept_attention)
    return 0.1 + heads + sum(width / 96 * 0.1 for width in layout.kept_mlp)
