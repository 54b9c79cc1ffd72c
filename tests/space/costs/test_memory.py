"""The memory of served models against counts by hand, and what cannot be served."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import BudgetError, ConfigError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.space.build import build_space
from evocompress.testing.decoders import SMOLLM2_135M, Decoder

DECODER = Decoder(layers=4, hidden=64, heads=2, kv_heads=2, ffn=96, context=4096, window=100)
HALF = Level(kv_groups=1, group_heads=1)
TYPED = {"bits": {"types": ["dense", "q8_0"]}}


def space_of(decoder=DECODER, **config):
    settings = {"drop": {}, "width": {"kv_groups": [1], "multiple_of": 32}} | config
    return build_space(
        decoder.units(), decoder.architecture(), SpaceConfig.model_validate(settings)
    )


def memory_of(space, levels=()):
    return space.cost_model.of([Candidate(tuple(sorted(dict(levels).items())))])["memory"].item()


def padded(tokens):
    return next(cells for cells in range(256, 10**6, 256) if cells >= tokens)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("context", [20, 300, 1000])
@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
def test_a_dropped_or_narrower_attention_saves_its_weights_and_its_cache(engine, context, batch):
    space = space_of(memory={"engine": engine, "context": context, "batch": batch})
    dense = memory_of(space)
    for layer in range(4):
        windowed = layer % 2 == 1
        if engine == "transformers":
            cells = min(context, 100) if windowed else context
        else:
            together = min(512, context * batch)
            cells = padded(context)
            cells = min(cells, padded(100 + together)) if windowed else cells
        head = batch * cells * 2 * 32 * 2  # keys and values of a head, two bytes each
        matrices = 4 * 64 * 64
        name = f"model.layers.{layer}.attention"
        assert dense - memory_of(space, {name: DROP}) == 2 * head + 2 * (matrices + 64)
        assert dense - memory_of(space, {name: HALF}) == head + matrices


def test_what_units_save_adds_up():
    space = space_of(memory={"context": 300})
    names = [f"model.layers.{layer}.{kind}" for layer in (1, 2) for kind in ("attention", "mlp")]
    dense = memory_of(space)
    alone = [dense - memory_of(space, {name: DROP}) for name in names]
    assert dense - memory_of(space, dict.fromkeys(names, DROP)) == sum(alone)


@pytest.mark.parametrize(("cache", "bits"), [("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_llama_cpp_keeps_the_cache_in_the_type_that_is_asked_for(cache, bits):
    space = space_of(memory={"context": 512, "cache": cache, "engine": "llama.cpp"})
    saved = memory_of(space) - memory_of(space, {"model.layers.0.attention": HALF})
    assert saved == 512 * 2 * 32 * bits / 8 + 2 * 2 * 64 * 32 * 2


def test_types_save_memory_where_the_program_holds_them():
    name = "model.layers.1.mlp.up_proj"
    size = 64 * 96
    for engine, saved in (("auto", size * (2 - 34 / 32)), ("transformers", 0)):
        space = space_of(**TYPED, memory={"context": 64, "engine": engine})
        assert memory_of(space) - memory_of(space, {name: Level(bits="q8_0")}) == saved
    groups = space_of(bits={"types": ["w4g32"]}, memory={"context": 64})
    assert memory_of(groups) == memory_of(groups, {name: Level(bits="w4g32")})


@pytest.mark.parametrize(
    ("settings", "engine"),
    [
        ({}, "transformers"),
        ({"fits": "gguf"}, "llama.cpp"),
        ({"fits": "llama.cpp"}, "llama.cpp"),
        (TYPED, "llama.cpp"),
        ({"bits": {"types": ["w4g32"]}}, "transformers"),
        ({"fits": "gguf", "memory": {"context": 8, "engine": "transformers"}}, "transformers"),
    ],
)
def test_the_program_is_the_one_that_the_space_is_for(settings, engine):
    config = SpaceConfig.model_validate({"memory": {"context": 8}} | settings)
    assert config.engine == engine


def test_buffers_grow_with_what_is_computed_at_a_time():
    def own(engine, context, batch=1):
        space = space_of(memory={"engine": engine, "context": context, "batch": batch})
        costs = space.cost_model.costs
        return costs["memory"].base - costs["weight_bytes"].base

    # llama.cpp computes 512 tokens at a time, and then only the mask grows: two bytes a pair.
    assert own("llama.cpp", 2048) - own("llama.cpp", 1024) == 512 * 1024 * 2
    assert own("llama.cpp", 512) - own("llama.cpp", 256) > 256 * 4 * (3 * 96 + 64)
    assert own("transformers", 2048) - own("transformers", 1024) == 1024 * 2 * (3 * 96 + 4 * 64)
    assert own("transformers", 256, 4) > own("transformers", 256)


def test_a_budget_of_memory_may_have_a_unit():
    served = {"context": 4096, "engine": "llama.cpp"}
    space = space_of(SMOLLM2_135M, budget={"memory": "300MiB"}, memory=served)
    assert space.budget == {"memory": 300 * 2**20}
    assert memory_of(space) > 300 * 2**20
    same = SpaceConfig(budget={"weight_bytes": " 2.5 GB "}).budget
    assert same == {"weight_bytes": 2_500_000_000}
    assert SpaceConfig(budget={"weight_bytes": "0.5"}).budget == {"weight_bytes": 0.5}


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (
            {"memory": "2GiBs"},
            "memory: '2GiBs' is no size: give bytes, a fraction, or a unit as in",
        ),
        ({"memory": "much"}, "memory: 'much' is no size"),
        ({"weight_bytes": "45%"}, "weight_bytes: '45%' is no size"),
        ({"file_bytes": "100,000,000"}, "file_bytes: '100,000,000' is no size"),
        ({"weight_bytes": "1B"}, "weight_bytes: '1B' is no size"),
        ({"params": "2GiB"}, "params is no size in bytes: '2GiB' must be a number"),
        ({"memory": 0.5}, "budget.memory is told at a context: give space.memory={context: 4096}"),
    ],
)
def test_bounds_that_say_nothing_are_refused(budget, said):
    with pytest.raises(ValidationError) as error:
        SpaceConfig(budget=budget)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        ("90MiB", "space.budget.memory: 90.0 MiB (23.6% of dense) cannot be reached; this space"),
        ("2GiB", "space.budget.memory: 2,048.0 MiB (537.4% of dense) is met by every candidate; "),
    ],
)
def test_bounds_outside_of_the_range_are_refused_with_it(bound, said):
    served = {"context": 4096, "engine": "llama.cpp"}
    with pytest.raises(BudgetError) as error:
        space_of(SMOLLM2_135M, budget={"memory": bound}, memory=served)
    assert str(error.value).startswith(said)
    assert "spans 93.3 MiB" in str(error.value) and "381.1 MiB (100.0% of dense)" in str(
        error.value
    )


def test_another_bound_may_be_met_by_every_candidate():
    served = {"context": 4096, "engine": "llama.cpp"}
    budget = {"memory": "2GiB", "weight_bytes": 0.7}
    assert len(space_of(SMOLLM2_135M, budget=budget, memory=served).budget) == 2


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ConfigError, match=r"space.memory.context 5000: give 1 to 4096 tokens"):
        space_of(memory={"context": 5000})
    thin = Decoder(layers=4, hidden=64, heads=4, kv_heads=2, ffn=96)
    with pytest.raises(ConfigError, match="'q8_0' has blocks of 32 values, into which heads of 16"):
        space_of(thin, memory={"context": 64, "cache": "q8_0", "engine": "llama.cpp"})
    encoder = replace(DECODER.architecture(), causal=False)
    config = SpaceConfig(drop={}, memory={"context": 64})
    with pytest.raises(ConfigError, match=r"space.memory: this model has no key-value cache"):
        build_space(DECODER.units(), encoder, config)
    shared = replace(DECODER.architecture(), shared=10)
    with pytest.raises(ConfigError, match=r"space.memory: several blocks of this model share"):
        build_space(DECODER.units(), shared, config)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"memory": {"context": 8, "cache": "q8_0", "engine": "transformers"}}, "memory.cache is"),
        ({"memory": {"context": 8, "cache": "q8_0"}}, "memory.cache is a setting of llama.cpp"),
        ({"memory": {"context": 8}, "fits": "vllm"}, "memory tells nothing of vllm"),
        (
            {"memory": {"context": 8, "engine": "llama.cpp"}, "fits": "compressed-tensors"},
            "memory.engine=llama.cpp loads nothing that fits compressed-tensors",
        ),
    ],
)
def test_settings_of_another_engine_are_refused(space, said):
    with pytest.raises(ValidationError, match=said):
        SpaceConfig.model_validate(space)


@pytest.mark.parametrize("engine", ["auto", "transformers", "llama.cpp"])
def test_what_a_run_keeps_of_its_configuration_can_be_read_again(engine):
    config = SpaceConfig.model_validate({"drop": {}, "memory": {"context": 8, "engine": engine}})
    assert SpaceConfig.model_validate(config.model_dump(mode="json")) == config
