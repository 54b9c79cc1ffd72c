"""Types of cached keys and values in a space: which levels there are, and what they cost."""

import numpy as np
import pytest
from pydantic import ValidationError

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.storage import CACHES
from evocompress.core.types import DENSE, DROP, Level
from evocompress.models.families.outer import every_unit
from evocompress.space import sampling
from evocompress.space.budget import check_types_counted
from evocompress.space.build import build_space
from evocompress.testing.tiny import tiny_loaded

LENGTH, WINDOW, HEADS, WIDTH = 64, 8, 2, 32


def spaced(model_type="qwen2", hidden=128, **config):
    loaded = tiny_loaded(model_type, hidden=hidden)
    units = list(every_unit(loaded.family, loaded.model))
    architecture = loaded.family.architecture(loaded.model)
    assert architecture.context >= LENGTH
    return build_space(units, architecture, SpaceConfig.model_validate(config), length=LENGTH)


def bytes_of(name, heads, tokens):
    """Of keys and values, in blocks of 32 numbers."""
    return 2 * heads * WIDTH * tokens * (CACHES[name].block_bytes / 32 if name else 4)


def test_bytes_are_those_of_the_blocks_of_what_is_left():
    space = spaced(
        cache={"types": ["kv4", "dense", "kv2"]},
        drop={"units": ["attention"]},
        width={"units": ["attention"], "kv_groups": [0.5, 1.0], "group_heads": [1.0]},
    )
    rng = np.random.default_rng(0)
    genomes = rng.integers(0, space.encoding.sizes, (60, len(space.units)))
    windows = [part.window for part in space.cost_model.parts if part.unit.kind == "attention"]
    assert set(windows) == {WINDOW, None}
    for genome, found in zip(genomes, space.costs(genomes)["kv_bytes"], strict=True):
        candidate = space.candidate(genome)
        named, expected = candidate.by_name, 0
        for block, window in enumerate(windows):
            attention = named.get(f"model.layers.{block}.attention", DENSE)
            name = named.get(f"model.layers.{block}.attention.cache", DENSE).cache
            tokens = min(LENGTH, window or LENGTH)
            if attention != DROP:
                expected += bytes_of(name, attention.kv_groups or HEADS, tokens)
            else:
                assert not name
        assert found == expected
        assert space.cost_model.of([candidate])["kv_bytes"].item() == expected
        assert space.candidate(space.genome(candidate)) == candidate


def test_llama_cpp_has_one_type_for_all_layers_and_less_memory():
    space = spaced(
        "llama",
        cache={"types": ["dense", "q8_0", "q4_0"]},
        memory={"context": 64, "batch": 2},
        budget={"memory": 0.99},
    )
    (levels,), (members,) = space.levels, space.encoding.members
    assert levels == (DENSE, Level(cache="q8_0"), Level(cache="q4_0")) and len(members) == 3
    found = space.costs(np.array([[0], [1], [2]]))
    halves = 2 * HEADS * WIDTH * 2 * 256 * 3  # two sequences, in steps of 256 tokens
    saved = found["memory"][0] - found["memory"][1:]
    assert saved.tolist() == [halves * (2 - 34 / 32), halves * (2 - 18 / 32)]
    assert len(set(found["weight_bytes"].tolist())) == 1
    even = space.candidate(sampling.uniform(space))
    assert {level.cache for level in even.by_name.values()} == {"q8_0"}


def test_a_cache_goes_with_its_attention():
    space = spaced(cache={"types": ["kv8", "kv3"]}, drop={})
    attention = "model.layers.1.attention"
    genome = space.encoding.default.copy()
    names = [unit.name for unit in space.units]
    genome[names.index(f"{attention}.cache")] = 1
    assert space.candidate(genome).by_name[f"{attention}.cache"] == Level(cache="kv3")
    place = names.index(attention)
    genome[place] = space.encoding.drop_index[place]
    named = space.candidate(genome).by_name
    assert named[attention] == DROP and f"{attention}.cache" not in named
    assert space.encoding.inactive(genome[None])[0, names.index(f"{attention}.cache")]


def test_match_names_attentions():
    space = spaced(cache={"types": ["kv4"], "match": ["*.1.attention"]})
    assert [unit.name for unit in space.units] == ["model.layers.1.attention.cache"]
    with pytest.raises(ConfigError, match=r"space.cache.match: '\*.mlp' matches no unit"):
        spaced(cache={"types": ["kv4"], "match": ["*.mlp"]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cache": {"types": ["kv5"]}}, "no type of caches 'kv5': choose among q8_0"),
        ({"cache": {"types": ["dense"]}}, "alone changes nothing"),
        ({"cache": {"types": ["kv4", "q4_0"]}}, "kv4 and q4_0 are not of one program"),
        ({"cache": {"types": ["q4_0"], "match": ["*.1.*"]}}, "one type for the caches of all"),
        (
            {"cache": {"types": ["kv4"]}, "bits": {"types": ["q4_0"]}},
            "'kv4' and the weights' 'q4_0' are not of one program",
        ),
        (
            {"cache": {"types": ["q4_0"]}, "memory": {"context": 64, "cache": "q8_0"}},
            "memory.cache is what space.cache searches",
        ),
        (
            {
                "cache": {"types": ["kv4"]},
                "memory": {"context": 64},
                "budget": {"memory": 0.9},
            },
            "none of which has caches of types such as 'kv4': bound kv_bytes",
        ),
    ],
)
def test_what_no_program_has_is_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        SpaceConfig.model_validate(config)


def test_heads_that_no_block_fits_are_refused():
    with pytest.raises(ConfigError, match=r"'kv4' has blocks of 32 values, .* of 16, cannot be"):
        spaced("llama", hidden=64, cache={"types": ["kv4"]})


@pytest.mark.parametrize(
    ("config", "bounded"),
    [
        ({"drop": {}, "budget": {"weight_bytes": 0.7}}, False),
        ({"drop": {}, "budget": {"kv_bytes": 0.9}}, False),
        ({"bits": {"types": ["dense", "w4g32"]}, "drop": {}, "budget": {"kv_bytes": 0.9}}, False),
        (
            {"cache": {"types": ["dense", "kv4"]}, "drop": {}, "budget": {"weight_bytes": 0.7}},
            False,
        ),
        ({"cache": {"types": ["dense", "kv4"]}, "drop": {}, "budget": {"kv_bytes": 0.7}}, True),
        (
            {
                "bits": {"types": ["dense", "w4g32"]},
                "cache": {"types": ["dense", "kv4"]},
                "budget": {"kv_bytes": 0.7, "weight_bytes": 0.7},
            },
            True,
        ),
    ],
)
def test_only_types_of_what_is_bounded_can_meet_a_budget(config, bounded):
    assert spaced(**config).bounds_bytes is bounded


@pytest.mark.parametrize(("bound", "changed"), [("weight_bytes", "bits"), ("kv_bytes", "cache")])
def test_even_types_are_coarse_of_what_is_bounded_alone(bound, changed):
    types = {"bits": {"types": ["dense", "w4g32"]}, "cache": {"types": ["dense", "kv4"]}}
    space = spaced(**types, budget={bound: 0.8})
    even = space.candidate(sampling.uniform(space))
    assert {next(iter(level.to_json())) for level in even.by_name.values()} == {changed}


def test_caches_that_no_bound_counts_are_refused():
    space = spaced(cache={"types": ["dense", "kv4"]}, drop={}, budget={"weight_bytes": 0.9})
    with pytest.raises(ConfigError, match="weight_bytes counts no bytes of what is cached"):
        check_types_counted(space, ["weight_bytes"])
    check_types_counted(space, ["weight_bytes", "kv_bytes"])
    check_types_counted(spaced(cache={"types": ["kv4"]}), ["weight_bytes"])
    served = {"cache": {"types": ["dense", "q4_0"]}, "budget": {"memory": 0.99}}
    memory = {"context": 64, "engine": "llama.cpp"}
    check_types_counted(spaced("llama", **served, memory=memory), ["memory"])
