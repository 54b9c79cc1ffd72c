"""Which widths and which whole models are timed."""

from dataclasses import replace

import numpy as np
import pytest

from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.profile.fit import count_parts
from evocompress.evaluation.profile.layouts import (
    Grid,
    ModelWidths,
    grid,
    layout_candidate,
    measured_layouts,
)
from evocompress.evaluation.profile.random_layouts import random_layouts
from evocompress.models.families import family_of
from evocompress.testing.tiny import tiny_model

SMALL = Grid(((1, 1), (1, 2), (2, 1), (2, 2)), (32, 64, 128), layers=4)


@pytest.fixture(scope="module")
def tiny():
    """Units and architecture of a tiny Llama: 3 blocks, 2 x 2 heads, 128 channels."""
    model = tiny_model("llama")
    family = family_of(model)
    return family.units(model), family.architecture(model)


def shaped(architecture, groups, group_heads, channels):
    return replace(
        architecture, kv_heads=(groups,), heads=(groups * group_heads,), channels=(channels,)
    )


@pytest.mark.parametrize(
    ("shape", "attention", "mlp"),
    [
        (
            (3, 3, 1536),
            [(g, q) for g in (1, 2, 3) for q in (1, 2, 3)],
            [32, 192, 384, 576, 768, 960, 1152, 1344, 1536],
        ),
        ((8, 8, 100), [(g, q) for g in (1, 3, 6, 8) for q in (1, 3, 6, 8)], [32, 64, 96, 100]),
        ((12, 1, 20), [(g, 1) for g in range(1, 13)], [20]),
        ((1, 1, 64), [(1, 1)], [32, 64]),
    ],
)
def test_grid_covers_the_model(tiny, shape, attention, mlp):
    found = grid(shaped(tiny[1], *shape))
    assert list(found.attention) == attention
    assert list(found.mlp) == mlp


def test_grid_is_never_large(tiny):
    for groups in range(1, 40):
        for group_heads in range(1, 12):
            widths = grid(shaped(tiny[1], groups, group_heads, 4096)).attention
            assert len(widths) <= 16
            assert (1, 1) in widths and widths[-1] == (groups, group_heads)


@pytest.mark.parametrize(
    "widths", [SMALL, Grid(((1, 1),), (64,), layers=2), Grid(((1, 1), (2, 1)), (32,), layers=3)]
)
def test_measured_layouts_tell_all_parts_apart(widths):
    layouts = [widths.dense, *measured_layouts(widths)]
    assert len(set(layouts)) == len(layouts)
    matrix = [count_parts(widths, layout) for layout in layouts]
    assert np.linalg.matrix_rank(matrix) == 1 + len(widths.attention) + len(widths.mlp)


def test_a_layout_becomes_a_candidate(tiny):
    units, architecture = tiny
    dense = grid(architecture).dense
    layout = ModelWidths(((2, 2), None, (1, 2)), (96, 128, None))
    assert layout_candidate(layout, dense, units) == Candidate(
        (
            ("model.layers.0.mlp", Level(channels=96)),
            ("model.layers.1.attention", DROP),
            ("model.layers.2.attention", Level(kv_groups=1, group_heads=2)),
            ("model.layers.2.mlp", DROP),
        )
    )
    assert layout_candidate(dense, dense, units) == Candidate()


def time_of(layout):
    """A base, and so much for each head and channel."""
    heads = sum(groups * heads for groups, heads in layout.kept_attention)
    return 1 + heads + sum(layout.kept_mlp) / 32


def test_random_layouts_are_spread_evenly():
    widths = replace(SMALL, layers=20)
    layouts = random_layouts(widths, 12, time_of, np.random.default_rng(0))
    fractions = np.array([time_of(layout) for layout in layouts]) / time_of(widths.dense)
    targets = 0.4 + 0.6 * (np.arange(12) + 0.5) / 12
    # A cut overshoots by at most one sub-layer.
    assert np.all((fractions <= targets) & (fractions > targets - 4 / time_of(widths.dense)))


def test_random_layouts_mix_what_can_be_cut():
    layouts = random_layouts(SMALL, 30, time_of, np.random.default_rng(1))
    assert len(set(layouts)) > 25
    attention = {width for layout in layouts for width in layout.attention}
    assert attention == {*SMALL.attention, None}
    assert {width for layout in layouts for width in layout.mlp} == {32, 64, 96, 128, None}


def test_the_first_attention_is_never_cut():
    layouts = random_layouts(SMALL, 20, time_of, np.random.default_rng(2), shortest=0.0)
    assert {layout.attention[0] for layout in layouts} == {(2, 2)}
    assert layouts[0] == ModelWidths(((2, 2), None, None, None), (None,) * 4)
