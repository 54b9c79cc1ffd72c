"""Types that round what a matrix reads: of which matrices they are levels, and what they take."""

import pytest

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.models.families.outer import every_unit
from evocompress.space.build import build_space
from evocompress.testing.tiny import tiny_loaded


def spaced(model_type, **config):
    loaded = tiny_loaded(model_type)
    units = list(every_unit(loaded.family, loaded.model))
    architecture = loaded.family.architecture(loaded.model)
    return build_space(units, architecture, SpaceConfig.model_validate(config))


def levels_of(space, kind):
    pairs = zip(space.units, space.levels, strict=True)
    return {unit.name: levels for unit, levels in pairs if unit.kind == kind}


def test_rows_of_any_length_go_and_take_a_byte_a_weight_and_two_a_row():
    space = spaced("llama", bits={"types": ["dense", "w8a8", "w4g32"]}, width={"multiple_of": 6})
    for levels in levels_of(space, "matrix").values():
        assert Level(bits="w8a8") in levels and levels[0] == DENSE
    down, mlp = "model.layers.1.mlp.down_proj", "model.layers.1.mlp"
    assert Level(bits="w4g32") not in levels_of(space, "matrix")[down]
    unit = next(one for one in space.encoding.tree if one.name == down)
    narrow = next(lv for lv in levels_of(space, "mlp")[mlp] if lv.channels == 66)
    sizes = [
        space.cost_model.of([Candidate(tuple(sorted(levels.items())))])["weight_bytes"].item()
        for levels in ({mlp: narrow}, {mlp: narrow, down: Level(bits="w8a8")})
    ]
    assert sizes[0] - sizes[1] == unit.shape[0] * (4 * 66 - 66 - 2)


def test_an_embedding_and_a_convolution_have_other_types():
    bits = {"types": ["w8a8", "w4g32"], "scope": ["matrices", "embeddings"]}
    space = spaced("llama", bits=bits)
    (outer,) = levels_of(space, "outer").values()
    assert outer == (Level(bits="w4g32"),)
    with pytest.raises(ConfigError, match="w8a8 rounds what linear layers .*embed_tokens' is none"):
        spaced("llama", bits=bits | {"types": ["w8a8"]})
    with pytest.raises(ConfigError, match="w8a8 rounds what linear layers of the blocks read"):
        spaced("resnet", bits={"types": ["w8a8"]})


def test_lanes_are_not_mixed_and_the_name_is_offered():
    with pytest.raises(ValueError, match="w8a8 and q8_0|q8_0 and w8a8"):
        SpaceConfig.model_validate({"bits": {"types": ["w8a8", "q8_0"]}})
    with pytest.raises(ValueError, match="no type of weights 'w8a4': .* w8a8, or w4g64"):
        SpaceConfig.model_validate({"bits": {"types": ["w8a4"]}})
