"""Which widths a configuration admits, and the genes and candidates that come of them."""

from dataclasses import replace

import numpy as np
import pytest

from evocompress.core.canonical import canonical
from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.types import DENSE, DROP, Level
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder

DECODER = Decoder(layers=4, hidden=48, heads=12, kv_heads=4, ffn=100)
UNITS = DECODER.units()
FIRST, SECOND = "model.layers.0", "model.layers.1"
BUDGET = {"body_params": 1.0}


def space_of(units=UNITS, adds_bias=False, budget=BUDGET, **config):
    architecture = DECODER.architecture()
    config = SpaceConfig(**config, budget=budget)
    return build_space(units, architecture, config, adds_bias=adds_bias)


def levels_of(name, **config):
    space = space_of(**config)
    return space.levels[[unit.name for unit in space.units].index(name)]


def channels_of(**width):
    levels = levels_of(f"{SECOND}.mlp", width={"units": ["mlp"], **width})
    assert levels[0] == DENSE
    return [level.channels for level in levels[1:]]


def heads_of(**width):
    levels = levels_of(f"{SECOND}.attention", width={"units": ["attention"], **width})
    assert levels[0] == DENSE
    return [(level.kv_groups, level.group_heads) for level in levels[1:]]


# ---- levels


@pytest.mark.parametrize(
    ("channels", "multiple", "expected"),
    [
        ((0.5, 0.25), 1, [50, 25]),
        ((0.5, 0.25), 8, [56, 32]),  # rounded up
        ((0.5, 0.51, 0.56), 8, [56]),  # each width once
        ((0.97, 0.5), 8, [56]),  # 104 channels are more than there are: dense
        ((1.0, 0.5), 1, [50]),
        ((40, 0.3), 1, [40, 30]),  # a count and a fraction
        ((0.001,), 1, [1]),
        ((0.7,), 1, [70]),  # 0.7 * 100 is a little above 70 in floating point
    ],
)
def test_channels(channels, multiple, expected):
    assert channels_of(channels=channels, multiple_of=multiple) == expected


def test_heads_are_a_grid_from_most_to_least_parameters():
    assert heads_of(kv_groups=[4, 2], group_heads=[3, 1]) == [(4, 1), (2, 3), (2, 1)]


def test_all_heads():
    every = heads_of()
    assert set(every) == {(g, q) for g in (1, 2, 3, 4) for q in (1, 2, 3)} - {(4, 3)}
    sizes = [g * (q + 1) for g, q in every]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("asked", "groups"),
    [
        ((0.5,), {2}),
        ((0.6,), {3}),  # rounded up
        ((0.1,), {1}),  # at least one
        ((1, 2), {1, 2}),  # a 1 beside a count is a count
        ((1.0, 0.5), {4, 2}),  # a 1 beside fractions is one
    ],
)
def test_fractions_and_counts_of_heads(asked, groups):
    heads = heads_of(kv_groups=asked, group_heads=[1.0])
    assert {g for g, _ in heads} == groups - {4}
    assert {q for _, q in heads} == {3}


def test_levels_go_from_dense_over_widths_to_the_drop():
    width = {"channels": [0.5, 0.25], "multiple_of": 1}
    assert levels_of(f"{SECOND}.mlp", width=width, drop={}) == (
        DENSE,
        Level(channels=50),
        Level(channels=25),
        DROP,
    )


def test_the_first_attention_is_protected_by_default():
    names = {unit.name for unit in space_of(width={"multiple_of": 1}, drop={}).units}
    assert f"{FIRST}.attention" not in names
    assert {f"{FIRST}.mlp", f"{SECOND}.attention"} <= names
    blocks = space_of(drop={"units": ["block"]})
    assert [unit.name for unit in blocks.units] == [f"model.layers.{i}" for i in (1, 2, 3)]


def test_protected_units_keep_their_width():
    width = {"multiple_of": 1, "protect": [FIRST, "*.mlp"]}
    names = [unit.name for unit in space_of(width=width).units]
    assert names == [f"model.layers.{i}.attention" for i in (1, 2, 3)]


# ---- biases


@pytest.mark.parametrize("own", [False, True])
def test_levels_need_a_bias_where_the_output_has_none(own):
    units = [replace(unit, bias=own and bool(unit.columns)) for unit in UNITS]
    for adds in (False, True):
        space = space_of(units, adds, width={"multiple_of": 1}, drop={})
        narrow = [level for levels in space.levels for level in levels if level.narrow]
        assert {level.bias for level in narrow} == {adds and not own}
        assert all(levels[-1] == DROP and levels[0] == DENSE for levels in space.levels[1:])


# ---- refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": {"multiple_of": 128}}, "multiple_of: 128 is more than the model's 100 FFN"),
        ({"width": {"channels": [101]}}, "channels: 101 is more than the model's 100 FFN channels"),
        ({"width": {"channels": [50.5]}}, "50.5 is neither a fraction of at most 1 nor a whole"),
        ({"width": {"kv_groups": [5]}}, "kv_groups: 5 is more than the model's 4 key-value heads"),
        ({"width": {"kv_groups": [2.5]}}, "kv_groups: 2.5 is neither .* number of key-value heads"),
        (
            {"width": {"group_heads": [4]}},
            "group_heads: 4 is more than the model's 3 query heads for each key-value head",
        ),
        ({"width": {"protect": ["*"]}}, "protect leaves no attention or mlp to narrow"),
        ({"width": {"protect": ["*.ffn"]}}, r"protect: '\*.ffn' matches no unit"),
        (
            {"width": {"channels": [1.0], "kv_groups": [1.0], "group_heads": [1.0]}},
            "every width is the dense one of 100 channels",
        ),
        (
            {"width": {"uniform": True}, "drop": {}},
            r"uniform makes all layers alike, .* give space.drop.units \[block\]",
        ),
        (
            {"width": {}, "drop": {"units": ["block"], "merge": True}},
            "merged blocks can be neither narrowed nor given zeros",
        ),
        (
            {
                "width": {"channels": [0.5], "multiple_of": 1},
                "sparsity": {"target": 0.5, "pattern": "2:4"},
            },
            "level channels=50 leaves 'model.layers.0.mlp.down_proj' 50 inputs",
        ),
    ],
)
def test_refused(config, message):
    if "width" in config:
        config["width"].setdefault("multiple_of", 4)
    with pytest.raises(ConfigError, match=message):
        space_of(**config)


def test_layers_of_different_widths_cannot_be_tied():
    architecture = replace(DECODER.architecture(), channels=(100, 96, 100, 100))
    config = SpaceConfig(width={"uniform": True, "multiple_of": 4}, budget=BUDGET)
    with pytest.raises(ConfigError, match="layers of this model differ in width"):
        build_space(UNITS, architecture, config)


# ---- tied layers


TIED = space_of(
    width={"uniform": True, "channels": [0.5], "multiple_of": 1},
    drop={"units": ["block"], "protect": []},
)


def test_uniform_has_one_gene_for_all_layers_of_a_kind():
    kinds = [(members[0].kind, len(members)) for members in TIED.encoding.members]
    assert sorted(kinds) == [("attention", 4), *[("block", 1)] * 4, ("mlp", 4)]
    genome = TIED.encoding.default.copy()
    genome[TIED.encoding.by_kind["mlp"]] = 1
    genome[TIED.encoding.by_kind["block"][1]] = 1
    assert TIED.candidate(genome).by_name == {
        f"{SECOND}.attention": DROP,
        f"{SECOND}.mlp": DROP,
    } | {f"model.layers.{i}.mlp": Level(channels=50) for i in (0, 2, 3)}


def test_tied_genomes_are_read_from_candidates():
    rng = np.random.default_rng(0)
    for genome in TIED.deactivate(rng.integers(0, TIED.encoding.sizes, size=(40, len(TIED.units)))):
        assert TIED.genome(TIED.candidate(genome)).tolist() == genome.tolist()


def test_a_tied_gene_is_void_only_without_any_layer():
    genomes = np.tile(TIED.encoding.sizes - 1, (2, 1))
    genomes[1, TIED.encoding.by_kind["block"][2]] = 0
    tied = np.concatenate([TIED.encoding.by_kind["attention"], TIED.encoding.by_kind["mlp"]])
    assert TIED.encoding.inactive(genomes)[:, tied].tolist() == [[True, True], [False, False]]
    assert TIED.encoding.keep_attention(genomes).tolist() == [False, True]


def test_layers_of_different_widths_are_no_candidate_of_a_tied_space():
    one = canonical({f"{SECOND}.mlp": Level(channels=50)}, UNITS)
    with pytest.raises(ConfigError, match="is not one that this search space compresses"):
        TIED.genome(one)
    most = canonical(
        {f"model.layers.{i}.mlp": Level(channels=50) for i in range(3)},
        UNITS,
    )
    with pytest.raises(ConfigError, match="layers.3.mlp' cannot be 'dense' .* 'channels=50'"):
        TIED.genome(most)


# ---- candidates and genomes


def test_genome_is_the_inverse_of_candidate():
    space = space_of(
        width={"multiple_of": 8},
        drop={"protect": []},
        sparsity={"target": 0.5, "levels": 2},
        budget={"body_nonzeros": 0.6},
    )
    rng = np.random.default_rng(1)
    genomes = space.deactivate(rng.integers(0, space.encoding.sizes, size=(30, len(space.units))))
    for genome in genomes:
        assert space.genome(space.candidate(genome)).tolist() == genome.tolist()
    assert len({space.candidate(g) for g in genomes}) == len(np.unique(genomes, axis=0))


def test_a_budget_is_not_needed():
    for config in ({"width": {"multiple_of": 4}}, {"drop": {}, "sparsity": {"target": 0.5}}):
        space = space_of(budget={}, **config)
        assert space.budget == {}
        least = np.zeros((1, len(space.units)), dtype=np.int64)
        assert space.feasible(np.concatenate([least, least + space.encoding.sizes - 1])).all()
