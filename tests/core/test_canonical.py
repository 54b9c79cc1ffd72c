"""The canonical form of candidates, with widths and merged blocks."""

import pytest

from evocompress.core.canonical import canonical, merge_levels
from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.types import DROP, Level
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=6)
UNITS = DECODER.units()


def block(index):
    return f"model.layers.{index}"


def test_a_matrix_of_a_narrow_sublayer_keeps_its_level():
    levels = {
        f"{block(1)}.mlp": Level(channels=8),
        f"{block(1)}.mlp.up_proj": Level(zeros=9),
        f"{block(2)}.attention": Level(kv_groups=1, group_heads=2, bias=True),
    }
    assert canonical(levels, UNITS).by_name == levels


def test_what_lies_below_a_drop_is_void():
    levels = {f"{block(1)}.mlp": DROP, f"{block(1)}.mlp.up_proj": Level(zeros=9)}
    below = {block(2): DROP, f"{block(2)}.mlp": Level(channels=8)}
    assert canonical(levels | below, UNITS).by_name == {
        f"{block(1)}.mlp": DROP,
        f"{block(2)}.attention": DROP,
        f"{block(2)}.mlp": DROP,
    }


@pytest.mark.parametrize(
    ("name", "level"),
    [
        (f"{block(1)}.mlp", Level(kv_groups=1, group_heads=1)),
        (f"{block(1)}.attention", Level(channels=8)),
        (f"{block(1)}.attention", Level(kv_groups=1)),
        (f"{block(1)}.attention", Level(group_heads=1)),
        (block(1), Level(channels=8)),
        (f"{block(1)}.mlp", Level(zeros=3)),
        (f"{block(1)}.mlp.up_proj", Level(channels=8)),
        (f"{block(1)}.mlp", Level(merge=1)),
    ],
)
def test_levels_of_another_kind_of_unit_are_refused(name, level):
    with pytest.raises(ConfigError, match=f"'{name}': '{level.key}' is no level of a unit of kind"):
        canonical({name: level}, UNITS)


def dropped(*indices):
    return {block(index): DROP for index in indices}


@pytest.mark.parametrize("level", [Level(merge=1), Level(merge=2)])
def test_a_merge_with_dropped_blocks_is_kept(level):
    candidate = canonical(dropped(2, 3) | {block(1): level}, UNITS)
    assert candidate.by_name[block(1)] == level


@pytest.mark.parametrize(
    "levels",
    [
        {block(1): Level(merge=1)},
        dropped(2) | {block(1): Level(merge=2)},
        dropped(3) | {block(1): Level(merge=1)},
        dropped(5) | {block(4): Level(merge=2)},  # there is no block after the last
        {f"{block(2)}.mlp": DROP, block(1): Level(merge=1)},
    ],
)
def test_a_merge_with_kept_blocks_is_refused(levels):
    with pytest.raises(ConfigError, match="keep it and drop all of them"):
        canonical(levels, UNITS)


def test_runs_of_dropped_blocks_are_merged_into_the_block_before_them():
    assert merge_levels(UNITS, {block(i) for i in (0, 2, 3, 5)}) == {
        block(1): Level(merge=2),
        block(4): Level(merge=1),
    }


def test_candidates_of_a_merging_space():
    config = SpaceConfig(
        drop={"units": ["block"], "protect": [], "merge": True}, budget={"body_params": 0.9}
    )
    space = build_space(UNITS, DECODER.architecture(), config)
    for mask in ([1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]):
        candidate = space.candidate(space.encoding.default + mask)
        merges = {name: level for name, level in candidate.levels if level.merge}
        assert merges == merge_levels(UNITS, {block(i) for i, lost in enumerate(mask) if lost})
        assert space.genome(candidate).tolist() == mask
        plain = canonical(dropped(*(i for i, lost in enumerate(mask) if lost)), UNITS)
        for name, values in space.cost_model.of([candidate]).items():
            assert values == space.cost_model.of([plain])[name]
    unmerged = canonical(dropped(2), UNITS)
    with pytest.raises(ConfigError, match=f"'{block(1)}' cannot be 'dense' .* 'merge=1'"):
        space.genome(unmerged)
